"""Every launch heuristic of the kernels, as pure functions of shapes and of what the device is: CPU tests can read them.

No function looks at the number of tokens to choose a block size: T changes every step, and a block size is a compilation.
"""

from __future__ import annotations

from typing import NamedTuple


class RowTile(NamedTuple):
    """A tile of whole rows, each cut into pieces of a power of 2: rows, columns of a piece, pieces (columns * pieces is at least the row), warps."""

    rows: int
    columns: int
    pieces: int
    num_warps: int


class WalkTile(NamedTuple):
    """How a kernel walks down the rows with sums over rows in its registers: a RowTile, or of a wide matrix rows and one piece of its columns.

    num_stages: of the loop's loads, 1 for none ahead. maxnreg: the most registers of a thread, None for what the compiler takes. programs: of a
    multiprocessor.
    """

    rows: int
    columns: int
    pieces: int
    num_warps: int
    programs: int
    num_stages: int = 1
    maxnreg: int | None = None

    def options(self) -> dict[str, int]:
        """What a launch is told. Only NVIDIA's compiler knows maxnreg, so it is named only where it limits."""
        return {"num_warps": self.num_warps} | ({} if self.maxnreg is None else {"maxnreg": self.maxnreg})


class BlockTile(NamedTuple):
    """A tile of a wide matrix: some rows, some columns (a power of 2), and the warps that work on it."""

    rows: int
    columns: int
    num_warps: int


class SumTile(NamedTuple):
    """How rows of the same id are added up: rows at a time, columns (a power of 2), warps, and the places of a chunk, one program's at the most.

    walks: a program walks over a whole chunk, a place at a time, and `rows` is that of the kernel that joins chunks. num_stages: of that loop.
    """

    rows: int
    columns: int
    num_warps: int
    chunk: int
    walks: bool = False
    num_stages: int = 1


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
    """Forward kernels that keep whole rows in registers: at most 32 elements a thread, so that a warp alone reduces a row of up to 1,024 columns.

    Rows are then reduced by shuffles within the warp, with no barrier; four warps make a program, which on an H100 is 5 to 9 % quicker than one. A row of
    up to 3/4 of a power of 2 takes three quarters of it, not all: 768 columns are 3 pieces of 256.
    """
    width = max(next_power_of_2(columns), 16)
    rows, num_warps = max(1, 1024 // width), min(max(width // 1024, 1), 16)
    if num_warps == 1:
        rows, num_warps = 4 * rows, 4
    if columns <= 3 * width // 4 and width >= 64:
        return RowTile(rows, width // 4, 3, num_warps)
    return RowTile(rows, width, 1, num_warps)


_FEW_ROWS = 4096


def row_grad_tile(columns: int, n_rows: int) -> WalkTile:
    """Backward kernels that walk over rows and keep sums over rows in registers: a row at a time, each thread with 8 elements of each of 2 or 3 pieces.

    Up to 768 columns of a 16-bit dtype a row is one warp's, which needs no barrier, and neither do its sums over rows; from there on neighbouring warps
    share a row. A thread takes 180 to 255 registers, so that 8 warps fill a multiprocessor. Few rows are done by half of them: each program leaves sums to be
    added up. On an H100, 768 columns with dropout: 1,216 rows take 14.9 us so (8 rows and 8 warps a program: 31.7), and 16,384 rows 60.7 us (78.8), where the
    next row's loads are under way too.
    """
    width = max(next_power_of_2(columns), 16)
    piece, pieces = (width // 4, 3) if columns <= 3 * width // 4 else (width // 2, 2)
    if width < 64 or (width <= 256 and pieces == 2):
        piece, pieces = width, 1
    num_warps = min(max(piece // 256, 1), 16)
    few = n_rows <= _FEW_ROWS
    return WalkTile(max(1, 256 // piece), piece, pieces, num_warps, max(1, (4 if few else 8) // num_warps), 1 if few else 2)


def walking_programs(n_rows: int, tile: WalkTile, multiprocessors: int) -> int:
    """Programs of a kernel that walks over whole rows: as many as the multiprocessors hold, no more than tiles."""
    return max(1, min(cdiv(n_rows, tile.rows), multiprocessors * tile.programs))


def block_tile(columns: int) -> BlockTile:
    """Elementwise kernels with a vector along the columns: 8 neighbouring columns a thread, 4 rows of them.

    The widest power of 2 from 256 to 1,024 that wastes no column; where none divides them, 256, or all columns where they are fewer.
    """
    width = next((size for size in (1024, 512, 256) if columns % size == 0), min(256, max(next_power_of_2(columns), 16)))
    return BlockTile(4, width, max(width // 256, 1))


def block_grad_tile(columns: int) -> WalkTile:
    """The walking form of block_tile: 32 warps a multiprocessor, and two rows at a time, which takes 56 registers a thread, so that they all fit: on an H100
    16,384 x 3,072 take 113 us so, and 126 by four rows in 80 registers."""
    tile = block_tile(columns)
    return WalkTile(2, tile.columns, 1, tile.num_warps, max(1, 32 // tile.num_warps))


def walking_blocks(n_rows: int, columns: int, tile: WalkTile, multiprocessors: int) -> int:
    """Row programs a column block of a kernel that walks down the rows; over all column blocks, as many as the multiprocessors hold."""
    wanted = cdiv(multiprocessors * tile.programs, cdiv(columns, tile.columns))
    return max(1, min(cdiv(n_rows, tile.rows), wanted))


def class_tile(classes: int) -> BlockTile:
    """Cross entropy: many rows of a few classes, or one row of a vocabulary, 4,096 columns at a time."""
    width = min(max(next_power_of_2(classes), 2), 4096)
    return BlockTile(max(1, 256 // width), width, 8 if width == 4096 else max(1, min(width // 256, 4)))


def embedding_sum_tile(columns: int) -> SumTile:
    """Sums of token gradients into table rows: 8 tokens at a time, 256 columns; chunks of 128 places, so that few rows cross and none is long."""
    return SumTile(8, min(max(next_power_of_2(columns), 16), 256), 2, 128)
