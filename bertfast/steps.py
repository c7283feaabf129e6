"""The small parts of a training loop: SIGTERM, rates over a window of steps, and the watch on the loss."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from bertfast.data import EncodedDataset
from bertfast.engine import Ranks
from bertfast.errors import NonFiniteLossError
from bertfast.packing import PackedBatch

_EXAMPLES_NAMED = 8  # of a loss that is not finite


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


class LossWatch:
    """Stops a run whose loss is not finite, all ranks of it together.

    It looks when asked, because a look waits for the GPU and for the other ranks.
    """

    def __init__(self, dataset: EncodedDataset, ranks: Ranks):
        self._dataset = dataset
        self._ranks = ranks
        self._pending: list[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def add(self, step: int, loss: torch.Tensor, logits_BC: torch.Tensor, example_ids: torch.Tensor) -> None:
        """Note one micro-batch of optimizer step `step`, counted from 0."""
        self._pending.append((step, loss.detach(), logits_BC.detach().isfinite().all(dim=1), example_ids))

    def check(self) -> None:
        """Look at all that was noted since the last look; every rank must call, and every rank raises.

        Raises:
            NonFiniteLossError: naming the first step at fault and the examples in it.
        """
        fault = self._fault()
        if self._ranks.any(fault is not None):
            step, named = min(found for found in self._ranks.gather(fault) if found is not None)
            raise NonFiniteLossError(
                f"the loss is not finite at step {step + 1}, with these examples: {named}. The last checkpoint before it is kept. "
                "Look at these rows, lower the learning rate, or train in bf16 or fp32"
            )

    def _fault(self) -> tuple[int, str] | None:
        """The first step at fault on this rank, and its examples."""
        pending, self._pending = self._pending, []
        if not pending or bool(torch.stack([loss for _, loss, _, _ in pending]).isfinite().all()):
            return None
        step, _, finite, example_ids = next(item for item in pending if not bool(item[1].isfinite()))
        bad = [index for index in example_ids[~finite].tolist() or example_ids.tolist() if index >= 0]
        more = f"; and {len(bad) - _EXAMPLES_NAMED} more" if len(bad) > _EXAMPLES_NAMED else ""
        return step, "; ".join(self._dataset.where(index) for index in bad[:_EXAMPLES_NAMED]) + more


class Termination:
    """A context in which SIGTERM is noted rather than obeyed at once."""

    def __init__(self, ranks: Ranks):
        self._ranks = ranks
        self._asked = False
        self._before = None

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exception) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def agreed(self) -> bool:
        """Whether any rank was asked to stop: every rank gets the same answer, at the same step."""
        return self._ranks.any(self._asked)

    def _note(self, signum, frame) -> None:
        self._asked = True
