"""y = Z o x, for rows that nothing else is done with, as those that a classifier reads: Z is the keep mask over the chance to keep.

The backward is the same kernel on dy: the mask is made anew from key and ids, and nothing else is kept. In torch a mask by key takes some 165 launches of
operations on int64, 0.25 ms on an H100 for 32 rows; here it is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bertfast_kernels import reference, tiling
from bertfast_kernels.dispatch import takes_triton
from bertfast_kernels.primitives.lazy_triton import Launch, jit, launch, record_launches, tl
from bertfast_kernels.primitives.masks import Dropout
from bertfast_kernels.primitives.philox import dropout_numbers, keep_tile, load_key

if TYPE_CHECKING:
    from bertfast_kernels.shapes import EncoderShape

# T rows, D columns; in a kernel: a tile of ROWS rows and WIDTH columns


@jit(do_not_specialize=["n_rows", "site", "threshold", "scale"])
def _row_dropout_kernel(
    x_ptr, y_ptr, key_ptr, example_ptr, position_ptr, n_rows, site, threshold, scale,
    D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    column_blocks: tl.constexpr = (D + WIDTH - 1) // WIDTH
    row = (tl.program_id(0) // column_blocks) * ROWS + tl.arange(0, ROWS)
    first = (tl.program_id(0) % column_blocks) * WIDTH
    column = first + tl.arange(0, WIDTH)
    row_mask = row < n_rows
    mask = row_mask[:, None] & (column < D)[None, :]
    offset = row[:, None].to(tl.int64) * D + column[None, :]
    seed, step = load_key(key_ptr)
    position = tl.load(position_ptr + row, mask=row_mask, other=0)
    example = tl.load(example_ptr + row, mask=row_mask, other=0)
    keep = keep_tile(seed, step, position, example, site, threshold, first // 4, WIDTH, VECTOR)
    x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + offset, (x * tl.where(keep, scale, 0.0)).to(y_ptr.dtype.element_ty), mask=mask)


def _launch(x_TD: Tensor, p: float, site: int, key: Tensor, example_ids_T: Tensor, position_ids_T: Tensor) -> Tensor:
    n_rows, columns = x_TD.shape
    y_TD = torch.empty_like(x_TD)
    if n_rows > 0:
        _, threshold, scale = dropout_numbers(Dropout(p, key=key))
        tile = tiling.block_tile(columns)
        launch(
            _row_dropout_kernel, (tiling.cdiv(n_rows, tile.rows) * tiling.cdiv(columns, tile.columns),),
            x_TD, y_TD, key, example_ids_T, position_ids_T, n_rows, site, threshold, scale,
            D=columns, ROWS=tile.rows, WIDTH=tile.columns, VECTOR=tiling.vector_columns(x_TD.element_size()), num_warps=tile.num_warps,
        )  # fmt: skip
    return y_TD


@torch.library.custom_op("bertfast::row_dropout", mutates_args=())
def _forward(x: Tensor, p: float, site: int, key: Tensor, example_ids: Tensor, position_ids: Tensor) -> Tensor:
    return _launch(x.contiguous(), p, site, key, example_ids.contiguous(), position_ids.contiguous())


@_forward.register_fake
def _(x, p, site, key, example_ids, position_ids):
    return x.new_empty(x.shape)


def _setup_context(ctx, inputs, output):
    _x, ctx.p, ctx.site, *bits = inputs
    ctx.save_for_backward(*bits)


def _autograd(ctx, dy):
    return _forward(dy, ctx.p, ctx.site, *ctx.saved_tensors), *[None] * 5


_forward.register_autograd(_autograd, setup_context=_setup_context)


def variants(shape: EncoderShape) -> list[Launch]:
    """What a training step of an encoder of this shape launches: for the rows that its classifier reads."""
    with record_launches() as launches:
        for dropout in shape.dropouts():
            if dropout.p > 0 and dropout.key is not None and dropout.example_ids is not None and dropout.position_ids is not None:
                x_TD = shape.tensor(64, shape.hidden_size)
                _launch(x_TD, dropout.p, 1, dropout.key, dropout.example_ids, dropout.position_ids)
    return launches


def dropped(x_TD: Tensor, dropout: Dropout | None) -> Tensor:
    """dropout(x): [T, D] of the dtype of x; x itself where there is no dropout."""
    if dropout is None or dropout.p == 0.0 or not takes_triton(x_TD, dropout):
        return reference.dropped(x_TD, dropout)
    assert dropout.key is not None and dropout.example_ids is not None and dropout.position_ids is not None, "a Dropout with a key has ids"
    return _forward(x_TD, dropout.p, dropout.site, dropout.key, dropout.example_ids, dropout.position_ids)
