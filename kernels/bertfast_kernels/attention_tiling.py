"""Every launch heuristic of the attention kernels, as pure functions of shapes and of what the device is: CPU tests can read them.

Registers and shared memory that the choices below come to: docs/kernels.md.
"""

from __future__ import annotations

from typing import NamedTuple

from bertfast_kernels.tiling import next_power_of_2

# T tokens, B sequences, N heads, H head size

MAX_SEQUENCES = 65534  # the grid's second axis holds one more, which clears the tail
LIMIT = 128  # the longest sequence of the kernels for short and for medium ones


class AttentionPlan(NamedTuple):
    """Which kernels a batch takes.

    longest: those of whole sequences take all with up to so many tokens (0: none do). medium: they are those of attention_medium.py, not
    attention_short.py. heads_each: heads of a program of attention_short.py. shortest: the kernels in blocks take all with so many tokens or more
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


def attention_plan(n_tokens: int, n_sequences: int, max_seqlen: int, element_size: int) -> AttentionPlan:
    """How a batch is run, from what the host knows of it: the longest sequence and the mean.

    Up to a mean of 64, most sequences fill no more than one tile of the short kernels, which do what is longer in blocks; where the longest is beyond them,
    the long kernels run too, and each skips what is the other's. A program takes four heads where most sequences have up to 32 tokens (a mean of
    24): with a head each, three programs of four would find nothing to do. float32 has no tensor cores without TF32, and takes the long kernels alone.
    """
    short = n_tokens <= 64 * n_sequences
    if element_size > 2 or (max_seqlen > LIMIT and not short):
        return AttentionPlan(0, 0)
    if not short:
        return AttentionPlan(LIMIT, None, medium=True)
    return AttentionPlan(LIMIT, LIMIT + 1 if max_seqlen > LIMIT else None, 4 if n_tokens <= 24 * n_sequences else 1)


def medium_forward_tile(head_size: int) -> Tile:
    return Tile(LIMIT, 32, 8, 2)


def medium_backward_tile(head_size: int) -> Tile:
    return Tile(LIMIT, 32, 8, 2)


def long_forward_tile(element_size: int, head_size: int) -> Tile:
    if element_size > 2:
        return Tile(16, 16, 8, 1)
    return Tile(128, 64, 8, 2) if head_block(head_size) <= 64 else Tile(64, 64, 4, 2)


def long_backward_queries_tile(element_size: int, head_size: int) -> Tile:
    if element_size > 2:
        return Tile(16, 16, 8, 1)
    return Tile(128, 64, 8, 2) if head_block(head_size) <= 64 else Tile(64, 64, 4, 2)


def long_backward_keys_tile(element_size: int, head_size: int) -> Tile:
    if element_size > 2:
        return Tile(16, 16, 8, 1)
    return Tile(64, 128, 8, 2) if head_block(head_size) <= 64 else Tile(64, 64, 4, 2)


def cls_keys(head_size: int) -> int:
    """Keys that a program of the [CLS] kernels takes at once: 4,096 elements of K, 32 a thread."""
    return max(16, 4096 // head_block(head_size))
