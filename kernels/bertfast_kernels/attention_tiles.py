"""What the attention kernels share: where a tile's rows lie, the order of its keys, and its keep mask."""

from __future__ import annotations

from bertfast_kernels._philox import philox4x32
from bertfast_kernels._triton import is_interpreting, jit, tl

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
def keep_mask(seed, step, first_query, first_key, example, sheet, threshold, M: tl.constexpr, L: tl.constexpr):
    """The keep mask [M, L] of M queries and L keys in key_order: bit for bit dropout.keyed_mask.

    `nothing` is always 0 (heads are fewer than 2**15), but only we know: without it the compiler finds that a part of Philox is the same for every
    head or block of queries, computes it once, ahead of all, and spills it.
    """
    nothing = (sheet + first_query + first_key) >> 31
    query = (first_query + tl.arange(0, M)).to(tl.uint32)[:, None, None, None]
    block = ((first_key // 4 + tl.arange(0, L // 4)).to(tl.uint32) + nothing)[None, :, None, None]
    bits = _bits_of_fours(seed, step, block, query, example, sheet)
    return bits.permute(0, 3, 1, 2).reshape(M, L) >= threshold.to(tl.uint32, bitcast=True)


@jit
def keep_mask_of_heads(seed, step, query, example, sheet, threshold, L: tl.constexpr):
    """The keep mask [G, M, L] of the queries [M], the sheets [G] and the keys 0..L-1 in key_order."""
    query = query.to(tl.uint32)[None, :, None, None, None]
    block = tl.arange(0, L // 4).to(tl.uint32)[None, None, :, None, None]
    bits = _bits_of_fours(seed, step, block, query, example, sheet[:, None, None, None, None])
    return bits.permute(0, 1, 4, 2, 3).reshape(sheet.shape[0], query.shape[1], L) >= threshold.to(tl.uint32, bitcast=True)


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
def load_rows(ptr, row, n_rows, stride, H: tl.constexpr, H_BLOCK: tl.constexpr):
    """ptr[row, 0:H] as [rows, H_BLOCK], zeros from row n_rows on."""
    h = tl.arange(0, H_BLOCK)
    mask = (row < n_rows)[:, None]
    if H < H_BLOCK:
        mask = mask & (h < H)[None, :]
    return tl.load(ptr + row[:, None] * stride + h[None, :], mask=mask, other=0.0)


@jit
def store_rows(ptr, x, row, n_rows, stride, H: tl.constexpr, H_BLOCK: tl.constexpr):
    """ptr[row, 0:H] = x [rows, H_BLOCK], up to row n_rows."""
    h = tl.arange(0, H_BLOCK)
    mask = (row < n_rows)[:, None]
    if H < H_BLOCK:
        mask = mask & (h < H)[None, :]
    tl.store(ptr + row[:, None] * stride + h[None, :], x.to(ptr.dtype.element_ty), mask=mask)


@jit
def load_heads(ptr, row, n_rows, stride, G: tl.constexpr, H: tl.constexpr, H_BLOCK: tl.constexpr):
    """ptr[row, g, 0:H] as [G, rows, H_BLOCK], zeros from row n_rows on."""
    g = tl.arange(0, G)[:, None, None]
    h = tl.arange(0, H_BLOCK)[None, None, :]
    mask = (row < n_rows)[None, :, None] & (h < H)
    return tl.load(ptr + row[None, :, None] * stride + g * H + h, mask=mask, other=0.0)


@jit
def store_heads(ptr, x, row, n_rows, stride, G: tl.constexpr, H: tl.constexpr, H_BLOCK: tl.constexpr):
    """ptr[row, g, 0:H] = x [G, rows, H_BLOCK], up to row n_rows."""
    g = tl.arange(0, G)[:, None, None]
    h = tl.arange(0, H_BLOCK)[None, None, :]
    mask = (row < n_rows)[None, :, None] & (h < H)
    tl.store(ptr + row[None, :, None] * stride + g * H + h, x.to(ptr.dtype.element_ty), mask=mask)


@jit
def zero_tail(ptr, first, n_tokens, row_stride, width, R: tl.constexpr, C: tl.constexpr, part, parts):
    """ptr[first:n_tokens, 0:width] = 0: the rows of tokens that belong to no sequence. This program clears every parts-th block of R rows."""
    column = tl.arange(0, C)[None, :]
    for block in range(first + part * R, n_tokens, parts * R):
        row = block + tl.arange(0, R)[:, None]
        rows = ptr + row.to(tl.int64) * row_stride
        for left in range(0, width, C):
            tl.store(rows + left + column, tl.zeros([R, C], ptr.dtype.element_ty), mask=(row < n_tokens) & (left + column < width))
