"""What the attention kernels share: where a tile's rows lie, the order of its keys, and its keep mask."""

from __future__ import annotations

from bertfast_kernels.primitives.lazy_triton import is_interpreting, jit, tl
from bertfast_kernels.primitives.philox import philox4x32

# M queries (rows of a tile), L keys (its columns), G heads, H head size, H_BLOCK the power of 2 that holds it

_INTERPRETING = tl.constexpr(is_interpreting())


@jit
def dot(a, b, acc=None):
    """a @ b + acc with float32 sums, and without TF32 for float32. The interpreter knows no product of bf16: there the operands become float32."""
    if _INTERPRETING:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@jit
def dot_transposed(a, b, acc=None):
    """a.T @ b + acc for a [M, L] and b [M, H_BLOCK], or its transpose from H_BLOCK = 64 on: b lies in shared memory either way round, and a product
    whose left side is b needs a there only. `untransposed` undoes it."""
    if b.shape[1] >= 64:
        return dot(b.T, a, acc)
    else:
        return dot(a.T, b, acc)


@jit
def no_sum(L: tl.constexpr, H_BLOCK: tl.constexpr):
    """Zeros as dot_transposed adds to them."""
    if H_BLOCK >= 64:
        return tl.zeros([H_BLOCK, L], tl.float32)
    else:
        return tl.zeros([L, H_BLOCK], tl.float32)


@jit
def untransposed(x, H_BLOCK: tl.constexpr):
    """[L, H_BLOCK] from what dot_transposed returned."""
    if H_BLOCK >= 64:
        return x.T
    else:
        return x


