"""What a person sees of a run: a progress bar on a terminal, plain lines elsewhere, and log.jsonl for programs."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from bertfast.errors import BertfastError, ConfigError

LOG_FILE = "log.jsonl"
_NARROWEST_BAR, _WIDEST_BAR = 5, 40  # characters


class StartupClock:
    """Where the time before the first step goes; `mark(name)` ends a stage. Seconds, from the start of the process."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, float]] = []
        self._last = time.time()
        self.mark("interpreter and first imports", since=_process_started())

    def mark(self, name: str, since: float | None = None) -> None:
        now = time.time()
        self.stages.append((name, now - (self._last if since is None else since)))
        self._last = now

    def table(self) -> str:
        total = sum(seconds for _, seconds in self.stages)
        lines = [f"{seconds:7.2f} s  {name}" for name, seconds in self.stages]
        return "\n".join(["start-up:", *lines, f"{total:7.2f} s  from the start of the process to the end of the first step"])


class Progress:
    """Reports of a run of `total_steps`; on ranks other than the first it does nothing.

    first_step: the steps that are done already. evaluates_again: what they led to is still to be evaluated, whatever an earlier process logged.
    """

    def __init__(self, model_dir: Path, total_steps: int, first_step: int, enabled: bool, evaluates_again: bool = False):
        self.enabled = enabled
        self.total_steps = total_steps
        self._bar = None
        self._log: TextIO | None = None
        if not enabled:
            return
        self._log = _open_log(model_dir / LOG_FILE, first_step, evaluates_again)
        if sys.stderr.isatty():
            self._bar = _bar(_stderr_console())
            self._bar.start()
            self._task = self._bar.add_task("starting", total=total_steps, completed=first_step)

    def step(self, step: int) -> None:
        """One more optimizer step is done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def record(self, record: dict[str, Any]) -> None:
        """A log record of training: `step`, `loss`, `learning_rate`, and rates per second."""
        if not self.enabled:
            return
        self._write(record)
        facts = (
            f"loss {record['loss']:.4f}",
            f"lr {record['learning_rate']:.2e}",
            f"{record['samples_per_second']:,.0f} samples/s",
            f"{record['tokens_per_second']:,.0f} tokens/s",
            f"{record['real_token_share']:.1%} real",
        )
        if self._bar is not None:
            left = _duration(self._bar.tasks[0].time_remaining or record["seconds_left"])
            beside = len(f"{self.total_steps}/{self.total_steps} {left}") + _NARROWEST_BAR + 3  # columns stand one apart
            self._bar.update(self._task, description=_fitted(facts, self._bar.console.width - beside))
        else:
            left = _duration(record["seconds_left"])
            print(f"step {record['step']}/{self.total_steps}  {'  '.join(facts)}  {left} left", file=sys.stderr, flush=True)

    def evaluation(self, step: int, metrics: dict[str, dict[str, float]]) -> None:
        """The metrics of one evaluation, by split."""
        if not self.enabled:
            return
        self._write({"step": step, "metrics": metrics})
        shown = "; ".join(
            f"{split} " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()) for split, values in metrics.items()
        )
        self.say(f"step {step}/{self.total_steps}  evaluation: {shown}")

    def say(self, text: str) -> None:
        """A line of its own."""
        if self.enabled:
            if self._bar is None:
                print(text, file=sys.stderr, flush=True)
            else:  # brackets and colons are no markup here, and a path is to be copied whole
                self._bar.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._log is not None:
            self._log.close()

    def _write(self, record: dict[str, Any]) -> None:
        log = self._log
        assert log is not None, "an enabled one has a log, until it cannot be written"
        try:
            log.write(json.dumps(record) + "\n")
            log.flush()
        except OSError as error:
            self._log = None
            with contextlib.suppress(OSError):  # it would write once more what it has not got rid of
                log.close()
            raise BertfastError(f"{log.name}: cannot be written: {error.strerror or error}; make room, then go on with --resume") from None


def _bar(console):
    """rich's, in which the bar alone gives way where a terminal is narrow."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    bar = BarColumn(bar_width=None, table_column=Column(ratio=1, max_width=_WIDEST_BAR))
    text = TextColumn("{task.description}", markup=False)
    return Progress(bar, MofNCompleteColumn(), text, TimeRemainingColumn(), console=console, expand=True)


def _fitted(facts: Sequence[str], width: int) -> str:
    """As many of the facts as have room in so many characters, from the first on; what is left over is in the log."""
    kept: list[str] = []
    for fact in facts:
        if len("  ".join([*kept, fact])) > width:
            break
        kept.append(fact)
    return "  ".join(kept)


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds, however many hours there are: "01:01:01", "123:00:00"."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"


def _open_log(path: Path, first_step: int, evaluates_again: bool = False) -> TextIO:
    """The log, without the records of steps that are about to be taken again (and without a line that a kill cut short)."""
    kept = []
    if first_step > 0 and path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if record["step"] < first_step or (record["step"] == first_step and not (evaluates_again and "metrics" in record)):
                kept.append(line + "\n")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}")
        beside.write_text("".join(kept), encoding="utf-8")
        os.replace(beside, path)
        return open(path, "a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"bertfast.run.model_dir = {path.parent}: cannot be written ({error.strerror or error}); name another folder with --model_dir"
        ) from None


def _stderr_console():
    from rich.console import Console

    return Console(stderr=True)


def _process_started() -> float:
    """When this process began, in seconds since the epoch; now, where the system does not say."""
    try:
        import psutil

        return psutil.Process().create_time()
    except ImportError:
        return time.time()
