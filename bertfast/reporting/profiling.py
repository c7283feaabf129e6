"""Where the time of a training step goes: a torch profiler around some steps, its trace, and a page that a person can read.

On a GPU time is that of kernels; launch gaps are what lies between them. On a CPU time is that of operators, without those they call, the C++ kernels'
among them (`bertfast::norm_forward`); what no operator accounts for is Python's (and DeepSpeed's) own.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from bertfast.storage import replacing

TRACE_FILE, SUMMARY_FILE = "profile_trace.json", "profile.md"
LARGEST = 10
WARM_UP_STEPS, PROFILED_STEPS = 3, 5  # of a run, counted from its first step
Item = TypeVar("Item")
# The first word that occurs in the name of an operator or kernel decides; the optimizer's kernels are products of no matrices, so they come first.
_KINDS = (
    ("optimizer", ("adam", "optimizer", "clip_grad", "multi_tensor", "foreach", "bertfast::squares", "bertfast::moved")),
    ("attention", ("attention", "softmax", "bmm", "flash", "sdpa", "fmha")),
    ("GEMM", ("addmm", "::mm", "linear", "matmul", "gemm", "cutlass", "mkldnn", "nvjet")),
    ("copies", ("copy", "memcpy", "memset", "_to_copy", "zero_", "fill_", "bertfast::transpose")),
)
ELEMENTWISE, OUTSIDE = "elementwise", "outside operators"


class Part(NamedTuple):
    """An operator or a kernel: its name, milliseconds over all steps, and how often it ran."""

    name: str
    milliseconds: float
    calls: int


def step_profiler(on_gpu: bool) -> torch.profiler.profile:
    """A profiler of operators and, on a GPU, of kernels."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=activities, acc_events=True)


def kind_of(name: str) -> str:
    """ "GEMM", "attention", "optimizer", "copies" or "elementwise" """
    lowered = name.lower()
    return next((kind for kind, words in _KINDS if any(word in lowered for word in words)), ELEMENTWISE)


def parts_of(profiler: torch.profiler.profile) -> list[Part]:
    """What ran, the largest first: kernels where there were any, or else operators by their own time. Marks such as record_function's are left out."""
    averages = profiler.key_averages()
    kernels = [Part(event.key, event.self_device_time_total / 1e3, event.count) for event in averages if event.self_device_time_total > 0]
    found = kernels or [
        Part(event.key, event.self_cpu_time_total / 1e3, event.count)
        for event in averages
        if event.self_cpu_time_total > 0 and "::" in event.key
    ]
    return sorted(found, key=lambda part: -part.milliseconds)


def busy_and_whole(profiler: torch.profiler.profile) -> tuple[float, float]:
    """Milliseconds in which at least one of the parts ran (operators of all threads as one line), and from the first event to the last."""
    events = [event for event in profiler.events() if event.time_range.end > event.time_range.start]
    if not events:
        return 0.0, 0.0
    whole = max(event.time_range.end for event in events) - min(event.time_range.start for event in events)
    on_device = [event for event in events if event.device_type != torch.autograd.DeviceType.CPU]
    spans = [(event.time_range.start, event.time_range.end) for event in on_device or events if on_device or "::" in event.name]
    return _union(spans) / 1e3, whole / 1e3


