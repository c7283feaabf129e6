"""The search for an int8 recipe for OpenVINO: static scales, tried on OpenVINO itself; the one with most of the eager model's answers among the fastest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx

from bertfast_export.contract import verdict_name
from bertfast_export.graphs import Network, Recipe, Statistics, evenness, int8_share, ir_of, measure, openvino_graph, product_names
from bertfast_export.judge import BUDGETS, Answers, Case, Evidence, Verdict, batches_of, judge_session, make_cases, sampled
from bertfast_export.openvino_runtime import open_openvino

_SAMPLE = 512  # examples whose activations are measured
_ASKED = 2000  # examples, over all splits, that a recipe is tried on
_WANTED = 0.995  # of the answers: the search goes on below, though a bundle takes what keeps its budget
_OTHER_SEED, _MADE_UP = 21, 600  # of made-up batches whose activations are measured: not the grid's own; and tokens of each at most
_LEAST_SHARE = 0.4  # of the work in int8
_STRENGTHS = (0.92, 0.85)
_MADE_UP_SHARES = (0.3, 0.0)  # of made-up batches, beside real examples, in the second moments by which weights are rounded


@dataclass
class Found:
    """What a search came to: the graph, or None, and a line that says why."""

    outcome: str
    graph: onnx.ModelProto | None = None
    tried: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For verification.json."""
        return {"outcome": self.outcome, "tried": self.tried}


