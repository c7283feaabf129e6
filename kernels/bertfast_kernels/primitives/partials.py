"""The second half of a sum over rows: partial sums, one row a program, are added up in a fixed order. No atomics, so the same bits every time."""

from __future__ import annotations

import torch

from bertfast_kernels.primitives.lazy_triton import jit, launch, tl

# P programs, K sums side by side, D columns


@jit(do_not_specialize=["n_partials"])
def _sum_partials_kernel(partial_ptr, out_ptr, n_partials, K: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, n_partials, ROWS):
        mask = (start + row < n_partials)[:, None] & (column < K * D)[None, :]
        total += tl.load(partial_ptr + (start + row)[:, None] * (K * D) + column[None, :], mask=mask, other=0.0)
    tl.store(out_ptr + column, tl.sum(total, 0).to(out_ptr.dtype.element_ty), mask=column < K * D)


def sum_partials(partial_PKD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float32 [P, K, D] -> [K, D] of `dtype`."""
    n_partials, k, columns = partial_PKD.shape
    out_KD = partial_PKD.new_empty((k, columns), dtype=dtype)
    block = 16
    grid = (-(-k * columns // block),)
    launch(_sum_partials_kernel, grid, partial_PKD, out_KD, n_partials, K=k, D=columns, ROWS=256, BLOCK=block, num_warps=8)
    return out_KD
