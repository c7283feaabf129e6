"""The attention kernels of short sequences: several heads of up to 32 tokens, or one of up to 64, make one tile of 64 queries by 64 keys.

So one code serves every length: with C = 16, 32 or 64, the least that holds the sequence, row r of the tile is token r % C of head r // C, and a score
of two heads is none. Softmax takes one pass, and one program writes dQ, dK and dV. Up to 128 tokens a head is four such tiles.
"""

from __future__ import annotations

from bertfast_kernels.attention.tiles import (
    attend,
    dot,
    dot_transposed,
    keep_mask,
    key_order,
    load_rows,
    load_tile,
    no_sum,
    probabilities,
    signed,
    store_rows,
    store_tile,
    unsigned,
    untransposed,
    zero_tail,
)
from bertfast_kernels.primitives.lazy_triton import jit, tl
from bertfast_kernels.primitives.philox import load_key

# T tokens, B sequences, N heads, H head size, R rows of a tile (64 queries, and 64 keys), C rows of one head in it

_LN2 = tl.constexpr(0.6931471805599453)
_R = tl.constexpr(64)
_THIN = tl.constexpr(32)  # keys of a block
_RUNTIME = ["n_tokens", "n_sequences", "heads_each", "longest", "score_scale", "keep_scale", "site", "threshold"]


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
    heads_each,
    longest,
    score_scale,
    keep_scale,
    site,
    threshold,
    N: tl.constexpr,
    H: tl.constexpr,
    H_BLOCK: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """Sequences of up to `longest` tokens. Program (p, b): heads_each heads from p * heads_each of sequence b; program (p, B) clears the tail of out.

    score_scale: log2(e) / sqrt(H), so that exp2 does for exp. heads_each: 1, or a multiple of 4. Where a tile holds more heads than a program has,
    the program of the first of them does all.
    """
    first_head = tl.program_id(0) * heads_each
    last_head = tl.minimum(first_head + heads_each, N)
    sequence = tl.program_id(1)
    start = tl.load(cu_seqlens_ptr + sequence)
    width: tl.constexpr = N * H
    if sequence == n_sequences:
        zero_tail(out_ptr + first_head * H, start, n_tokens, width, (last_head - first_head) * H, 16, H_BLOCK, 0, 1)
    else:
        length = tl.load(cu_seqlens_ptr + sequence + 1) - start
        plane = n_tokens.to(tl.int64) * N
        seed, step, example = 0, 0, 0
        if DROPOUT:
            seed, step = load_key(key_ptr)
            example = tl.load(example_ids_ptr + start, mask=length > 0, other=0).to(tl.uint32)
        if length <= _R:
            shift = _shift(length)
            heads = _R >> shift
            if (length > 0) & (first_head % heads == 0):
                for head in range(first_head, last_head, heads):
                    here = _here(start, head)
                    _attend_tile(
                        qkv_ptr + here * 3 * width, out_ptr + here * width, stats_ptr + here, plane, head, shift, length, n_tokens, width, score_scale, keep_scale,
                        seed, step, example, site, threshold, N, H, H_BLOCK, DROPOUT,
                    )  # fmt: skip
        elif length <= longest:
            for head in range(first_head, last_head):
                here = _here(start, head)
                _attend_in_blocks(
                    qkv_ptr + here * 3 * width + head * H, out_ptr + here * width + head * H,
                    stats_ptr + n_tokens.to(tl.int64) * head + here, plane, length, width, score_scale, keep_scale, seed, step, example, site + (head << 16), threshold, H, H_BLOCK, DROPOUT,
                )  # fmt: skip


@jit
def _here(start, head):
    """The sequence's first token, made anew for each head: see _heads_of_rows."""
    return (start + (head >> 31)).to(tl.int64)


@jit
def _shift(length):
    """log2 of C."""
    return 4 + (length > 16).to(tl.int32) + (length > 32).to(tl.int32)


@jit
def _heads_of_rows(row, head, shift, length, N: tl.constexpr):
    """(place of the head in the tile, token, and whether there is such a row) of rows.

    head >> 31 is always 0, but only we know: without it the compiler finds that rows are the same for every head, makes all that is known of them ahead of
    the loop over heads, and has no registers left inside.
    """
    row = row + (head >> 31)
    place = row >> shift
    token = row & ((1 << shift) - 1)
    return place, token, (token < length) & (head + place < N)


