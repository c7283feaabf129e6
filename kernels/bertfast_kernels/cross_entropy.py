"""loss = sum over rows of -log p[label], p = exp(logits - m - l), m = max(logits), l = log(sum(exp(logits - m))); dlogits = g (p - onehot(label)).

Forward: one pass over the logits, keeping a running maximum and running sums of exponentials per row (Milakov and Gimelshein 2018, "Online normalizer
calculation for softmax"), in float32 registers, the label's apart from the others'. It stores m, l and q = 1 - p[label], 12 bytes a row. m + l in one
number would lose l's last digits where logits are large, and with them those of every probability; and p[label] - 1 would lose q's where the label is
all but certain, so that the gradient of what is learned well would be noise. Backward: one pass that reads the logits, writes the gradient in their dtype, and
folds in g before it rounds. Loss and gradient could be had in one pass together, but the gradient would then be rounded before g is known: in float16
the loss scale, which is g, exists because a probability underflows without it. And a later multiplication by g would read and write the gradient
once more: 4 passes over B x C in place of these 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bertfast_kernels import reference, tiling
from bertfast_kernels.dispatch import takes_triton
from bertfast_kernels.primitives.lazy_triton import Launch, jit, launch, record_launches, tl

if TYPE_CHECKING:
    from bertfast_kernels.shapes import EncoderShape

# B rows, C classes; in a kernel: a tile of ROWS rows and WIDTH columns


@jit
def log_one_plus(x):
    """log(1 + x) of x >= 0, to the last digits for small x too (Kahan's way: what 1 + x rounds away is put back as a factor)."""
    rounded = 1.0 + x
    return tl.where(rounded == 1.0, x, tl.log(rounded) * (x / tl.where(rounded == 1.0, 1.0, rounded - 1.0)))


@jit(do_not_specialize=["n_rows", "ignore_index"])
def _cross_entropy_forward_kernel(
    logits_ptr, label_ptr, loss_ptr, stats_ptr, n_rows, ignore_index, C: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_mask = row < n_rows
    label = tl.load(label_ptr + row, mask=row_mask, other=0)
    counts = row_mask & (label != ignore_index)
    base = row.to(tl.int64) * C
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    others = tl.zeros([ROWS], tl.float32)
    for start in range(0, C, WIDTH):
        column = start + tl.arange(0, WIDTH)
        mask = counts[:, None] & (column < C)[None, :]
        x = tl.load(logits_ptr + base[:, None] + column[None, :], mask=mask, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(largest, tl.max(x, 1))
        shift = tl.where(larger == float("-inf"), 0.0, larger)  # so far nothing but -inf: exp(-inf - 0) is 0, exp(-inf + inf) is not
        exponentials = tl.where(column[None, :] == label[:, None], 0.0, tl.exp(x - shift[:, None]))
        others = others * tl.exp(largest - shift) + tl.sum(exponentials, 1)
        largest = larger
    in_range = (label >= 0) & (label < C)  # a label that names no class gives NaN, and reads nothing
    chosen = tl.load(logits_ptr + base + label, mask=counts & in_range, other=float("nan")).to(tl.float32)
    own = tl.exp(chosen - largest)
    total = tl.where(counts, others + own, 1.0)
    log_total = tl.log(total)
    loss = tl.where(own > others, log_one_plus(others / own), log_total - (chosen - largest))
    tl.store(loss_ptr + row, tl.where(counts, loss, 0.0), mask=row_mask)
    tl.store(stats_ptr + row, largest, mask=row_mask)
    tl.store(stats_ptr + n_rows + row, log_total, mask=row_mask)
    tl.store(stats_ptr + 2 * n_rows + row, others / total, mask=row_mask)


@jit(do_not_specialize=["n_rows", "ignore_index"])
def _cross_entropy_backward_kernel(
    grad_ptr, logits_ptr, label_ptr, stats_ptr, dlogits_ptr, n_rows, ignore_index, C: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    column_blocks: tl.constexpr = (C + WIDTH - 1) // WIDTH
    row = (tl.program_id(0) // column_blocks) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) % column_blocks) * WIDTH + tl.arange(0, WIDTH)
    row_mask = row < n_rows
    label = tl.load(label_ptr + row, mask=row_mask, other=0)
    largest = tl.load(stats_ptr + row, mask=row_mask, other=0.0)
    log_total = tl.load(stats_ptr + n_rows + row, mask=row_mask, other=0.0)
    unlikely = tl.load(stats_ptr + 2 * n_rows + row, mask=row_mask, other=0.0)
    counts = row_mask & (label != ignore_index)
    mask = row_mask[:, None] & (column < C)[None, :]
    offset = row[:, None].to(tl.int64) * C + column[None, :]
    x = tl.load(logits_ptr + offset, mask=mask & counts[:, None], other=0.0).to(tl.float32)
    probability = tl.exp(x - largest[:, None] - log_total[:, None])
    gradient = tl.where(column[None, :] == label[:, None], -unlikely[:, None], probability)
    gradient = tl.where(counts[:, None], gradient * tl.load(grad_ptr).to(tl.float32), 0.0)
    tl.store(dlogits_ptr + offset, gradient.to(dlogits_ptr.dtype.element_ty), mask=mask)


def _launch_forward(logits_BC: Tensor, labels_B: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """(loss, a float32 scalar; m, l and q of each row, float32 [3, B])."""
    n_rows, classes = logits_BC.shape
    loss_B, stats_3B = (logits_BC.new_empty(shape, dtype=torch.float32) for shape in ((n_rows,), (3, n_rows)))
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
            stats_3B,
            n_rows,
            ignore_index,
            **constants,
            num_warps=tile.num_warps,
        )
    return loss_B.sum(), stats_3B


def _launch_backward(grad: Tensor, logits_BC: Tensor, labels_B: Tensor, stats_3B: Tensor, ignore_index: int) -> Tensor:
    n_rows, classes = logits_BC.shape
    dlogits_BC = torch.empty_like(logits_BC)
    if n_rows > 0:
        tile = tiling.class_tile(classes)
        grid = (tiling.cdiv(n_rows, tile.rows) * tiling.cdiv(classes, tile.columns),)
        constants = {"C": classes, "ROWS": tile.rows, "WIDTH": tile.columns}
        args = (grad, logits_BC, labels_B, stats_3B, dlogits_BC, n_rows, ignore_index)
        launch(_cross_entropy_backward_kernel, grid, *args, **constants, num_warps=tile.num_warps)
    return dlogits_BC


@torch.library.custom_op("bertfast::cross_entropy", mutates_args=())
def _forward(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    return _launch_forward(logits.contiguous(), labels.contiguous(), ignore_index)


@_forward.register_fake
def _(logits, labels, ignore_index):
    return logits.new_empty((), dtype=torch.float32), logits.new_empty((3, logits.shape[0]), dtype=torch.float32)


@torch.library.custom_op("bertfast::cross_entropy_backward", mutates_args=())
def _backward(grad: Tensor, logits: Tensor, labels: Tensor, stats: Tensor, ignore_index: int) -> Tensor:
    return _launch_backward(grad, logits.contiguous(), labels.contiguous(), stats, ignore_index)


@_backward.register_fake
def _(grad, logits, labels, stats, ignore_index):
    return logits.new_empty(logits.shape)


def _setup_context(ctx, inputs, output):
    logits, labels, ctx.ignore_index = inputs
    ctx.save_for_backward(logits, labels, output[1])
    ctx.set_materialize_grads(False)  # nobody reads the gradient of the statistics: no zeros are made for it


def _autograd(ctx, dloss, _dstats):
    return _backward(dloss, *ctx.saved_tensors, ctx.ignore_index), None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def variants(shape: EncoderShape) -> list[Launch]:
    """What a training step of an encoder of this shape launches."""
    scalar = shape.tensor(dtype=torch.float32)
    stats_3B, labels_B = shape.tensor(3, 64, dtype=torch.float32), shape.tensor(64, dtype=torch.int32)
    with record_launches() as launches:
        if shape.num_labels is not None:
            logits_BC = shape.tensor(64, shape.num_labels)
            _launch_forward(logits_BC, labels_B, -100)
            _launch_backward(scalar, logits_BC, labels_B, stats_3B, -100)
    return launches


def cross_entropy(logits_BC: Tensor, labels_B: Tensor, ignore_index: int = -100) -> Tensor:
    """The sum (not the mean) over B of -log softmax(logits)[label], a float32 scalar; rows labelled ignore_index count nothing.

    Labels are int32 or int64. A label that names no class and is not ignore_index makes the loss NaN.
    """
    if not takes_triton(logits_BC):
        return reference.cross_entropy(logits_BC, labels_B, ignore_index)
    return _forward(logits_BC, labels_B, ignore_index)[0]
