"""Every launch heuristic of the attention kernels, as pure functions of shapes and of what the device is: CPU tests can read them.

Registers and shared memory that the choices below come to: docs/kernels.md.
"""

from __future__ import annotations

from typing import NamedTuple

from bertfast_kernels.tiling import next_power_of_2

# T tokens, B sequences, N heads, H head size


class AttentionPlan(NamedTuple):
    """Which kernels a batch takes: those of whole sequences up to `longest` tokens (0: none), those in blocks from `shortest` on (None: none)."""

    longest: int
    shortest: int | None


class ShortTile(NamedTuple):
    """Queries that the forward takes at once beyond 32 tokens, and the warps of a program."""

    queries: int
    num_warps: int


class LongTile(NamedTuple):
    """A tile of queries by keys, the warps of a program, and the stages of the loop's loads."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


MAX_SEQUENCES = 65534  # the grid's second axis holds one more, which clears the tail


def head_block(head_size: int) -> int:
    """The power of 2, at least 16, that holds a head."""
    return max(next_power_of_2(head_size), 16)


def head_group(n_heads: int) -> int:
    """Heads that a tile of up to 32 tokens takes at once: four, one for each warp, or the largest power of 2 that divides n_heads."""
    return 4 if n_heads % 4 == 0 else 2 if n_heads % 2 == 0 else 1


def short_limit(element_size: int, head_size: int) -> int:
    """The longest sequence that the kernels of whole sequences take: 128 tokens in 16 bits with heads of up to 64, else none or fewer.

    In float32 there are no tensor cores to use without TF32, and a tile of that size would not fit the registers.
    """
    if element_size > 2:
        return 0
    return 128 if head_block(head_size) <= 64 else 64


def attention_plan(n_tokens: int, n_sequences: int, max_seqlen: int, element_size: int, head_size: int) -> AttentionPlan:
    """Both kinds of kernel where the longest sequence is long and the mean is short: each skips what is the other's, for a launch more."""
    limit = short_limit(element_size, head_size)
    if max_seqlen <= limit:
        return AttentionPlan(64 if max_seqlen <= 64 else 128, None)
    if limit and n_tokens <= limit * n_sequences:
        return AttentionPlan(limit, limit + 1)
    return AttentionPlan(0, 0)


def heads_each(n_heads: int, n_sequences: int, multiprocessors: int) -> int:
    """Heads of a program of the short kernels: a group where that leaves 8 programs to a multiprocessor, else one."""
    group = head_group(n_heads)
    return group if n_sequences * (n_heads // group) >= 8 * multiprocessors else 1


def short_forward_tile(longest: int) -> ShortTile:
    return ShortTile(64, 4)


def short_backward_tile(longest: int) -> ShortTile:
    return ShortTile(64, 4)


def long_forward_tile(element_size: int, head_size: int) -> LongTile:
    if element_size > 2:
        return LongTile(32, 32, 4, 1)
    return LongTile(128, 64, 8, 2) if head_block(head_size) <= 64 else LongTile(64, 64, 4, 2)


def long_backward_queries_tile(element_size: int, head_size: int) -> LongTile:
    if element_size > 2:
        return LongTile(32, 32, 4, 1)
    return LongTile(128, 64, 8, 2) if head_block(head_size) <= 64 else LongTile(64, 64, 4, 2)


def long_backward_keys_tile(element_size: int, head_size: int) -> LongTile:
    if element_size > 2:
        return LongTile(32, 32, 4, 1)
    return LongTile(64, 128, 8, 2) if head_block(head_size) <= 64 else LongTile(64, 64, 4, 2)


def cls_keys(head_size: int) -> int:
    """Keys that a program of the [CLS] kernels takes at once: 4,096 elements of K, 32 a thread."""
    return max(16, 4096 // head_block(head_size))
