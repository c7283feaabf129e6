"""One contender of inference in the process that it is measured in: `python -m bench.contests.answering`, asked in JSON lines by inference_contest.py."""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases.questions import Texts, Tokens
from bench.contests.roster import everybody
from bench.contests.runtimes import Place
from bench.harness.memory import forget_peak, peak_resident_bytes, resident_bytes
from bench.harness.processes import serve

_PAUSE = 0.02  # seconds before a turn: the threads of whoever had the last one may spin for some milliseconds


class Answering:
    """What a contender's process does when asked: {"load": ...} first, then {"answer": ...}, {"time": ...} and {"peak": ...}.

    A case has a kind: "file" (all examples as they suit), "server" (batches of 32 as they come), "texts" (a file from its texts on) or "one" (one
    example a call); tokens and texts: files of questions; rows: the first so many of them.
    """

    def __init__(self) -> None:
        self._contender: Any = None
        self._questions: dict[str, Any] = {}

    def __call__(self, question: dict[str, Any]) -> Any:
        ((what, given),) = question.items()
        return {"load": self._load, "answer": self._answer, "time": self._time, "peak": self._peak}[what](given)

    def _load(self, given: dict[str, Any]) -> dict[str, Any]:
        """Bytes in memory once the contender could answer."""
        place = Place(*(Path(given[name]) for name in ("checkpoint", "bundle", "files")), given["threads"], given["length"])
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: place.threads])
        runtimes = everybody(dict.fromkeys(given["variants"], ()), given["others"])
        self._contender = next(runtime for runtime in runtimes if runtime.name == given["name"]).load(place)
        return {"resident_bytes": resident_bytes()}

    def _run(self, case: dict[str, Any]) -> np.ndarray:
        asked = self._asked(case)
        contender = self._contender
        if case["kind"] == "texts":
            return contender.of_texts(asked)
        if case["kind"] == "one":
            return np.concatenate([contender.serve(example) for example in asked])
        return contender.serve(asked) if case["kind"] == "server" else contender.answer(asked)

    def _asked(self, case: dict[str, Any]) -> Any:
        """The questions of a case; read once, outside of any time."""
        key = str(sorted(case.items()))
        if key not in self._questions:
            if case["kind"] == "texts":
                self._questions[key] = Texts.load(Path(case["texts"]))
            else:
                tokens = Tokens.load(Path(case["tokens"]))
                rows = range(min(case.get("rows", len(tokens)), len(tokens)))
                self._questions[key] = [tokens.take([row]) for row in rows] if case["kind"] == "one" else tokens.take(rows)
        return self._questions[key]

    def _answer(self, case: dict[str, Any]) -> list[list[float]]:
        return self._run(case).astype(np.float64).tolist()

    def _time(self, case: dict[str, Any]) -> float:
        self._asked(case)
        gc.collect()
        gc.disable()  # a collection would be charged to whoever's turn it falls into
        time.sleep(_PAUSE)
        began = time.perf_counter()
        self._run(case)
        taken = time.perf_counter() - began
        gc.enable()
        return taken

    def _peak(self, case: dict[str, Any]) -> int:
        """Bytes in memory at most while a case is answered."""
        self._asked(case)
        forget_peak()
        self._run(case)
        return peak_resident_bytes()


def main() -> int:
    serve(Answering())
    return 0


if __name__ == "__main__":
    sys.exit(main())
