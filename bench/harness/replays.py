"""How a GPU is timed: by replays of CUDA graphs between CUDA events, so that Python's launches do not count.

A graph holds several calls, each on inputs of its own, which together are larger than the L2 cache; the contenders' graphs are replayed in turn, so that
a GPU that drifts slows all of them. On a CPU the calls are timed as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

_ROTATED_BYTES = 512 * 2**20  # some eight times the L2 cache of an H200


def input_sets(bytes_of_one: int, on_gpu: bool) -> int:
    """How many sets of inputs to take turns with, so that none is still in the L2 cache when its turn comes."""
    return min(max(-(-_ROTATED_BYTES // max(bytes_of_one, 1)), 3), 48) if on_gpu else 1


class Replay(NamedTuple):
    """Some calls that `run` makes at once: from a CUDA graph ("graph"), or one after the other where they cannot be captured ("calls").

    made: the calls, with the inputs that the graph reads. Were they dropped, the next capture, which empties the allocator's cache, would unmap them.
    """

    run: Callable[[], None]
    made: Sequence[Callable[[], Any]]
    timing: str

    @property
    def calls(self) -> int:
        return len(self.made)


def prepare(make_calls: Callable[[], Sequence[Callable[[], Any]]]) -> Replay:
    """Make the calls, warm them up and capture them in a CUDA graph; on a CPU they stay calls.

    The calls are made on the stream of the capture, where the backward of a forward that they have made runs too.
    """
    if not torch.cuda.is_available():
        calls = make_calls()
        return Replay(lambda: _run(calls), calls, "calls")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls = make_calls()
        _run([*calls[:2], *calls[:1]])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            kept = [call() for call in calls]  # so that each call has an output of its own
        del kept
        return Replay(graph.replay, calls, "graph")
    except RuntimeError:  # it waits for the GPU somewhere, which a capture forbids
        torch.cuda.synchronize()
        calls = make_calls()  # anew: what the capture has touched is spoilt
        return Replay(lambda: _run(calls), calls, "calls")


def _run(calls: Sequence[Callable[[], Any]]) -> None:
    for call in calls:
        call()


def time_in_turn(replays: dict[str, Replay], rounds: int) -> dict[str, list[float]]:
    """Seconds a call of each contender, `rounds` of them, taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in replays}
    on_gpu = torch.cuda.is_available()
    for index in range(rounds + 2):
        for name, replay in replays.items():
            taken = _gpu_seconds(replay.run) if on_gpu else _cpu_seconds(replay.run)
            if index >= 2:
                seconds[name].append(taken / replay.calls)
    return seconds


def _gpu_seconds(run: Callable[[], None]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _cpu_seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
