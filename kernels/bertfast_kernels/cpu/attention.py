"""Attention over packed sequences, with its gradients: see source/attention.cpp, and attention/reference.py for the maths."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bertfast_kernels.cpu.calls import is_half, pointer, run

# T tokens, B sequences, N heads, H head size


class Mask(NamedTuple):
    """Dropout of probabilities. keep: bool [S], of all scores by sequence, head, query and key; offsets: int64 [B], where a sequence's begin; scale: what
    is kept is multiplied with it."""

    keep: Tensor | None = None
    offsets: Tensor | None = None
    scale: float = 1.0


def varlen_attention(qkv_T3NH: Tensor, cu_seqlens: Tensor, mask: Mask) -> Tensor:
    return _Attention.apply(qkv_T3NH, None, cu_seqlens, *mask)


def varlen_cls_attention(q_BNH: Tensor, kv_T2NH: Tensor, cu_seqlens: Tensor, mask: Mask) -> Tensor:
    return _Attention.apply(kv_T2NH, q_BNH, cu_seqlens, *mask)


class _Attention(torch.autograd.Function):
    """x is [T, 3, N, H], or [T, 2, N, H] (keys and values) beside q [B, N, H], one query a sequence; out is [T, N H] or [B, N H]."""

    @staticmethod
    def forward(ctx, x, q, cu_seqlens, keep, offsets, scale):
        x, q, bounds = x.contiguous(), None if q is None else q.contiguous(), cu_seqlens.to(torch.int32).contiguous()
        ctx.scale = scale
        out = (x if q is None else q).new_empty(len(x if q is None else q), x.shape[2] * x.shape[3])
        if q is None:
            out[int(bounds[-1]) :] = 0
        run(
            "attention_forward",
            *_batch(x, q, bounds, keep, offsets, ctx.scale),
            *_queries(x, q),
            *_keys(x),
            pointer(out),
            out.shape[1],
            torch.get_num_threads(),
        )
        ctx.save_for_backward(x, q, bounds, keep, offsets)
        return out

    @staticmethod
    @once_differentiable  # else a gradient of gradients would lack this op's share without a word
    def backward(ctx, dout):
        x, q, bounds, keep, offsets = ctx.saved_tensors
        dout, dx, dq = dout.contiguous(), torch.empty_like(x), None if q is None else torch.empty_like(q)
        dx[int(bounds[-1]) :] = 0
        of_queries, row = _queries(x, q)
        run(
            "attention_backward",
            *_batch(x, q, bounds, keep, offsets, ctx.scale), pointer(dout), dout.shape[1], of_queries, _queries(dx, dq)[0], row,
            *_keys(x)[:2], *_keys(dx), torch.get_num_threads(),
        )  # fmt: skip
        return dx, dq, None, None, None, None


def _batch(x: Tensor, q: Tensor | None, bounds: Tensor, keep: Tensor | None, offsets: Tensor | None, scale: float) -> tuple:
    return is_half(x), pointer(bounds), len(bounds) - 1, *x.shape[2:], q is not None, pointer(keep), pointer(offsets), scale


def _queries(x: Tensor, q: Tensor | None) -> tuple[int, int]:
    """Where queries begin, and from one row to the next."""
    return (x.data_ptr(), x.stride(0)) if q is None else (q.data_ptr(), q.stride(0))


def _keys(x: Tensor) -> tuple[int, int, int]:
    """Where keys and values begin, and from one row to the next."""
    plane = x.stride(1) * x.element_size()
    values = x.data_ptr() + (x.shape[1] - 1) * plane
    return values - plane, values, x.stride(0)
