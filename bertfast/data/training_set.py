"""What every set of training examples offers, whatever is learned from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from bertfast.packing import PackedBatch

# n examples, B of them in a micro-batch


class TrainingSet(Protocol):
    """Examples to train on: `EncodedDataset`, `MixtureSet` and `PretrainingSet` are such sets.

    lengths: int32 [n], tokens of each example. max_sequence_length: tokens that a sequence can have.
    """

    lengths: np.ndarray
    max_sequence_length: int

    def __len__(self) -> int: ...

    def where(self, index: int) -> str:
        """The place of an example in its source, for messages: file and line."""
        ...

    def checksums(self) -> Mapping[str, Any]:
        """What tells other examples, and these in another order, apart from these: checksums by name."""
        ...

    def training_lengths(self, epoch: int) -> np.ndarray:
        """Tokens of each example of an epoch, int32, in the order in which `training_batch` numbers them."""
        ...

    def training_batch(self, indices: np.ndarray, epoch: int) -> PackedBatch:
        """Pack these examples of an epoch (int [B]), in this order; index -1 is a filler, which counts for nothing."""
        ...

    def check_vocabulary(self, vocab_size: int, type_vocab_size: int | None = None) -> None:
        """Raise DataError, naming the first example whose token ids or token type ids the model has not."""
        ...