@jit
def _mask_of_heads(seed, step, place, token, head, shift, example, site, threshold):
    """The keep mask of a tile of several heads."""
    block = tl.arange(0, _R // 4) & ((1 << shift) // 4 - 1)
    return keep_mask(seed, step, token, block, example, site + ((head + place) << 16), head, threshold)


@jit
def _attend_tile(
    qkv_ptr, out_ptr, stats_ptr, plane, head, shift, length, n_tokens, width, score_scale, keep_scale,
    seed, step, example, site, threshold, N: tl.constexpr, H: tl.constexpr, H_BLOCK: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """The heads from `head` on that a tile holds."""
    place, query, there = _heads_of_rows(tl.arange(0, _R), head, shift, length, N)
    key_place, key, key_there = _heads_of_rows(key_order(_R, DROPOUT), head, shift, length, N)
    key_offset = key * (3 * width) + (head + key_place) * H
    q = load_tile(qkv_ptr, query * (3 * width) + (head + place) * H, there, H, H_BLOCK)
    k = load_tile(qkv_ptr + width, key_offset, key_there, H, H_BLOCK)
    v = load_tile(qkv_ptr + 2 * width, key_offset, key_there, H, H_BLOCK)
    of_place = tl.where(key < length, key_place, -1)
    scores = tl.where(of_place[None, :] == place[:, None], dot(q, k.T), float("-inf"))
    top = tl.max(scores, 1) * score_scale
    probs = tl.exp2(scores * score_scale - top[:, None])
    total = tl.sum(probs, 1)
    if DROPOUT:
        probs = tl.where(_mask_of_heads(seed, step, place, query, head, shift, example, site, threshold), probs, 0.0)
    one_over = 1.0 / total
    out = dot(probs.to(v.dtype), v) * (keep_scale * one_over)[:, None]
    store_tile(out_ptr, out, query * width + (head + place) * H, there, H, H_BLOCK)
    stats_ptrs = stats_ptr + (head + place).to(tl.int64) * n_tokens + query
    tl.store(stats_ptrs, top, mask=there)
    tl.store(stats_ptrs + plane, one_over, mask=there)


@jit
def _attend_in_blocks(
    qkv_ptr, out_ptr, stats_ptr, plane, length, width, score_scale, keep_scale, seed, step, example, sheet, threshold,
    H: tl.constexpr, H_BLOCK: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """One head of a longer sequence, in tiles of 64 by 64."""
    for first in range(0, length, _R):
        query = first + tl.arange(0, _R)
        q = load_rows(qkv_ptr, query, length, 3 * width, H, H_BLOCK)
        top = tl.full([_R], float("-inf"), tl.float32)
        total = tl.zeros([_R], tl.float32)
        out = tl.zeros([_R, H_BLOCK], tl.float32)
        for first_key in range(0, length, _R):
            out, top, total = attend(
                q, out, top, total, qkv_ptr, width, first_key, length, score_scale,
                seed, step, first, example, sheet, threshold, _R, _R, H, H_BLOCK, DROPOUT, True,
            )  # fmt: skip
        one_over = 1.0 / total
        store_rows(out_ptr, out * (keep_scale * one_over)[:, None], query, length, width, H, H_BLOCK)
        tl.store(stats_ptr + query, top, mask=query < length)
        tl.store(stats_ptr + plane + query, one_over, mask=query < length)


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
    heads_each,
    longest,
    score_scale,
    keep_scale,
    site,
    threshold,
    N: tl.constexpr,
    H: tl.constexpr,
    H_BLOCK: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """dQ, dK and dV of sequences of up to `longest` tokens, with the programs of short_forward. out is read beyond 64 tokens only."""
    first_head = tl.program_id(0) * heads_each
    last_head = tl.minimum(first_head + heads_each, N)
    sequence = tl.program_id(1)
    start = tl.load(cu_seqlens_ptr + sequence)
    width: tl.constexpr = N * H
    if sequence == n_sequences:
        for part in range(3):
            tail_ptr = dqkv_ptr + part * width + first_head * H
            zero_tail(tail_ptr, start, n_tokens, 3 * width, (last_head - first_head) * H, 16, H_BLOCK, 0, 1)
    else:
        length = tl.load(cu_seqlens_ptr + sequence + 1) - start
        plane = n_tokens.to(tl.int64) * N
        seed, step, example = 0, 0, 0
        if DROPOUT:
            seed, step = load_key(key_ptr)
            example = tl.load(example_ids_ptr + start, mask=length > 0, other=0).to(tl.uint32)
        if length <= _R:
            shift = _shift(length)
            heads = _R >> shift
            if (length > 0) & (first_head % heads == 0):
                for head in range(first_head, last_head, heads):
                    here = _here(start, head)
                    _backward_tile(
                        qkv_ptr + here * 3 * width, dout_ptr + here * width, stats_ptr + here, plane, dqkv_ptr + here * 3 * width, head, shift, length, n_tokens, width, score_scale, keep_scale,
                        seed, step, example, site, threshold, N, H, H_BLOCK, DROPOUT,
                    )  # fmt: skip
        elif length <= longest:
            for head in range(first_head, last_head):
                here = _here(start, head)
                _backward_in_blocks(
                    qkv_ptr + here * 3 * width + head * H, out_ptr + here * width + head * H, dout_ptr + here * width + head * H,
                    stats_ptr + n_tokens.to(tl.int64) * head + here, plane, dqkv_ptr + here * 3 * width + head * H, length, width, score_scale, keep_scale, seed, step, example, site + (head << 16), threshold,
                    H, H_BLOCK, DROPOUT,
                )  # fmt: skip


@jit
def _backward_tile(
    qkv_ptr, dout_ptr, stats_ptr, plane, dqkv_ptr, head, shift, length, n_tokens, width, score_scale, keep_scale,
    seed, step, example, site, threshold, N: tl.constexpr, H: tl.constexpr, H_BLOCK: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """The heads from `head` on that a tile holds."""
    place, query, there = _heads_of_rows(tl.arange(0, _R), head, shift, length, N)
    key_place, key, key_there = _heads_of_rows(key_order(_R, DROPOUT), head, shift, length, N)
    offset = query * (3 * width) + (head + place) * H
    key_offset = key * (3 * width) + (head + key_place) * H
    q = load_tile(qkv_ptr, offset, there, H, H_BLOCK)
    k = load_tile(qkv_ptr + width, key_offset, key_there, H, H_BLOCK)
    v = load_tile(qkv_ptr + 2 * width, key_offset, key_there, H, H_BLOCK)
    dout = load_tile(dout_ptr, query * width + (head + place) * H, there, H, H_BLOCK)
    stats_ptrs = stats_ptr + (head + place).to(tl.int64) * n_tokens + query
    top = tl.load(stats_ptrs, mask=there, other=0.0)
    one_over = tl.load(stats_ptrs + plane, mask=there, other=0.0)
    of_place = tl.where(key < length, key_place, -1)
    scores = tl.where(of_place[None, :] == place[:, None], dot(q, k.T) * score_scale - top[:, None], float("-inf"))
    probs = tl.exp2(scores) * one_over[:, None]
    if DROPOUT:
        probs = signed(probs, _mask_of_heads(seed, step, place, query, head, shift, example, site, threshold))
    probs, kept, dprobs = unsigned(probs, dot(dout, v.T), DROPOUT)
    dv = untransposed(dot_transposed(kept.to(v.dtype), dout), H_BLOCK) * keep_scale
    store_tile(dqkv_ptr + 2 * width, dv, key_offset, key_there, H, H_BLOCK)
    delta = tl.sum(probs * dprobs, 1)
    dscores = (probs * (dprobs - delta[:, None])).to(q.dtype)
    grad_scale = score_scale * _LN2 * keep_scale
    dq = dot(dscores, k) * grad_scale
    store_tile(dqkv_ptr, dq, offset, there, H, H_BLOCK)
    dk = untransposed(dot_transposed(dscores, q), H_BLOCK) * grad_scale
    store_tile(dqkv_ptr + width, dk, key_offset, key_there, H, H_BLOCK)


@jit
def _backward_in_blocks(
    qkv_ptr, out_ptr, dout_ptr, stats_ptr, plane, dqkv_ptr, length, width, score_scale, keep_scale, seed, step, example, sheet, threshold,
    H: tl.constexpr, H_BLOCK: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """One head of a sequence of up to 128 tokens: dK and dV, a block of keys at a time, then dQ, a block of queries at a time.

    P and dP are made twice, which costs two products in seven: one pass would hold two blocks of dQ beside dK and dV, and spill. delta comes from O.
    """
    delta0 = _delta(out_ptr, dout_ptr, 0, length, width, keep_scale, H, H_BLOCK)
    delta1 = _delta(out_ptr, dout_ptr, _R, length, width, keep_scale, H, H_BLOCK)
    grad_scale = score_scale * _LN2 * keep_scale
    for first_key in range(0, length, _THIN):
        key = first_key + key_order(_THIN, DROPOUT)
        k = load_rows(qkv_ptr + width, key, length, 3 * width, H, H_BLOCK)
        v = load_rows(qkv_ptr + 2 * width, key, length, 3 * width, H, H_BLOCK)
        dk = no_sum(_THIN, H_BLOCK)
        dv = no_sum(_THIN, H_BLOCK)
        for first in range(0, length, _R):
            q, dout, kept, dscores = _block(
                qkv_ptr, dout_ptr, stats_ptr, plane, k, v, tl.where(first == 0, delta0, delta1), first, first_key, length, width, score_scale,
                seed, step, example, sheet, threshold, _THIN, H, H_BLOCK, DROPOUT,
            )  # fmt: skip
            dv = dot_transposed(kept.to(q.dtype), dout, dv)
            dk = dot_transposed(dscores, q, dk)
        store_rows(dqkv_ptr + width, untransposed(dk, H_BLOCK) * grad_scale, key, length, 3 * width, H, H_BLOCK)
        store_rows(dqkv_ptr + 2 * width, untransposed(dv, H_BLOCK) * keep_scale, key, length, 3 * width, H, H_BLOCK)
    for first in range(0, length, _R):
        dq = tl.zeros([_R, H_BLOCK], tl.float32)
        for first_key in range(0, length, _THIN):
            key = first_key + key_order(_THIN, DROPOUT)
            k = load_rows(qkv_ptr + width, key, length, 3 * width, H, H_BLOCK)
            v = load_rows(qkv_ptr + 2 * width, key, length, 3 * width, H, H_BLOCK)
            _, _, _, dscores = _block(
                qkv_ptr, dout_ptr, stats_ptr, plane, k, v, tl.where(first == 0, delta0, delta1), first, first_key, length, width, score_scale,
                seed, step, example, sheet, threshold, _THIN, H, H_BLOCK, DROPOUT,
            )  # fmt: skip
            dq = dot(dscores, k, dq)
        store_rows(dqkv_ptr, dq * grad_scale, first + tl.arange(0, _R), length, 3 * width, H, H_BLOCK)


@jit
def _delta(out_ptr, dout_ptr, first, length, width, keep_scale, H: tl.constexpr, H_BLOCK: tl.constexpr):
    """rowsum(dO o O), over the dropout's scale, of a block of queries."""
    query = first + tl.arange(0, _R)
    out = load_rows(out_ptr, query, length, width, H, H_BLOCK)
    dout = load_rows(dout_ptr, query, length, width, H, H_BLOCK)
    return tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1) / keep_scale


@jit
def _block(
    qkv_ptr, dout_ptr, stats_ptr, plane, k, v, delta, first, first_key, length, width, score_scale, seed, step, example, sheet, threshold,
    L: tl.constexpr, H: tl.constexpr, H_BLOCK: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """(Q, dO, P without what was dropped, dS before the scales) of a block of queries and a block of keys."""
    query = first + tl.arange(0, _R)
    q = load_rows(qkv_ptr, query, length, 3 * width, H, H_BLOCK)
    dout = load_rows(dout_ptr, query, length, width, H, H_BLOCK)
    top = tl.load(stats_ptr + query, mask=query < length, other=0.0)
    one_over = tl.load(stats_ptr + plane + query, mask=query < length, other=0.0)
    probs, kept, dprobs = probabilities(
        q, k, v, dout, top, one_over, first, first_key, length, score_scale, seed, step, example, sheet, threshold, _R, L, DROPOUT, True
    )
    return q, dout, kept, (probs * (dprobs - delta[:, None])).to(q.dtype)
