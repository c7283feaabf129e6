"""Variable-length bidirectional softmax attention with dropout over packed sequences, forward and backward, for all queries or for [CLS] alone.

For each sequence and head, with s = 1 / sqrt(H), Z the dropout's keep mask over the chance to keep, and o the elementwise product:

    S = s Q K^T        P = softmax(S)        O = (Z o P) V
    dV = (Z o P)^T dO  dP = Z o (dO V^T)     dS = P o (dP - delta)     dQ = s dS K     dK = s dS^T Q     delta = rowsum(P o dP) = rowsum(dO o O)

The kernels read the packed qkv [T, 3, N, H] and write out [T, N H] and dqkv [T, 3, N, H] where they lie: no transpose, no copy, no atomics. Of the
forward they keep a row's largest score and one over its softmax's denominator, float32 [2, N, T]; P and Z are made anew. (Not their sum, the log of
the denominator: rounded, it errs by a unit in the last place of the largest score, and dS is a small difference where one key takes all.) Tokens beyond cu_seqlens[-1] get zeros.
short.py: batches of short sequences, of up to 128 tokens. medium.py: batches of longer ones, of up to 128. long.py: any
length. cls.py: one query a sequence.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bertfast_kernels.attention import plan as tiling
from bertfast_kernels.attention import reference as reference_attention
from bertfast_kernels.attention.cls import cls_backward, cls_forward
from bertfast_kernels.attention.long import long_backward_keys, long_backward_queries, long_forward
from bertfast_kernels.attention.medium import medium_backward, medium_forward
from bertfast_kernels.attention.short import short_backward, short_forward
from bertfast_kernels.cpu import attention as cpp
from bertfast_kernels.cpu import takes_cpp
from bertfast_kernels.dispatch import takes_triton
from bertfast_kernels.primitives.lazy_triton import Launch, launch, record_launches
from bertfast_kernels.primitives.masks import Dropout
from bertfast_kernels.primitives.philox import dropout_numbers
from bertfast_kernels.tiling import cdiv

if TYPE_CHECKING:
    from bertfast_kernels.shapes import EncoderShape

# T tokens, B sequences, N heads, H head size


def _numbers(head_size: int, p: float, site: int, key: Tensor | None) -> tuple[float, float, int, int]:
    """(score_scale, keep_scale, site, threshold) as the kernels take them."""
    _, threshold, keep_scale = dropout_numbers(Dropout(p, site, key))
    return math.log2(math.e) / math.sqrt(head_size), keep_scale, site, threshold


@functools.cache
def _has_wgmma(device: torch.device) -> bool:
    """Whether the tensor cores read their operands from shared memory: NVIDIA's of compute capability 9.0 and 10.0."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device)[0] in (9, 10)


@functools.cache
def _is_hopper(device: torch.device) -> bool:
    """Whether a GPU has NVIDIA's compute capability 9.0."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device)[0] == 9


@functools.cache
def _warp_size(device: torch.device) -> int:
    """Threads of a warp; the interpreter has none, and takes what most GPUs have."""
    return torch.cuda.get_device_properties(device).warp_size if device.type == "cuda" else 32


def _launch_forward(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, p: float, site: int, key: Tensor | None, example_ids: Tensor | None,
    plan: tiling.AttentionPlan | None = None, wgmma: bool | None = None, hopper: bool | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out [T, N H], stats float32 [2, N, T])."""
    n_tokens, _, n_heads, size = qkv.shape
    n_sequences = cu_seqlens.shape[0] - 1
    out = qkv.new_empty((n_tokens, n_heads * size))
    stats = qkv.new_empty((2, n_heads, n_tokens), dtype=torch.float32)
    if n_tokens == 0:
        return out, stats
    wgmma = _has_wgmma(qkv.device) if wgmma is None else wgmma
    plan = plan or tiling.attention_plan(n_tokens, n_sequences, max_seqlen, qkv.element_size(), size, wgmma)
    tensors = (qkv, out, stats, cu_seqlens, example_ids, key, n_tokens, n_sequences)
    numbers = _numbers(size, p, site, key)
    constants = {"N": n_heads, "H": size, "H_BLOCK": tiling.head_block(size), "DROPOUT": p > 0}
    if plan.medium:
        tile = tiling.medium_forward_tile(wgmma)
        launch(medium_forward, (n_heads, n_sequences + 1, cdiv(max_seqlen, tile.M)), *tensors, *numbers, **constants, **tile._asdict())
    elif plan.longest:
        launch(
            short_forward, (cdiv(n_heads, plan.heads_each), n_sequences + 1), *tensors, plan.heads_each, plan.longest, *numbers, **constants,
            **tiling.short_forward_options(size, p > 0, wgmma, _is_hopper(qkv.device) if hopper is None else hopper),
        )  # fmt: skip
    if plan.shortest is not None:
        tile = tiling.long_forward_tile(qkv.element_size(), size, p > 0, wgmma)
        grid = (n_heads, cdiv(max_seqlen, tile.M), n_sequences + (plan.longest == 0))
        launch(
            long_forward, grid, *tensors, plan.shortest, *numbers, **constants,
            **tile._asdict(),
        )  # fmt: skip
    return out, stats


