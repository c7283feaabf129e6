"""Masked language modelling's masks (Devlin et al. 2019, section 3.1), the same for an example however it is packed.

Every random number is a hash of (seed, epoch, example, position), so that masks need no storage, and a resumed run meets the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch

from bertfast.packing.batch import PackedBatch

# T tokens, B sequences, M masked tokens, U units (words, or single tokens), V vocabulary


class Masking(NamedTuple):
    """How tokens are masked. share: of an example's tokens. max_predictions: of an example, or None. is_special, is_continuation: bool [V],
    tokens that are never masked, and those that go on with a word (`##ing`); whole words are masked where the latter is not None."""

    share: float
    max_predictions: int | None
    mask_id: int
    is_special: np.ndarray
    is_continuation: np.ndarray | None = None

    @classmethod
    def of(cls, tokenizer, vocab_size: int, share: float, max_predictions: int | None, whole_words: bool) -> Masking:
        """The masking for a tokenizer's vocabulary."""
        is_special, continuation = np.zeros(vocab_size, dtype=bool), np.zeros(vocab_size, dtype=bool)
        is_special[[tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id]] = True
        if whole_words:
            for token, index in tokenizer.get_vocab().items():
                continuation[index] = token.startswith("##")
        return cls(share, max_predictions, tokenizer.mask_token_id, is_special, continuation if whole_words else None)


def mask(
    masking: Masking, ids_T: np.ndarray, lengths_B: np.ndarray, example_ids_B: np.ndarray, key: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Mask examples that lie end to end: ids int [T] -> the ids with masks, a copy, and the rows that are to be predicted, int64 [M], rising.

    Of an example round(share * its tokens) are chosen, one at least and max_predictions at most: words (or tokens) in random order, passing
    over one that has more tokens than there is room left for. Of the chosen tokens 80 % become [MASK], 10 % a random token and 10 % stay.
    key: (seed, epoch).
    """
    owner_T = np.repeat(np.arange(len(lengths_B)), lengths_B)
    position_T = np.arange(len(ids_T)) - np.repeat(np.cumsum(lengths_B) - lengths_B, lengths_B)
    base_T = _hash(np.asarray(example_ids_B, dtype=np.int64)[owner_T], position_T, *key)
    may_T = ~masking.is_special[ids_T]
    begins_T = may_T.copy()
    if masking.is_continuation is not None:
        goes_on = masking.is_continuation[ids_T[1:]] & may_T[:-1] & may_T[1:] & (owner_T[1:] == owner_T[:-1])
        begins_T[1:] &= ~goes_on
    room_B = np.maximum(1, np.rint(lengths_B * masking.share).astype(np.int64))
    if masking.max_predictions is not None:
        room_B = np.minimum(room_B, masking.max_predictions)
    unit_T = np.cumsum(begins_T) - 1
    first_U = np.flatnonzero(begins_T)
    size_U = np.bincount(unit_T[may_T], minlength=len(first_U))
    taken_U = _take(owner_T[first_U], size_U, base_T[first_U], room_B)
    rows_M = np.flatnonzero(may_T & taken_U[np.maximum(unit_T, 0)]) if len(first_U) else np.zeros(0, dtype=np.int64)
    masked = ids_T.copy()
    fate_M = _uniform(_mixed(base_T[rows_M] ^ np.uint64(0xA5A5A5A5)))
    any_token_M = _mixed(base_T[rows_M] ^ np.uint64(0x5A5A5A5A)) % np.uint64(len(masking.is_special))
    masked[rows_M] = np.where(fate_M < 0.8, masking.mask_id, np.where(fate_M < 0.9, any_token_M.astype(ids_T.dtype), ids_T[rows_M]))
    return masked, rows_M


def _take(owner_U: np.ndarray, size_U: np.ndarray, random_U: np.ndarray, room_B: np.ndarray) -> np.ndarray:
    """Which units are chosen, bool [U]: in random order, each that its example still has room for."""
    order = np.lexsort((random_U, owner_U))
    taken_U, room_B = np.zeros(len(owner_U), dtype=bool), room_B.copy()
    while len(order):
        order = order[size_U[order] <= room_B[owner_U[order]]]
        if not len(order):
            break
        owners = owner_U[order]
        total = np.cumsum(size_U[order])
        starts = np.flatnonzero(np.r_[True, owners[1:] != owners[:-1]])
        before = np.repeat(total[starts] - size_U[order][starts], np.diff(np.r_[starts, len(order)]))
        fits = total - before <= room_B[owners]  # of each example, the first few: with the first that does not fit, the sum is too large
        taken_U[order[fits]] = True
        room_B -= np.bincount(owners[fits], weights=size_U[order[fits]], minlength=len(room_B)).astype(np.int64)
        order = order[~fits]
    return taken_U


def _hash(example: np.ndarray, position: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """uint64 of four numbers."""
    key = _mixed(_mixed(np.array([seed], dtype=np.uint64)) ^ np.array([epoch], dtype=np.uint64))
    return _mixed(_mixed(key ^ example.astype(np.uint64)) ^ position.astype(np.uint64))


def _mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function after one step (Steele et al. 2014): a bijection of uint64 whose bits look random."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _uniform(x: np.ndarray) -> np.ndarray:
    """In [0, 1)."""
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass
class MaskedBatch(PackedBatch):
    """A PackedBatch with masks in its input_ids. masked_rows: int64 [M], the tokens to predict; masked_labels: int64 [M], what stood there."""

    masked_rows: torch.Tensor = field(kw_only=True)
    masked_labels: torch.Tensor = field(kw_only=True)

    @classmethod
    def of(cls, batch: PackedBatch, masking: Masking, key: tuple[int, int]) -> MaskedBatch:
        """Mask a batch; fillers (example id -1) are not masked."""
        ids = batch.input_ids.numpy()
        masked, rows = mask(masking, ids, batch.cu_seqlens.diff().numpy(), batch.example_ids.numpy(), key)
        if (batch.example_ids < 0).any():
            owners = np.searchsorted(batch.cu_seqlens.numpy(), rows, side="right") - 1
            real = batch.example_ids.numpy()[owners] >= 0
            masked[rows[~real]], rows = ids[rows[~real]], rows[real]
        fields = {**vars(replace(batch)), "input_ids": torch.from_numpy(masked)}
        return cls(**fields, masked_rows=torch.from_numpy(rows), masked_labels=torch.from_numpy(ids[rows].astype(np.int64)))
