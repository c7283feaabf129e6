"""The judge's grid: small batches of made-up features that meet a graph where it is likely to be wrong.

Every batch size and length class; every kind of mask, a row with no token among them; ids from both ends of the vocabulary; with and without
the second segment. Real sentences are right-padded and mostly alike: they alone would never ask these questions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from transformers import BertConfig

from bertfast_export.contract import INPUTS

BATCH_SIZES = (1, 3, 8, 33)
LENGTHS = (1, 2, 3, 7, 16, 33, 64, 128, 256, 512)  # and the model's longest, and one less
TOKENS = 2112  # of a batch at most, save that a batch of 1 may be of any length
_SEED = 20


@dataclass(frozen=True)
class Case:
    """One batch: int64 features [B, S] by name, and for each row what is special about it."""

    name: str
    rows: tuple[str, ...]
    features: dict[str, np.ndarray]

    def where(self, row: int) -> str:
        """A row's name, for messages."""
        return f"{self.name}, row {row}: {self.rows[row]}"


def make_cases(config: BertConfig, seed: int = _SEED) -> list[Case]:
    """The grid for a model: always the same for the same sizes. With another seed, batches like it that are not it, for those who measure."""
    longest = config.max_position_embeddings
    lengths = sorted({length for length in (*LENGTHS, longest - 1, longest) if 1 <= length <= longest})
    rng = np.random.default_rng(seed)
    cases, kinds = [], _Kinds()
    for length in lengths:
        for size in BATCH_SIZES:
            if size > 1 and (size * length > TOKENS or length == longest - 1):
                continue
            rows = [kinds.next(length, config, rng) for _ in range(size)]
            features = {name: np.stack([row[1][name] for row in rows]) for name in INPUTS}
            cases.append(Case(f"batch {size} x {length} tokens", tuple(row[0] for row in rows), features))
    return cases


class _Kinds:
    """Hands out kinds of rows in turn. Their numbers have no common factor, so that in time every kind of mask meets every other kind."""

    def __init__(self) -> None:
        self._turn = 0

    def next(self, length: int, config: BertConfig, rng: np.random.Generator) -> tuple[str, dict[str, np.ndarray]]:
        turn, self._turn = self._turn, self._turn + 1
        mask_name, mask = list(_MASKS.items())[turn % len(_MASKS)]
        ids_name, ids = list(_IDS.items())[turn % len(_IDS)]
        segments_name, segments = list(_SEGMENTS.items())[turn % len(_SEGMENTS)]
        row = {
            "input_ids": ids(length, config.vocab_size, rng),
            "attention_mask": mask(length, rng),
            "token_type_ids": segments(length, rng) % config.type_vocab_size,
        }
        return f"{mask_name}, {ids_name}, {segments_name}", {name: values.astype(np.int64) for name, values in row.items()}


def _right(length: int, rng: np.random.Generator) -> np.ndarray:
    return np.arange(length) < rng.integers(1, length + 1)


def _holed(length: int, rng: np.random.Generator) -> np.ndarray:
    begin = rng.integers(0, length)
    columns = np.arange(length)
    return (columns < begin) | (columns >= begin + max(length // 4, 1)) | (columns == (0 if begin else length - 1))


_MASKS: dict[str, Callable[..., np.ndarray]] = {
    "no padding": lambda length, rng: np.ones(length),
    "padding on the right": _right,
    "padding on the left": lambda length, rng: _right(length, rng)[::-1],
    "a hole in the mask": _holed,
    "a random mask": lambda length, rng: rng.integers(0, 2, length),
    "no token at all": lambda length, rng: np.zeros(length),
    "the first column alone": lambda length, rng: np.arange(length) == 0,
}
_IDS: dict[str, Callable[..., np.ndarray]] = {
    "ids of the whole vocabulary": lambda length, size, rng: rng.integers(0, size, length),
    "the lowest ids": lambda length, size, rng: np.arange(length) % size,
    "the highest ids": lambda length, size, rng: size - 1 - np.arange(length) % size,
    "ids of the whole vocabulary too": lambda length, size, rng: rng.integers(0, size, length),
    "one id throughout": lambda length, size, rng: np.full(length, rng.integers(0, size)),
}
_SEGMENTS: dict[str, Callable[..., np.ndarray]] = {
    "one segment": lambda length, rng: np.zeros(length),
    "two segments": lambda length, rng: np.arange(length) >= rng.integers(0, length + 1),
    "the second segment alone": lambda length, rng: np.ones(length),
}
