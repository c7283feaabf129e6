"""Contenders of a training step in processes of their own, which take turns: none inherits another's allocator, threads or compiled code.

While one takes its step the others wait. Before any is timed, their losses are compared (see check_losses in peers.py).
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bench.cases.workloads import Examples
from bench.contests.peers import Contender, Peer, build, check_losses
from bench.harness.intervals import take_turns
from bench.harness.memory import peak_resident_bytes, resident_bytes

CHECKED_STEPS = 3  # whose losses must agree; all on the first batch, so that what the optimizer did to the weights shows


class Job(NamedTuple):
    """What every contender is given: the weights, the examples and how they are taken."""

    folder: Path
    lengths: np.ndarray
    batch_size: int
    rounds: int
    steps_per_round: int
    device: str
    seed: int
    profile: bool = False


class Outcome(NamedTuple):
    """seconds: of each contender that ran, by round. facts: what each says of itself at the end. faults: why another did not run."""

    seconds: dict[str, list[float]]
    facts: dict[str, dict[str, Any]]
    faults: dict[str, str]


def contest(peers: Sequence[Peer], job: Job, check: bool = True) -> Outcome:
    """Let the contenders take turns.

    Raises:
        SystemExit: two of them do not train alike.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes, faults = {}, [], {}
    for peer in peers:
        pipes[peer.name], theirs = context.Pipe()
        processes.append(context.Process(target=_work, args=(peer, job, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
    try:
        losses: dict[str, list[float]] = {}
        for name in list(pipes):
            answer = _ask(pipes[name], "check")
            if isinstance(answer, str):
                faults[name] = answer
                del pipes[name]
            else:
                losses[name] = answer
        if check and losses:
            check_losses(losses, {peer.name: peer.precision for peer in peers})

        def turn(name: str):
            def run(index: int) -> float:
                answer = _ask(pipes[name], index)
                if isinstance(answer, str):  # the others go on
                    faults.setdefault(name, answer)
                    return float("nan")
                return answer

            return run

        taken = take_turns({name: turn(name) for name in pipes}, job.rounds)
        seconds = {name: rounds for name, rounds in taken.items() if name not in faults}
        facts = {name: {**_ask(pipes[name], "facts"), "losses_without_dropout": losses[name]} for name in seconds}
        return Outcome(seconds, facts, faults)
    finally:
        for pipe in pipes.values():
            _ask(pipe, None)
        for process in processes:
            process.join(20)
            if process.is_alive():
                process.kill()


def _ask(pipe: Connection, what: Any) -> Any:
    try:
        pipe.send(what)
        return None if what is None else pipe.recv()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return "its process ended (out of memory?)"


# ------------------------------------------------------------------------------------------------------------------- in its own process


def _work(peer: Peer, job: Job, pipe: Connection) -> None:
    """Answer each question: "check" with losses, the number of a round with its seconds, "facts" with facts; a fault is told as a string."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # standard output is for rows
    if peer.grouped or peer.engine in ("loop", "compile"):
        _keep_freed_memory()
    worker = None
    while (question := pipe.recv()) is not None:
        try:
            worker = worker or _Worker(peer, job)
            answer = worker.losses() if question == "check" else worker.facts() if question == "facts" else worker.round(question)
        except Exception as error:  # whatever it is, the others go on, and the row says so
            traceback.print_exc()
            answer = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0][:200]}"
        pipe.send(answer)


def _keep_freed_memory() -> None:
    """The allocator setting that bertfast makes for itself, for its peers too: what is compared is the training."""
    from bertfast.engine.ranks import start_ranks

    start_ranks("cpu" if not torch.cuda.is_available() else None, None)


class _Worker:
    def __init__(self, peer: Peer, job: Job):
        self.job, self.on_gpu = job, job.device != "cpu"
        examples = Examples(job.lengths, job.seed)
        plain = examples.random_batches(job.batch_size, job.seed)
        chosen = examples.grouped_batches(job.batch_size, job.steps_per_round, job.seed) if peer.grouped else plain
        before = resident_bytes()
        self.contender: Contender = build(peer, job.folder, job.batch_size, job.device)
        self.first = self.contender.prepare(examples.batch(plain[0]))
        self.batches = [self.contender.prepare(examples.batch(indices)) for indices in chosen]
        self.memory_before = before

    def losses(self) -> list[float]:
        self.contender.set_dropout(False)
        found = [self.contender.step(self.first).item() for _ in range(CHECKED_STEPS)]
        self.contender.set_dropout(True)
        for batch in self.contender.warming(self.batches):
            self.contender.step(batch)
        return found

    def round(self, index: int) -> float:
        """Mean seconds of a step of round `index`. Rounds of warming up take the batches of the last ones."""
        size = self.job.steps_per_round
        first = index % self.job.rounds * size
        gc.collect()
        gc.disable()  # a collection would be charged to whoever's step it falls into
        began = time.perf_counter()
        for batch in self.batches[first : first + size]:
            self.contender.step(batch)
        if self.on_gpu:
            torch.cuda.synchronize()
        taken = (time.perf_counter() - began) / size
        gc.enable()
        return taken

    def facts(self) -> dict[str, Any]:
        whole = peak_resident_bytes()
        peak = torch.cuda.max_memory_allocated() if self.on_gpu else max(0, whole - self.memory_before)
        found: dict[str, Any] = {"peak_bytes": peak, "process_peak_bytes": whole, "threads": torch.get_num_threads()}
        if self.job.profile:
            found["where"] = self._where()
        return found

    def _where(self) -> dict[str, float]:
        """Shares of a step's time by kind of work."""
        from bertfast.reporting.profiling import shares_of, step_profiler

        with step_profiler(self.on_gpu) as profiler:
            for batch in self.batches[:2]:
                self.contender.step(batch)
            if self.on_gpu:
                torch.cuda.synchronize()
        return shares_of(profiler)