@jit
def key_order(L: tl.constexpr, DROPOUT: tl.constexpr):
    """The key, from the tile's first, of each of its L columns.

    Softmax and the sum over V do not care in which order the keys of a tile come. With dropout they come so that the four keys of one Philox
    call, 4 b + 2 t + e, lie in columns t (L / 2) + 2 b + e. On the tensor cores one thread holds all four: no mask bit moves between threads.
    """
    column = tl.arange(0, L)
    if DROPOUT:
        return 4 * (column % (L // 2) // 2) + 2 * (column // (L // 2)) + column % 2
    return column


@jit
def keep_mask(seed, step, query, block, example, sheet, varies, threshold):
    """The keep mask [M, L] of the queries [M] and the keys of the Philox blocks [L / 4], in key_order: bit for bit masks.keyed_mask.

    sheet: site + (head << 16), a scalar or [M]. varies: any int of less than 2**31 that differs from one call of a loop to the next. Its sign is always 0,
    but only we know: without it the compiler finds that a part of Philox is the same in every turn, computes it once, ahead of all, and spills it.
    """
    sheet = sheet.to(tl.uint32)
    if len(sheet.shape) == 1:
        sheet = sheet[:, None, None, None]
    query = query.to(tl.uint32)[:, None, None, None]
    block = (block + (varies >> 31)).to(tl.uint32)[None, :, None, None]
    bits = _bits_of_fours(seed, step, block, query, example, sheet)
    return bits.permute(0, 3, 1, 2).reshape(query.shape[0], 4 * block.shape[1]) >= threshold.to(tl.uint32, bitcast=True)


@jit
def keep_row(seed, step, first_key, example, sheet, threshold, L: tl.constexpr):
    """The keep mask [L] of query 0 and L keys from first_key on, in their natural order: four calls for four keys, of which one row has few."""
    key = first_key + tl.arange(0, L)
    b0, b1, b2, b3 = philox4x32(seed, step, (key // 4).to(tl.uint32), tl.zeros([L], tl.uint32), example, sheet)
    place = key % 4
    bits = tl.where(place < 2, tl.where(place == 0, b0, b1), tl.where(place == 2, b2, b3))
    return bits >= threshold.to(tl.uint32, bitcast=True)


@jit
def _bits_of_fours(seed, step, block, query, example, sheet):
    """[..., L / 4, e, t]: the bits of the keys 4 block + 2 t + e. All four places of a call are computed alike, and the compiler keeps one."""
    e = tl.arange(0, 2).to(tl.uint32)[:, None]
    t = tl.arange(0, 2).to(tl.uint32)[None, :]
    block = block + (e + t) * 0
    b0, b1, b2, b3 = philox4x32(seed, step, block, query, example, sheet)
    return tl.where(t == 0, tl.where(e == 0, b0, b1), tl.where(e == 0, b2, b3))


@jit
def attend(
    q, out, top, total, qkv_ptr, width, first_key, length, score_scale, seed, step, first, example, sheet, threshold,
    M: tl.constexpr, L: tl.constexpr, H: tl.constexpr, H_BLOCK: tl.constexpr, DROPOUT: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """Take the L keys from first_key on into out, top (the largest score) and total (the sum of exponentials below it). RAGGED: some may not be."""
    key = first_key + key_order(L, DROPOUT)
    n_rows = length if RAGGED else None
    k = load_rows(qkv_ptr + width, key, n_rows, 3 * width, H, H_BLOCK)
    v = load_rows(qkv_ptr + 2 * width, key, n_rows, 3 * width, H, H_BLOCK)
    scores = dot(q, k.T)
    if RAGGED:
        scores = tl.where((key < length)[None, :], scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1) * score_scale)
    probs = tl.exp2(scores * score_scale - higher[:, None])
    shrink = tl.exp2(top - higher)
    total = total * shrink + tl.sum(probs, 1)
    if DROPOUT:
        block = first_key // 4 + tl.arange(0, L // 4)
        keep = keep_mask(seed, step, first + tl.arange(0, M), block, example, sheet, first + first_key, threshold)
        probs = tl.where(keep, probs, 0.0)
    out = dot(probs.to(v.dtype), v, out * shrink[:, None])
    return out, higher, total


@jit
def attend_once(
    q, qkv_ptr, width, length, score_scale, seed, step, first, example, sheet, threshold,
    M: tl.constexpr, L: tl.constexpr, H: tl.constexpr, H_BLOCK: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """(out, top, total) as `attend` gives them, where the L keys are all there are: nothing is rescaled."""
    key = key_order(L, DROPOUT)
    k = load_rows(qkv_ptr + width, key, length, 3 * width, H, H_BLOCK)
    v = load_rows(qkv_ptr + 2 * width, key, length, 3 * width, H, H_BLOCK)
    scores = tl.where((key < length)[None, :], dot(q, k.T), float("-inf"))
    top = tl.max(scores, 1) * score_scale
    probs = tl.exp2(scores * score_scale - top[:, None])
    total = tl.sum(probs, 1)
    if DROPOUT:
        keep = keep_mask(seed, step, first + tl.arange(0, M), tl.arange(0, L // 4), example, sheet, first, threshold)
        probs = tl.where(keep, probs, 0.0)
    return dot(probs.to(v.dtype), v), top, total


@jit
def probabilities(
    q, k, v, dout, top, one_over, first, first_key, length, score_scale, seed, step, example, sheet, threshold,
    M: tl.constexpr, L: tl.constexpr, DROPOUT: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """(P, P without what was dropped, dP before the dropout's scale) of M queries and L keys."""
    scores = dot(q, k.T) * score_scale - top[:, None]
    if RAGGED:
        scores = tl.where((first_key + key_order(L, DROPOUT) < length)[None, :], scores, float("-inf"))
    probs = tl.exp2(scores) * one_over[:, None]
    if DROPOUT:
        block = first_key // 4 + tl.arange(0, L // 4)
        probs = signed(probs, keep_mask(seed, step, first + tl.arange(0, M), block, example, sheet, first + first_key, threshold))
    return unsigned(probs, dot(dout, v.T), DROPOUT)


@jit
def signed(probs, keep):
    """P, negative where it was dropped: the mask then waits for dP in no register of its own."""
    return tl.where(keep, probs, -probs)


@jit
def unsigned(probs, dprobs, DROPOUT: tl.constexpr):
    """(P, P without what was dropped, dP without it) from P as `signed` left it. Where P is 0 the mask is lost, and does not matter."""
    kept = probs
    if DROPOUT:
        kept = tl.maximum(probs, 0.0)
        dprobs = tl.where(probs > 0.0, dprobs, 0.0)
        probs = tl.abs(probs)
    return probs, kept, dprobs


@jit
def load_tile(ptr, offset, there, H: tl.constexpr, H_BLOCK: tl.constexpr):
    """ptr[offset + 0:H] as [rows, H_BLOCK], zeros for rows that are not there. there: bool [rows], or None: all are."""
    h = tl.arange(0, H_BLOCK)
    if there is None:
        if H < H_BLOCK:
            x = tl.load(ptr + offset[:, None] + h[None, :], mask=(h < H)[None, :], other=0.0)
        else:
            x = tl.load(ptr + offset[:, None] + h[None, :])
    else:
        mask = there[:, None]
        if H < H_BLOCK:
            mask = mask & (h < H)[None, :]
        x = tl.load(ptr + offset[:, None] + h[None, :], mask=mask, other=0.0)
    return x


@jit
def store_tile(ptr, x, offset, there, H: tl.constexpr, H_BLOCK: tl.constexpr):
    """ptr[offset + 0:H] = x [rows, H_BLOCK], of rows that are there."""
    h = tl.arange(0, H_BLOCK)
    mask = there[:, None]
    if H < H_BLOCK:
        mask = mask & (h < H)[None, :]
    tl.store(ptr + offset[:, None] + h[None, :], x.to(ptr.dtype.element_ty), mask=mask)


@jit
def load_rows(ptr, row, n_rows, stride, H: tl.constexpr, H_BLOCK: tl.constexpr):
    """ptr[row, 0:H] as [rows, H_BLOCK], zeros from row n_rows on; n_rows None: there is no such row."""
    there = None if n_rows is None else row < n_rows
    return load_tile(ptr, row * stride, there, H, H_BLOCK)


@jit
def store_rows(ptr, x, row, n_rows, stride, H: tl.constexpr, H_BLOCK: tl.constexpr):
    """ptr[row, 0:H] = x [rows, H_BLOCK], up to row n_rows."""
    store_tile(ptr, x, row * stride, row < n_rows, H, H_BLOCK)


@jit
def zero_tail(ptr, first, n_tokens, row_stride, width, R: tl.constexpr, C: tl.constexpr, part, parts):
    """ptr[first:n_tokens, 0:width] = 0: the rows of tokens that belong to no sequence. This program clears every parts-th block of R rows."""
    column = tl.arange(0, C)[None, :]
    for block in range(first + part * R, n_tokens, parts * R):
        row = block + tl.arange(0, R)[:, None]
        rows = ptr + row.to(tl.int64) * row_stride
        for left in range(0, width, C):
            tl.store(rows + left + column, tl.zeros([R, C], ptr.dtype.element_ty), mask=(row < n_tokens) & (left + column < width))
