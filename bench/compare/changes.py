"""What got slower between two runs: rows matched by suite, case and contender, and the ratio of each pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bench.harness.intervals import Ratio, unpaired_ratio
from bench.report.rows import Row

Key = tuple[str, str, str]


class Change(NamedTuple):
    """How many times as fast the new row is. against: the peer whose time both are relative to, or None."""

    key: Key
    ratio: Ratio
    against: str | None

    @property
    def verdict(self) -> str:
        return "same" if self.ratio.is_tie else "SLOWER" if self.ratio.high < 1 else "faster"


def compare(old: Sequence[Row], new: Sequence[Row]) -> tuple[list[Change], list[str]]:
    """The changes, the slowest first; and what could not be compared, with the reason."""
    before, after = _timed(old), _timed(new)
    changes, left_out = (
        [],
        [f"{', '.join(key)}: only in the {'new' if key in after else 'old'} rows" for key in sorted(before.keys() ^ after.keys())],
    )
    for key in before.keys() & after.keys():
        peer = _common_peer(key, before, after)
        if peer is None and before[key].get("device") != after[key].get("device"):
            left_out.append(f"{', '.join(key)}: measured on two devices, with no peer beside it on both")
            continue
        changes.append(Change(key, unpaired_ratio(_relative(key, peer, before), _relative(key, peer, after)), peer))
    return sorted(changes, key=lambda change: change.ratio.value), sorted(left_out)


def _timed(rows: Sequence[Row]) -> dict[Key, Row]:
    """The rows with samples, by suite, case and contender; of two with one key the later."""
    return {(row["suite"], str(row.get("case", row.get("measure", ""))), row["contender"]): row for row in rows if row.get("samples")}


def _common_peer(key: Key, before: dict[Key, Row], after: dict[Key, Row]) -> str | None:
    for ratio in before[key].get("ratios", []):
        peer = (key[0], key[1], ratio["to"])
        pairs = ((rows[key], rows[peer]) for rows in (before, after) if peer in rows)
        if not key[2].startswith("transformers") and [len(row["samples"]) == len(beside["samples"]) for row, beside in pairs] == [
            True,
            True,
        ]:
            return ratio["to"]
    return None


def _relative(key: Key, peer: str | None, rows: dict[Key, Row]) -> np.ndarray:
    own = np.array(rows[key]["samples"], dtype=np.float64)
    return own if peer is None else own / np.array(rows[key[0], key[1], peer]["samples"], dtype=np.float64)
