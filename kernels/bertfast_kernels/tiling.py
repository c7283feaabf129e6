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


class BlockTile(NamedTuple):
    """A tile of a wide matrix: some rows, some columns (a power of 2), and the warps that work on it."""

    rows: int
    columns: int
    num_warps: int


def next_power_of_2(n: int) -> int:
    """The smallest power of 2 that is at least n (n >= 1)."""
    return 1 << (n - 1).bit_length()


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def vector_columns(element_size: int) -> int:
    """Neighbouring columns in one 16-byte load: 8 of a 16-bit dtype, 4 of float32."""
    return 16 // element_size


def row_tile(columns: int) -> RowTile:
    """Forward kernels that keep whole rows in registers: 32 elements a thread, so that a warp alone reduces a row of up to 1,024 columns.

    Rows are then reduced by shuffles within the warp, with no barrier; 32 such programs fill a multiprocessor.
    """
    width = max(next_power_of_2(columns), 16)
    return RowTile(max(1, 1024 // width), width, min(max(width // 1024, 1), 16))


def row_grad_tile(columns: int) -> RowTile:
    """Backward kernels that walk over rows and keep sums over rows in registers: 8 elements a thread for each sum, whole rows side by side."""
    width = max(next_power_of_2(columns), 16)
    rows = max(1, 2048 // width)
    return RowTile(rows, width, min(max(rows * width // 256, 1), 16))


def walking_programs(n_rows: int, rows: int, num_warps: int, multiprocessors: int) -> int:
    """Programs of a kernel that walks over rows: 16 warps a multiprocessor, no more programs than tiles."""
    return max(1, min(cdiv(n_rows, rows), multiprocessors * max(1, 16 // num_warps)))


def block_tile(columns: int) -> BlockTile:
    """Elementwise kernels with a vector along the columns: 8 neighbouring columns a thread, 4 rows of them.

    The widest power of 2 from 256 to 1,024 that wastes no column; where none divides them, 256, or all columns where they are fewer.
    """
    width = next((size for size in (1024, 512, 256) if columns % size == 0), min(256, max(next_power_of_2(columns), 16)))
    return BlockTile(4, width, max(width // 256, 1))


def walking_blocks(n_rows: int, columns: int, tile: BlockTile, multiprocessors: int) -> int:
    """Row programs a column block of a kernel that walks down the rows: 32 warps a multiprocessor over all column blocks."""
    wanted = cdiv(multiprocessors * max(1, 32 // tile.num_warps), cdiv(columns, tile.columns))
    return max(1, min(cdiv(n_rows, tile.rows), wanted))
