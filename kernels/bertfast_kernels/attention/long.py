"""The attention kernels of sequences of any length: softmax as the keys stream by, and a backward of two passes, dQ and then dK with dV."""

from __future__ import annotations

from bertfast_kernels.attention.tiles import (
    attend,
    dot,
    dot_transposed,
    key_order,
    load_rows,
    no_sum,
    probabilities,
    store_rows,
    untransposed,
    zero_tail,
)
from bertfast_kernels.primitives.lazy_triton import jit, tl
from bertfast_kernels.primitives.philox import load_key

# T tokens, B sequences, N heads, H head size, M queries, L keys

_LN2 = tl.constexpr(0.6931471805599453)
_RUNTIME = ["n_tokens", "n_sequences", "shortest", "score_scale", "keep_scale", "site", "threshold"]


@jit(do_not_specialize=_RUNTIME)
def long_forward(
    qkv_ptr,
    out_ptr,
    stats_ptr,
    cu_seqlens_ptr,
    example_ids_ptr,
    key_ptr,
    n_tokens,
    n_sequences,
    shortest,
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
    """Program (head, i, b): queries M i to M (i + 1) of sequence b, if it has at least `shortest` tokens; program (head, i, B) clears a part of
    the tail of out.

    score_scale: log2(e) / sqrt(H), so that exp2 does for exp.
    """
    head = tl.program_id(0)
    first = tl.program_id(1) * M
    sequence = tl.program_id(2)
    start = tl.load(cu_seqlens_ptr + sequence)
    width: tl.constexpr = N * H
    if sequence == n_sequences:
        zero_tail(out_ptr + head * H, start, n_tokens, width, H, 16, H_BLOCK, tl.program_id(1), tl.num_programs(1))
    else:
        length = tl.load(cu_seqlens_ptr + sequence + 1) - start
        if (first < length) & (length >= shortest):
            qkv_ptr += start.to(tl.int64) * 3 * width + head * H
            seed, step, example, sheet = 0, 0, 0, 0
            if DROPOUT:
                seed, step = load_key(key_ptr)
                example = tl.load(example_ids_ptr + start).to(tl.uint32)
                sheet = (site + (head << 16)).to(tl.uint32)
            query = first + tl.arange(0, M)
            q = load_rows(qkv_ptr, query, length, 3 * width, H, H_BLOCK)
            top = tl.full([M], float("-inf"), tl.float32)
            total = tl.zeros([M], tl.float32)
            out = tl.zeros([M, H_BLOCK], tl.float32)
            whole = length // L * L  # up to here a tile is full, and no score needs a mask
            for first_key in range(0, whole, L):
                out, top, total = attend(
                    q, out, top, total, qkv_ptr, width, first_key, length, score_scale,
                    seed, step, first, example, sheet, threshold, M, L, H, H_BLOCK, DROPOUT, False,
                )  # fmt: skip
            if whole < length:
                out, top, total = attend(
                    q, out, top, total, qkv_ptr, width, whole, length, score_scale,
                    seed, step, first, example, sheet, threshold, M, L, H, H_BLOCK, DROPOUT, True,
                )  # fmt: skip
            one_over = 1.0 / total
            out_ptr += start.to(tl.int64) * width + head * H
            store_rows(out_ptr, out * (keep_scale * one_over)[:, None], query, length, width, H, H_BLOCK)
            stats_ptr += head.to(tl.int64) * n_tokens + start
            tl.store(stats_ptr + query, top, mask=query < length)
            tl.store(stats_ptr + n_tokens.to(tl.int64) * N + query, one_over, mask=query < length)


@jit(do_not_specialize=_RUNTIME)
def long_backward_queries(
    qkv_ptr,
    out_ptr,
    dout_ptr,
    stats_ptr,
    delta_ptr,
    dqkv_ptr,
    cu_seqlens_ptr,
    example_ids_ptr,
    key_ptr,
    n_tokens,
    n_sequences,
    shortest,
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
    EXACT: tl.constexpr,
):
    """dQ, and delta (over the dropout's scale) for the second pass. Programs as in long_forward; the tail's dQ is cleared.

    EXACT: delta is rowsum(P o dP), by a pass over the keys of its own, and not rowsum(dO o O). The two differ by roundings only, but where one key
    takes all, dP - delta is zero in the first and a rounding in the second, which a large K makes visible in float32.
    """
    head = tl.program_id(0)
    first = tl.program_id(1) * M
    sequence = tl.program_id(2)
    start = tl.load(cu_seqlens_ptr + sequence)
    width: tl.constexpr = N * H
    if sequence == n_sequences:
        zero_tail(dqkv_ptr + head * H, start, n_tokens, 3 * width, H, 16, H_BLOCK, tl.program_id(1), tl.num_programs(1))
    else:
        length = tl.load(cu_seqlens_ptr + sequence + 1) - start
        if (first < length) & (length >= shortest):
            qkv_ptr += start.to(tl.int64) * 3 * width + head * H
            dqkv_ptr += start.to(tl.int64) * 3 * width + head * H
            out_ptr += start.to(tl.int64) * width + head * H
            dout_ptr += start.to(tl.int64) * width + head * H
            stats_ptr += head.to(tl.int64) * n_tokens + start
            delta_ptr += head.to(tl.int64) * n_tokens + start
            seed, step, example, sheet = 0, 0, 0, 0
            if DROPOUT:
                seed, step = load_key(key_ptr)
                example = tl.load(example_ids_ptr + start).to(tl.uint32)
                sheet = (site + (head << 16)).to(tl.uint32)
            query = first + tl.arange(0, M)
            q = load_rows(qkv_ptr, query, length, 3 * width, H, H_BLOCK)
            dout = load_rows(dout_ptr, query, length, width, H, H_BLOCK)
            top = tl.load(stats_ptr + query, mask=query < length, other=0.0)
            one_over = tl.load(stats_ptr + n_tokens.to(tl.int64) * N + query, mask=query < length, other=0.0)
            whole = length // L * L
            if EXACT:
                delta = tl.zeros([M], tl.float32)
                for first_key in range(0, length, L):
                    _, probs, dprobs = _keys_and_probabilities(
                        q, dout, top, one_over, qkv_ptr, width, first_key, length, score_scale,
                        seed, step, first, example, sheet, threshold, M, L, H, H_BLOCK, DROPOUT, True,
                    )  # fmt: skip
                    delta += tl.sum(probs * dprobs, 1)
            else:
                out = load_rows(out_ptr, query, length, width, H, H_BLOCK)
                delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1) / keep_scale
            tl.store(delta_ptr + query, delta, mask=query < length)
            dq = tl.zeros([M, H_BLOCK], tl.float32)
            for first_key in range(0, whole, L):
                k, probs, dprobs = _keys_and_probabilities(
                    q, dout, top, one_over, qkv_ptr, width, first_key, length, score_scale,
                    seed, step, first, example, sheet, threshold, M, L, H, H_BLOCK, DROPOUT, False,
                )  # fmt: skip
                dq = dot((probs * (dprobs - delta[:, None])).to(k.dtype), k, dq)
            if whole < length:
                k, probs, dprobs = _keys_and_probabilities(
                    q, dout, top, one_over, qkv_ptr, width, whole, length, score_scale,
                    seed, step, first, example, sheet, threshold, M, L, H, H_BLOCK, DROPOUT, True,
                )  # fmt: skip
                dq = dot((probs * (dprobs - delta[:, None])).to(k.dtype), k, dq)
            store_rows(dqkv_ptr, dq * (score_scale * _LN2 * keep_scale), query, length, 3 * width, H, H_BLOCK)


