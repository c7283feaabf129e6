"""The search for an int8 recipe: the fastest one that gives the eager model's answers on the task's own data, or none.

What is asked first is the recipes with every product in int8. Of those that keep the promise the fastest on this machine is taken, as far as it
keeps `_WELL`; two whose times are alike are told apart by their answers. So time chooses among recipes that the data have passed, and no more. The
judge has the last word, on its grid too: scales measured on few texts may cut off what they do not hold. Where it refuses, the next recipe is asked.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from bertfast.tasks import compute_metrics
from bertfast_export.contract import Options
from bertfast_export.graphs import Network, Recipe, Statistics, int8_share, measure, product_names, quantized_graph, round_weights
from bertfast_export.judge import BUDGETS, Evidence, Verdict, agree, batches_of, run_cases
from bertfast_export.runtime import open_session

# n examples, C classes

_FILE = "model_quantized.onnx"
_SAMPLE = 256  # examples whose activations are measured
_ASKED = 2000  # examples, over all splits, that a recipe is tried on first; one that keeps its promise there is tried on all
_LEAST_SHARE = 0.4  # of the work in int8; below, eight-bit weights alone are tried
_WELL = 0.995  # the share of answers from which on speed counts more than answers
_ALIKE = 1.03  # two times within this factor are one
_ROUNDS, _TIMED_TOKENS = 9, 512
# Scales measured beforehand do for what comes from a norm, whose rows are all of one size: they save a pass over the inputs and one over the outputs.
STARTS = (
    Recipe("smoothing 0.7, fixed scales behind norms", 0.7, fixed=True),
    Recipe("smoothing 0.8, fixed scales behind norms", 0.8, fixed=True),
    Recipe("smoothing 0.7", 0.7),
    Recipe("smoothing 0.5", 0.5),
)
WEIGHTS_ALONE = Recipe("eight-bit weights alone", None, (), True)


@dataclass
class Attempt:
    """One recipe on the data."""

    recipe: Recipe
    share: float
    agreement: float
    points_lost: float | None
    milliseconds: float | None = None  # of one batch on this machine, where it was timed
    fault: str | None = None  # why the judge refused it, where it was asked and did

    @property
    def keeps(self) -> bool:
        """Whether it keeps the promise of `BUDGETS`."""
        budget = BUDGETS[_FILE]
        return self.agreement >= budget.agreement and (self.points_lost or 0.0) <= budget.metric + 1e-9

    def to_dict(self) -> dict[str, Any]:
        """For verification.json."""
        facts = {"recipe": self.recipe.name, "floats": list(self.recipe.floats), "int8_share": self.share}
        found = {"agreement": self.agreement, "points_lost": self.points_lost, "milliseconds": self.milliseconds}
        return {**facts, **found, "fault": self.fault}


@dataclass
class Recipes:
    """What a search came to: the verdict of the recipe that was taken, or None, and a line that says why."""

    outcome: str
    verdict: Verdict | None = None
    tried: list[Attempt] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For verification.json."""
        return {"outcome": self.outcome, "tried": [attempt.to_dict() for attempt in self.tried]}


