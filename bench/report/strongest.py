"""Who is beaten, and who is not: of each case the fastest peer, and bertfast's fastest beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from bench.harness.intervals import Ratio, fastest
from bench.report.rows import Row

OURS = "bertfast"


def pairs(rows: Sequence[Row], may_stand: Callable[[Row], bool] = lambda row: True) -> Iterator[tuple[str, Row, Row]]:
    """(case, the fastest peer, bertfast's fastest contender) of each case that has both; by the median of their seconds. may_stand: who counts."""
    for case in dict.fromkeys(row["case"] for row in rows):
        found = {row["contender"]: row for row in rows if row["case"] == case and may_stand(row)}
        seconds = {name: row["samples"] for name, row in found.items()}
        best = [fastest(seconds, (name for name in found if name.startswith(OURS) == ours)) for ours in (False, True)]
        if None not in best:
            yield case, found[best[0]], found[best[1]]


def ratio_between(ours: Row, peer: Row) -> str:
    """How many times as fast the first is, as its row holds it from the turns that the two took."""
    ratio = next((ratio for ratio in ours["ratios"] if ratio["to"] == peer["contender"]), None)
    return "not in one run" if ratio is None else str(Ratio.from_row(ratio))
