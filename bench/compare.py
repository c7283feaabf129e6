"""What got slower between two runs of the suites.

    python -m bench.compare OLD NEW

OLD, NEW: files of rows, or folders of them. Rows are matched by suite, case and contender. Where both files time the same peer beside a contender, its
time is taken relative to the peer's, round by round, so that another machine state on another day counts for less; else seconds are compared as they
are. Exit code 1: something got slower, that is, its whole 99 % interval lies under 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.intervals import Ratio, unpaired_ratio
from bench.report import read_rows

Row = dict[str, Any]
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


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args(words)
    old, new = (read_rows(sorted(path.glob("*.jsonl")) if path.is_dir() else [path]) for path in (options.old, options.new))
    changes, left_out = compare(old, new)
    for change in changes:
        beside = f"  (relative to {change.against})" if change.against else ""
        print(f"{change.verdict:7s} {change.ratio!s:28s} {', '.join(change.key)}{beside}")
    for line in left_out:
        print(f"not compared: {line}")
    slower = [change for change in changes if change.verdict == "SLOWER"]
    print(f"{len(slower)} of {len(changes)} got slower; as many as {len(changes) / 100:.1f} would be called so, or faster, by chance")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
