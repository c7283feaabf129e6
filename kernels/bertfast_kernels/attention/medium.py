"""The attention kernels of sequences of 65 to 128 tokens: forward a block of queries by keys at once or in blocks, backward all queries in one
tile, the keys a block at a time, everything read and made once."""

from __future__ import annotations

from bertfast_kernels.attention.plan import LIMIT
from bertfast_kernels.attention.tiles import (
    attend,
    attend_once,
    dot,
    dot_transposed,
    key_order,
    load_rows,
    probabilities,
    store_rows,
    untransposed,
    zero_tail,
)
from bertfast_kernels.primitives.lazy_triton import jit, tl
from bertfast_kernels.primitives.philox import load_key

# T tokens, B sequences, N heads, H head size, M queries (in the backward as many as the longest sequence has tokens, or more), L keys of a block

_LIMIT = tl.constexpr(LIMIT)
_LN2 = tl.constexpr(0.6931471805599453)
_RUNTIME = ["n_tokens", "n_sequences", "score_scale", "keep_scale", "site", "threshold"]


@jit(do_not_specialize=_RUNTIME)
def medium_forward(
    qkv_ptr,
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
    M: tl.constexpr,
    L: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """Program (head, b, i): queries M i to M (i + 1) of sequence b; programs (head, B, i) clear the tail of out. score_scale: log2(e) / sqrt(H).

    L is at least as long as a sequence can be, and its keys are taken at once, or is less, and they come block by block.
    """
    head = tl.program_id(0)
    sequence = tl.program_id(1)
    start = tl.load(cu_seqlens_ptr + sequence)
    width: tl.constexpr = N * H
    if sequence == n_sequences:
        zero_tail(out_ptr + head * H, start, n_tokens, width, H, 16, H_BLOCK, tl.program_id(2), tl.num_programs(2))
    else:
        length = tl.load(cu_seqlens_ptr + sequence + 1) - start
        first = 0  # where all queries are one block's, the compiler may know it: 82 registers with dropout in place of 93
        if M < _LIMIT:
            first = tl.program_id(2) * M
        if first < length:
            qkv_ptr += start.to(tl.int64) * 3 * width + head * H
            out_ptr += start.to(tl.int64) * width + head * H
            stats_ptr += head.to(tl.int64) * n_tokens + start
            seed, step, example, sheet = 0, 0, 0, 0
            if DROPOUT:
                seed, step = load_key(key_ptr)
                example = tl.load(example_ids_ptr + start).to(tl.uint32)
                sheet = site + (head << 16)
            query = first + tl.arange(0, M)
            q = load_rows(qkv_ptr, query, length, 3 * width, H, H_BLOCK)
            if L >= _LIMIT:
                out, top, total = attend_once(
                    q, qkv_ptr, width, length, score_scale, seed, step, first, example, sheet, threshold, M, L, H, H_BLOCK, DROPOUT
                )
            else:
                top = tl.full([M], float("-inf"), tl.float32)
                total = tl.zeros([M], tl.float32)
                out = tl.zeros([M, H_BLOCK], tl.float32)
                for first_key in range(0, length, L):
                    out, top, total = attend(
                        q, out, top, total, qkv_ptr, width, first_key, length, score_scale,
                        seed, step, first, example, sheet, threshold, M, L, H, H_BLOCK, DROPOUT, True,
                    )  # fmt: skip
            one_over = 1.0 / total
            store_rows(out_ptr, out * (keep_scale * one_over)[:, None], query, length, width, H, H_BLOCK)
            tl.store(stats_ptr + query, top, mask=query < length)
            tl.store(stats_ptr + n_tokens.to(tl.int64) * N + query, one_over, mask=query < length)


@jit(do_not_specialize=_RUNTIME)
def medium_backward(
    qkv_ptr,
    out_ptr,
    dout_ptr,
    stats_ptr,
    dqkv_ptr,
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
    M: tl.constexpr,
    L: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """dQ, dK and dV in one pass. Program (head, b): sequence b; program (head, B) clears the tail. dK and dV of a block of keys are done at once; dQ gathers. delta comes from O."""
    head = tl.program_id(0)
    sequence = tl.program_id(1)
    start = tl.load(cu_seqlens_ptr + sequence)
    width: tl.constexpr = N * H
    stride: tl.constexpr = 3 * width
    if sequence == n_sequences:
        for part in range(3):
            zero_tail(dqkv_ptr + part * width + head * H, start, n_tokens, stride, H, 16, H_BLOCK, 0, 1)
    else:
        length = tl.load(cu_seqlens_ptr + sequence + 1) - start
        if length > 0:
            qkv_ptr += start.to(tl.int64) * stride + head * H
            dqkv_ptr += start.to(tl.int64) * stride + head * H
            out_ptr += start.to(tl.int64) * width + head * H
            dout_ptr += start.to(tl.int64) * width + head * H
            stats_ptr += head.to(tl.int64) * n_tokens + start
            seed, step, example, sheet = 0, 0, 0, 0
            if DROPOUT:
                seed, step = load_key(key_ptr)
                example = tl.load(example_ids_ptr + start).to(tl.uint32)
                sheet = site + (head << 16)
            query = tl.arange(0, M)
            q = load_rows(qkv_ptr, query, length, stride, H, H_BLOCK)
            dout = load_rows(dout_ptr, query, length, width, H, H_BLOCK)
            out = load_rows(out_ptr, query, length, width, H, H_BLOCK)
            delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1) / keep_scale
            top = tl.load(stats_ptr + query, mask=query < length, other=0.0)
            one_over = tl.load(stats_ptr + n_tokens.to(tl.int64) * N + query, mask=query < length, other=0.0)
            grad_scale = score_scale * _LN2 * keep_scale
            dq = tl.zeros([M, H_BLOCK], tl.float32)
            for first_key in range(0, length, L):
                key = first_key + key_order(L, DROPOUT)
                k = load_rows(qkv_ptr + width, key, length, stride, H, H_BLOCK)
                v = load_rows(qkv_ptr + 2 * width, key, length, stride, H, H_BLOCK)
                probs, kept, dprobs = probabilities(
                    q, k, v, dout, top, one_over, 0, first_key, length, score_scale,
                    seed, step, example, sheet, threshold, M, L, DROPOUT, True,
                )  # fmt: skip
                dv = untransposed(dot_transposed(kept.to(v.dtype), dout), H_BLOCK) * keep_scale
                store_rows(dqkv_ptr + 2 * width, dv, key, length, stride, H, H_BLOCK)
                dscores = (probs * (dprobs - delta[:, None])).to(q.dtype)
                dk = untransposed(dot_transposed(dscores, q), H_BLOCK) * grad_scale
                store_rows(dqkv_ptr + width, dk, key, length, stride, H, H_BLOCK)
                dq = dot(dscores, k, dq)
            store_rows(dqkv_ptr, dq * grad_scale, query, length, stride, H, H_BLOCK)
