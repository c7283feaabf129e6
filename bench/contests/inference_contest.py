"""Contenders of inference in programs of their own, which take turns. Before anything is timed their answers are held against eager float32's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench import ROOT
from bench.contests.conversions import CONVERSIONS
from bench.contests.roster import BASELINE, Runtime
from bench.contests.runtimes import Place
from bench.harness.intervals import fastest, significant, take_turns, timing_rows
from bench.harness.processes import Fault, Program

ALONE = 64  # examples that are answered once alone and once among others
LEAST_SHARES = (0.0, 0.99, 1.0)  # of the same answers; the strongest peer is named for each
WARM_UP = 2


class Job(NamedTuple):
    """What every contender is given. variants: of the bundle; others: other people's ONNX files, by name."""

    checkpoint: Path
    bundle: Path
    files: Path
    threads: int
    length: int
    variants: tuple[str, ...]
    others: Mapping[str, str]

    @property
    def place(self) -> Place:
        return Place(self.checkpoint, self.bundle, self.files, self.threads, self.length)


class Case(NamedTuple):
    """What is timed: its name, the question as a contender is asked it, and how many calls it makes."""

    name: str
    question: dict[str, Any]
    calls: int


def convert(names: Iterable[str], checkpoint: Path, folder: Path) -> dict[str, str]:
    """Make the conversions of these names that are not there yet; by name why one could not be made."""
    failed: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if not (folder / CONVERSIONS[name][1]).exists():
            command = [sys.executable, "-m", "bench.contests.conversions", name, str(checkpoint), str(folder)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if done.returncode:
                sys.stderr.write(done.stderr)
                failed[name] = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
    return failed


class Contest:
    """The contenders, loaded, and their answers to `known` (all examples) held against those of eager float32, the first of them. As a context it ends
    them with the block.

    Raises:
        SystemExit: eager float32 has no answers, so that nobody's can be held against them.

    facts: of each that could load: its memory, and how its answers compare. faults: why another could not, or what ended one.
    """

    def __init__(self, runtimes: Sequence[Runtime], job: Job, known: Case):
        self.runtimes, self.job = runtimes, job
        self.facts: dict[str, dict[str, Any]] = {}
        self.faults: dict[str, str] = {}
        self._programs: dict[str, Program] = {}
        self._stack, reference = ExitStack(), None
        for runtime in runtimes:
            program = self._stack.enter_context(Program("bench.contests.answering"))
            try:
                facts = program.ask({"load": {**_as_json(job), "name": runtime.name}})
                facts["peak_bytes"] = program.ask({"peak": known.question})
                logits = np.array(program.ask({"answer": known.question}))
                reference = logits if reference is None else reference
                self.facts[runtime.name] = {**facts, **agreement(logits, reference), **_neighbours(program, known)}
                self._programs[runtime.name] = program
            except Fault as fault:
                self.faults[runtime.name] = str(fault)
            if reference is None:
                self._stack.close()
                raise SystemExit(f"{runtime.name}: {self.faults[runtime.name]}; without its answers nothing is timed")

    def __enter__(self) -> Contest:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def turns(self, case: Case, rounds: int) -> dict[str, list[float]]:
        """Seconds of a call of each contender that has not ended, by round."""

        def turn(name: str) -> Callable[[int], float]:
            def run(_: int) -> float:
                try:
                    return self._programs[name].ask({"time": case.question}) / case.calls
                except Fault as fault:  # the others go on
                    self.faults.setdefault(name, str(fault))
                    return float("nan")

            return run

        running = [name for name in self._programs if name not in self.faults]
        taken = take_turns({name: turn(name) for name in running}, rounds, WARM_UP) if running else {}
        return {name: seconds for name, seconds in taken.items() if name not in self.faults}

    def rows(self, case: Case, rounds: int, common: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Let them take turns: a row for each, with its ratios to eager float32 and to the strongest peers."""
        seconds = self.turns(case, rounds)
        peers = [runtime.name for runtime in self.runtimes if runtime.is_peer and runtime.name in seconds]
        strongest = [fastest(seconds, (name for name in peers if self.facts[name]["same"] >= least)) for least in LEAST_SHARES]
        bases = list(dict.fromkeys([BASELINE, *filter(None, strongest)]))
        sizes = {runtime.name: runtime.file_bytes(self.job.place) for runtime in self.runtimes if runtime.name in seconds}
        rows = timing_rows({**common, "case": f"{common['case']}, {case.name}"}, seconds, bases)
        for row in rows:
            row |= {**self.facts[row["contender"]], "file_bytes": sizes[row["contender"]]}
            row["milliseconds"] = [significant(1e3 * value) for value in row["seconds"]]
        return rows


def agreement(logits: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """The share of the same answers, and the largest difference of a logit."""
    same = (logits.argmax(axis=1) == reference.argmax(axis=1)) & np.isfinite(logits).all(axis=1)
    return {"same": round(float(same.mean()), 5), "largest_difference": significant(float(np.abs(logits - reference).max()), 3)}


def _neighbours(program: Program, known: Case) -> dict[str, float]:
    """The same examples alone and in a server's batches: by how much a logit moves at most, and how many answers change."""
    source = {"tokens": known.question["tokens"], "rows": ALONE}
    alone, among = (np.array(program.ask({"answer": {"kind": kind, **source}})) for kind in ("one", "server"))
    changed = int((alone.argmax(axis=1) != among.argmax(axis=1)).sum())
    return {"alone_difference": significant(float(np.abs(alone - among).max()), 3), "alone_changed": changed}


def _as_json(job: Job) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in job._asdict().items()}
