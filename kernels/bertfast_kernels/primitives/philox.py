"""The keep mask of dropout inside a kernel: bit for bit that of masks.keyed_mask.

Philox4x32-10 (Salmon et al. 2011) with the key (seed, step) and the counter (column // 4, position, example, site + (head << 16)). One call gives
the bits of four neighbouring columns, so a mask of [R, C] is made on a tile of [R, C / 4]. Counters broadcast: the first two rounds of a
tile's counters cost R + C / 4 multiplications rather than R * C / 4.
"""

from __future__ import annotations

from bertfast_kernels.primitives.lazy_triton import jit, tl
from bertfast_kernels.primitives.masks import Dropout

# R rows, C columns (a multiple of 4)


def dropout_numbers(dropout: Dropout | None) -> tuple[float, int, float]:
    """(p, threshold, scale) as kernels take them: the threshold is round(p * 2**32) as the int32 of the same bits, so its type never changes."""
    if dropout is None or dropout.p == 0.0:
        return 0.0, 0, 1.0
    return dropout.p, signed32(round(dropout.p * 2**32)), dropout.scale


def signed32(word: int) -> int:
    """The int32 of the same 32 bits."""
    return word - 2**32 if word >= 2**31 else word


@jit
def philox4x32(seed, step, c0, c1, c2, c3):
    """Four uint32 tensors from the key (seed, step) and four counters, all uint32. Products are 64 bits wide: one instruction for both halves."""
    for _ in tl.static_range(10):
        product0 = c0.to(tl.uint64) * 0xD2511F53
        product1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ seed
        c1 = product1.to(tl.uint32)
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ step
        c3 = product0.to(tl.uint32)
        seed = tl.add(seed, 0x9E3779B9, sanitize_overflow=False)
        step = tl.add(step, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@jit
def load_key(key_ptr):
    """(seed, step) as uint32 from an int64 [2]."""
    return tl.load(key_ptr).to(tl.uint32), tl.load(key_ptr + 1).to(tl.uint32)


@jit
def keep_tile(seed, step, position, example, sheet, threshold, first_block, C: tl.constexpr, VECTOR: tl.constexpr = 4):
    """The keep mask [R, C] of R rows and the columns 4 * first_block + [0, C).

    position, example: int [R]; sheet: an int scalar or [R, 1], the site + (head << 16); threshold: the int32 of dropout_numbers; C: a power of 2,
    at least VECTOR. VECTOR: the neighbouring columns that one thread makes, 4 or 8: with as many as a thread loads of a row (16 bytes), the mask
    comes out in the layout of the row, and is not shuffled between threads.
    """
    position = position.to(tl.uint32)[:, None]
    example = example.to(tl.uint32)[:, None]
    sheet = sheet.to(tl.uint32)
    limit = threshold.to(tl.uint32, bitcast=True)
    block = (first_block + (VECTOR // 4) * tl.arange(0, C // VECTOR)).to(tl.uint32)[None, :]
    a0, a1, a2, a3 = philox4x32(seed, step, block, position, example, sheet)
    if VECTOR == 4:
        keep = tl.join(tl.join(a0 >= limit, a2 >= limit), tl.join(a1 >= limit, a3 >= limit))
    else:
        b0, b1, b2, b3 = philox4x32(seed, step, block + 1, position, example, sheet)
        even = tl.join(tl.join(a0 >= limit, b0 >= limit), tl.join(a2 >= limit, b2 >= limit))
        odd = tl.join(tl.join(a1 >= limit, b1 >= limit), tl.join(a3 >= limit, b3 >= limit))
        keep = tl.join(even, odd)
    return keep.reshape(position.shape[0], C)
