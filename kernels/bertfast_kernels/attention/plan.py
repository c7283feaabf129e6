"""Every launch heuristic of the attention kernels, as pure functions of shapes and of what the device is: CPU tests can read them.

Registers and shared memory that the choices below come to: docs/kernels.md.
"""

from __future__ import annotations

from typing import NamedTuple

from bertfast_kernels.tiling import next_power_of_2

# T tokens, B sequences, N heads, H head size
# warp_size: threads of a warp, 32 on NVIDIA and 64 on AMD Instinct
# wgmma: whether the tensor cores read their operands from shared memory (NVIDIA sm_90, sm_100); elsewhere (sm_80, AMD) operands are registers too

MAX_SEQUENCES = 65534  # the grid's second axis holds one more, which clears the tail
LIMIT = 128  # the longest sequence of the kernels for short and for medium ones


class AttentionPlan(NamedTuple):
    """Which kernels a batch takes.

    longest: those of whole sequences take all with up to so many tokens (0: none do). medium: they are those of medium.py, not
    short.py. heads_each: heads of a program of short.py. shortest: the kernels in blocks take all with so many tokens or more
    (None: none).
    """

    longest: int
    shortest: int | None
    heads_each: int = 1
    medium: bool = False


class Tile(NamedTuple):
    """M queries by L keys, the warps of a program, and the stages of the loop's loads: by the names of a launch."""

    M: int
    L: int
    num_warps: int
    num_stages: int


def head_block(head_size: int) -> int:
    """The power of 2, at least 16, that holds a head."""
    return max(next_power_of_2(head_size), 16)


def attention_plan(n_tokens: int, n_sequences: int, max_seqlen: int, element_size: int, head_size: int, wgmma: bool) -> AttentionPlan:
    """How a batch is run, from what the host knows of it: the longest sequence and the mean.

    Up to a mean of 64, most sequences fill no more than one tile of the short kernels, which do what is longer in blocks; where the longest is beyond them,
    the long kernels run too, and each skips what is the other's. A program takes four heads where most sequences have up to 32 tokens (a mean of
    24): with a head each, three programs of four would find nothing to do. float32 has no tensor cores without TF32, and takes the long kernels alone;
    heads beyond 64 are too wide for the registers of the short kernels and, without wgmma, of the medium ones.
    """
    wide = head_block(head_size) > 64
    short = n_tokens <= 64 * n_sequences and not wide
    if element_size > 2 or (max_seqlen > LIMIT and not short) or (wide and not wgmma):
        return AttentionPlan(0, 0)
    if not short:
        return AttentionPlan(LIMIT, None, medium=True)
    return AttentionPlan(LIMIT, LIMIT + 1 if max_seqlen > LIMIT else None, 4 if n_tokens <= 24 * n_sequences else 1)


def short_forward_options(head_size: int, dropout: bool, wgmma: bool, hopper: bool) -> dict[str, int]:
    """What a launch is told. With dropout the compiler takes 174 registers, room for two programs a multiprocessor of an H100; held to 168 it does with 143,
    room for three: 12.5 us in place of 14.0 for 32 sequences of MNLI's lengths, 62.4 in place of 75.1 for 420. On sm_100 so few registers spill 40 bytes in fp16."""
    warps = 4 if wgmma or head_block(head_size) <= 32 else 8
    return {"num_warps": warps, "num_stages": 1} | ({"maxnreg": 168} if hopper and dropout else {})


def medium_forward_tile(wgmma: bool) -> Tile:
    """On an H100 128 sequences of 128 tokens take 43.9 us by 64 queries and 64 keys, and 57.4 by all queries and 32 keys; with dropout 55.7 and 70.6."""
    return Tile(64, 64, 4, 2) if wgmma else Tile(LIMIT, 32, 8, 1)


def medium_backward_tile(wgmma: bool, warp_size: int) -> Tile:
    """256 threads: 8 warps of 32, or 4 of AMD's 64.

    On gfx942 a thread of 8 warps has at most 256 registers, too few in bf16 with dropout: Triton 3.9.0 spills 100 bytes (3.7.1 takes 244 registers, 3.6.0
    254). A thread of 4 warps may have 512 and takes 278 (257, 276). It saves work, too: the tiles of dK and dV are too small to be divided among 8
    warps, and for 128 tokens all warps together run 16,900 instructions in place of 35,100, 900 of them matrix products in place of 1,700. 16 keys at a
    time spill nothing either, but cost more: 30,700 instructions by 8 warps, and 21,800 by 4, in 202 registers. With those a compute unit has room
    for two programs in place of one; whether that is worth twice the barriers only a timing can tell. All of this by compiling: docs/kernels.md.
    """
    return Tile(LIMIT, 32, 256 // warp_size, 2 if wgmma else 1)


def long_forward_tile(element_size: int, head_size: int, dropout: bool, wgmma: bool) -> Tile:
    """128 queries read K and V half as often as 64; with dropout, fewer keys at once leave room for Philox and for a second program."""
    return _operands_in_registers(element_size, head_size, wgmma) or (Tile(128, 32, 8, 3) if dropout else Tile(128, 64, 8, 2))


def long_backward_queries_tile(element_size: int, head_size: int, dropout: bool, wgmma: bool) -> Tile:
    return _operands_in_registers(element_size, head_size, wgmma) or (Tile(64, 64, 4, 2) if dropout else Tile(128, 64, 8, 2))


def _operands_in_registers(element_size: int, head_size: int, wgmma: bool) -> Tile | None:
    """The tile of a kernel that holds queries and streams keys, where registers leave no choice."""
    wide = head_block(head_size) > 64
    if element_size > 2:
        return Tile(16, 16, 8, 1)
    if wide and not wgmma:
        return Tile(32, 32, 4, 2)
    return Tile(64, 32, 4, 2) if wide or not wgmma else None


def long_backward_keys_tile(element_size: int, head_size: int, wgmma: bool) -> Tile:
    wide = head_block(head_size) > 64
    if element_size > 2:
        return Tile(16, 16, 8, 1)
    if wide and not wgmma:
        return Tile(64, 16, 4, 1)
    return Tile(64, 32 if wide or not wgmma else 64, 4, 2)


def cls_keys(head_size: int) -> int:
    """Keys that a program of the [CLS] kernels takes at once: 4,096 elements of K, 32 a thread."""
    return max(16, 4096 // head_block(head_size))
