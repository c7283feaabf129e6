"""The sweep of the kernels that work on rows: LayerNorm, GELU, the sums over rows, and those of the embeddings' gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from bench.cases.kernel_cases import DTYPE, EPS, Maker
from bench.sweep.candidates import Case, Change, Recorded
from bertfast_kernels import gelu, layer_norm
from bertfast_kernels.primitives.lazy_triton import record_launches
from bertfast_kernels.primitives.partials import sum_partials
from bertfast_kernels.primitives.tables import sum_into_table
from bertfast_kernels.tiling import SumTile, WalkTile, cdiv

# T tokens, D hidden, F feed-forward, P programs


def row_cases(make: Maker) -> Iterator[Case]:
    """At a batch of 32 of MNLI, and at 16,384 tokens."""
    for rows in (5,) if make.tiny else (1216, 16384):
        yield _layer_norm_backward(make, rows, 48 if make.tiny else 768)
        yield _layer_norm_forward(make, rows, 48 if make.tiny else 768)
        yield _gelu_backward(make, rows, 64 if make.tiny else 3072)
        yield _embedding_sums(make, rows, 64 if make.tiny else 768)
    yield _partial_sums(make, 3 if make.tiny else 132, 64 if make.tiny else 768)


def _case(
    make: Maker,
    kernel: str,
    rows: int,
    columns: int,
    p: float,
    inputs: Callable,
    run: Callable,
    set_bytes: int,
    candidates: dict[str, Change],
) -> Case:
    """run(*inputs, **arguments) launches, and returns what it has written. Every launch is timed; the options change the first."""
    kept = make.keep(inputs)

    def record(change: Change, index: int) -> Recorded:
        with record_launches() as launches:
            outputs = run(*kept(index), **change.arguments)
        return Recorded([], [change.of(launches[0]), *launches[1:]], outputs)

    return Case(kernel, f"{rows} x {columns}", p, record, set_bytes, {"default": Change(), **candidates})


def _named(tiles: list[WalkTile]) -> dict[str, Change]:
    return {
        f"{tile.rows}x{tile.columns}x{tile.pieces} {tile.num_warps}w {tile.programs}p {tile.num_stages}s"
        + (f" {tile.maxnreg}r" if tile.maxnreg else ""): Change({"tile": tile})
        for tile in tiles
    }


def _layer_norm_inputs(make: Maker, rows: int, columns: int) -> Callable[[], tuple]:
    def inputs() -> tuple:
        x, residual, dy = (make.normal(rows, columns, grad=False) for _ in range(3))
        x_bias, weight, bias = (make.normal(columns, grad=False) for _ in range(3))
        z = residual.float() + x.float() + x_bias.float()
        mean, rstd = z.mean(1), 1 / z.std(1)
        return x, x_bias, residual, weight, bias, dy, mean, rstd

    return inputs


def _layer_norm_backward(make: Maker, rows: int, columns: int, p: float = 0.1) -> Case:
    dropout = make.dropout(p, rows)
    bits = (p, dropout.site, dropout.key, dropout.example_ids, dropout.position_ids)

    def run(x, x_bias, residual, weight, _bias, dy, mean, rstd, **arguments):
        return layer_norm._launch_backward(dy, x, x_bias, residual, weight, mean, rstd, *bits, **arguments)

    if make.tiny:
        tiles = [WalkTile(2, 16, 3, 2, 1), WalkTile(2, 16, 3, 2, 1, 2)]
    else:
        # By compiling for sm_90 (Triton 3.7.1): a row a warp takes 220 to 255 registers, two warps a row 128 to 175, four 96; none of these spills.
        tiles = [
            WalkTile(8, 256, 3, 8, 1, 2),
            WalkTile(4, 256, 3, 4, 2),
            WalkTile(4, 256, 3, 4, 2, 2),
            WalkTile(2, 256, 3, 2, 4),
            WalkTile(2, 256, 3, 2, 4, 2),
            WalkTile(1, 256, 3, 1, 4),
            WalkTile(1, 256, 3, 1, 8),
            WalkTile(1, 256, 3, 1, 8, 2),
            WalkTile(4, 256, 3, 8, 1),
            WalkTile(4, 256, 3, 8, 1, 2),
            WalkTile(4, 256, 3, 8, 1, 3),
            WalkTile(4, 256, 3, 8, 2, 1, 128),
            WalkTile(4, 256, 3, 8, 2, 2, 128),
            WalkTile(2, 256, 3, 4, 2),
            WalkTile(2, 256, 3, 4, 3),
            WalkTile(2, 256, 3, 4, 4),
            WalkTile(2, 256, 3, 4, 3, 2),
            WalkTile(2, 256, 3, 4, 3, 3),
            WalkTile(1, 256, 3, 2, 4),
            WalkTile(1, 256, 3, 2, 7),
            WalkTile(1, 256, 3, 2, 6, 2),
            WalkTile(1, 256, 3, 4, 4),
            WalkTile(2, 256, 3, 8, 2),
            WalkTile(2, 256, 3, 8, 2, 2),
            WalkTile(4, 256, 3, 16, 1),
            WalkTile(4, 256, 3, 16, 1, 2),
        ]
    moved = 3 * rows * columns * DTYPE.itemsize
    return _case(make, "layer_norm_backward", rows, columns, p, _layer_norm_inputs(make, rows, columns), run, moved, _named(tiles))


def _layer_norm_forward(make: Maker, rows: int, columns: int, p: float = 0.1) -> Case:
    dropout = make.dropout(p, rows)
    bits = (p, dropout.site, dropout.key, dropout.example_ids, dropout.position_ids)

    def run(x, x_bias, residual, weight, bias, _dy, _mean, _rstd):
        return layer_norm._launch_forward(x, x_bias, residual, weight, bias, EPS, *bits)

    def change(tile_rows: int, num_warps: int) -> Change:
        return Change({}, {"ROWS": tile_rows, "num_warps": num_warps}, lambda _launch: (cdiv(rows, tile_rows),))

    tried = ((2, 2),) if make.tiny else ((1, 2), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8))
    candidates = {f"{tile_rows} rows {warps}w": change(tile_rows, warps) for tile_rows, warps in tried}
    moved = 2 * rows * columns * DTYPE.itemsize
    return _case(make, "layer_norm_forward", rows, columns, p, _layer_norm_inputs(make, rows, columns), run, moved, candidates)


def _gelu_backward(make: Maker, rows: int, columns: int) -> Case:
    def inputs() -> tuple:
        return make.normal(rows, columns, grad=False), make.normal(rows, columns, grad=False), make.normal(columns, grad=False)

    def run(dy, x, bias, **arguments):
        return gelu._launch_backward(dy, x, bias, "none", **arguments)

    if make.tiny:
        tiles = [WalkTile(2, 64, 1, 1, 2), WalkTile(2, 64, 1, 1, 2, 2)]
    else:
        tiles = [
            WalkTile(4, 1024, 1, 4, 6),
            WalkTile(4, 1024, 1, 4, 6, 2),
            WalkTile(2, 1024, 1, 4, 6),
            WalkTile(2, 1024, 1, 4, 8),
            WalkTile(2, 1024, 1, 4, 8, 2),
            WalkTile(1, 1024, 1, 4, 12),
            WalkTile(1, 1024, 1, 4, 8, 3),
            WalkTile(2, 512, 1, 2, 12),
            WalkTile(4, 512, 1, 2, 12),
            WalkTile(4, 512, 1, 4, 8),
            WalkTile(4, 256, 1, 1, 24),
            WalkTile(4, 1024, 1, 8, 3),
            WalkTile(2, 1024, 1, 8, 4),
            WalkTile(2, 1024, 1, 8, 4, 2),
        ]
    return _case(make, "bias_gelu_backward", rows, columns, 0.0, inputs, run, 2 * rows * columns * DTYPE.itemsize, _named(tiles))


def _embedding_sums(make: Maker, rows: int, columns: int) -> Case:
    """Words of a text, two segments and positions: sorted ahead, as the sort has no launch to choose."""
    vocabulary, positions = (20, 8) if make.tiny else (30522, 512)

    def inputs() -> tuple:
        row = torch.arange(rows, device=make.device)
        # A few words are frequent, most are rare: the logarithm of a word's rank is uniform.
        words = (vocabulary ** torch.rand(rows, generator=make.generator, device=make.device)).long() - 1
        ids = torch.cat((words, vocabulary + row // 20 % 2, vocabulary + 2 + row % min(39, positions))).int()
        sorted_rows, order = torch.sort(ids, stable=True)
        return sorted_rows, order, make.normal(rows, columns, grad=False)

    def run(sorted_rows, order, de, **arguments):
        dtables = de.new_zeros((vocabulary + 2 + positions, columns))
        sum_into_table(sorted_rows, order, de, dtables, **arguments)
        return (dtables,)

    if make.tiny:
        tiles = [SumTile(4, 64, 2, 16), SumTile(4, 64, 2, 4, True, 2)]
    else:
        tiles = [SumTile(n, 256, warps, chunk) for n, warps in ((8, 2), (16, 4), (32, 4), (32, 8), (64, 8)) for chunk in (32, 64, 128)]
        tiles += [SumTile(32, 128, 4, chunk) for chunk in (32, 64)]
        tiles += [SumTile(32, 256, 2, chunk, True, stages) for chunk in (16, 32, 64, 128) for stages in (1, 4)]
        tiles += [SumTile(32, 1024, 4, chunk, True, 4) for chunk in (16, 32)]
    named = {
        (f"walk {tile.columns} {tile.num_stages}s" if tile.walks else f"{tile.rows}x{tile.columns}")
        + f" {tile.num_warps}w chunk {tile.chunk}": Change({"tile": tile})
        for tile in tiles
    }
    set_bytes = (rows + vocabulary + 2 + positions) * columns * DTYPE.itemsize
    return _case(make, "embedding_sums", rows, columns, 0.0, inputs, run, set_bytes, named)


def _partial_sums(make: Maker, programs: int, columns: int) -> Case:
    """The second half of LayerNorm's three sums, of one program a multiprocessor."""

    def inputs() -> tuple:
        return (make.normal(programs, 3, columns, dtype=torch.float32, grad=False),)

    def change(rows: int, block: int, num_warps: int) -> Change:
        return Change({}, {"ROWS": rows, "BLOCK": block, "num_warps": num_warps}, lambda _launch: (cdiv(3 * columns, block),))

    def run(partial):
        return (sum_partials(partial, DTYPE),)

    tried = ((16, 16, 2),) if make.tiny else ((128, 16, 4), (128, 32, 4), (128, 32, 8), (256, 16, 8), (64, 16, 4), (32, 32, 4), (64, 64, 8))
    candidates = {f"{rows}x{block} {warps}w": change(rows, block, warps) for rows, block, warps in tried}
    return _case(make, "sum_partials", programs, columns, 0.0, inputs, run, programs * 3 * columns * 4, candidates)
