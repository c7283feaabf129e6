"""Contenders of inference in programs of their own, which take turns. Before anything is timed their answers are held against eager float32's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench import ROOT
from bench.contests.conversions import CONVERSIONS
from bench.contests.runtimes import BASELINE, Place, Runtime
from bench.harness.intervals import fastest, significant, take_turns, timing_rows
from bench.harness.processes import Fault, Program

ALONE = 64  # examples that are answered once alone and once among others
GOOD, ALL = 0.99, 1.0  # shares of the same answers; the strongest peer is named for each
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
    is_tuned: bool

    @property
    def place(self) -> Place:
        return Place(self.checkpoint, self.bundle, self.files, self.threads, self.length)


class Case(NamedTuple):
    """What is timed: its name, the question as a contender is asked it, and how many calls it makes."""

    name: str
    question: dict[str, Any]
    calls: int


@dataclass
class Outcome:
    """seconds: by case and contender, by round. facts: what is known of each contender that could load. faults: why another could not, or a case."""

    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


def convert(runtimes: Sequence[Runtime], checkpoint: Path, folder: Path) -> dict[str, str]:
    """Make the files that these contenders need and that are not there yet; why one could not be made, by contender."""
    failed: dict[str, str] = {}
    for name in dict.fromkeys(need for runtime in runtimes for need in runtime.needs):
        if not (folder / CONVERSIONS[name][1]).exists():
            command = [sys.executable, "-m", "bench.contests.conversions", name, str(checkpoint), str(folder)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if done.returncode:
                sys.stderr.write(done.stderr)
                failed[name] = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
    return {runtime.name: failed[need] for runtime in runtimes for need in runtime.needs if need in failed}


def contest(runtimes: Sequence[Runtime], job: Job, known: Case, cases: Sequence[Case], rounds: Callable[[Case], int]) -> Outcome:
    """Load each contender, hold its answers to `known` (all examples) against the first one's, and let them take turns with every case."""
    outcome, reference = Outcome(), None
    with ExitStack() as stack:
        programs: dict[str, Program] = {}
        for runtime in runtimes:
            program = stack.enter_context(Program("bench.contests.answering"))
            try:
                facts = program.ask({"load": {**_as_json(job), "name": runtime.name}})
                facts["peak_bytes"] = program.ask({"peak": known.question})
                logits = np.array(program.ask({"answer": known.question}))
                reference = logits if reference is None else reference
                outcome.facts[runtime.name] = {**facts, **agreement(logits, reference), **_neighbours(program, known)}
                programs[runtime.name] = program
            except Fault as fault:
                outcome.faults[runtime.name] = str(fault)
        for case in cases:
            outcome.seconds[case.name] = _turns(programs, case, rounds(case), outcome.faults)
    return outcome


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


def _turns(programs: dict[str, Program], case: Case, rounds: int, faults: dict[str, str]) -> dict[str, list[float]]:
    def turn(name: str) -> Callable[[int], float]:
        def run(_: int) -> float:
            try:
                return programs[name].ask({"time": case.question}) / case.calls
            except Fault as fault:  # the others go on
                faults.setdefault(name, str(fault))
                return float("nan")

        return run

    running = [name for name in programs if name not in faults]
    taken = take_turns({name: turn(name) for name in running}, rounds, WARM_UP) if running else {}
    return {name: seconds for name, seconds in taken.items() if name not in faults}


def _as_json(job: Job) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in job._asdict().items()}


def rows_of(
    runtimes: Sequence[Runtime], job: Job, outcome: Outcome, cases: Sequence[Case], common: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A row for each case and contender, with its ratios to eager float32 and to the strongest peers; and one for each that could not run."""
    peers, rows = [runtime.name for runtime in runtimes if runtime.is_peer], []
    sizes = {runtime.name: runtime.file_bytes(job.place) for runtime in runtimes if runtime.name not in outcome.faults}
    for case in cases:
        seconds = outcome.seconds[case.name]
        strongest = [
            fastest(seconds, (name for name in peers if name in seconds and outcome.facts[name]["same"] >= least)) for least in (GOOD, ALL)
        ]
        bases = list(dict.fromkeys([BASELINE, *filter(None, strongest)]))
        for row in timing_rows({**common, "case": f"{common['case']}, {case.name}"}, seconds, bases):
            facts = {**outcome.facts[row["contender"]], "file_bytes": sizes[row["contender"]]}
            rows.append({**row, **facts, "milliseconds": [significant(1e3 * value) for value in row["seconds"]]})
    return rows + [{**common, "contender": name, "fault": fault} for name, fault in outcome.faults.items()]
