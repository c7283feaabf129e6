"""loss = sum over rows of lse(logits) - logits[label], lse(x) = log(sum(exp(x))); dlogits = g (exp(logits - lse) - onehot(label)).

Forward: one pass over the logits, keeping a running maximum and a running sum of exponentials per row (Milakov and Gimelshein 2018, "Online normalizer
calculation for softmax"), in float32 registers; it stores lse, 4 bytes a row. Backward: one pass that reads the logits, writes the gradient in their dtype, and
folds in g before it rounds. Loss and gradient could be had in one pass together, but the gradient would then be rounded before g is known: in float16
the loss scale, which is g, exists because exp(logits - lse) underflows without it. And a later multiplication by g would read and write the gradient
once more: 4 passes over B x C in place of these 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bertfast_kernels import reference, tiling
from bertfast_kernels._triton import Launch, jit, launch, record_launches, tl
from bertfast_kernels.dispatch import takes_triton

if TYPE_CHECKING:
    from bertfast_kernels.compile import EncoderShape

# B rows, C classes; in a kernel: a tile of ROWS rows and WIDTH columns


@jit(do_not_specialize=["n_rows", "ignore_index"])
def _cross_entropy_forward_kernel(
    logits_ptr, label_ptr, loss_ptr, lse_ptr, n_rows, ignore_index, C: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_mask = row < n_rows
    label = tl.load(label_ptr + row, mask=row_mask, other=0)
    counts = row_mask & (label != ignore_index)
    base = row.to(tl.int64) * C
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, C, WIDTH):
        column = start + tl.arange(0, WIDTH)
        mask = counts[:, None] & (column < C)[None, :]
        x = tl.load(logits_ptr + base[:, None] + column[None, :], mask=mask, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(largest, tl.max(x, 1))
        shift = tl.where(larger == float("-inf"), 0.0, larger)  # so far nothing but -inf: exp(-inf - 0) is 0, exp(-inf + inf) is not
        total = total * tl.exp(largest - shift) + tl.sum(tl.exp(x - shift[:, None]), 1)
        largest = larger
    lse = largest + tl.log(tl.where(counts, total, 1.0))
    in_range = (label >= 0) & (label < C)  # a label that names no class gives NaN, and reads nothing
    chosen = tl.load(logits_ptr + base + label, mask=counts & in_range, other=float("nan")).to(tl.float32)
    tl.store(loss_ptr + row, tl.where(counts, lse - chosen, 0.0), mask=row_mask)
    tl.store(lse_ptr + row, lse, mask=row_mask)


@jit(do_not_specialize=["n_rows", "ignore_index"])
def _cross_entropy_backward_kernel(
    grad_ptr, logits_ptr, label_ptr, lse_ptr, dlogits_ptr, n_rows, ignore_index, C: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    column_blocks: tl.constexpr = (C + WIDTH - 1) // WIDTH
    row = (tl.program_id(0) // column_blocks) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) % column_blocks) * WIDTH + tl.arange(0, WIDTH)
    row_mask = row < n_rows
    label = tl.load(label_ptr + row, mask=row_mask, other=0)
    lse = tl.load(lse_ptr + row, mask=row_mask, other=0.0)
    counts = row_mask & (label != ignore_index)
    mask = row_mask[:, None] & (column < C)[None, :]
    offset = row[:, None].to(tl.int64) * C + column[None, :]
    x = tl.load(logits_ptr + offset, mask=mask & counts[:, None], other=0.0).to(tl.float32)
    gradient = tl.exp(x - lse[:, None]) - tl.where(column[None, :] == label[:, None], 1.0, 0.0)
    gradient = tl.where(counts[:, None], gradient * tl.load(grad_ptr).to(tl.float32), 0.0)
    tl.store(dlogits_ptr + offset, gradient.to(dlogits_ptr.dtype.element_ty), mask=mask)


def _launch_forward(logits_BC, labels_B, ignore_index: int) -> tuple[Tensor, Tensor]:
    """(loss, a float32 scalar; lse, float32 [B])."""
    n_rows, classes = logits_BC.shape
    loss_B, lse_B = (logits_BC.new_empty(n_rows, dtype=torch.float32) for _ in range(2))
    if n_rows > 0:
        tile = tiling.class_tile(classes)
        constants = {"C": classes, "ROWS": tile.rows, "WIDTH": tile.columns}
        grid = (tiling.cdiv(n_rows, tile.rows),)
        launch(
            _cross_entropy_forward_kernel,
            grid,
            logits_BC,
            labels_B,
            loss_B,
            lse_B,
            n_rows,
            ignore_index,
            **constants,
            num_warps=tile.num_warps,
        )
    return loss_B.sum(), lse_B


def _launch_backward(grad, logits_BC, labels_B, lse_B, ignore_index: int) -> Tensor:
    n_rows, classes = logits_BC.shape
    dlogits_BC = torch.empty_like(logits_BC)
    if n_rows > 0:
        tile = tiling.class_tile(classes)
        grid = (tiling.cdiv(n_rows, tile.rows) * tiling.cdiv(classes, tile.columns),)
        constants = {"C": classes, "ROWS": tile.rows, "WIDTH": tile.columns}
        args = (grad, logits_BC, labels_B, lse_B, dlogits_BC, n_rows, ignore_index)
        launch(_cross_entropy_backward_kernel, grid, *args, **constants, num_warps=tile.num_warps)
    return dlogits_BC


@torch.library.custom_op("bertfast::cross_entropy", mutates_args=())
def _forward(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    return _launch_forward(logits.contiguous(), labels.contiguous(), ignore_index)


@_forward.register_fake
def _(logits, labels, ignore_index):
    return logits.new_empty((), dtype=torch.float32), logits.new_empty(logits.shape[0], dtype=torch.float32)


@torch.library.custom_op("bertfast::cross_entropy_backward", mutates_args=())
def _backward(grad: Tensor, logits: Tensor, labels: Tensor, lse: Tensor, ignore_index: int) -> Tensor:
    return _launch_backward(grad, logits.contiguous(), labels.contiguous(), lse, ignore_index)


@_backward.register_fake
def _(grad, logits, labels, lse, ignore_index):
    return logits.new_empty(logits.shape)


def _setup_context(ctx, inputs, output):
    logits, labels, ctx.ignore_index = inputs
    ctx.save_for_backward(logits, labels, output[1])


def _autograd(ctx, dloss, _dlse):
    return _backward(dloss, *ctx.saved_tensors, ctx.ignore_index), None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def variants(shape: EncoderShape) -> list[Launch]:
    """What a training step of an encoder of this shape launches."""
    scalar = shape.tensor(dtype=torch.float32)
    lse_B, labels_B = shape.tensor(64, dtype=torch.float32), shape.tensor(64, dtype=torch.int32)
    with record_launches() as launches:
        if shape.num_labels is not None:
            logits_BC = shape.tensor(64, shape.num_labels)
            _launch_forward(logits_BC, labels_B, -100)
            _launch_backward(scalar, logits_BC, labels_B, lse_B, -100)
    return launches


def cross_entropy(logits_BC: Tensor, labels_B: Tensor, ignore_index: int = -100) -> Tensor:
    """The sum (not the mean) over B of -log softmax(logits)[label], a float32 scalar; rows labelled ignore_index count nothing.

    Labels are int32 or int64. A label that names no class and is not ignore_index makes the loss NaN.
    """
    if not takes_triton(logits_BC):
        return reference.cross_entropy(logits_BC, labels_B, ignore_index)
    return _forward(logits_BC, labels_B, ignore_index)[0]