@jit
def _keys_and_probabilities(
    q, dout, top, one_over, qkv_ptr, width, first_key, length, score_scale, seed, step, first, example, sheet, threshold,
    M: tl.constexpr, L: tl.constexpr, H: tl.constexpr, H_BLOCK: tl.constexpr, DROPOUT: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """K, P and dP of M queries and the L keys from first_key on."""
    key = first_key + key_order(L, DROPOUT)
    n_rows = length if RAGGED else None
    k = load_rows(qkv_ptr + width, key, n_rows, 3 * width, H, H_BLOCK)
    v = load_rows(qkv_ptr + 2 * width, key, n_rows, 3 * width, H, H_BLOCK)
    probs, _, dprobs = probabilities(
        q, k, v, dout, top, one_over, first, first_key, length, score_scale,
        seed, step, example, sheet, threshold, M, L, DROPOUT, RAGGED,
    )  # fmt: skip
    return k, probs, dprobs


@jit(do_not_specialize=_RUNTIME)
def long_backward_keys(
    qkv_ptr,
    dout_ptr,
    stats_ptr,
    delta_ptr,
    dqkv_ptr,
    cu_seqlens_ptr,
    example_ids_ptr,
    key_ptr,
    n_tokens,
    n_sequences,
    shortest,
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
    """dK and dV. Program (head, i, b): keys L i to L (i + 1) of sequence b; program (head, i, B) clears a part of the tail's dK and dV."""
    head = tl.program_id(0)
    first_key = tl.program_id(1) * L
    sequence = tl.program_id(2)
    start = tl.load(cu_seqlens_ptr + sequence)
    width: tl.constexpr = N * H
    if sequence == n_sequences:
        for part in range(1, 3):
            tail_ptr = dqkv_ptr + part * width + head * H
            zero_tail(tail_ptr, start, n_tokens, 3 * width, H, 16, H_BLOCK, tl.program_id(1), tl.num_programs(1))
    else:
        length = tl.load(cu_seqlens_ptr + sequence + 1) - start
        if (first_key < length) & (length >= shortest):
            qkv_ptr += start.to(tl.int64) * 3 * width + head * H
            dqkv_ptr += start.to(tl.int64) * 3 * width + head * H
            dout_ptr += start.to(tl.int64) * width + head * H
            stats_ptr += head.to(tl.int64) * n_tokens + start
            delta_ptr += head.to(tl.int64) * n_tokens + start
            seed, step, example, sheet = 0, 0, 0, 0
            if DROPOUT:
                seed, step = load_key(key_ptr)
                example = tl.load(example_ids_ptr + start).to(tl.uint32)
                sheet = (site + (head << 16)).to(tl.uint32)
            key = first_key + key_order(L, DROPOUT)
            k = load_rows(qkv_ptr + width, key, length, 3 * width, H, H_BLOCK)
            v = load_rows(qkv_ptr + 2 * width, key, length, 3 * width, H, H_BLOCK)
            plane = n_tokens.to(tl.int64) * N
            dk, dv = no_sum(L, H_BLOCK), no_sum(L, H_BLOCK)
            whole = length // M * M
            for first in range(0, whole, M):
                dk, dv = _add_dk_dv(
                    dk, dv, k, v, qkv_ptr, dout_ptr, stats_ptr, plane, delta_ptr, width, first, length, first_key, score_scale,
                    seed, step, example, sheet, threshold, M, L, H, H_BLOCK, DROPOUT, False,
                )  # fmt: skip
            if whole < length:
                dk, dv = _add_dk_dv(
                    dk, dv, k, v, qkv_ptr, dout_ptr, stats_ptr, plane, delta_ptr, width, whole, length, first_key, score_scale,
                    seed, step, example, sheet, threshold, M, L, H, H_BLOCK, DROPOUT, True,
                )  # fmt: skip
            store_rows(dqkv_ptr + width, untransposed(dk, H_BLOCK) * (score_scale * _LN2 * keep_scale), key, length, 3 * width, H, H_BLOCK)
            store_rows(dqkv_ptr + 2 * width, untransposed(dv, H_BLOCK) * keep_scale, key, length, 3 * width, H, H_BLOCK)


@jit
def _add_dk_dv(
    dk, dv, k, v, qkv_ptr, dout_ptr, stats_ptr, plane, delta_ptr, width, first, length, first_key, score_scale, seed, step, example, sheet,
    threshold, M: tl.constexpr, L: tl.constexpr, H: tl.constexpr, H_BLOCK: tl.constexpr, DROPOUT: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """dk (before its scales) and dv (before the dropout's) plus what M more queries add to them.

    Rows of keys that are not there give rows of dk and dv that are never stored; rows of queries that are not there are zeros, and add nothing.
    """
    query = first + tl.arange(0, M)
    n_rows = length if RAGGED else None
    q = load_rows(qkv_ptr, query, n_rows, 3 * width, H, H_BLOCK)
    dout = load_rows(dout_ptr, query, n_rows, width, H, H_BLOCK)
    top = tl.load(stats_ptr + query, mask=query < length, other=0.0)
    one_over = tl.load(stats_ptr + plane + query, mask=query < length, other=0.0)
    delta = tl.load(delta_ptr + query, mask=query < length, other=0.0)
    probs, kept, dprobs = probabilities(
        q, k, v, dout, top, one_over, first, first_key, length, score_scale, seed, step, example, sheet, threshold, M, L, DROPOUT, False
    )
    dv = dot_transposed(kept.to(q.dtype), dout, dv)
    dk = dot_transposed((probs * (dprobs - delta[:, None])).to(q.dtype), q, dk)
    return dk, dv