def _launch_backward(
    dout: Tensor, qkv: Tensor, out: Tensor, stats: Tensor, cu_seqlens: Tensor, max_seqlen: int, p: float, site: int,
    key: Tensor | None, example_ids: Tensor | None, plan: tiling.AttentionPlan | None = None, wgmma: bool | None = None,
    warp_size: int | None = None,
) -> Tensor:  # fmt: skip
    """dqkv [T, 3, N, H]."""
    n_tokens, _, n_heads, size = qkv.shape
    n_sequences = cu_seqlens.shape[0] - 1
    dqkv = torch.empty_like(qkv)
    if n_tokens == 0:
        return dqkv
    wgmma = _has_wgmma(qkv.device) if wgmma is None else wgmma
    plan = plan or tiling.attention_plan(n_tokens, n_sequences, max_seqlen, qkv.element_size(), size, wgmma)
    tensors = (cu_seqlens, example_ids, key, n_tokens, n_sequences)
    numbers = _numbers(size, p, site, key)
    constants = {"N": n_heads, "H": size, "H_BLOCK": tiling.head_block(size), "DROPOUT": p > 0}
    if plan.medium:
        launch(
            medium_backward, (n_heads, n_sequences + 1), qkv, out, dout, stats, dqkv, *tensors, *numbers, **constants,
            **tiling.medium_backward_tile(wgmma, warp_size or _warp_size(qkv.device))._asdict(),
        )  # fmt: skip
    elif plan.longest:
        launch(
            short_backward, (cdiv(n_heads, plan.heads_each), n_sequences + 1),
            qkv, out, dout, stats, dqkv, *tensors, plan.heads_each, plan.longest, *numbers, **constants, num_warps=4, num_stages=1,
        )  # fmt: skip
    if plan.shortest is not None:
        delta = torch.empty_like(stats[0])
        sequences = n_sequences + (plan.longest == 0)
        tile = tiling.long_backward_queries_tile(qkv.element_size(), size, p > 0, wgmma)
        launch(
            long_backward_queries, (n_heads, cdiv(max_seqlen, tile.M), sequences),
            qkv, out, dout, stats, delta, dqkv, *tensors, plan.shortest, *numbers, **constants,
            EXACT=qkv.dtype == torch.float32, **tile._asdict(),
        )  # fmt: skip
        tile = tiling.long_backward_keys_tile(qkv.element_size(), size, wgmma)
        launch(
            long_backward_keys, (n_heads, cdiv(max_seqlen, tile.L), sequences),
            qkv, dout, stats, delta, dqkv, *tensors, plan.shortest, *numbers, **constants,
            **tile._asdict(),
        )  # fmt: skip
    return dqkv


