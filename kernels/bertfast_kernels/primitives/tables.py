"""Sums into the rows of a table: sorted places, the places of a row next to each other, are added up in chunks, with no atomics.

A row whose places lie in one chunk is finished there; what crosses a chunk's end leaves a partial sum, and a last kernel adds those. Two kernels do the
first part. One has a program for each place, which adds up the run that starts there, several rows at a time; most start nothing. The other has a program
for each chunk, which walks over its places one by one, with the rows ahead on their way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bertfast_kernels import tiling
from bertfast_kernels.primitives.lazy_triton import jit, launch, tl

# T tokens, D columns, R table rows, C chunks; in a kernel: ROWS places at a time, WIDTH columns


@jit(do_not_specialize=["n_places", "n_rows"])
def _table_runs_kernel(
    sorted_ptr, order_ptr, de_ptr, table_ptr, partial_ptr, n_places, n_rows,
    TABLE_ROWS: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Program (i, column block) adds up the run of sorted places that starts at i, up to its end or the end of i's chunk; most i start nothing."""
    place = tl.program_id(0)
    index = tl.load(sorted_ptr + place)
    before = tl.load(sorted_ptr + place - 1, mask=place > 0, other=-1)
    is_head = index != before
    inside = (index >= 0) & (index < TABLE_ROWS)
    if (is_head | (place % CHUNK == 0)) & inside:
        column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        chunk = place // CHUNK
        end = tl.minimum((chunk + 1) * CHUNK, n_places)
        total = tl.zeros([ROWS, WIDTH], tl.float32)
        start = place
        more = start < end
        while more:
            member = start + tl.arange(0, ROWS)
            mask = (member < end) & (tl.load(sorted_ptr + member, mask=member < end, other=-1) == index)
            token = tl.load(order_ptr + member, mask=mask, other=0) % n_rows
            offset = token.to(tl.int64)[:, None] * D + column[None, :]
            total += tl.load(de_ptr + offset, mask=mask[:, None] & (column < D)[None, :], other=0.0).to(tl.float32)
            start += ROWS
            more = (start < end) & (tl.load(sorted_ptr + start, mask=start < end, other=-1) == index)
        sums = tl.sum(total, 0)
        goes_on = (end < n_places) & (tl.load(sorted_ptr + end, mask=end < n_places, other=-1) == index)
        if is_head & (goes_on == 0):
            tl.store(table_ptr + index.to(tl.int64) * D + column, sums.to(table_ptr.dtype.element_ty), mask=column < D)
        else:
            tl.store(partial_ptr + (2 * chunk + is_head.to(tl.int32)).to(tl.int64) * D + column, sums, mask=column < D)


