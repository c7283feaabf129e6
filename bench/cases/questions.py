"""What a classifier is asked: texts and their token ids, real ones of a task or made up, and how batches of them are padded.

Imports numpy alone at its head: the processes whose memory is measured import it too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Tokens(NamedTuple):
    """Examples end to end: input_ids int32 [T], token_type_ids uint8 [T], lengths int32 [B]."""

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, rows: Sequence[int] | np.ndarray) -> Tokens:
        """These examples, in this order."""
        ends = np.cumsum(self.lengths, dtype=np.int64)
        pieces = [slice(ends[row] - self.lengths[row], ends[row]) for row in rows]
        empty = np.zeros(0, np.int32)
        ids, types = (np.concatenate([values[piece] for piece in pieces] or [empty]) for values in self[:2])
        return Tokens(ids, types, self.lengths[np.asarray(rows, dtype=np.int64)])

    def save(self, file: Path) -> None:
        np.savez(file, **self._asdict())

    @classmethod
    def load(cls, file: Path) -> Tokens:
        with np.load(file) as found:
            return cls(*(found[name] for name in cls._fields))


class Texts(NamedTuple):
    """Texts, or pairs of them: `second` is None for single ones."""

    first: list[str]
    second: list[str] | None

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(self._asdict()), encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> Texts:
        return cls(**json.loads(file.read_text(encoding="utf-8")))


def padded(tokens: Tokens, rows: np.ndarray) -> dict[str, np.ndarray]:
    """int64 [rows, longest of them], as everybody's models take them; the padding token is 0, as it is in every BERT."""
    lengths = tokens.lengths[rows]
    ends = np.cumsum(tokens.lengths, dtype=np.int64)
    features = {name: np.zeros((len(rows), int(lengths.max())), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        piece = slice(ends[row] - length, ends[row])
        features["input_ids"][place, :length] = tokens.input_ids[piece]
        features["token_type_ids"][place, :length] = tokens.token_type_ids[piece]
        features["attention_mask"][place, :length] = 1
    return features
