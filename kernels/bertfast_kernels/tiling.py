"""Every launch heuristic of the kernels, as pure functions of shapes and of what the device is: CPU tests can read them.

No function looks at the number of tokens to choose a block size: T changes every step, and a block size is a compilation.
"""

from __future__ import annotations

from typing import NamedTuple


class RowTile(NamedTuple):
    """A tile of whole rows: rows in the tile, columns (a power of 2, at least the row), and the warps that work on it."""

    rows: int
    columns: int
    num_warps: int


def next_power_of_2(n: int) -> int:
    """The smallest power of 2 that is at least n (n >= 1)."""
    return 1 << (n - 1).bit_length()


def row_tile(columns: int) -> RowTile:
    """The tile of a kernel that keeps whole rows in registers: about 1,024 elements, 4 a thread."""
    width = max(next_power_of_2(columns), 16)
    rows = max(1, 1024 // width)
    return RowTile(rows, width, min(max(rows * width // 128, 1), 16))
