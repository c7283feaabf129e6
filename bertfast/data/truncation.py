"""Which tokens of a long text are read (Sun et al. 2019, section 5.2): its head, its tail, both, or all of it in pieces.

Knows lists of token ids without special tokens, and how many there is room for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bertfast.errors import ConfigError

if TYPE_CHECKING:
    from bertfast.config import TruncationConfig

Cut = Callable[[Sequence[int], int], Sequence[int]]  # (ids, how many to keep, which is not more than there are) -> those kept


def cutter(truncation: TruncationConfig | None = None, cut_left: bool = False) -> Cut:
    """How a text loses tokens; left out, at its end. cut_left: what the tokenizer itself does, for the strategy "head"."""
    if truncation is not None and truncation.strategy == "head_tail":
        return lambda ids, keep: _head_and_tail(ids, keep, truncation.head_tokens)
    if cut_left or (truncation is not None and truncation.strategy == "tail"):
        return lambda ids, keep: ids[len(ids) - keep :]
    return lambda ids, keep: ids[:keep]


def _head_and_tail(ids: Sequence[int], keep: int, head_tokens: int | None) -> Sequence[int]:
    head = keep // 2 if head_tokens is None else min(head_tokens, keep)
    return [*ids[:head], *ids[len(ids) - (keep - head) :]]


def check_room(truncation: TruncationConfig, room: int) -> None:
    """Hold a truncation's numbers against the tokens that there is room for beside the special ones.

    Raises:
        ConfigError: the pieces overlap by all of them.
    """
    if truncation.is_hierarchical and truncation.overlap >= room:
        raise ConfigError(
            f"bertfast.truncation.overlap = {truncation.overlap}, but a piece has room for {room} tokens beside the special ones; "
            "lower it, or raise max_sequence_length"
        )


def leaves_no_tail(truncation: TruncationConfig, room: int) -> bool:
    """Whether the head of `head_tail` takes all the tokens that there is room for, so that it is the same as `head`."""
    return truncation.head_tokens is not None and truncation.head_tokens >= room


def pieces(ids: Sequence[int], room: int, truncation: TruncationConfig) -> list[Sequence[int]]:
    """A text as pieces of `room` tokens, save the last, which is what remains; a text with no token is one empty piece."""
    stride = room - truncation.overlap
    last = max(0, -(-(len(ids) - room) // stride))
    starts = range(0, last * stride + 1, stride)[: truncation.max_pieces]
    return [ids[start : start + room] for start in starts]


def num_pieces(lengths: np.ndarray, max_sequence_length: int) -> np.ndarray:
    """How many pieces documents of so many tokens have, special tokens of every piece counted: all pieces but the last are full."""
    return -(-lengths // max_sequence_length)


def piece_lengths(lengths: np.ndarray, max_sequence_length: int) -> np.ndarray:
    """The lengths of all pieces of these documents, one after another."""
    counts = num_pieces(lengths, max_sequence_length)
    every = np.full(int(counts.sum()), max_sequence_length, dtype=np.int64)
    every[np.cumsum(counts) - 1] = lengths - (counts - 1) * max_sequence_length
    return every
