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
from bertfast_kernels.cpu import rows as cpp
from bertfast_kernels.cpu import takes_cpp
from bertfast_kernels.dispatch import takes_triton
from bertfast_kernels.primitives.lazy_triton import Launch, jit, launch, multiprocessors, record_launches, tl
from bertfast_kernels.primitives.masks import Dropout
from bertfast_kernels.primitives.partials import sum_partials
from bertfast_kernels.primitives.philox import dropout_numbers, keep_tile, load_key

if TYPE_CHECKING:
    from bertfast_kernels.shapes import EncoderShape

# T tokens, D hidden; in a kernel: ROWS rows, each cut into PIECES pieces of WIDTH columns (a tuple of tiles [ROWS, WIDTH])


@jit
def piece_columns(piece: tl.constexpr, WIDTH: tl.constexpr):
    """The columns of a piece: [1, WIDTH]."""
    return (piece * WIDTH + tl.arange(0, WIDTH))[None, :]


@jit
def parameter_tile(ptr, piece: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """A piece of a parameter [D] for every row of a tile, float32 [ROWS, WIDTH].

    Every row loads it (from the L1 cache): loaded once and broadcast, it would come in a layout of its own, and all that meets it would be shuffled
    between threads through shared memory.
    """
    column = piece_columns(piece, WIDTH) + tl.zeros([ROWS, 1], tl.int32)
    return tl.load(ptr + column, mask=column < D, other=0.0).to(tl.float32)


@jit
def row_statistics(z, eps, D: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr):
    """(mean, 1 / standard deviation) of each row of z, which is 0 beyond column D. Two passes over registers."""
    total = z[0]
    for i in tl.static_range(1, PIECES):
        total += z[i]
    mean = tl.sum(total, 1) / D
    squares = tl.zeros_like(total)
    for i in tl.static_range(PIECES):
        centred = z[i] - mean[:, None]
        if (i + 1) * WIDTH > D:
            centred = tl.where(piece_columns(i, WIDTH) < D, centred, 0.0)
        squares += centred * centred
    return mean, 1.0 / tl.sqrt(tl.sum(squares, 1) / D + eps)


@jit
def _add_pairs(a0, a1, b0, b1):
    return a0 + b0, a1 + b1


@jit
def row_gradient_means(normal, g, D: tl.constexpr, PIECES: tl.constexpr):
    """(mean(g), mean(g o normal)) of each row; both sums go through one reduction, and so past one barrier."""
    total, total_gn = g[0], g[0] * normal[0]
    for i in tl.static_range(1, PIECES):
        total += g[i]
        total_gn += g[i] * normal[i]
    total, total_gn = tl.reduce((total, total_gn), 1, _add_pairs)
    return total[:, None] / D, total_gn[:, None] / D


@jit(do_not_specialize=["n_rows", "site", "threshold", "eps", "scale"])
def _layer_norm_forward_kernel(
    x_ptr, x_bias_ptr, residual_ptr, weight_ptr, bias_ptr, y_ptr, mean_ptr, rstd_ptr, key_ptr, example_ptr, position_ptr,
    n_rows, eps, site, threshold, scale,
    D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr, VECTOR: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_mask = row < n_rows
    start = row[:, None].to(tl.int64) * D
    if DROPOUT:
        seed, step = load_key(key_ptr)
        position = tl.load(position_ptr + row, mask=row_mask, other=0)
        example = tl.load(example_ptr + row, mask=row_mask, other=0)
    z = ()
    for i in tl.static_range(PIECES):
        column = piece_columns(i, WIDTH)
        mask = row_mask[:, None] & (column < D)
        x = tl.load(x_ptr + start + column, mask=mask, other=0.0).to(tl.float32)
        residual = tl.load(residual_ptr + start + column, mask=mask, other=0.0).to(tl.float32)
        x += parameter_tile(x_bias_ptr, i, D, ROWS, WIDTH)
        if DROPOUT:
            x *= tl.where(keep_tile(seed, step, position, example, site, threshold, i * (WIDTH // 4), WIDTH, VECTOR), scale, 0.0)
        z = z + (x + residual,)  # noqa: RUF005
    mean, rstd = row_statistics(z, eps, D, WIDTH, PIECES)
    for i in tl.static_range(PIECES):
        column = piece_columns(i, WIDTH)
        weight = parameter_tile(weight_ptr, i, D, ROWS, WIDTH)
        bias = parameter_tile(bias_ptr, i, D, ROWS, WIDTH)
        y = (z[i] - mean[:, None]) * rstd[:, None] * weight + bias
        tl.store(y_ptr + start + column, y.to(y_ptr.dtype.element_ty), mask=row_mask[:, None] & (column < D))
    tl.store(mean_ptr + row, mean, mask=row_mask)
    tl.store(rstd_ptr + row, rstd, mask=row_mask)


@jit(do_not_specialize=["n_rows", "site", "threshold", "scale"])
def _layer_norm_backward_kernel(
    dy_ptr, x_ptr, x_bias_ptr, residual_ptr, weight_ptr, mean_ptr, rstd_ptr, key_ptr, example_ptr, position_ptr, dz_ptr, dx_ptr, partial_ptr,
    n_rows, site, threshold, scale,
    D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr, VECTOR: tl.constexpr, DROPOUT: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    zeros = ()
    for _ in tl.static_range(PIECES):
        zeros = zeros + (tl.zeros([ROWS, WIDTH], tl.float32),)  # noqa: RUF005
    dx_bias, dweight, dbias = zeros, zeros, zeros
    if DROPOUT:
        seed, step = load_key(key_ptr)
    for first in tl.range(tl.program_id(0) * ROWS, n_rows, tl.num_programs(0) * ROWS, num_stages=STAGES):
        row = first + tl.arange(0, ROWS)
        row_mask = row < n_rows
        start = row[:, None].to(tl.int64) * D
        mean = tl.load(mean_ptr + row, mask=row_mask, other=0.0)[:, None]
        rstd = tl.load(rstd_ptr + row, mask=row_mask, other=0.0)[:, None]
        if DROPOUT:
            position = tl.load(position_ptr + row, mask=row_mask, other=0)
            example = tl.load(example_ptr + row, mask=row_mask, other=0)
        g, normal, factor, dweight_sums, dbias_sums = (), (), (), (), ()
        for i in tl.static_range(PIECES):
            column = piece_columns(i, WIDTH)
            mask = row_mask[:, None] & (column < D)
            dy = tl.load(dy_ptr + start + column, mask=mask, other=0.0).to(tl.float32)
            z = tl.load(x_ptr + start + column, mask=mask, other=0.0).to(tl.float32)
            residual = tl.load(residual_ptr + start + column, mask=mask, other=0.0).to(tl.float32)
            z += parameter_tile(x_bias_ptr, i, D, ROWS, WIDTH)
            if DROPOUT:
                keep = tl.where(keep_tile(seed, step, position, example, site, threshold, i * (WIDTH // 4), WIDTH, VECTOR), scale, 0.0)
                z *= keep
                factor = factor + (keep,)  # noqa: RUF005
            n = (z + residual - mean) * rstd
            g = g + (dy * parameter_tile(weight_ptr, i, D, ROWS, WIDTH),)  # noqa: RUF005
            normal = normal + (n,)  # noqa: RUF005
            dweight_sums = dweight_sums + (dweight[i] + dy * n,)  # noqa: RUF005
            dbias_sums = dbias_sums + (dbias[i] + dy,)  # noqa: RUF005
        dweight, dbias = dweight_sums, dbias_sums
        mean_g, mean_gn = row_gradient_means(normal, g, D, PIECES)
        dx_bias_sums = ()
        for i in tl.static_range(PIECES):
            column = piece_columns(i, WIDTH)
            mask = row_mask[:, None] & (column < D)
            dz = rstd * (g[i] - mean_g - normal[i] * mean_gn)
            tl.store(dz_ptr + start + column, dz.to(dz_ptr.dtype.element_ty), mask=mask)
            if DROPOUT:
                dz *= factor[i]
                tl.store(dx_ptr + start + column, dz.to(dx_ptr.dtype.element_ty), mask=mask)
            dx_bias_sums = dx_bias_sums + (dx_bias[i] + dz,)  # noqa: RUF005
        dx_bias = dx_bias_sums
    partial = partial_ptr + tl.program_id(0) * (3 * D)
    for i in tl.static_range(PIECES):
        column = i * WIDTH + tl.arange(0, WIDTH)
        tl.store(partial + column, tl.sum(dx_bias[i], 0), mask=column < D)
        tl.store(partial + D + column, tl.sum(dweight[i], 0), mask=column < D)
        tl.store(partial + 2 * D + column, tl.sum(dbias[i], 0), mask=column < D)


def _launch_forward(
    x_TD: Tensor, x_bias_D: Tensor, residual_TD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, p: float, site: int,
    key: Tensor | None, example_ids_T: Tensor | None, position_ids_T: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
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
        n_rows, eps, site, threshold, scale, D=columns, ROWS=tile.rows, WIDTH=tile.columns, PIECES=tile.pieces,
        VECTOR=tiling.vector_columns(x_TD.element_size()), DROPOUT=p > 0, num_warps=tile.num_warps,
    )  # fmt: skip
    return y_TD, mean_T, rstd_T


def _launch_backward(
    dy_TD: Tensor, x_TD: Tensor, x_bias_D: Tensor, residual_TD: Tensor, weight_D: Tensor, mean_T: Tensor, rstd_T: Tensor, p: float, site: int,
    key: Tensor | None, example_ids_T: Tensor | None, position_ids_T: Tensor | None, tile: tiling.WalkTile | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dresidual, dx or an empty tensor where p is 0, [3, D]: dx_bias, dweight, dbias). tile: another than tiling's."""
    n_rows, columns = x_TD.shape
    dz_TD = torch.empty_like(x_TD)
    dx_TD = torch.empty_like(x_TD) if p > 0 else x_TD.new_empty(0)
    if n_rows == 0:
        return dz_TD, dx_TD, x_TD.new_zeros((3, columns), dtype=torch.float32)
    _, threshold, scale = dropout_numbers(Dropout(p, key=key))
    tile = tile or tiling.row_grad_tile(columns, n_rows)
    programs = tiling.walking_programs(n_rows, tile, multiprocessors(x_TD.device))
    partial_P3D = x_TD.new_empty((programs, 3, columns), dtype=torch.float32)
    launch(
        _layer_norm_backward_kernel, (programs,),
        dy_TD, x_TD, x_bias_D, residual_TD, weight_D, mean_T, rstd_T, key, example_ids_T, position_ids_T, dz_TD, dx_TD, partial_P3D,
        n_rows, site, threshold, scale, D=columns, ROWS=tile.rows, WIDTH=tile.columns, PIECES=tile.pieces,
        VECTOR=tiling.vector_columns(x_TD.element_size()), DROPOUT=p > 0, STAGES=tile.num_stages, **tile.options(),
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
    ctx.set_materialize_grads(False)  # nobody reads the gradient of the statistics: no zeros are made for it
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
            for n_rows in (1, 2**20):  # which have tiles of their own
                tile = tiling.row_grad_tile(shape.hidden_size, n_rows)
                _launch_backward(x_TD, x_TD, d_D, x_TD, d_D, mean_T, mean_T, *bits, tile)
    return launches


def dropout_add_layer_norm(
    x_TD: Tensor, x_bias_D: Tensor, residual_TD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, dropout: Dropout | None = None
) -> Tensor:
    """LayerNorm(residual + dropout(x + x_bias)): [T, D], x being the output of a matrix product and x_bias its bias. What is of columns alone is read
    in the dtype of x, or in its own."""
    if takes_cpp(x_TD, x_bias_D, residual_TD, weight_D, bias_D) and x_TD.dtype == residual_TD.dtype:
        return cpp.dropout_add_layer_norm(x_TD, x_bias_D, residual_TD, weight_D, bias_D, eps, dropout)
    x_bias_D, weight_D, bias_D = (parameter.to(x_TD.dtype) for parameter in (x_bias_D, weight_D, bias_D))
    if not takes_triton(x_TD, dropout):
        return reference.dropout_add_layer_norm(x_TD, x_bias_D, residual_TD, weight_D, bias_D, eps, dropout)
    dropout = dropout if dropout is not None and dropout.p > 0 else Dropout(0.0)
    ids = (dropout.key, dropout.example_ids, dropout.position_ids)
    return _forward(x_TD, x_bias_D, residual_TD, weight_D, bias_D, eps, dropout.p, dropout.site, *ids)[0]
