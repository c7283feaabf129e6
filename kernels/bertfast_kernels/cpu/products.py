"""The products of a linear layer in bfloat16 with float32 parameters, x W^T + b, and their gradients.

A weight is cast once for forward and backward, or not at all where the optimizer has left a copy.
"""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from bertfast_kernels.cpu.build import library
from bertfast_kernels.cpu.calls import run
from bertfast_kernels.dispatch import current_backend

# T rows, I inputs, O outputs


class _Copy(NamedTuple):
    """A parameter's values in bfloat16: when they were those, and whose they are."""

    state: tuple[int, int]
    half: Tensor
    owner: weakref.ref


# By parameter that was read in bfloat16; None where nobody has left a copy. No attributes of theirs: a parameter is saved with its attributes.
_COPIES: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def takes_half(x: Tensor, weight: Tensor) -> bool:
    """Whether a linear layer is one of bfloat16 rows and float32 parameters on a CPU, where no backend was chosen."""
    return x.dtype == torch.bfloat16 and weight.dtype == torch.float32 and x.device.type == "cpu" and current_backend() is None


def linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    return _Linear.apply(x_TI, weight_OI, bias_O, half_of(weight_OI))


def query_and_keys(x_TI: Tensor, rows_B: Tensor, weight: Tensor, bias: Tensor, queries: int) -> tuple[Tensor, Tensor]:
    """The first `queries` outputs for some rows [B, queries], and the others for all [T, O - queries]."""
    return _QueryAndKeys.apply(x_TI, rows_B, weight, bias, half_of(weight), queries)


def half_of(weight: Tensor) -> Tensor:
    """A parameter in bfloat16: the copy that an optimizer has left with it, where its values are still those, or a new one."""
    kept = _COPIES.get(weight)
    if kept is not None and kept.state == _state(weight) and kept.owner() is not None:
        return kept.half
    _COPIES.setdefault(weight, None)
    return weight.detach().to(torch.bfloat16)


def room_for_half(weight: Tensor) -> Tensor | None:
    """Where an optimizer writes a parameter's next values in bfloat16; None where nobody reads them so."""
    if weight not in _COPIES:
        return None
    kept = _COPIES[weight]
    return torch.empty_like(weight, dtype=torch.bfloat16) if kept is None else kept.half


def keep_half(weight: Tensor, half: Tensor, owner: object) -> None:
    """Leave a copy of its values of now with a parameter. It serves while its owner lives, who writes every new value into it.

    Other changes of a parameter raise its version, which makes the copy void; two do not: a write through `.data`, and torch's own fused AdamW.
    """
    torch.autograd.graph.increment_version(half)
    _COPIES[weight] = _Copy(_state(weight), half, weakref.ref(owner))


def _state(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), weight._version


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, half):
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, half)
        return F.linear(x, half, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable  # else a gradient of gradients would lack this op's share without a word
    def backward(ctx, dy):
        x, half = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        dx = dy @ half if needs_x else None
        dweight = _outer_sum(dy, x) if needs_weight else None
        dbias = dy.sum(0, dtype=torch.float32) if needs_bias and ctx.has_bias else None
        return dx, dweight, dbias, None


class _QueryAndKeys(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rows, weight, bias, half, queries):
        ctx.queries, bias = queries, bias.to(x.dtype)
        chosen = x[rows]
        ctx.save_for_backward(x, rows, chosen, half)
        return F.linear(chosen, half[:queries], bias[:queries]), F.linear(x, half[queries:], bias[queries:])

    @staticmethod
    @once_differentiable
    def backward(ctx, dq, dkv):
        x, rows, chosen, half = ctx.saved_tensors
        dx = (dkv @ half[ctx.queries :]).index_add_(0, rows, dq @ half[: ctx.queries])
        dweight = torch.cat((_outer_sum(dq, chosen), _outer_sum(dkv, x)))
        dbias = torch.cat((dq.sum(0, dtype=torch.float32), dkv.sum(0, dtype=torch.float32)))
        return dx, None, dweight, dbias, None, None


def _outer_sum(dy_TO: Tensor, x_TI: Tensor) -> Tensor:
    """dy^T x, [O, I] in float32."""
    return (transposed(dy_TO) @ x_TI).float()


def transposed(x_TO: Tensor) -> Tensor:
    """x^T with its elements in that order. oneDNN takes nearly twice as long for a product whose left side is to be read by columns."""
    if library() is None:
        return x_TO.t()
    x_TO = x_TO.contiguous()
    out = x_TO.new_empty(x_TO.shape[::-1])
    run("transpose", x_TO.data_ptr(), *x_TO.shape, out.data_ptr(), torch.get_num_threads())
    return out
