"""y = gelu(x + bias), in one pass forward and one backward (Hendrycks and Gimpel 2016).

    u = x + bias     exact: y = u Phi(u)                dy/du = Phi(u) + u phi(u)
                     tanh:  y = u sigmoid(2 v)          dy/du = s + u s (1 - s) 2 v',  s = sigmoid(2 v),  v = sqrt(2 / pi) (u + 0.044715 u^3)

with phi and Phi the normal density and distribution; sigmoid(2 v) = (1 + tanh v) / 2. The backward makes u anew from x, which its matrix product has kept:
nothing is stored. With a = |u|, y = max(u, 0) - a Phi(-a), which loses no digits for negative u as 1 + erf does. dbias, the sum of dx over rows, is gathered in the same pass, in registers, and added up in a second small one.
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
from bertfast_kernels.primitives.partials import sum_partials

if TYPE_CHECKING:
    from bertfast_kernels.shapes import EncoderShape

# T tokens, F feed-forward; in a kernel: a tile of ROWS rows and WIDTH columns

APPROXIMATIONS = ("none", "tanh")


@jit
def _sigmoid_twice(u):
    """(sigmoid(2 v), 2 dv/du) of the tanh form."""
    square = u * u
    twice_v = u * (1.5957691216057308 + 0.07135481627260025 * square)  # 2 sqrt(2 / pi) and that times 0.044715
    return 1.0 / (1.0 + tl.exp(-twice_v)), 1.5957691216057308 + 0.21406444881780075 * square


@jit
def _magnitude(u):
    """|u|, or 9 where it is more: beyond, Phi(-|u|) is 0 to any dtype, and an infinite u makes no NaN. A NaN stays one."""
    return tl.minimum(tl.abs(u), 9.0, propagate_nan=tl.PropagateNan.ALL)


@jit
def _normal_tail(a):
    """Phi(-a) for 0 <= a <= 9, as 2 to the power of a polynomial: within 1e-5 of itself up to 6.5, where 1 + erf has lost all digits.

    log2(Phi(-a)) is nearly a parabola. The polynomial of degree 9 is a least-squares fit on [0, 6.5], reweighted until the largest error was least;
    its cost is half that of erf, which chooses between two polynomials for every element and made this kernel wait for its arithmetic.
    """
    power = 6.873887770098008e-08 * a - 1.9040555798710557e-06
    power = power * a + 1.9976218027295545e-05
    power = power * a - 7.188342715380713e-05
    power = power * a - 0.0004598394443746656
    power = power * a + 0.007546148728579283
    power = power * a - 0.052873048931360245
    power = power * a - 0.4590702950954437
    power = power * a - 1.1511224508285522
    return tl.exp2(power * a - 1.0)


@jit
def gelu(u, TANH: tl.constexpr):
    """gelu(u), float32."""
    if TANH:
        s, _ = _sigmoid_twice(u)
        return u * s
    a = _magnitude(u)
    return tl.maximum(u, 0.0) - a * _normal_tail(a)


@jit
def gelu_slope(u, TANH: tl.constexpr):
    """dgelu/du, float32."""
    if TANH:
        s, slope = _sigmoid_twice(u)
        return s + u * s * (1.0 - s) * slope
    a = _magnitude(u)
    below = _normal_tail(a) - a * 0.3989422804014327 * tl.exp2(-0.7213475204444817 * a * a)  # the slope at -a; that at a is 1 less it
    return tl.where(u < 0.0, below, 1.0 - below)


@jit(do_not_specialize=["n_rows"])
def _bias_gelu_forward_kernel(x_ptr, bias_ptr, y_ptr, n_rows, F: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, TANH: tl.constexpr):
    column_blocks: tl.constexpr = (F + WIDTH - 1) // WIDTH
    row = (tl.program_id(0) // column_blocks) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) % column_blocks) * WIDTH + tl.arange(0, WIDTH)
    mask = (row < n_rows)[:, None] & (column < F)[None, :]
    offset = row[:, None].to(tl.int64) * F + column[None, :]
    u = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    u += tl.load(bias_ptr + column, mask=column < F, other=0.0).to(tl.float32)[None, :]
    tl.store(y_ptr + offset, gelu(u, TANH).to(y_ptr.dtype.element_ty), mask=mask)


@jit(do_not_specialize=["n_rows"])
def _bias_gelu_backward_kernel(
    dy_ptr, x_ptr, bias_ptr, dx_ptr, partial_ptr, n_rows, F: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, TANH: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    column_blocks: tl.constexpr = (F + WIDTH - 1) // WIDTH
    first = tl.program_id(0) // column_blocks
    walkers = tl.num_programs(0) // column_blocks
    column = (tl.program_id(0) % column_blocks) * WIDTH + tl.arange(0, WIDTH)
    bias = tl.load(bias_ptr + column, mask=column < F, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros([WIDTH], tl.float32)
    for start in tl.range(first * ROWS, n_rows, walkers * ROWS, num_stages=STAGES):
        row = start + tl.arange(0, ROWS)
        mask = (row < n_rows)[:, None] & (column < F)[None, :]
        offset = row[:, None].to(tl.int64) * F + column[None, :]
        u = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32) + bias
        dy = tl.load(dy_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        dx = dy * gelu_slope(u, TANH)
        tl.store(dx_ptr + offset, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        total += tl.sum(dx, 0)
    tl.store(partial_ptr + first * F + column, total, mask=column < F)


def _launch_forward(x_TF: Tensor, bias_F: Tensor, approximate: str) -> Tensor:
    n_rows, columns = x_TF.shape
    y_TF = torch.empty_like(x_TF)
    tile = tiling.block_tile(columns)
    if n_rows > 0:
        grid = (tiling.cdiv(n_rows, tile.rows) * tiling.cdiv(columns, tile.columns),)
        constants = {"F": columns, "ROWS": tile.rows, "WIDTH": tile.columns, "TANH": approximate == "tanh"}
        launch(_bias_gelu_forward_kernel, grid, x_TF, bias_F, y_TF, n_rows, **constants, num_warps=tile.num_warps)
    return y_TF


def _launch_backward(
    dy_TF: Tensor, x_TF: Tensor, bias_F: Tensor, approximate: str, tile: tiling.WalkTile | None = None
) -> tuple[Tensor, Tensor]:
    """(dx [T, F], dbias [F]). tile: another than tiling's."""
    n_rows, columns = x_TF.shape
    dx_TF = torch.empty_like(x_TF)
    if n_rows == 0:
        return dx_TF, torch.zeros_like(bias_F)
    tile = tile or tiling.block_grad_tile(columns)
    walkers = tiling.walking_blocks(n_rows, columns, tile, multiprocessors(x_TF.device))
    partial_P1F = x_TF.new_empty((walkers, 1, columns), dtype=torch.float32)
    grid = (walkers * tiling.cdiv(columns, tile.columns),)
    constants = {"F": columns, "ROWS": tile.rows, "WIDTH": tile.columns, "TANH": approximate == "tanh", "STAGES": tile.num_stages}
    launch(_bias_gelu_backward_kernel, grid, dy_TF, x_TF, bias_F, dx_TF, partial_P1F, n_rows, **constants, **tile.options())
    return dx_TF, sum_partials(partial_P1F, bias_F.dtype).view(columns)