@jit(do_not_specialize=["n_places", "n_rows"])
def _table_chunks_kernel(
    sorted_ptr, order_ptr, de_ptr, table_ptr, partial_ptr, n_places, n_rows,
    TABLE_ROWS: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Program (chunk, column block) walks over the places of a chunk, and writes each run's sum where it ends."""
    chunk = tl.program_id(0)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    there = column < D
    start = chunk * CHUNK
    end = tl.minimum(start + CHUNK, n_places)
    came_in = tl.load(sorted_ptr + start) == tl.load(sorted_ptr + start - 1, mask=start > 0, other=-1)
    partial_ptr += (2 * chunk).to(tl.int64) * D
    total = tl.zeros([WIDTH], tl.float32)
    for place in tl.range(start, end, num_stages=STAGES):
        index = tl.load(sorted_ptr + place)
        following = tl.load(sorted_ptr + place + 1, mask=place + 1 < n_places, other=-1)
        token = tl.load(order_ptr + place) % n_rows
        total += tl.load(de_ptr + token.to(tl.int64) * D + column, mask=there, other=0.0).to(tl.float32)
        ends = index != following
        inside = (index >= 0) & (index < TABLE_ROWS)
        sums = total.to(table_ptr.dtype.element_ty)
        tl.store(table_ptr + index.to(tl.int64) * D + column, sums, mask=there & (ends & inside & (came_in == 0)))
        tl.store(partial_ptr + column, total, mask=there & (ends & came_in))
        total = tl.where(ends, 0.0, total)
        came_in = came_in & (ends == 0)
    goes_on = (end < n_places) & (tl.load(sorted_ptr + end - 1) == tl.load(sorted_ptr + end, mask=end < n_places, other=-1))
    tl.store(partial_ptr + tl.where(came_in, 0, D) + column, total, mask=there & goes_on)


@jit(do_not_specialize=["n_places"])
def _table_join_kernel(
    sorted_ptr, table_ptr, partial_ptr, n_places, TABLE_ROWS: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Program (chunk, column block) finishes the row whose run starts in the chunk and crosses its end, if there is one."""
    chunk = tl.program_id(0)
    end = (chunk + 1) * CHUNK
    crosses = end < n_places
    index = tl.load(sorted_ptr + end, mask=crosses, other=-1)
    last = tl.load(sorted_ptr + end - 1, mask=crosses, other=-2)
    before = tl.load(sorted_ptr + chunk * CHUNK - 1, mask=crosses & (chunk > 0), other=-3)
    if crosses & (index == last) & (index != before) & (index >= 0) & (index < TABLE_ROWS):
        column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        total = tl.zeros([ROWS, WIDTH], tl.float32)
        start = chunk + 1
        more = index == last
        while more:
            member = start + tl.arange(0, ROWS)
            mask = member * CHUNK < n_places
            mask = mask & (tl.load(sorted_ptr + member * CHUNK, mask=mask, other=-1) == index)
            offset = (2 * member).to(tl.int64)[:, None] * D + column[None, :]
            total += tl.load(partial_ptr + offset, mask=mask[:, None] & (column < D)[None, :], other=0.0)
            start += ROWS
            more = start * CHUNK < n_places
            more = more & (tl.load(sorted_ptr + start * CHUNK, mask=more, other=-1) == index)
        sums = tl.sum(total, 0) + tl.load(partial_ptr + (2 * chunk + 1).to(tl.int64) * D + column, mask=column < D, other=0.0)
        tl.store(table_ptr + index.to(tl.int64) * D + column, sums.to(table_ptr.dtype.element_ty), mask=column < D)


def sum_into_table(sorted_rows: Tensor, order: Tensor, de_TD: Tensor, table_RD: Tensor, tile: tiling.SumTile | None = None) -> None:
    """table[r] = the sum of de over the places where sorted_rows, int [n T], is r; rows that have none, and places of no row, are left alone.

    order: int64 [n T], each place's token and a multiple of T. tile: another than tiling's.
    """
    n_rows, columns = de_TD.shape
    places = sorted_rows.shape[0]
    tile = tile or tiling.embedding_sum_tile(columns)
    chunks = tiling.cdiv(places, tile.chunk)
    partial_C2D = de_TD.new_empty((chunks, 2, columns), dtype=torch.float32)  # of each: the run that came into it, the run that leaves it
    blocks = tiling.cdiv(columns, tile.columns)
    constants = {"TABLE_ROWS": table_RD.shape[0], "D": columns, "CHUNK": tile.chunk, "WIDTH": tile.columns}
    args = (sorted_rows, order, de_TD, table_RD, partial_C2D, places, n_rows)
    if tile.walks:
        launch(_table_chunks_kernel, (chunks, blocks), *args, **constants, STAGES=tile.num_stages, num_warps=tile.num_warps)
    else:
        launch(_table_runs_kernel, (places, blocks), *args, **constants, ROWS=tile.rows, num_warps=tile.num_warps)
    join = (sorted_rows, table_RD, partial_C2D, places)
    launch(_table_join_kernel, (chunks, blocks), *join, **constants, ROWS=tile.rows, num_warps=tile.num_warps)
