"""The processes of a sweep: how a trial is started, ended and read, where it runs, and who may work in a sweep's folder."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bertfast.errors import BertfastError
from bertfast.reporting import RESULTS_FILE

LOCK, LOG = ".sweep.lock", "output.log"
MEAN = "mean_of_main_metrics"  # in the results of several tasks
POLL_SECONDS = 0.1
_GRACE_SECONDS = 300.0  # for a trial to end its step and write a checkpoint
_LOCK_SECONDS = 330.0
_PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that a child gets when its parent dies
_OF_A_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")

Command = Callable[[Path], list[str]]  # the file of a trial's config -> the command that trains it


def train_command(device: str | None) -> Command:
    """`bertfast train`, going on where an earlier process of the trial stopped. device: "cpu", "gpu" or None (whichever there is)."""
    words = [sys.executable, "-m", "bertfast", "train", *([device.upper()] if device else [])]
    return lambda config: [*words, "--config", str(config), "--resume"]


def places_of(device: str | None, jobs: int | None) -> list[str | None]:
    """Where trials may run at the same time: GPUs by number, one after the other (left out: each once), or None for a job on the CPU."""
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return [None] * (jobs or 1)
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [name.strip() for name in seen.split(",")] if seen else [str(index) for index in range(torch.cuda.device_count())]
    return [gpus[index % len(gpus)] for index in range(jobs or len(gpus))]


def start(command: list[str], folder: Path, place: str | None, lock: int) -> subprocess.Popen:
    """Start a trial, whose output goes to the end of the log in its folder. place: a GPU's number, or None. lock: what `alone_in` gave.

    It has a session of its own: a terminal's Ctrl-C is for the sweep, which has its trials write checkpoints.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _OF_A_LAUNCHER}
    if place is not None:
        environment["CUDA_VISIBLE_DEVICES"] = place
    with open(folder / LOG, "ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True, pass_fds=(lock,), preexec_fn=_dies_with_parent(),
        )  # fmt: skip


def end(processes: Iterable[subprocess.Popen], stop: Stop) -> None:
    """Have trials write checkpoints and end; at a second signal, or after _GRACE_SECONDS, end them without."""
    processes, until = list(processes), time.monotonic() + _GRACE_SECONDS
    for process in processes:
        process.terminate()
    while any(process.poll() is None for process in processes) and stop.count < 2 and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def score_of(folder: Path) -> float | None:
    """What a finished trial's best evaluation is compared by: the main metric on the first split, or of several tasks the mean of theirs; None
    where it has left no results, or the metric is NaN."""
    results = _results_of(folder)
    if not results or not results["metrics"]:  # a run of which no evaluation gave a number has no best
        return None
    score = results[MEAN] if MEAN in results else next(iter(results["metrics"].values()))[results["main_metric"]]
    return None if score != score else score


def score_name_of(folder: Path) -> str:
    """What `score_of` is called."""
    results = _results_of(folder)
    assert results is not None, "asked of a trial that has a score"
    return MEAN if MEAN in results else f"{results['main_metric']} on {next(iter(results['metrics']))}"


def reason_of(folder: Path) -> str:
    """Why a trial has no score: the last line that it wrote, without our own prefix, or that its metric never was a number."""
    if _results_of(folder):
        return "its metric was not a number at any evaluation"
    log = folder / LOG
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines or ["it said nothing"])[-1].removeprefix("bertfast: error: ")


def _results_of(folder: Path) -> dict[str, Any] | None:
    file = folder / RESULTS_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def seconds_of(folder: Path) -> float | None:
    results = _results_of(folder)
    return results["training"]["train_seconds"] if results else None


def _dies_with_parent() -> Callable[[], None] | None:
    """What a child does before it begins, so that it is asked to end when the sweep is killed; Linux alone has it."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def alone_in(folder: Path, say: Callable[[str], None]) -> Iterator[int]:
    """Hold the folder's lock, which trials inherit. A sweep that was killed leaves trials that write a last checkpoint: they are waited for.

    Raises:
        BertfastError: another sweep keeps the lock, or the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    except OSError as error:
        raise BertfastError(f"{folder}: cannot be written: {error.strerror}; name another folder with --model_dir") from None
    try:
        until, told = time.monotonic() + _LOCK_SECONDS, False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise BertfastError(f"{folder}: another sweep is at work there; wait for it, or give another --model_dir") from None
                if not told:
                    say(f"{folder}: a sweep, or a trial of one that was killed, is still at work there; waiting for it to end")
                told = True
                time.sleep(POLL_SECONDS)
        yield lock
    finally:
        os.close(lock)


class Stop:
    """A context in which SIGINT and SIGTERM are noted: `signal` is the first that came, `count` how many did."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.count = 0

    def __enter__(self) -> Stop:
        # of what a script has put in the background, SIGINT is ignored, and stays so
        noted = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in noted}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.signal, self.count = self.signal or number, self.count + 1