@torch.library.custom_op("bertfast::bias_gelu", mutates_args=())
def _forward(x: Tensor, bias: Tensor, approximate: str) -> Tensor:
    return _launch_forward(x.contiguous(), bias, approximate)


@_forward.register_fake
def _(x, bias, approximate):
    return x.new_empty(x.shape)


@torch.library.custom_op("bertfast::bias_gelu_backward", mutates_args=())
def _backward(dy: Tensor, x: Tensor, bias: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    return _launch_backward(dy.contiguous(), x.contiguous(), bias, approximate)


@_backward.register_fake
def _(dy, x, bias, approximate):
    return x.new_empty(x.shape), bias.new_empty(bias.shape)


def _setup_context(ctx, inputs, output):
    x, bias, ctx.approximate = inputs
    ctx.save_for_backward(x, bias)


def _autograd(ctx, dy):
    dx, dbias = _backward(dy, *ctx.saved_tensors, ctx.approximate)
    return dx, dbias, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def variants(shape: EncoderShape) -> list[Launch]:
    """What a training step of an encoder of this shape launches."""
    x_TF, bias_F = shape.tensor(64, shape.intermediate_size), shape.tensor(shape.intermediate_size)
    with record_launches() as launches:
        _launch_forward(x_TF, bias_F, shape.gelu)
        _launch_backward(x_TF, x_TF, bias_F, shape.gelu)
    return launches


def bias_gelu(x_TF: Tensor, bias_F: Tensor, approximate: str = "none") -> Tensor:
    """gelu(x + bias): [T, F]; approximate "none" is the exact x * Phi(x), "tanh" its approximation. bias is read in the dtype of x, or in its own.

    Raises:
        ValueError: another approximation.
    """
    if approximate not in APPROXIMATIONS:
        raise ValueError(f"approximate is {approximate!r}; it must be one of {', '.join(APPROXIMATIONS)}")
    if takes_cpp(x_TF, bias_F):
        return cpp.bias_gelu(x_TF, bias_F, approximate)
    bias_F = bias_F.to(x_TF.dtype)
    if not takes_triton(x_TF):
        return reference.bias_gelu(x_TF, bias_F, approximate)
    return _forward(x_TF, bias_F, approximate)