def search(
    network: Network, cases: list[Case], answers: Answers, evidence: list[Evidence], integers: str, say: Callable[[str], None]
) -> Found:
    """Recipes from the fastest on, each held by the judge to the grid and to examples: all products in int8 first, of which that with most of the answers
    counts; then with ever more of the noisiest in float. The first with 99.5 % of the answers wins, or else the best that keeps its budget. Where it was
    tried on a part of the examples it must keep its budget on all of them, or the next one is taken."""
    if not evidence:
        return Found("none is written: without examples there is nothing to hold an int8 recipe against")
    statistics = _statistics(network, evidence)
    some = [sampled(part, _ASKED // len(evidence)) for part in evidence]
    is_part = any(len(few.logits) < len(part.logits) for few, part in zip(some, evidence, strict=True))
    found = Found("")
    kept: list[_Kept] = []

    def judged(graph: onnx.ModelProto, examples: list[Evidence]) -> Verdict:
        verdict = Verdict(verdict_name("openvino-int8"), BUDGETS[verdict_name("openvino-int8")])
        judge_session(open_openvino(ir_of(graph, {}), "f32"), cases, answers, examples, verdict)
        return verdict

    def take(least: float) -> bool:
        """Take the first of those kept that has so many of the answers, and holds on all examples."""
        kept.sort(key=lambda attempt: -attempt.agreement)
        while kept and kept[0].agreement >= least:
            best = kept.pop(0)
            fault = judged(best.graph, evidence).fault if is_part else None
            if fault is None:
                found.outcome, found.graph = f"{best.recipe.name}: {int8_share(network, best.recipe):.0%} of the work in int8", best.graph
                return True
            found.tried[best.number]["fault"] = fault
            say(f"OpenVINO int8: {best.recipe.name}: not on all of the examples: {fault}")
        return False

    for round_of_one_speed in _recipes(network, statistics):
        for recipe, seen in round_of_one_speed:
            graph = openvino_graph(network, integers, seen, recipe)
            verdict = judged(graph, some)
            agreement = min((part["agreement"] for part in verdict.data.values()), default=None)
            if verdict.fault is None and agreement is not None:
                kept.append(_Kept(agreement, recipe, graph, len(found.tried)))
            found.tried.append(
                {
                    "recipe": recipe.name,
                    "floats": list(recipe.floats),
                    "int8_share": int8_share(network, recipe),
                    "agreement": agreement,
                    "points_lost": max((part["points_lost"] for part in verdict.data.values() if "points_lost" in part), default=None),
                    "fault": verdict.fault,
                }
            )
            answers_said = "the grid is out of budget" if agreement is None else f"{agreement:.2%} the same answers"
            over = ", out of budget" if agreement is not None and verdict.fault is not None else ""
            say(f"OpenVINO int8: {recipe.name} ({int8_share(network, recipe):.0%} of the work): {answers_said}{over}")
        if take(_WANTED):
            return found
    if not take(0.0):
        found.outcome = f"none is written: of {len(found.tried)} recipes none keeps its budget; the last: {found.tried[-1]['fault']}"
    return found


class _Kept(NamedTuple):
    """A recipe that keeps its budget on what it was tried on; number: its place among the tried."""

    agreement: float
    recipe: Recipe
    graph: onnx.ModelProto
    number: int


def _statistics(network: Network, evidence: list[Evidence]) -> dict[float, dict[str, Statistics]]:
    """Of inputs to each product, by _MADE_UP_SHARES: the bounds hold made-up batches too, so that a text unlike the examples is not cut off by whole
    logits; and the second moments so much of them."""
    real = measure(network, [features for part in evidence for features in _sample(part, _SAMPLE // len(evidence))])
    cases = [case.features for case in make_cases(network.config, _OTHER_SEED) if case.features["input_ids"].size <= _MADE_UP]
    wide = measure(network, [_with_tokens(features) for features in cases if features["attention_mask"].any()])
    bounds = {name: (np.minimum(seen.least, wide[name].least), np.maximum(seen.largest, wide[name].largest)) for name, seen in real.items()}
    return {
        share: {name: Statistics(*bounds[name], seen.gram + share * wide[name].gram) for name, seen in real.items()}
        for share in _MADE_UP_SHARES
    }


def _with_tokens(features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows that have a token."""
    rows = features["attention_mask"].any(axis=1)
    return {name: values[rows] for name, values in features.items()}


def _sample(part: Evidence, count: int) -> Iterator[dict[str, np.ndarray]]:
    rows = np.unique(np.linspace(0, len(part.dataset) - 1, min(len(part.dataset), count)).astype(np.int64))
    for _, features in batches_of(part.dataset, 16, rows):
        yield features


def _recipes(network: Network, statistics: Mapping[float, dict[str, Statistics]]) -> Iterator[list[tuple[Recipe, dict[str, Statistics]]]]:
    """Rounds of recipes that are equally fast, each with the statistics that it goes by."""
    yield [
        (Recipe(f"smoothing {strength:g}, {share:.0%} of made-up batches in the rounding", strength), seen)
        for strength in _STRENGTHS
        for share, seen in statistics.items()
    ]
    share, seen = next(iter(statistics.items()))
    start = Recipe(f"smoothing {_STRENGTHS[0]:g}, {share:.0%} of made-up batches in the rounding", _STRENGTHS[0])
    names = _noisiest(network, seen, start)
    for count in (1, 2, 3, 4, 6, 8, 12):
        recipe = start.without(tuple(names[:count]))
        if count < len(names) and int8_share(network, recipe) >= _LEAST_SHARE:
            yield [(recipe, seen)]


def _noisiest(network: Network, statistics: Mapping[str, Statistics], recipe: Recipe) -> list[str]:
    """The products, the one first whose inputs, rounded to 256 levels, disturb its outputs most, as a share of them."""

    def disturbance(name: str) -> float:
        weight, seen = network.weights[f"{name}.weight"].astype(np.float64), statistics[name]
        even = evenness(network, seen, recipe, name)
        step = float((seen.largest / even).max() - (seen.least / even).min()) / 255
        noise = step**2 / 12 * float(np.sum((weight * even[:, None]) ** 2))
        gram = seen.gram.astype(np.float64)
        return noise / max(float(np.sum(weight * (gram @ weight))) / max(float(np.trace(gram)), 1e-12), 1e-12)

    return sorted(product_names(network), key=disturbance, reverse=True)
