"""What a run knows beside its weights, and rates over a window of steps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from bertfast.engine import Ranks
from bertfast.packing import PackedBatch


class RunState(NamedTuple):
    """What a run knows beside its weights; saved with every checkpoint."""

    step: int = 0
    best: float | None = None
    best_step: int | None = None
    stale_evaluations: int = 0  # in a row, without a better metric
    metrics: dict[str, dict[str, float]] | None = None  # of the best step, by split
    owes_evaluation: bool = False  # of `step`: SIGTERM came first
    seconds: float = 0.0  # spent in training steps
    examples: int = 0
    tokens: int = 0
    padded_tokens: int = 0  # what the same micro-batches would hold, each padded to its longest example
    changes: Sequence[str] = ()  # what is not as it was in the run's first steps, and from when on


class Window:
    """Counts since the last log record and since the last save. Numbers stay on the device until they are asked for."""

    def __init__(self, ranks: Ranks):
        self._ranks = ranks
        self._since_save = _Counts()
        self._since_log = _Counts()
        self._loss = torch.zeros((), device=ranks.device)

    def add(self, share: torch.Tensor, batches: list[PackedBatch], n_examples: int) -> None:
        """One optimizer step: this rank's share of its mean loss, its micro-batches, and the examples of the global batch."""
        self._loss += share
        extents = [batch.unpadded or batch.extent for batch in batches]
        tokens = sum(extent.tokens for extent in extents)
        padded = sum(extent.sequences * extent.max_seqlen for extent in extents)
        for counts in (self._since_log, self._since_save):
            counts.add(n_examples, tokens, padded)

    def rates(self) -> dict[str, float]:
        """Mean loss, and rates over all ranks, since the last call."""
        counts, self._since_log = self._since_log, _Counts()
        loss, tokens = self._ranks.sum(
            torch.stack((self._loss.double(), torch.tensor(float(counts.tokens), device=self._loss.device)))
        ).tolist()
        self._loss.zero_()
        seconds = time.perf_counter() - counts.begun
        return {
            "loss": loss / counts.steps,
            "seconds_per_step": seconds / counts.steps,
            "samples_per_second": counts.examples / seconds,
            "tokens_per_second": tokens / seconds,
        }

    def take_into(self, state: RunState) -> RunState:
        """`state` with what has been counted since the last call."""
        counts, self._since_save = self._since_save, _Counts()
        both = torch.tensor([counts.tokens, counts.padded], dtype=torch.int64, device=self._loss.device)
        tokens, padded = self._ranks.sum(both).tolist()
        return state._replace(
            seconds=state.seconds + time.perf_counter() - counts.begun,
            examples=state.examples + counts.examples,
            tokens=state.tokens + tokens,
            padded_tokens=state.padded_tokens + padded,
        )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of the block: it is spent on evaluating and saving. Steps that were counted before it keep theirs."""
        began = time.perf_counter()
        try:
            yield
        finally:
            pause = time.perf_counter() - began
            for counts in (self._since_log, self._since_save):
                counts.begun += pause


class _Counts:
    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.steps = self.examples = self.tokens = self.padded = 0

    def add(self, examples: int, tokens: int, padded: int) -> None:
        self.steps += 1
        self.examples += examples
        self.tokens += tokens
        self.padded += padded