def search(
    network: Network,
    evidence: list[Evidence],
    options: Options,
    metadata: Mapping[str, str],
    say: Callable[[str], None],
    judged: Callable[[onnx.ModelProto], Verdict],
) -> Recipes:
    """Try recipes on some of the examples, STARTS first, and the one to be taken on all; the first that keeps the promise there and has no fault by
    `judged`, which writes and judges its file, wins. Without data there is none."""
    if not evidence:
        return Recipes("none is written: without examples there is nothing to hold an int8 recipe against")
    statistics = measure(network, _sample(evidence))
    everything = [np.arange(len(part.dataset)) for part in evidence]
    some = [_spread(len(part.dataset), _ASKED // len(evidence)) for part in evidence]
    is_whole = all(len(rows) == len(part.dataset) for part, rows in zip(evidence, some, strict=True))
    tried: list[Attempt] = []

    def attempted(recipe: Recipe, graph: onnx.ModelProto, rows: list[np.ndarray]) -> Attempt:
        """Try a recipe on these rows; what is noted takes the place of what it came to on fewer."""
        attempt = _try(graph, recipe, network, evidence, rows)
        lost = "" if attempt.points_lost is None else f", {attempt.points_lost:.2f} points of the metric lost"
        of = "all" if is_whole or rows is everything else "some"
        say(
            f"int8: {recipe.name} ({attempt.share:.0%} of the work): {attempt.agreement:.2%} the same answers{lost}, on {of} of the examples"
        )
        earlier = next((other for other in tried if other.recipe == recipe), None)
        if earlier is None:
            tried.append(attempt)
        else:
            attempt.milliseconds, tried[tried.index(earlier)] = earlier.milliseconds, attempt
        return attempt

    for group in _groups(recipes(network, statistics)):
        graphs = {recipe: quantized_graph(network, statistics, recipe, options.opset, options.integers, metadata) for recipe in group}
        found = [attempted(recipe, graph, some) for recipe, graph in graphs.items()]
        for attempt in _ranked([(attempt, graphs[attempt.recipe]) for attempt in found if attempt.keeps], evidence):
            graph = graphs[attempt.recipe]
            if not is_whole:
                attempt = attempted(attempt.recipe, graph, everything)
            if not attempt.keeps:
                continue
            verdict = judged(graph)
            if verdict.fault is None:
                return Recipes(f"{attempt.recipe.name}: {attempt.share:.0%} of the work in int8", verdict, tried)
            attempt.fault = verdict.fault
            say(f"int8: {attempt.recipe.name}: not taken; {attempt.fault}")
    return Recipes(_none_of(tried), None, tried)


def _none_of(tried: list[Attempt]) -> str:
    """Why none of these is written."""
    budget, refused = BUDGETS[_FILE], [attempt for attempt in tried if attempt.fault is not None]
    keeping = f"{budget.agreement:.0%} of the answers and loses at most {budget.metric:g} points"
    if refused:
        return f"none is written: of {len(tried)} recipes the judge refuses each that keeps {keeping}; the last: {refused[-1].fault}"
    best = max(tried, key=lambda attempt: attempt.agreement)
    return f"none is written: of {len(tried)} recipes none keeps {keeping}; the best keeps {best.agreement:.2%}"


def _groups(every: Iterable[Recipe]) -> Iterator[list[Recipe]]:
    """Those of STARTS together, then each of the others alone."""
    for in_starts, members in itertools.groupby(every, lambda recipe: recipe in STARTS):
        group = list(members)
        yield from [group] if in_starts else ([recipe] for recipe in group)


def _ranked(keeping: list[tuple[Attempt, onnx.ModelProto]], evidence: list[Evidence]) -> list[Attempt]:
    """Recipes that keep the promise, the one to be taken first: those that answer well by their time, of like times the one
    with the better answers; then the others by their answers."""
    well = [found for found in keeping if found[0].agreement >= _WELL]
    if len(well) > 1:
        _time(well, evidence)
    least = min((attempt.milliseconds or 0.0 for attempt, _ in well), default=0.0)

    def rank(attempt: Attempt) -> tuple[bool, float, float]:
        took = attempt.milliseconds or 0.0
        return attempt.agreement < _WELL, took if took > _ALIKE * least else 0.0, -attempt.agreement

    return sorted((attempt for attempt, _ in keeping), key=rank)


def _time(graphs: list[tuple[Attempt, onnx.ModelProto]], evidence: list[Evidence]) -> None:
    """The median time of one batch of examples on one core, the recipes in turn."""
    part = evidence[0].dataset
    rows = _spread(len(part), max(1, int(_TIMED_TOKENS / max(float(np.mean(part.lengths)), 1.0))))
    _, features = next(iter(batches_of(part, len(rows), rows)))
    sessions = [open_session(graph.SerializeToString(), threads=1) for _, graph in graphs]
    taken = np.zeros((_ROUNDS + 1, len(graphs)))
    for turn in range(_ROUNDS + 1):
        for place, session in enumerate(sessions):
            begin = time.perf_counter()
            run_cases(session, features)
            taken[turn, place] = time.perf_counter() - begin
    for (attempt, _), seconds in zip(graphs, np.median(taken[1:], axis=0), strict=True):
        attempt.milliseconds = 1e3 * float(seconds)


def recipes(network: Network, statistics: Mapping[str, Statistics]) -> Iterator[Recipe]:
    """Recipes from the fastest on: all products in int8, then with ever more of the noisiest in float32, then weights alone."""
    yield from STARTS
    names, careful = noisiest(network, statistics), STARTS[2]
    for count in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32):
        recipe = careful.without(tuple(names[:count]))
        if count < len(names) and int8_share(network, recipe) >= _LEAST_SHARE:
            yield recipe
    yield WEIGHTS_ALONE


def noisiest(network: Network, statistics: Mapping[str, Statistics]) -> list[str]:
    """The products, the one first whose rounded weights disturb its own outputs most, as a share of them."""

    def disturbance(name: str) -> float:
        weight, gram = network.weights[f"{name}.weight"].astype(np.float64), statistics[name].gram.astype(np.float64)
        reach = np.maximum(np.abs(statistics[name].least), np.abs(statistics[name].largest))
        rounded, scale = round_weights(weight, statistics[name].gram)
        error = weight - rounded * scale
        rows = max(float(np.trace(gram)), 1e-12)
        noise = float(np.sum(error * (gram @ error))) / rows + float(np.mean(reach**2)) * float(np.sum(weight**2)) / 255**2 / len(weight)
        return noise / max(float(np.sum(weight * (gram @ weight))) / rows, 1e-12)

    return sorted(product_names(network), key=disturbance, reverse=True)


def _sample(evidence: list[Evidence]) -> list[dict[str, np.ndarray]]:
    """Padded features of examples spread evenly over the splits."""
    batches = []
    for part in evidence:
        rows = _spread(len(part.dataset), _SAMPLE // len(evidence))
        batches += [features for _, features in batches_of(part.dataset, 16, rows)]
    return batches


def _spread(n: int, count: int) -> np.ndarray:
    """At most `count` of n rows, evenly."""
    return np.unique(np.linspace(0, n - 1, min(n, max(count, 1))).astype(np.int64))


def _try(graph: onnx.ModelProto, recipe: Recipe, network: Network, evidence: list[Evidence], chosen: list[np.ndarray]) -> Attempt:
    """A recipe on these rows of each split, of which the worst counts."""
    session = open_session(graph.SerializeToString())
    agreement, lost = 1.0, []
    for part, rows in zip(evidence, chosen, strict=True):
        expected = part.logits[rows]
        given = np.zeros_like(expected)
        places = {int(row): place for place, row in enumerate(rows)}
        for batch, features in batches_of(part.dataset, 32, rows):
            given[[places[int(row)] for row in batch]] = run_cases(session, features)
        agreement = min(agreement, float(agree(given, expected, part.dataset.task, part.calibration).mean()))
        if part.dataset.labels is not None:
            task, labels = part.dataset.task, part.dataset.labels[rows]
            before, after = (
                compute_metrics(task, logits, labels)[task.main_metric] if np.isfinite(logits).all() else 0.0
                for logits in (expected, given)
            )
            lost.append(100 * (before - after))
    return Attempt(recipe, int8_share(network, recipe), agreement, max(lost) if lost else None)