def _union(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        if end > reached:
            total += end - max(begin, reached)
            reached = end
    return total


def shares_of(profiler: torch.profiler.profile) -> dict[str, float]:
    """The share of the time from the first event to the last, by kind of work; what is left over is launch gaps, or Python on a CPU."""
    busy, whole = busy_and_whole(profiler)
    if whole == 0:
        return {}
    sums: dict[str, float] = {}
    for part in parts_of(profiler):
        sums[kind_of(part.name)] = sums.get(kind_of(part.name), 0.0) + part.milliseconds
    scale = busy / (sum(sums.values()) or 1.0) / whole  # operators of several threads may overlap
    shares = {kind: round(value * scale, 4) for kind, value in sorted(sums.items(), key=lambda item: -item[1])}
    return {**shares, OUTSIDE: round(1 - busy / whole, 4)}


def write_profile(profiler: torch.profiler.profile, folder: Path, facts: dict[str, Any]) -> Path:
    """Write the trace (for chrome://tracing or Perfetto) and the page beside it; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{TRACE_FILE}"
    profiler.export_chrome_trace(str(beside))
    beside.replace(folder / TRACE_FILE)
    with replacing(folder / SUMMARY_FILE) as file:
        file.write("\n".join(page(parts_of(profiler), shares_of(profiler), *busy_and_whole(profiler), facts)) + "\n")
    return folder / SUMMARY_FILE


def page(parts: list[Part], shares: dict[str, float], busy: float, whole: float, facts: dict[str, Any]) -> list[str]:
    """The lines of the summary. facts: what the trainer measured beside the profiler, by name, as text."""
    lines = ["# Where the time of a step went", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += [f"- Nothing ran (launch gaps on a GPU, Python on a CPU): {whole - busy:.1f} of {whole:.1f} ms profiled"]
    lines += ["", "| kind of work | share |", "|---|---|", *(f"| {kind} | {share:.1%} |" for kind, share in shares.items())]
    lines += ["", f"The {LARGEST} largest:", "", "| kernel or operator | ms | calls | share |", "|---|---|---|---|"]
    lines += [
        f"| `{part.name[:90]}` | {part.milliseconds:.2f} | {part.calls:,} | {part.milliseconds / whole if whole else 0:.1%} |"
        for part in parts[:LARGEST]
    ]
    return [*lines, "", f"The whole trace is in {TRACE_FILE}: open it with https://ui.perfetto.dev or chrome://tracing."]


class RunProfiler:
    """Profiles a few steps of a run: `steps` is put around the iterator of its batches, and ends the profile when enough of them were taken.

    Adds to the profiler's figures two of the host: the time spent waiting for batches, and DeepSpeed's own, which is that within the engine's
    forward, backward and step without that of the model, of autograd and of the optimizer (clipping counts as DeepSpeed's).
    """

    def __init__(self, folder: Path, engine: Any, on_gpu: bool, say: Callable[[str], None]):
        self._folder, self._engine, self._on_gpu, self._say = folder, engine, on_gpu, say
        self._seconds = {"waiting": 0.0, "engine": 0.0, "work": 0.0}

    def steps(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The same batches. A run that has no step after those of warming up leaves no profile, and is told so."""
        iterator = iter(batches)
        with contextlib.ExitStack() as stack:
            profiler, taken = None, 0
            while True:
                began = time.perf_counter()
                item = next(iterator, None)
                if profiler is not None:
                    self._seconds["waiting"] += time.perf_counter() - began
                if profiler is not None and (item is None or taken == WARM_UP_STEPS + PROFILED_STEPS):
                    self._finish(stack, profiler, taken)
                    profiler = None
                if item is None:
                    if taken <= WARM_UP_STEPS:
                        self._say(f"profile: none, the run has only {taken} steps, and the first {WARM_UP_STEPS} are not profiled")
                    return
                if taken == WARM_UP_STEPS:
                    self._began, self._first = time.perf_counter(), taken
                    self._watch(stack)
                    profiler = stack.enter_context(step_profiler(self._on_gpu))
                taken += 1
                yield item

    def _finish(self, stack: contextlib.ExitStack, profiler: torch.profiler.profile, taken: int) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
        stack.close()
        whole, steps = time.perf_counter() - self._began, taken - self._first
        facts = {
            "Steps profiled": f"{steps}, of {whole / steps * 1e3:.1f} ms each on the host (the profiler slows them)",
            "Waiting on data": f"{self._seconds['waiting'] / whole:.1%} of the host's time",
            "DeepSpeed": f"{max(0.0, self._seconds['engine'] - self._seconds['work']) / whole:.1%} of the host's time",
        }
        self._say(f"profile: {write_profile(profiler, self._folder, facts)}")

    def _watch(self, stack: contextlib.ExitStack) -> None:
        """Time the engine's calls, and the work within them, until the stack is closed."""
        engine = self._engine
        optimizer = getattr(engine, "basic_optimizer", None) or engine.optimizer
        for kind, owner, name in (
            ("engine", engine, "forward"),
            ("engine", engine, "backward"),
            ("engine", engine, "step"),
            ("work", engine.module, "forward"),
            ("work", torch.autograd, "backward"),
            ("work", optimizer, "step"),
        ):
            stack.enter_context(self._timed(kind, owner, name))

    @contextlib.contextmanager
    def _timed(self, kind: str, owner: Any, name: str) -> Iterator[None]:
        original, own = getattr(owner, name), name in vars(owner)

        @functools.wraps(original)
        def timed(*arguments, **options):
            began = time.perf_counter()
            try:
                return original(*arguments, **options)
            finally:
                self._seconds[kind] += time.perf_counter() - began

        setattr(owner, name, timed)
        try:
            yield
        finally:
            if own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)
