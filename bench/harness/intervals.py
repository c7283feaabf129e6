"""What can be said of two contenders' times, and what cannot: ratios with confidence intervals, and ties.

Contenders take turns, so that the two times of a round share the machine's state; the ratio is that of one round with itself. The estimate is the
median of the means of all pairs of log ratios (Hodges and Lehmann 1963), and its interval comes from the Wilcoxon signed-rank distribution: exact
where swapping two identical contenders changes nothing, whatever the distribution, and hardly moved by an outlier. Rounds that follow one another
are not quite independent: where their ranks are correlated, the interval is widened as for so many fewer rounds. An interval that covers 1 is a
tie, and a tie has no ratio to print.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

CONFIDENCE = 0.99  # of each interval; some twenty stand in a table, and all of them should hold
MIN_ROUNDS = 8  # with fewer, no interval of this confidence exists
_EXACT_ROUNDS = 80  # beyond, the signed-rank distribution is as good as normal


class Ratio(NamedTuple):
    """How many times as fast one contender is as another (base time / its time): the estimate and its interval."""

    value: float
    low: float
    high: float
    rounds: int

    @property
    def is_tie(self) -> bool:
        return not (self.low > 1.0 or self.high < 1.0)  # so that NaN is a tie too

    def __str__(self) -> str:
        if self.rounds < MIN_ROUNDS:
            return f"no ratio ({self.rounds} rounds)"
        return f"tie [{self.low:.2f}, {self.high:.2f}]" if self.is_tie else f"{self.value:.2f}x [{self.low:.2f}, {self.high:.2f}]"

    def to_row(self, base: str) -> dict[str, Any]:
        """As a row holds it. A tie has no value; too few rounds have no interval either."""
        known = self.rounds >= MIN_ROUNDS
        return {
            "to": base,
            "value": None if self.is_tie else round(self.value, 4),
            "low": round(self.low, 4) if known else None,
            "high": round(self.high, 4) if known else None,
            "confidence": CONFIDENCE,
            "rounds": self.rounds,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Ratio:
        """The reverse of `to_row`."""
        low, high = (math.nan if row[name] is None else row[name] for name in ("low", "high"))
        return cls(math.nan if row["value"] is None else row["value"], low, high, row["rounds"])


def paired_ratio(base: Sequence[float], other: Sequence[float]) -> Ratio:
    """How many times as fast `other` is as `base`; base[i] and other[i] are seconds of the same work in the same round.

    Raises:
        ValueError: the two are not of one length, or a time is not positive.
    """
    logs = np.log(_times(base)) - np.log(_times(other)) if len(base) == len(other) else None
    if logs is None:
        raise ValueError(f"{len(base)} times of one contender and {len(other)} of the other are no pairs")
    centre, low, high = _signed_rank_interval(logs)
    widen = _widening(logs)
    low, high = centre - (centre - low) * widen, centre + (high - centre) * widen
    return Ratio(*(float(np.exp(value)) for value in (centre, low, high)), len(logs))


def unpaired_ratio(base: Sequence[float], other: Sequence[float]) -> Ratio:
    """The same for times of two separate runs: all differences of logs, with the interval of the Mann-Whitney distribution.

    What differs between the runs as a whole (the machine's other work, say) is not in the interval.
    """
    a, b = np.log(_times(base)), np.log(_times(other))
    n, m = len(a), len(b)
    differences = np.sort((a[:, None] - b[None, :]).ravel())
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    widen = max(_widening(a), _widening(b))
    spread = z * math.sqrt(n * m * (n + m + 1) / 12) * widen
    cut = math.floor(n * m / 2 - spread)
    known = cut >= 0 and min(n, m) >= 4
    low, high = (differences[cut], differences[-1 - cut]) if known else (-np.inf, np.inf)
    values = (float(np.exp(value)) for value in (np.median(differences), low, high))
    return Ratio(*values, min(n, m) if not known else max(min(n, m), MIN_ROUNDS))


def _times(values: Sequence[float]) -> np.ndarray:
    times = np.asarray(values, dtype=np.float64)
    if not (len(times) and (times > 0).all() and np.isfinite(times).all()):
        raise ValueError("times must be positive, finite numbers, one or more")
    return times


def _signed_rank_interval(values: np.ndarray) -> tuple[float, float, float]:
    """The Hodges-Lehmann estimate of the centre, and its interval; infinite where there are too few values for one."""
    n = len(values)
    first, second = np.triu_indices(n)
    means = np.sort((values[first] + values[second]) / 2)
    centre = float(np.median(means))
    if n < MIN_ROUNDS:
        return centre, -math.inf, math.inf
    cut = _signed_rank_cut(n)
    return centre, float(means[cut]), float(means[-1 - cut])


def _signed_rank_cut(n: int) -> int:
    """How many of the smallest (and of the largest) pair means lie outside the interval.

    A centre with k pair means below it has the statistic k, and is rejected where a sum of at most k has a chance of half of 1 - CONFIDENCE.
    """
    tail = (1 - CONFIDENCE) / 2
    if n > _EXACT_ROUNDS:
        deviation = math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        return math.floor(n * (n + 1) / 4 + NormalDist().inv_cdf(tail) * deviation)
    chances = np.ones(1)
    for rank in range(1, n + 1):  # each rank is added to the sum with chance 1/2
        wider = np.zeros(len(chances) + rank)
        wider[: len(chances)] += chances / 2
        wider[rank:] += chances / 2
        chances = wider
    return int(np.searchsorted(np.cumsum(chances), tail, side="right")) - 1


def _widening(values: np.ndarray) -> float:
    """How much wider an interval must be than for independent rounds: by the lag-one correlation of their ranks, where it is positive."""
    if len(values) < MIN_ROUNDS or np.ptp(values) == 0:
        return 1.0
    ranks = np.argsort(np.argsort(values)).astype(np.float64)
    ranks -= ranks.mean()
    correlation = min(max(float(ranks[1:] @ ranks[:-1] / (ranks @ ranks)), 0.0), 0.8)
    return math.sqrt((1 + correlation) / (1 - correlation))


def turns(names: Sequence[str], index: int) -> list[str]:
    """The order of round `index`: every second round goes backwards, and each two rounds begin one further, so that none is always behind the same."""
    shift = (index // 2) % max(len(names), 1)
    order = [*names[shift:], *names[:shift]]
    return order[::-1] if index % 2 else order


def take_turns(runs: Mapping[str, Callable[[int], float]], rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of every contender, a list of `rounds`: run(index) does the work of round `index` and says how long it took.

    `index` is negative in the rounds of warming up, which are not kept.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for index in range(-warm_up, rounds):
        for name in turns(names, index + warm_up):
            taken = runs[name](index)
            if index >= 0:
                seconds[name].append(taken)
    return seconds


def timing_rows(common: Mapping[str, Any], seconds: Mapping[str, Sequence[float]], bases: Sequence[str]) -> list[dict[str, Any]]:
    """One row a contender: quartiles of its seconds, the samples themselves, and its ratio to each base that is there and is not itself."""
    rows = []
    for name, taken in seconds.items():
        ratios = [paired_ratio(seconds[base], taken).to_row(base) for base in bases if base in seconds and base != name]
        middle = [significant(value) for value in np.percentile(taken, [25, 50, 75])]
        rows.append({**common, "contender": name, "seconds": middle, "ratios": ratios, "samples": [significant(value) for value in taken]})
    return rows


def fastest(seconds: Mapping[str, Sequence[float]], names: Iterable[str]) -> str | None:
    """The one of these contenders with the least median; None where none of them is there."""
    there = [name for name in names if name in seconds]
    return min(there, key=lambda name: float(np.median(seconds[name]))) if there else None


def significant(value: float, digits: int = 5) -> float:
    """Rounded to so many significant digits."""
    return float(f"{value:.{digits}g}")
