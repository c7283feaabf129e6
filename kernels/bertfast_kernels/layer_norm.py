"""y = LayerNorm(z), z = residual + dropout(x + x_bias), in one pass forward and one backward (Ba et al. 2016).

With Z the keep mask over the chance to keep, o the elementwise product, and per row m = mean(z), r = 1 / sqrt(mean((z - m)^2) + eps), n = r (z - m):

    z = residual + Z o (x + x_bias)      y = weight o n + bias
    g = weight o dy                      dz = r (g - mean(g) - n mean(g o n))
    dresidual = dz    dx = Z o dz        dx_bias, dweight, dbias = the sums over rows of dx, dy o n, dy

The backward reads x and residual again and makes z anew, in float32. To store z would move as many bytes (one write in the forward for one read less in
the backward) and would round z; to find n again from y is 1 read less still, but fails where weight is 0. So the forward stores m and r alone: 8 bytes a
row. Without dropout dx is dresidual, and is written once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bertfast_kernels import reference, tiling
from bertfast_kernels._partials import sum_partials
from bertfast_kernels._philox import dropout_numbers, keep_tile, load_key
from bertfast_kernels._triton import Launch, jit, launch, multiprocessors, record_launches, tl
from bertfast_kernels.dispatch import takes_triton
from bertfast_kernels.dropout import Dropout

if TYPE_CHECKING:
    from bertfast_kernels.compile import EncoderShape

# T tokens, D hidden; in a kernel: a tile of ROWS rows and WIDTH >= D columns


@jit
def row_statistics(z, column_mask, eps, D: tl.constexpr):
    """(mean, 1 / standard deviation) of each row of z [ROWS, WIDTH], whose columns outside column_mask are 0. Two passes over registers."""
    mean = tl.sum(z, 1) / D
    centred = tl.where(column_mask, z - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / D
    return mean, 1.0 / tl.sqrt(variance + eps)


@jit
def row_gradient(normal, dy, weight, rstd, D: tl.constexpr):
    """dz of LayerNorm from its normalised rows; normal and dy [ROWS, WIDTH] are 0 outside the columns, weight is [1, WIDTH]."""
    g = dy * weight
    mean_g = tl.sum(g, 1) / D
    mean_gn = tl.sum(g * normal, 1) / D
    return rstd[:, None] * (g - mean_g[:, None] - normal * mean_gn[:, None])


@jit(do_not_specialize=["n_rows", "site", "threshold", "eps", "scale"])
def _layer_norm_forward_kernel(
    x_ptr, x_bias_ptr, residual_ptr, weight_ptr, bias_ptr, y_ptr, mean_ptr, rstd_ptr, key_ptr, example_ptr, position_ptr,
    n_rows, eps, site, threshold, scale, D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)[None, :]
    row_mask, column_mask = row < n_rows, column < D
    mask = row_mask[:, None] & column_mask
    offset = row[:, None].to(tl.int64) * D + column
    z = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    z += tl.load(x_bias_ptr + column, mask=column_mask, other=0.0).to(tl.float32)
    if DROPOUT:
        seed, step = load_key(key_ptr)
        position = tl.load(position_ptr + row, mask=row_mask, other=0)
        example = tl.load(example_ptr + row, mask=row_mask, other=0)
        keep = keep_tile(seed, step, position, example, site, threshold, 0, WIDTH, VECTOR)
        z = tl.where(keep, z * scale, 0.0)
    z += residual
    mean, rstd = row_statistics(z, column_mask, eps, D)
    weight = tl.load(weight_ptr + column, mask=column_mask, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + column, mask=column_mask, other=0.0).to(tl.float32)
    y = (z - mean[:, None]) * rstd[:, None] * weight + bias
    tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + row, mean, mask=row_mask)
    tl.store(rstd_ptr + row, rstd, mask=row_mask)


@jit(do_not_specialize=["n_rows", "site", "threshold", "scale"])
def _layer_norm_backward_kernel(
    dy_ptr, x_ptr, x_bias_ptr, residual_ptr, weight_ptr, mean_ptr, rstd_ptr, key_ptr, example_ptr, position_ptr, dz_ptr, dx_ptr, partial_ptr,
    n_rows, site, threshold, scale, D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, WIDTH)[None, :]
    column_mask = column < D
    x_bias = tl.load(x_bias_ptr + column, mask=column_mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=column_mask, other=0.0).to(tl.float32)
    dx_bias = tl.zeros([ROWS, WIDTH], tl.float32)
    dweight = tl.zeros([ROWS, WIDTH], tl.float32)
    dbias = tl.zeros([ROWS, WIDTH], tl.float32)
    if DROPOUT:
        seed, step = load_key(key_ptr)
    for start in range(tl.program_id(0) * ROWS, n_rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        row_mask = row < n_rows
        mask = row_mask[:, None] & column_mask
        offset = row[:, None].to(tl.int64) * D + column
        dy = tl.load(dy_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        z = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32) + x_bias
        residual = tl.load(residual_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + row, mask=row_mask, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=row_mask, other=0.0)
        if DROPOUT:
            position = tl.load(position_ptr + row, mask=row_mask, other=0)
            example = tl.load(example_ptr + row, mask=row_mask, other=0)
            keep = keep_tile(seed, step, position, example, site, threshold, 0, WIDTH, VECTOR)
            z = tl.where(keep, z * scale, 0.0)
        normal = tl.where(column_mask, (z + residual - mean[:, None]) * rstd[:, None], 0.0)
        dz = row_gradient(normal, dy, weight, rstd, D)
        dz = tl.where(column_mask, dz, 0.0)
        tl.store(dz_ptr + offset, dz.to(dz_ptr.dtype.element_ty), mask=mask)
        if DROPOUT:
            dz = tl.where(keep, dz * scale, 0.0)
            tl.store(dx_ptr + offset, dz.to(dx_ptr.dtype.element_ty), mask=mask)
        dx_bias += dz
        dweight += dy * normal
        dbias += dy
    partial = partial_ptr + tl.program_id(0) * (3 * D) + tl.arange(0, WIDTH)
    column_mask = tl.arange(0, WIDTH) < D
    tl.store(partial, tl.sum(dx_bias, 0), mask=column_mask)
    tl.store(partial + D, tl.sum(dweight, 0), mask=column_mask)
    tl.store(partial + 2 * D, tl.sum(dbias, 0), mask=column_mask)


def _launch_forward(x_TD, x_bias_D, residual_TD, weight_D, bias_D, eps, p, site, key, example_ids_T, position_ids_T):
    """(y, mean, rstd)."""
    n_rows, columns = x_TD.shape
    y_TD = torch.empty_like(x_TD)
    mean_T, rstd_T = (x_TD.new_empty(n_rows, dtype=torch.float32) for _ in range(2))
    if n_rows == 0:
        return y_TD, mean_T, rstd_T
    _, threshold, scale = dropout_numbers(Dropout(p, key=key))
    tile = tiling.row_tile(columns)
    launch(
        _layer_norm_forward_kernel, (tiling.cdiv(n_rows, tile.rows),),
        x_TD, x_bias_D, residual_TD, weight_D, bias_D, y_TD, mean_T, rstd_T, key, example_ids_T, position_ids_T,
        n_rows, eps, site, threshold, scale, D=columns, ROWS=tile.rows, WIDTH=tile.columns,
        VECTOR=tiling.vector_columns(x_TD.element_size()), DROPOUT=p > 0, num_warps=tile.num_warps,
    )  # fmt: skip
    return y_TD, mean_T, rstd_T


def _launch_backward(dy_TD, x_TD, x_bias_D, residual_TD, weight_D, mean_T, rstd_T, p, site, key, example_ids_T, position_ids_T):
    """(dresidual, dx or an empty tensor where p is 0, float32 [3, D]: dx_bias, dweight, dbias)."""
    n_rows, columns = x_TD.shape
    dz_TD = torch.empty_like(x_TD)
    dx_TD = torch.empty_like(x_TD) if p > 0 else x_TD.new_empty(0)
    if n_rows == 0:
        return dz_TD, dx_TD, x_TD.new_zeros((3, columns), dtype=torch.float32)
    _, threshold, scale = dropout_numbers(Dropout(p, key=key))
    tile = tiling.row_grad_tile(columns)
    programs = tiling.walking_programs(n_rows, tile.rows, tile.num_warps, multiprocessors(x_TD.device))
    partial_P3D = x_TD.new_empty((programs, 3, columns), dtype=torch.float32)
    launch(
        _layer_norm_backward_kernel, (programs,),
        dy_TD, x_TD, x_bias_D, residual_TD, weight_D, mean_T, rstd_T, key, example_ids_T, position_ids_T, dz_TD, dx_TD, partial_P3D,
        n_rows, site, threshold, scale, D=columns, ROWS=tile.rows, WIDTH=tile.columns,
        VECTOR=tiling.vector_columns(x_TD.element_size()), DROPOUT=p > 0, num_warps=tile.num_warps,
    )  # fmt: skip
    return dz_TD, dx_TD, sum_partials(partial_P3D, weight_D.dtype)


@torch.library.custom_op("bertfast::dropout_add_layer_norm", mutates_args=())
def _forward(
    x: Tensor, x_bias: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, p: float, site: int,
    key: Tensor | None, example_ids: Tensor | None, position_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _launch_forward(x.contiguous(), x_bias, residual.contiguous(), weight, bias, eps, p, site, key, example_ids, position_ids)


@_forward.register_fake
def _(x, x_bias, residual, weight, bias, eps, p, site, key, example_ids, position_ids):
    statistics = x.new_empty(x.shape[0], dtype=torch.float32)
    return x.new_empty(x.shape), statistics, torch.empty_like(statistics)


@torch.library.custom_op("bertfast::dropout_add_layer_norm_backward", mutates_args=())
def _backward(
    dy: Tensor, x: Tensor, x_bias: Tensor, residual: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, p: float, site: int,
    key: Tensor | None, example_ids: Tensor | None, position_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    contiguous = (dy.contiguous(), x.contiguous(), x_bias, residual.contiguous())
    return _launch_backward(*contiguous, weight, mean, rstd, p, site, key, example_ids, position_ids)


@_backward.register_fake
def _(dy, x, x_bias, residual, weight, mean, rstd, p, site, key, example_ids, position_ids):
    dx = x.new_empty(x.shape) if p > 0 else x.new_empty(0)
    return x.new_empty(x.shape), dx, weight.new_empty((3, x.shape[1]))


def _setup_context(ctx, inputs, output):
    x, x_bias, residual, weight, _bias, _eps, p, site, key, example_ids, position_ids = inputs
    ctx.save_for_backward(x, x_bias, residual, weight, output[1], output[2], key, example_ids, position_ids)
    ctx.p, ctx.site = p, site


def _autograd(ctx, dy, _dmean, _drstd):
    x, x_bias, residual, weight, mean, rstd, key, example_ids, position_ids = ctx.saved_tensors
    dz, dx, sums = _backward(dy, x, x_bias, residual, weight, mean, rstd, ctx.p, ctx.site, key, example_ids, position_ids)
    dx_bias, dweight, dbias = sums.unbind()
    return dx if ctx.p > 0 else dz, dx_bias, dz, dweight, dbias, *[None] * 6


_forward.register_autograd(_autograd, setup_context=_setup_context)


def variants(shape: EncoderShape) -> list[Launch]:
    """What a training step of an encoder of this shape launches."""
    x_TD = shape.tensor(64, shape.hidden_size)
    d_D = shape.tensor(shape.hidden_size)
    mean_T = shape.tensor(64, dtype=torch.float32)
    with record_launches() as launches:
        for dropout in shape.dropouts():
            bits = (dropout.p, 1, dropout.key, dropout.example_ids, dropout.position_ids)
            _launch_forward(x_TD, d_D, x_TD, d_D, d_D, 1e-12, *bits)
            _launch_backward(x_TD, x_TD, d_D, x_TD, d_D, mean_T, mean_T, *bits)
    return launches


def dropout_add_layer_norm(
    x_TD: Tensor, x_bias_D: Tensor, residual_TD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, dropout: Dropout | None = None
) -> Tensor:
    """LayerNorm(residual + dropout(x + x_bias)): [T, D], x being the output of a matrix product and x_bias its bias."""
    if not takes_triton(x_TD, dropout):
        return reference.dropout_add_layer_norm(x_TD, x_bias_D, residual_TD, weight_D, bias_D, eps, dropout)
    dropout = dropout if dropout is not None and dropout.p > 0 else Dropout(0.0)
    ids = (dropout.key, dropout.example_ids, dropout.position_ids)
    return _forward(x_TD, x_bias_D, residual_TD, weight_D, bias_D, eps, dropout.p, dropout.site, *ids)[0]
