"""What may end a run: SIGTERM, Ctrl-C, and a loss that is not finite."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

from bertfast.data import TrainingSet
from bertfast.engine import Ranks
from bertfast.errors import Interrupted, NonFiniteLossError, Terminated

_EXAMPLES_NAMED = 8  # of a loss that is not finite


class LossWatch:
    """Stops a run whose loss is not finite, all ranks of it together.

    It looks when asked, because a look waits for the GPU and for the other ranks.
    """

    def __init__(self, dataset: TrainingSet, ranks: Ranks):
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
    """A context in which SIGTERM and SIGINT (Ctrl-C) are noted rather than obeyed at once; a second SIGINT interrupts.

    A SIGINT that is ignored, as of what a script has put in the background, stays ignored.
    """

    def __init__(self, ranks: Ranks):
        self._ranks = ranks
        self._signal: int | None = None  # the first that came: a launcher sends SIGTERM after a terminal's SIGINT
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            noted = [number for number in (signal.SIGTERM, signal.SIGINT) if number == signal.SIGTERM or not _is_ignored(number)]
            self._before = {number: signal.signal(number, self._note) for number in noted}
        return self

    def __exit__(self, *exception) -> None:
        for number, before in self._before.items():
            if before is not None:  # None: it was not set from Python, and cannot be put back
                signal.signal(number, before)

    def agreed(self) -> bool:
        """Whether any rank was asked to stop: every rank gets the same answer, at the same step."""
        return self._ranks.any(self._signal is not None)

    def fault(self, saved: str) -> Terminated:
        """What to raise once the state is saved. saved: after which step, and where."""
        if self._signal == signal.SIGINT:
            return Interrupted(f"stopped by Ctrl-C {saved}: go on with --resume")
        return Terminated(f"stopped by SIGTERM {saved}: go on with --resume")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = self._signal or number
        if number == signal.SIGINT and self._ranks.is_first:
            with contextlib.suppress(OSError):  # not by sys.stderr: the signal may have come in the midst of its own write
                os.write(2, b"\nbertfast: stopping, with a checkpoint; Ctrl-C again stops at once, without one\n")


def _is_ignored(number: int) -> bool:
    return signal.getsignal(number) == signal.SIG_IGN
