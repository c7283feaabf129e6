"""The attention kernels of short sequences: all keys of a sequence in one tile, so softmax takes one pass and the backward one kernel."""

from __future__ import annotations

from bertfast_kernels._philox import load_key
from bertfast_kernels._triton import jit, tl
from bertfast_kernels.attention_tiles import (
    dot,
    keep_mask,
    keep_mask_of_heads,
    key_order,
    load_heads,
    load_rows,
    store_heads,
    store_rows,
    zero_tail,
)

# T tokens, B sequences, N heads, H head size, G heads that a tile of few tokens takes at once, M queries, L keys

_LN2 = tl.constexpr(0.6931471805599453)
_RUNTIME = ["n_tokens", "n_sequences", "n_heads", "heads_each", "longest", "score_scale", "keep_scale", "site", "threshold"]


@jit(do_not_specialize=_RUNTIME)
def short_forward(
    qkv_ptr,
    out_ptr,
    stats_ptr,
    cu_seqlens_ptr,
    example_ids_ptr,
    key_ptr,
    n_tokens,
    n_sequences,
    n_heads,
    heads_each,
    longest,
    score_scale,
    keep_scale,
    site,
    threshold,
    H: tl.constexpr,
    H_BLOCK: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    LONGEST: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """Sequences of up to LONGEST tokens. Program (p, b): heads_each heads from p * heads_each of sequence b; program (p, B) clears the tail of out.

    score_scale: log2(e) / sqrt(H), so that exp2 does for exp. heads_each: 1, or G; a tile of up to 32 tokens holds G heads. longest: LONGEST again,
    unknown to the compiler, which would else unroll the loop over two blocks of queries and spill.
    """
    first_head = tl.program_id(0) * heads_each
    sequence = tl.program_id(1)
    start = tl.load(cu_seqlens_ptr + sequence)
    width = n_heads * H
    if sequence == n_sequences:
        zero_tail(out_ptr + first_head * H, start, n_tokens, width, heads_each * H, 16, H_BLOCK, 0, 1)
    else:
        length = tl.load(cu_seqlens_ptr + sequence + 1) - start
        qkv_ptr += start.to(tl.int64) * 3 * width + first_head * H
        out_ptr += start.to(tl.int64) * width + first_head * H
        stats_ptr += start
        plane = n_heads.to(tl.int64) * n_tokens
        seed, step, example = 0, 0, 0
        if DROPOUT:
            seed, step = load_key(key_ptr)
            example = tl.load(example_ids_ptr + start, mask=length > 0, other=0).to(tl.uint32)
        if length <= 32:
            if (length > 0) & (first_head % G == 0):
                if length <= 16:
                    _attend_heads(
                        qkv_ptr, out_ptr, stats_ptr, plane, length, width, n_tokens, score_scale, keep_scale,
                        seed, step, example, site, first_head, threshold, 16, G, H, H_BLOCK, DROPOUT,
                    )  # fmt: skip
                else:
                    _attend_heads(
                        qkv_ptr, out_ptr, stats_ptr, plane, length, width, n_tokens, score_scale, keep_scale,
                        seed, step, example, site, first_head, threshold, 32, G, H, H_BLOCK, DROPOUT,
                    )  # fmt: skip
        elif length <= 64:
            for head in range(heads_each):
                _attend_head(
                    qkv_ptr + head * H, out_ptr + head * H, stats_ptr + (first_head + head).to(tl.int64) * n_tokens, plane, length, width, score_scale, keep_scale,
                    seed, step, example, site, first_head + head, threshold, M, 64, H, H_BLOCK, DROPOUT,
                )  # fmt: skip
        elif LONGEST > 64:  # noqa: SIM102 (decided when compiling; what follows, at run time)
            if length <= longest:
                for head in range(heads_each):
                    _attend_head(
                        qkv_ptr + head * H, out_ptr + head * H, stats_ptr + (first_head + head).to(tl.int64) * n_tokens, plane, length, width, score_scale, keep_scale,
                        seed, step, example, site, first_head + head, threshold, M, LONGEST, H, H_BLOCK, DROPOUT,
                    )  # fmt: skip


@jit
def _attend_head(
    qkv_ptr, out_ptr, stats_ptr, plane, length, width, score_scale, keep_scale, seed, step, example, site, head, threshold,
    M: tl.constexpr, L: tl.constexpr, H: tl.constexpr, H_BLOCK: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """One head: K and V in one tile of L keys, or two of 64; the queries M at a time."""
    C: tl.constexpr = min(L, 64)
    key = key_order(C, DROPOUT)
    stride = 3 * width
    k = load_rows(qkv_ptr + width, key, length, stride, H, H_BLOCK)
    v = load_rows(qkv_ptr + 2 * width, key, length, stride, H, H_BLOCK)
    if L > C:
        k2 = load_rows(qkv_ptr + width, C + key, length, stride, H, H_BLOCK)
        v2 = load_rows(qkv_ptr + 2 * width, C + key, length, stride, H, H_BLOCK)
    sheet = 0
    if DROPOUT:
        sheet = (site + (head << 16)).to(tl.uint32)
    for first in range(0, length, M):
        query = first + tl.arange(0, M)
        q = load_rows(qkv_ptr, query, length, stride, H, H_BLOCK)
        scores = dot(q, k.T)
        if L > C:
            scores2 = dot(q, k2.T)
            scores2 = tl.where((C + key < length)[None, :], scores2, float("-inf"))
            top = tl.max(tl.maximum(scores, scores2), 1) * score_scale
        else:
            scores = tl.where((key < length)[None, :], scores, float("-inf"))
            top = tl.max(scores, 1) * score_scale
        probs = tl.exp2(scores * score_scale - top[:, None])
        total = tl.sum(probs, 1)
        if DROPOUT:
            probs = tl.where(keep_mask(seed, step, first, 0, example, sheet, threshold, M, C), probs, 0.0)
        out = dot(probs.to(v.dtype), v)
        if L > C:
            probs2 = tl.exp2(scores2 * score_scale - top[:, None])
            total += tl.sum(probs2, 1)
            if DROPOUT:
                probs2 = tl.where(keep_mask(seed, step, first, C, example, sheet, threshold, M, C), probs2, 0.0)
            out = dot(probs2.to(v.dtype), v2, out)
        one_over = 1.0 / total
        store_rows(out_ptr, out * (keep_scale * one_over)[:, None], query, length, width, H, H_BLOCK)
        tl.store(stats_ptr + query, top, mask=query < length)
        tl.store(stats_ptr + plane + query, one_over, mask=query < length)


@jit
def _attend_heads(
    qkv_ptr, out_ptr, stats_ptr, plane, length, width, n_tokens, score_scale, keep_scale, seed, step, example, site, head, threshold,
    L: tl.constexpr, G: tl.constexpr, H: tl.constexpr, H_BLOCK: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """G heads of a sequence of up to L tokens at once, one or more to each warp."""
    key = key_order(L, DROPOUT)
    query = tl.arange(0, L)
    q = load_heads(qkv_ptr, query, length, 3 * width, G, H, H_BLOCK)
    k = load_heads(qkv_ptr + width, key, length, 3 * width, G, H, H_BLOCK)
    v = load_heads(qkv_ptr + 2 * width, key, length, 3 * width, G, H, H_BLOCK)
    scores = dot(q, k.permute(0, 2, 1))
    scores = tl.where((key < length)[None, None, :], scores, float("-inf"))
    top = tl.max(scores, 2) * score_scale
    probs = tl.exp2(scores * score_scale - top[:, :, None])
    total = tl.sum(probs, 2)
    if DROPOUT:
        sheet = (site + ((head + tl.arange(0, G)) << 16)).to(tl.uint32)
        probs = tl.where(keep_mask_of_heads(seed, step, query, example, sheet, threshold, L), probs, 0.0)
    one_over = 1.0 / total
    out = dot(probs.to(v.dtype), v) * (keep_scale * one_over)[:, :, None]
    store_heads(out_ptr, out, query, length, width, G, H, H_BLOCK)
    stats_ptrs = stats_ptr + (head + tl.arange(0, G)).to(tl.int64)[:, None] * n_tokens + query[None, :]
    tl.store(stats_ptrs, top, mask=(query < length)[None, :])
    tl.store(stats_ptrs + plane, one_over, mask=(query < length)[None, :])


@jit(do_not_specialize=_RUNTIME)
def short_backward(
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
    n_heads,
    heads_each,
    longest,
    score_scale,
    keep_scale,
    site,
    threshold,
    H: tl.constexpr,
    H_BLOCK: tl.constexpr,
    G: tl.constexpr,
    LONGEST: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """dQ, dK and dV of whole sequences of up to LONGEST tokens, with the programs of short_forward. out is read beyond 64 tokens only."""
    first_head = tl.program_id(0) * heads_each
    sequence = tl.program_id(1)
    start = tl.load(cu_seqlens_ptr + sequence)
    width = n_heads * H
    if sequence == n_sequences:
        for plane in range(3):
            zero_tail(dqkv_ptr + plane * width + first_head * H, start, n_tokens, 3 * width, heads_each * H, 16, H_BLOCK, 0, 1)
    else:
        length = tl.load(cu_seqlens_ptr + sequence + 1) - start
        qkv_ptr += start.to(tl.int64) * 3 * width + first_head * H
        dqkv_ptr += start.to(tl.int64) * 3 * width + first_head * H
        out_ptr += start.to(tl.int64) * width + first_head * H
        dout_ptr += start.to(tl.int64) * width + first_head * H
        stats_ptr += start
        plane = n_heads.to(tl.int64) * n_tokens
        seed, step, example = 0, 0, 0
        if DROPOUT:
            seed, step = load_key(key_ptr)
            example = tl.load(example_ids_ptr + start, mask=length > 0, other=0).to(tl.uint32)
        if length <= 32:
            if (length > 0) & (first_head % G == 0):
                if length <= 16:
                    _backward_heads(
                        qkv_ptr, dout_ptr, stats_ptr, plane, dqkv_ptr, length, width, n_tokens, score_scale, keep_scale,
                        seed, step, example, site, first_head, threshold, 16, G, H, H_BLOCK, DROPOUT,
                    )  # fmt: skip
                else:
                    _backward_heads(
                        qkv_ptr, dout_ptr, stats_ptr, plane, dqkv_ptr, length, width, n_tokens, score_scale, keep_scale,
                        seed, step, example, site, first_head, threshold, 32, G, H, H_BLOCK, DROPOUT,
                    )  # fmt: skip
        elif length <= 64:
            for head in range(heads_each):
                _backward_head(
                    qkv_ptr + head * H, dout_ptr + head * H, stats_ptr + (first_head + head).to(tl.int64) * n_tokens, plane, dqkv_ptr + head * H, length, width,
                    score_scale, keep_scale, seed, step, example, site, first_head + head, threshold, 64, H, H_BLOCK, DROPOUT,
                )  # fmt: skip
        elif LONGEST > 64:  # noqa: SIM102 (decided when compiling; what follows, at run time)
            if length <= longest:
                for head in range(heads_each):
                    _backward_in_blocks(
                        qkv_ptr + head * H, out_ptr + head * H, dout_ptr + head * H, stats_ptr + (first_head + head).to(tl.int64) * n_tokens, plane,
                        dqkv_ptr + head * H, length, width, score_scale, keep_scale,
                        seed, step, example, site, first_head + head, threshold, LONGEST // 2, H, H_BLOCK, DROPOUT,
                    )  # fmt: skip


@jit
def _backward_heads(
    qkv_ptr, dout_ptr, stats_ptr, plane, dqkv_ptr, length, width, n_tokens, score_scale, keep_scale, seed, step, example, site, head, threshold,
    L: tl.constexpr, G: tl.constexpr, H: tl.constexpr, H_BLOCK: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """G heads of a sequence of up to L tokens at once."""
    stride = 3 * width
    softmax_scale = score_scale * _LN2
    key = key_order(L, DROPOUT)
    query = tl.arange(0, L)
    q = load_heads(qkv_ptr, query, length, stride, G, H, H_BLOCK)
    k = load_heads(qkv_ptr + width, key, length, stride, G, H, H_BLOCK)
    v = load_heads(qkv_ptr + 2 * width, key, length, stride, G, H, H_BLOCK)
    dout = load_heads(dout_ptr, query, length, width, G, H, H_BLOCK)
    stats_ptrs = stats_ptr + (head + tl.arange(0, G)).to(tl.int64)[:, None] * n_tokens + query[None, :]
    top = tl.load(stats_ptrs, mask=(query < length)[None, :], other=0.0)
    one_over = tl.load(stats_ptrs + plane, mask=(query < length)[None, :], other=0.0)
    scores = dot(q, k.permute(0, 2, 1)) * score_scale - top[:, :, None]
    probs = tl.exp2(tl.where((key < length)[None, None, :], scores, float("-inf"))) * one_over[:, :, None]
    dprobs = dot(dout, v.permute(0, 2, 1))
    kept = probs
    if DROPOUT:
        sheet = (site + ((head + tl.arange(0, G)) << 16)).to(tl.uint32)
        keep = keep_mask_of_heads(seed, step, query, example, sheet, threshold, L)
        kept = tl.where(keep, probs, 0.0)
        dprobs = tl.where(keep, dprobs * keep_scale, 0.0)
    dv = dot(kept.to(v.dtype).permute(0, 2, 1), dout) * keep_scale
    store_heads(dqkv_ptr + 2 * width, dv, key, length, stride, G, H, H_BLOCK)
    delta = tl.sum(probs * dprobs, 2)
    dscores = (probs * (dprobs - delta[:, :, None])).to(q.dtype)
    dq = dot(dscores, k) * softmax_scale
    store_heads(dqkv_ptr, dq, query, length, stride, G, H, H_BLOCK)
    dk = dot(dscores.permute(0, 2, 1), q) * softmax_scale
    store_heads(dqkv_ptr + width, dk, key, length, stride, G, H, H_BLOCK)


@jit
def _backward_head(
    qkv_ptr, dout_ptr, stats_ptr, plane, dqkv_ptr, length, width, score_scale, keep_scale, seed, step, example, site, head, threshold,
    L: tl.constexpr, H: tl.constexpr, H_BLOCK: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """One head of a sequence of up to L tokens, in one tile."""
    stride = 3 * width
    softmax_scale = score_scale * _LN2
    key = key_order(L, DROPOUT)
    query = tl.arange(0, L)
    q = load_rows(qkv_ptr, query, length, stride, H, H_BLOCK)
    k = load_rows(qkv_ptr + width, key, length, stride, H, H_BLOCK)
    v = load_rows(qkv_ptr + 2 * width, key, length, stride, H, H_BLOCK)
    dout = load_rows(dout_ptr, query, length, width, H, H_BLOCK)
    top = tl.load(stats_ptr + query, mask=query < length, other=0.0)
    one_over = tl.load(stats_ptr + plane + query, mask=query < length, other=0.0)
    scores = dot(q, k.T) * score_scale - top[:, None]
    probs = tl.exp2(tl.where((key < length)[None, :], scores, float("-inf"))) * one_over[:, None]
    dprobs = dot(dout, v.T)
    kept = probs
    if DROPOUT:
        sheet = (site + (head << 16)).to(tl.uint32)
        keep = keep_mask(seed, step, 0, 0, example, sheet, threshold, L, L)
        kept = tl.where(keep, probs, 0.0)
        dprobs = tl.where(keep, dprobs * keep_scale, 0.0)
    dv = dot(kept.to(v.dtype).T, dout) * keep_scale
    store_rows(dqkv_ptr + 2 * width, dv, key, length, stride, H, H_BLOCK)
    delta = tl.sum(probs * dprobs, 1)
    dscores = (probs * (dprobs - delta[:, None])).to(q.dtype)
    dq = dot(dscores, k) * softmax_scale
    store_rows(dqkv_ptr, dq, query, length, stride, H, H_BLOCK)
    dk = dot(dscores.T, q) * softmax_scale
    store_rows(dqkv_ptr + width, dk, key, length, stride, H, H_BLOCK)


@jit
def _backward_in_blocks(
    qkv_ptr, out_ptr, dout_ptr, stats_ptr, plane, dqkv_ptr, length, width, score_scale, keep_scale, seed, step, example, site, head, threshold,
    C: tl.constexpr, H: tl.constexpr, H_BLOCK: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """One head of a sequence of C + 1 to 2 C tokens: blocks of C by C, both blocks of dQ in registers throughout.

    delta comes from O: a row's keys lie in two tiles here, and the sum over them would need both at once.
    """
    stride = 3 * width
    softmax_scale = score_scale * _LN2
    place = tl.arange(0, C)
    order = key_order(C, DROPOUT)
    sheet = (site + (head << 16)).to(tl.uint32)
    dq = tl.zeros([C, H_BLOCK], tl.float32)
    dq2 = tl.zeros([C, H_BLOCK], tl.float32)
    for first_key in range(0, length, C):
        key = first_key + order
        k = load_rows(qkv_ptr + width, key, length, stride, H, H_BLOCK)
        v = load_rows(qkv_ptr + 2 * width, key, length, stride, H, H_BLOCK)
        dk = tl.zeros([C, H_BLOCK], tl.float32)
        dv = tl.zeros([C, H_BLOCK], tl.float32)
        for first in range(0, length, C):
            query = first + place
            q = load_rows(qkv_ptr, query, length, stride, H, H_BLOCK)
            dout = load_rows(dout_ptr, query, length, width, H, H_BLOCK)
            out = load_rows(out_ptr, query, length, width, H, H_BLOCK)
            delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1)
            top = tl.load(stats_ptr + query, mask=query < length, other=0.0)
            one_over = tl.load(stats_ptr + plane + query, mask=query < length, other=0.0)
            scores = dot(q, k.T) * score_scale - top[:, None]
            probs = tl.exp2(tl.where((key < length)[None, :], scores, float("-inf"))) * one_over[:, None]
            dprobs = dot(dout, v.T)
            kept = probs
            if DROPOUT:
                keep = keep_mask(seed, step, first, first_key, example, sheet, threshold, C, C)
                kept = tl.where(keep, probs, 0.0)
                dprobs = tl.where(keep, dprobs * keep_scale, 0.0)
            dv = dot(kept.to(v.dtype).T, dout, dv)
            dscores = (probs * (dprobs - delta[:, None])).to(q.dtype)
            dk = dot(dscores.T, q, dk)
            if first == 0:
                dq = dot(dscores, k, dq)
            else:
                dq2 = dot(dscores, k, dq2)
        store_rows(dqkv_ptr + width, dk * softmax_scale, key, length, stride, H, H_BLOCK)
        store_rows(dqkv_ptr + 2 * width, dv * keep_scale, key, length, stride, H, H_BLOCK)
    store_rows(dqkv_ptr, dq * softmax_scale, place, length, stride, H, H_BLOCK)
    store_rows(dqkv_ptr, dq2 * softmax_scale, C + place, length, stride, H, H_BLOCK)
