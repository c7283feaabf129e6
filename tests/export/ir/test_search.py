"""Which int8 recipe for OpenVINO is taken: by the answers on some of the examples, and on all of them."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("openvino")

from bertfast_export.graphs.quantized import Recipe
from bertfast_export.ir import search as searching

FAST, ALIKE, SLOW = Recipe("fast", 0.92), Recipe("alike", 0.85), Recipe("slow", 0.92)


@pytest.fixture
def searched(monkeypatch):
    """searched(examples, agreement): the graph that a search over a round of two recipes and one of a third takes, and all that it found.
    agreement(recipe, examples asked) is what each is to have, and 0.99 is in budget."""
    monkeypatch.setattr(searching, "_ASKED", 10)
    monkeypatch.setattr(searching, "_statistics", lambda *_: {})
    monkeypatch.setattr(searching, "_recipes", lambda *_: [[(FAST, {}), (ALIKE, {})], [(SLOW, {})]])
    monkeypatch.setattr(searching, "openvino_graph", lambda network, integers, seen, recipe: recipe.name)
    monkeypatch.setattr(searching, "ir_of", lambda graph, facts: graph)
    monkeypatch.setattr(searching, "open_openvino", lambda ir, precision: ir)
    monkeypatch.setattr(searching, "int8_share", lambda *_: 1.0)
    monkeypatch.setattr(searching, "sampled", lambda part, count: SimpleNamespace(logits=part.logits[:count]))

    def run(examples, agreement):
        def judge(name, cases, answers, evidence, verdict):
            verdict.data["dev"] = {"agreement": agreement(name, len(evidence[0].logits))}
            verdict.fault = None if verdict.data["dev"]["agreement"] >= 0.99 else "too few answers"

        monkeypatch.setattr(searching, "judge_session", judge)
        found = searching.search(None, [], None, [SimpleNamespace(logits=np.zeros((examples, 2)))], "int64", lambda line: None)
        return found.graph, found

    return run


def test_of_recipes_equally_fast_the_one_with_most_answers_wins(searched):
    graph, found = searched(8, lambda name, _: {"fast": 0.996, "alike": 0.998, "slow": 1.0}[name])
    assert graph == "alike" and [attempt["recipe"] for attempt in found.tried] == ["fast", "alike"]


def test_below_what_is_wanted_the_search_goes_on_and_the_best_of_all_wins(searched):
    graph, found = searched(8, lambda name, _: {"fast": 0.993, "alike": 0.98, "slow": 0.992}[name])
    assert graph == "fast" and len(found.tried) == 3 and found.outcome.startswith("fast: 100% of the work")


def test_what_a_part_of_the_examples_says_is_held_against_all(searched):
    on_all = {"fast": 0.97, "alike": 0.98, "slow": 0.991}
    graph, found = searched(40, lambda name, asked: on_all[name] if asked == 40 else 0.999)
    assert graph == "slow" and [attempt["fault"] for attempt in found.tried] == ["too few answers", "too few answers", None]
    graph, found = searched(40, lambda name, asked: 0.9 if asked == 40 else 0.992)
    assert graph is None and found.outcome == "none is written: of 3 recipes none keeps its budget; the last: too few answers"


def test_without_examples_there_is_none():
    assert "without examples" in searching.search(None, [], None, [], "int64", print).outcome
