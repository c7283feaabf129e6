"""The attention kernels of one query a sequence, its first token: bound by the reading of K and V, so there is no tensor core in them."""

from __future__ import annotations

from bertfast_kernels.attention.tiles import keep_row, load_rows, store_rows, zero_tail
from bertfast_kernels.primitives.lazy_triton import jit, tl
from bertfast_kernels.primitives.philox import load_key

# T tokens, B sequences, N heads, H head size, L keys

_LN2 = tl.constexpr(0.6931471805599453)
_RUNTIME = ["n_tokens", "n_sequences", "score_scale", "keep_scale", "site", "threshold"]


@jit(do_not_specialize=_RUNTIME)
def cls_forward(
    q_ptr,
    kv_ptr,
    out_ptr,
    stats_ptr,
    cu_seqlens_ptr,
    example_ids_ptr,
    key_ptr,
    n_tokens,
    n_sequences,
    score_scale,
    keep_scale,
    site,
    threshold,
    N: tl.constexpr,
    H: tl.constexpr,
    H_BLOCK: tl.constexpr,
    L: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """Program (head, b): out and statistics of one query, L keys at a time. A sequence of no tokens gives zeros."""
    head = tl.program_id(0)
    sequence = tl.program_id(1)
    start = tl.load(cu_seqlens_ptr + sequence)
    length = tl.load(cu_seqlens_ptr + sequence + 1) - start
    width: tl.constexpr = N * H
    kv_ptr += start.to(tl.int64) * 2 * width + head * H
    row = sequence.to(tl.int64) * width + head * H
    h = tl.arange(0, H_BLOCK)
    q = tl.load(q_ptr + row + h, mask=h < H, other=0.0).to(tl.float32)
    seed, step, example, sheet = 0, 0, 0, 0
    if DROPOUT:
        seed, step = load_key(key_ptr)
        example = tl.load(example_ids_ptr + start, mask=length > 0, other=0).to(tl.uint32)
        sheet = (site + (head << 16)).to(tl.uint32)
    top = tl.full((), -1.0e38, tl.float32)
    total = tl.full((), 0.0, tl.float32)
    out = tl.zeros([H_BLOCK], tl.float32)
    for first in range(0, length, L):
        key = first + tl.arange(0, L)
        k = load_rows(kv_ptr, key, length, 2 * width, H, H_BLOCK).to(tl.float32)
        v = load_rows(kv_ptr + width, key, length, 2 * width, H, H_BLOCK).to(tl.float32)
        scores = tl.where(key < length, tl.sum(k * q[None, :], 1) * score_scale, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 0))
        probs = tl.exp2(scores - higher)
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(probs, 0)
        if DROPOUT:
            probs = tl.where(keep_row(seed, step, first, example, sheet, threshold, L), probs, 0.0)
        out = out * shrink + tl.sum(probs[:, None] * v, 0)
        top = higher
    one_over = 1.0 / tl.where(total > 0.0, total, 1.0)
    out = out * (keep_scale * one_over)
    tl.store(out_ptr + row + h, out.to(out_ptr.dtype.element_ty), mask=h < H)
    stats_ptr += sequence.to(tl.int64) * N + head
    tl.store(stats_ptr, top)
    tl.store(stats_ptr + n_sequences.to(tl.int64) * N, one_over)


@jit(do_not_specialize=_RUNTIME)
def cls_backward(
    q_ptr,
    kv_ptr,
    out_ptr,
    dout_ptr,
    stats_ptr,
    dq_ptr,
    dkv_ptr,
    cu_seqlens_ptr,
    example_ids_ptr,
    key_ptr,
    n_tokens,
    n_sequences,
    score_scale,
    keep_scale,
    site,
    threshold,
    N: tl.constexpr,
    H: tl.constexpr,
    H_BLOCK: tl.constexpr,
    L: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """Program (head, b): dq, and dK and dV of the sequence; program (head, B) clears the tail of dkv. delta is rowsum(dO o O)."""
    head = tl.program_id(0)
    sequence = tl.program_id(1)
    start = tl.load(cu_seqlens_ptr + sequence)
    width: tl.constexpr = N * H
    if sequence == n_sequences:
        for plane in range(2):
            zero_tail(dkv_ptr + plane * width + head * H, start, n_tokens, 2 * width, H, 16, H_BLOCK, 0, 1)
    else:
        length = tl.load(cu_seqlens_ptr + sequence + 1) - start
        kv_ptr += start.to(tl.int64) * 2 * width + head * H
        dkv_ptr += start.to(tl.int64) * 2 * width + head * H
        row = sequence.to(tl.int64) * width + head * H
        h = tl.arange(0, H_BLOCK)
        q = tl.load(q_ptr + row + h, mask=h < H, other=0.0).to(tl.float32)
        out = tl.load(out_ptr + row + h, mask=h < H, other=0.0).to(tl.float32)
        dout = tl.load(dout_ptr + row + h, mask=h < H, other=0.0).to(tl.float32)
        delta = tl.sum(out * dout, 0)
        stats_ptr += sequence.to(tl.int64) * N + head
        top = tl.load(stats_ptr)
        one_over = tl.load(stats_ptr + n_sequences.to(tl.int64) * N)
        seed, step, example, sheet = 0, 0, 0, 0
        if DROPOUT:
            seed, step = load_key(key_ptr)
            example = tl.load(example_ids_ptr + start, mask=length > 0, other=0).to(tl.uint32)
            sheet = (site + (head << 16)).to(tl.uint32)
        dq = tl.zeros([H_BLOCK], tl.float32)
        for first in range(0, length, L):
            key = first + tl.arange(0, L)
            k = load_rows(kv_ptr, key, length, 2 * width, H, H_BLOCK).to(tl.float32)
            v = load_rows(kv_ptr + width, key, length, 2 * width, H, H_BLOCK).to(tl.float32)
            scores = tl.sum(k * q[None, :], 1) * score_scale - top
            probs = tl.exp2(tl.where(key < length, scores, float("-inf"))) * one_over
            dprobs = tl.sum(v * dout[None, :], 1)
            kept = probs * keep_scale
            if DROPOUT:
                keep = keep_row(seed, step, first, example, sheet, threshold, L)
                kept = tl.where(keep, kept, 0.0)
                dprobs = tl.where(keep, dprobs * keep_scale, 0.0)
            dscores = probs * (dprobs - delta) * (score_scale * _LN2)
            dq += tl.sum(dscores[:, None] * k, 0)
            store_rows(dkv_ptr, dscores[:, None] * q[None, :], key, length, 2 * width, H, H_BLOCK)
            store_rows(dkv_ptr + width, kept[:, None] * dout[None, :], key, length, 2 * width, H, H_BLOCK)
        tl.store(dq_ptr + row + h, dq.to(dq_ptr.dtype.element_ty), mask=h < H)
