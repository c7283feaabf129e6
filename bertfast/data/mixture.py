"""The training examples of several tasks as one data set: how often each task is drawn, and batches that hold examples of all of them.

Every micro-batch mixes tasks, example by example (as in Aghajanyan et al. 2021, Muppet, section 3.2), where MT-DNN (Liu et al. 2019, algorithm 1)
gives each step to one task: gradients then vary less, every head is part of every step on every rank, and the planners pack what they always
pack. An epoch has as many draws as there are examples in all; each task gets its share of them, and goes through its examples in one random
order after the other, so that none is met twice before all have been met once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from bertfast.data.encoded import EncodedDataset
from bertfast.packing import MixedBatch, PackedBatch, random_order, ranges

# T tokens, B examples, n examples of a task, N of all

_ANNEALED_FALL = 0.8  # alpha falls from 1 to 0.2


def shares(sizes: Sequence[int], sampling: str, epoch: int = 0, epochs: int = 1) -> np.ndarray:
    """The share of the draws that each task gets, float64, summing to 1: n^alpha over the sum of all tasks'.

    alpha is 1 for "proportional" (every example once an epoch; Liu et al. 2019), 1/2 for "square_root", 0 for "uniform" (Raffel et al. 2020,
    section 3.5.2, with temperatures of 1, 2 and infinity); for "annealed" it falls from 1 in the first epoch to 0.2 in the last (Stickland and
    Murray 2019, section 4.1).
    """
    fall = _ANNEALED_FALL * min(epoch / (epochs - 1), 1.0) if epochs > 1 else 0.0
    alpha = {"proportional": 1.0, "square_root": 0.5, "uniform": 0.0, "annealed": 1.0 - fall}[sampling]
    powers = np.asarray(sizes, dtype=np.float64) ** alpha
    return powers / powers.sum()


def quotas(sizes: Sequence[int], sampling: str, epoch: int = 0, epochs: int = 1) -> np.ndarray:
    """The draws of each task in an epoch, int64, as many in all as there are examples: shares, rounded by the largest remainders."""
    exact = shares(sizes, sampling, epoch, epochs) * sum(sizes)
    counts = np.floor(exact + 1e-9).astype(np.int64)
    most = np.argsort(counts - exact, kind="stable")[: sum(sizes) - counts.sum()]
    counts[most] += 1
    return counts


class MixtureSet:
    """Several encoded training sets, otherwise like one EncodedDataset. Example g is example g - starts[t] of the task t that holds it; the
    examples of an epoch are its draws, and the planners number those. epochs: how many the run has, for "annealed"."""

    def __init__(self, parts: Sequence[EncodedDataset], sampling: str, seed: int, shuffle: bool = True, epochs: int = 1):
        self.parts, self.sampling, self.epochs = list(parts), sampling, epochs
        self._seed, self._shuffle = seed, shuffle
        self.sizes = [len(part) for part in parts]
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self.lengths = np.concatenate([part.lengths for part in parts])
        self.max_sequence_length = max(part.max_sequence_length for part in parts)
        self._drawn: tuple[int, np.ndarray] | None = None  # the epoch that was last asked for

    def __len__(self) -> int:
        return len(self.lengths)

    def where(self, index: int) -> str:
        """File and line of an example; see EncodedDataset."""
        task = int(self._task_of(np.array([index]))[0])
        return self.parts[task].where(int(index - self.starts[task]))

    def checksums(self) -> dict[str, dict[str, str]]:
        """Those of each task's examples, by the task's name; see EncodedDataset."""
        return {part.task.name: part.checksums() for part in self.parts}

    def check_vocabulary(self, vocab_size: int, type_vocab_size: int | None = None) -> None:
        """See EncodedDataset."""
        for part in self.parts:
            part.check_vocabulary(vocab_size, type_vocab_size)

    def draws(self, epoch: int) -> np.ndarray:
        """The examples of an epoch, int64 [N], task after task."""
        if self._drawn is None or self._drawn[0] != epoch:
            parts = [self._draws_of(task, epoch) + self.starts[task] for task in range(len(self.parts))]
            self._drawn = epoch, np.concatenate(parts)
        return self._drawn[1]

    def training_lengths(self, epoch: int) -> np.ndarray:
        """Tokens of each draw, int32 [N]."""
        return self.lengths[self.draws(epoch)]

    def training_batch(self, indices: np.ndarray, epoch: int) -> MixedBatch:
        """Pack these draws of an epoch, in this order; -1 is a filler, which counts as an example of the first task."""
        indices = np.asarray(indices, dtype=np.int64)
        examples = np.where(indices < 0, -1, self.draws(epoch)[indices])
        tasks = np.where(examples < 0, 0, self._task_of(examples))
        places = [np.flatnonzero(tasks == task) for task in range(len(self.parts))]
        batches = [
            part.batch(np.where(examples[rows] < 0, -1, examples[rows] - start))
            for part, rows, start in zip(self.parts, places, self.starts, strict=False)
            if len(rows)
        ]
        back = np.argsort(np.concatenate(places), kind="stable")  # from task after task to the order that was asked for
        lengths = np.concatenate([batch.cu_seqlens.diff().numpy() for batch in batches])
        tokens = ranges((np.cumsum(lengths) - lengths)[back], lengths[back])
        ids, types = (
            np.concatenate([getattr(batch, name).numpy() for batch in batches])[tokens] for name in ("input_ids", "token_type_ids")
        )
        labels = np.concatenate([_labels_of(batch) for batch in batches])[back]
        batch = PackedBatch.from_ragged(ids, types, lengths[back], labels, examples)
        # Dropout by key goes by the draw: an example that is drawn twice for one step meets two masks.
        batch = replace(batch, piece_ids=torch.from_numpy(indices.astype(np.int32)))
        return MixedBatch.of(batch, tasks, len(self.parts))

    def _task_of(self, examples: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.starts, examples, side="right") - 1

    def _draws_of(self, task: int, epoch: int) -> np.ndarray:
        """Where a task's endless row of random orders of its n examples has come to: the stretch that this epoch takes."""
        n = self.sizes[task]
        begin = sum(int(quotas(self.sizes, self.sampling, earlier, self.epochs)[task]) for earlier in range(epoch))
        end = begin + int(quotas(self.sizes, self.sampling, epoch, self.epochs)[task])
        rounds = range(begin // n, -(-end // n))
        orders = [self._order(task, number) for number in rounds] or [np.zeros(0, dtype=np.int64)]
        return np.concatenate(orders)[begin - rounds.start * n : end - rounds.start * n].astype(np.int64)

    def _order(self, task: int, number: int) -> np.ndarray:
        n = self.sizes[task]
        return random_order(np.random.default_rng([self._seed, task, number]), n) if self._shuffle else np.arange(n)


def _labels_of(batch: PackedBatch) -> np.ndarray:
    """The labels of a batch to train on, float32 [B]."""
    assert batch.labels is not None
    return batch.labels.numpy().astype(np.float32)
