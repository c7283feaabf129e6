"""Which int8 recipe is taken, by what it does to the task's examples."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from bertfast_export.bundle import int8_search
from bertfast_export.contract import Options
from bertfast_export.graphs.quantized import Recipe

FAST, SLOW = Recipe("fast", 0.7), Recipe("slow", 0.5)


@pytest.fixture
def searched(monkeypatch):
    """searched(examples, agreement): what a search over two recipes finds and says; agreement(recipe, examples asked) is what each is to have.
    refused: graphs that the judge finds a fault in. What it finds is the graph in the place of a verdict's file."""
    monkeypatch.setattr(int8_search, "_ASKED", 10)
    monkeypatch.setattr(int8_search, "measure", lambda network, sample: {})
    monkeypatch.setattr(int8_search, "_sample", lambda evidence: [])
    monkeypatch.setattr(int8_search, "recipes", lambda network, statistics: [FAST, SLOW])
    monkeypatch.setattr(int8_search, "quantized_graph", lambda network, statistics, recipe, *_: recipe.name)

    def run(examples, agreement, refused=()):
        tried = lambda graph, recipe, network, evidence, rows: int8_search.Attempt(recipe, 1.0, agreement(recipe, len(rows[0])), 0.0)  # noqa: E731
        monkeypatch.setattr(int8_search, "_try", tried)
        said = []
        evidence = [SimpleNamespace(dataset=np.zeros(examples))]
        judged = lambda graph: SimpleNamespace(graph=graph, fault="the grid" if graph in refused else None)  # noqa: E731
        return int8_search.search(None, evidence, Options(), {}, said.append, judged), said

    return run


def test_the_fastest_recipe_that_keeps_its_promise_wins(searched):
    found, said = searched(8, lambda recipe, _: 0.99)
    assert found.verdict.graph == "fast" and [trial.recipe for trial in found.tried] == [FAST]
    assert said == ["int8: fast (100% of the work): 99.00% the same answers, 0.00 points of the metric lost, on all of the examples"]


def test_what_a_part_of_the_examples_says_is_held_against_all(searched):
    found, said = searched(40, lambda recipe, asked: 0.989 if (recipe, asked) == (FAST, 40) else 0.991)
    assert found.verdict.graph == "slow" and [(trial.recipe, trial.agreement) for trial in found.tried] == [(FAST, 0.989), (SLOW, 0.991)]
    assert [line.rpartition(", ")[2] for line in said] == ["on some of the examples", "on all of the examples"] * 2


def test_a_recipe_that_fails_on_a_part_is_not_tried_on_all(searched):
    found, said = searched(40, lambda recipe, asked: 0.98)
    assert found.verdict is None and found.outcome.startswith("none is written: of 2 recipes none keeps 99%") and len(said) == 2


@pytest.mark.parametrize(
    "agreement, milliseconds, graph",
    [
        pytest.param((0.996, 1.0), (4.0, 5.0), "fast", id="the-faster-of-two-that-answer-well"),
        pytest.param((0.996, 1.0), (5.0, 4.0), "slow", id="by-the-time-that-is-measured"),
        pytest.param((0.996, 1.0), (4.0, 4.1), "slow", id="of-two-times-alike-the-better-answers"),
        pytest.param((0.994, 0.996), (4.0, 8.0), "slow", id="answers-before-time"),
        pytest.param((0.991, 0.994), (4.0, 8.0), "slow", id="the-best-where-none-answers-well"),
        pytest.param((0.989, 0.996), (1.0, 8.0), "slow", id="never-one-that-breaks-the-promise"),
    ],
)
def test_time_chooses_among_those_that_keep_the_promise(agreement, milliseconds, graph, searched, monkeypatch):
    def timed(graphs, evidence):
        for attempt, _ in graphs:
            attempt.milliseconds = milliseconds[attempt.recipe is SLOW]

    monkeypatch.setattr(int8_search, "STARTS", (FAST, SLOW))
    monkeypatch.setattr(int8_search, "_time", timed)
    found, _ = searched(8, lambda recipe, _: agreement[recipe is SLOW])
    assert found.verdict.graph == graph and [trial.recipe for trial in found.tried] == [FAST, SLOW]


@pytest.mark.parametrize(
    "starts", [pytest.param((FAST, SLOW), id="of-those-asked-together"), pytest.param((FAST,), id="of-those-asked-later")]
)
def test_where_the_judge_refuses_a_recipe_the_next_is_asked(starts, searched, monkeypatch):
    monkeypatch.setattr(int8_search, "STARTS", starts)
    monkeypatch.setattr(int8_search, "_time", lambda graphs, evidence: None)
    found, said = searched(8, lambda recipe, _: 1.0, refused=["fast"])
    assert found.verdict.graph == "slow" and found.outcome == "slow: 100% of the work in int8"
    assert [(trial["recipe"], trial["fault"]) for trial in found.to_dict()["tried"]] == [("fast", "the grid"), ("slow", None)]
    assert "int8: fast: not taken; the grid" in said


def test_what_the_judge_refuses_is_the_reason_where_none_is_left(searched):
    found, _ = searched(8, lambda recipe, _: 0.98 if recipe is SLOW else 1.0, refused=["fast"])
    assert found.verdict is None and found.outcome == (
        "none is written: of 2 recipes the judge refuses each that keeps 99% of the answers and loses at most 0.5 points; the last: the grid"
    )


def test_a_recipe_that_does_not_answer_well_comes_last(monkeypatch):
    """It is not timed, and no time at all is not the shortest."""
    attempts = [
        int8_search.Attempt(Recipe(name), 1.0, agreement, 0.0) for name, agreement in (("fair", 0.994), ("fast", 0.996), ("slow", 0.997))
    ]

    def timed(graphs, evidence):
        for (attempt, _), took in zip(graphs, (4.0, 5.0), strict=True):
            attempt.milliseconds = took

    monkeypatch.setattr(int8_search, "_time", timed)
    assert [attempt.recipe.name for attempt in int8_search._ranked([(attempt, None) for attempt in attempts], [])] == [
        "fast",
        "slow",
        "fair",
    ]