def _launch_cls_forward(
    q: Tensor, kv: Tensor, cu_seqlens: Tensor, p: float, site: int, key: Tensor | None, example_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(out [B, N H], stats float32 [2, B, N])."""
    n_sequences, n_heads, size = q.shape
    out = q.new_empty((n_sequences, n_heads * size))
    stats = q.new_empty((2, n_sequences, n_heads), dtype=torch.float32)
    if n_sequences > 0:
        launch(
            cls_forward, (n_heads, n_sequences),
            q, kv, out, stats, cu_seqlens, example_ids, key, kv.shape[0], n_sequences, *_numbers(size, p, site, key),
            N=n_heads, H=size, H_BLOCK=tiling.head_block(size), L=tiling.cls_keys(size), DROPOUT=p > 0, num_warps=4,
        )  # fmt: skip
    return out, stats


def _launch_cls_backward(
    dout: Tensor, q: Tensor, kv: Tensor, out: Tensor, stats: Tensor, cu_seqlens: Tensor, p: float, site: int, key: Tensor | None, example_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(dq [B, N, H], dkv [T, 2, N, H])."""
    n_sequences, n_heads, size = q.shape
    dq, dkv = torch.empty_like(q), torch.empty_like(kv)
    launch(
        cls_backward, (n_heads, n_sequences + 1),
        q, kv, out, dout, stats, dq, dkv, cu_seqlens, example_ids, key, kv.shape[0], n_sequences, *_numbers(size, p, site, key),
        N=n_heads, H=size, H_BLOCK=tiling.head_block(size), L=tiling.cls_keys(size), DROPOUT=p > 0, num_warps=4,
    )  # fmt: skip
    return dq, dkv


@torch.library.custom_op("bertfast::varlen_attention", mutates_args=())
def _forward(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, p: float, site: int, key: Tensor | None, example_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    return _launch_forward(qkv.contiguous(), cu_seqlens, max_seqlen, p, site, key, example_ids)


@_forward.register_fake
def _(qkv, cu_seqlens, max_seqlen, p, site, key, example_ids):
    n_tokens, _, n_heads, size = qkv.shape
    return qkv.new_empty((n_tokens, n_heads * size)), qkv.new_empty((2, n_heads, n_tokens), dtype=torch.float32)


@torch.library.custom_op("bertfast::varlen_attention_backward", mutates_args=())
def _backward(
    dout: Tensor, qkv: Tensor, out: Tensor, stats: Tensor, cu_seqlens: Tensor, max_seqlen: int, p: float, site: int,
    key: Tensor | None, example_ids: Tensor | None,
) -> Tensor:  # fmt: skip
    return _launch_backward(dout.contiguous(), qkv.contiguous(), out, stats, cu_seqlens, max_seqlen, p, site, key, example_ids)


@_backward.register_fake
def _(dout, qkv, out, stats, cu_seqlens, max_seqlen, p, site, key, example_ids):
    return qkv.new_empty(qkv.shape)


def _setup_context(ctx, inputs, output):
    qkv, cu_seqlens, ctx.max_seqlen, ctx.p, ctx.site, key, example_ids = inputs
    ctx.set_materialize_grads(False)  # nobody reads the gradient of the statistics: no zeros are made for it
    ctx.save_for_backward(qkv, *output, cu_seqlens, key, example_ids)  # out is kept by the product that reads it: it costs no memory here


def _autograd(ctx, dout, _dstats):
    qkv, out, stats, cu_seqlens, key, example_ids = ctx.saved_tensors
    return _backward(dout, qkv, out, stats, cu_seqlens, ctx.max_seqlen, ctx.p, ctx.site, key, example_ids), *[None] * 6


_forward.register_autograd(_autograd, setup_context=_setup_context)


@torch.library.custom_op("bertfast::varlen_cls_attention", mutates_args=())
def _cls_forward(
    q: Tensor, kv: Tensor, cu_seqlens: Tensor, p: float, site: int, key: Tensor | None, example_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    return _launch_cls_forward(q.contiguous(), kv.contiguous(), cu_seqlens, p, site, key, example_ids)


@_cls_forward.register_fake
def _(q, kv, cu_seqlens, p, site, key, example_ids):
    n_sequences, n_heads, size = q.shape
    return q.new_empty((n_sequences, n_heads * size)), q.new_empty((2, n_sequences, n_heads), dtype=torch.float32)


@torch.library.custom_op("bertfast::varlen_cls_attention_backward", mutates_args=())
def _cls_backward(
    dout: Tensor, q: Tensor, kv: Tensor, out: Tensor, stats: Tensor, cu_seqlens: Tensor, p: float, site: int,
    key: Tensor | None, example_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _launch_cls_backward(dout.contiguous(), q.contiguous(), kv.contiguous(), out, stats, cu_seqlens, p, site, key, example_ids)


@_cls_backward.register_fake
def _(dout, q, kv, out, stats, cu_seqlens, p, site, key, example_ids):
    return q.new_empty(q.shape), kv.new_empty(kv.shape)


def _cls_setup_context(ctx, inputs, output):
    q, kv, cu_seqlens, ctx.p, ctx.site, key, example_ids = inputs
    ctx.set_materialize_grads(False)  # nobody reads the gradient of the statistics: no zeros are made for it
    ctx.save_for_backward(q, kv, *output, cu_seqlens, key, example_ids)


def _cls_autograd(ctx, dout, _dstats):
    q, kv, out, stats, cu_seqlens, key, example_ids = ctx.saved_tensors
    return *_cls_backward(dout, q, kv, out, stats, cu_seqlens, ctx.p, ctx.site, key, example_ids), *[None] * 5


_cls_forward.register_autograd(_cls_autograd, setup_context=_cls_setup_context)


def variants(shape: EncoderShape) -> list[Launch]:
    """What training and evaluation of an encoder of this shape launch: for all its lengths, the kernels of short, mixed and long batches."""
    qkv = shape.tensor(64, 3, shape.heads, shape.head_size)
    q, kv = qkv[:, 0].contiguous(), qkv[:, 1:].contiguous()
    cu_seqlens = shape.tensor(65, dtype=torch.int32)
    stats = shape.tensor(2, shape.heads, 64, dtype=torch.float32)
    batches = [(64 * mean, 64, longest) for longest in {min(128, shape.max_seqlen), shape.max_seqlen} for mean in (1, longest)]
    plans = {tiling.attention_plan(*batch, qkv.element_size(), shape.head_size, shape.wgmma) for batch in batches}
    with record_launches() as launches:
        for dropout in shape.dropouts():
            bits = (dropout.p, 1, dropout.key, dropout.example_ids)
            for plan in sorted(plans, key=str):
                out, _ = _launch_forward(qkv, cu_seqlens, shape.max_seqlen, *bits, plan, shape.wgmma, shape.hopper)
                _launch_backward(out, qkv, out, stats, cu_seqlens, shape.max_seqlen, *bits, plan, shape.wgmma, shape.warp_size)
            out, _ = _launch_cls_forward(q, kv, cu_seqlens, *bits)
            _launch_cls_backward(out, q, kv, out, stats, cu_seqlens, *bits)
    return launches


def varlen_attention(qkv_T3NH: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: Dropout | None = None) -> Tensor:
    """Bidirectional attention within each sequence: qkv [T, 3, N, H] -> [T, N * H] of the same dtype. cu_seqlens: int32 [B + 1].

    max_seqlen: at least the longest sequence; on a GPU a longer one gets no result. Dropout's example_ids are read at each sequence's first token.

    Raises:
        ValueError: more sequences than a launch can hold.
    """
    if takes_cpp(qkv_T3NH):
        return cpp.varlen_attention(qkv_T3NH, cu_seqlens, _mask(dropout, cu_seqlens, qkv_T3NH.shape[2], cls_only=False))
    if not takes_triton(qkv_T3NH, dropout):
        return reference_attention.varlen_attention(qkv_T3NH, cu_seqlens, max_seqlen, dropout)
    return _forward(qkv_T3NH, _checked(cu_seqlens), max_seqlen, *_bits(dropout))[0]


def varlen_cls_attention(q_BNH: Tensor, kv_T2NH: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: Dropout | None = None) -> Tensor:
    """The attention of each sequence's first token alone: q [B, N, H] and kv [T, 2, N, H] -> [B, N * H].

    Equal to the rows cu_seqlens[:-1] of `varlen_attention`, with dropout by key as well. Raises as it does.
    """
    if takes_cpp(q_BNH, kv_T2NH) and q_BNH.dtype == kv_T2NH.dtype:
        return cpp.varlen_cls_attention(q_BNH, kv_T2NH, cu_seqlens, _mask(dropout, cu_seqlens, q_BNH.shape[1], cls_only=True))
    if not takes_triton(kv_T2NH, dropout):
        return reference_attention.varlen_cls_attention(q_BNH, kv_T2NH, cu_seqlens, max_seqlen, dropout)
    return _cls_forward(q_BNH, kv_T2NH, _checked(cu_seqlens), *_bits(dropout))[0]


def _mask(dropout: Dropout | None, cu_seqlens: Tensor, n_heads: int, cls_only: bool) -> cpp.Mask:
    if dropout is None or dropout.p == 0.0:
        return cpp.Mask()
    return cpp.Mask(*reference_attention.attention_mask(dropout, cu_seqlens, n_heads, cls_only), dropout.scale)


def _bits(dropout: Dropout | None) -> tuple[float, int, Tensor | None, Tensor | None]:
    return (0.0, 0, None, None) if dropout is None or dropout.p == 0.0 else (dropout.p, dropout.site, dropout.key, dropout.example_ids)


def _checked(cu_seqlens: Tensor) -> Tensor:
    if cu_seqlens.shape[0] - 1 > tiling.MAX_SEQUENCES:
        raise ValueError(f"{cu_seqlens.shape[0] - 1:,} sequences in a batch; the attention kernels take up to {tiling.MAX_SEQUENCES:,}")
    return cu_seqlens
