"""What the benchmarks share: where a number comes from, how a GPU is timed, what it can do at best, and whether a result is right.

A GPU is timed by replays of CUDA graphs between CUDA events, so that Python's launches do not count. A graph holds several calls, each on inputs of its
own, which together are larger than the L2 cache; the contenders' graphs are replayed in turn, so that a GPU that drifts slows all of them.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
_NVIDIA_SMI = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "temperature.gpu")
_ROTATED_BYTES = 512 * 2**20  # some eight times the L2 cache of an H200
_FLOORS = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 8e-3}  # two roundings; bfloat16's as cut by Triton's interpreter


def provenance(module: str, packages: Sequence[str]) -> dict[str, Any]:
    """Where numbers come from: device, clocks, versions, commit and command. A package that is not installed has no version."""
    return {
        "device": _device(),
        "clocks": clocks(),
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in packages}},
        "commit": _commit(),
        "command": shlex.join(["python", "-m", module, *(Path(word).name for word in sys.argv[1:])]),  # folders by name alone
    }


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device() -> str:
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        return f"{gpu.name}, {gpu.multi_processor_count} multiprocessors, {gpu.total_memory / 2**30:.0f} GiB"
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = names[0] if names else model
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def _commit() -> str:
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:  # no git here
        return "unknown"
    return f"{commit}-dirty" if changed else commit or "unknown"


def clocks() -> dict[str, Any]:
    """What the device runs at: of a GPU as in `gpu_state`; of a CPU the mean MHz of its cores, and what else ran here in the last minute."""
    if torch.cuda.is_available():
        return gpu_state()
    found: dict[str, Any] = {"load": round(os.getloadavg()[0], 2)}
    if Path("/proc/cpuinfo").is_file():
        rates = re.findall(r"^cpu MHz\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        found |= {"mhz": round(float(np.mean([float(rate) for rate in rates])))} if rates else {}
    return found


def gpu_state() -> dict[str, str]:
    """Clocks, power and temperature of the GPU, as nvidia-smi tells them; empty without it."""
    try:
        query = ["nvidia-smi", f"--query-gpu={','.join(_NVIDIA_SMI)}", "--format=csv,noheader", "--id=0"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return {}
    return dict(zip(_NVIDIA_SMI, done.stdout.strip().split(", "), strict=False)) if done.returncode == 0 else {}


def quartiles(values: Sequence[float], digits: int = 3) -> list[float]:
    """25 %, median, 75 %."""
    return [round(float(value), digits) for value in np.percentile(values, [25, 50, 75])]


def write_row(row: dict[str, Any], output: Path | None) -> None:
    """A JSON line at the end of `output`, or without one on standard output."""
    line = json.dumps(row)
    if output is None:
        print(line, flush=True)
    else:
        with open(output, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def keep(rows: Iterable[dict[str, Any]], facts: dict[str, Any], output: Path | None) -> list[dict[str, Any]]:
    """Write each row as soon as it is measured, with the facts of its run; the rows themselves, for the summary."""
    kept = []
    for row in rows:
        write_row({**row, **facts}, output)
        kept.append(row)
    return kept


# ------------------------------------------------------------------------------------------------------------------------------------ time


def input_sets(bytes_of_one: int, on_gpu: bool) -> int:
    """How many sets of inputs to take turns with, so that none is still in the L2 cache when its turn comes."""
    return min(max(-(-_ROTATED_BYTES // max(bytes_of_one, 1)), 3), 48) if on_gpu else 1


class Replay(NamedTuple):
    """Some calls that `run` makes at once: from a CUDA graph ("graph"), or one after the other where they cannot be captured ("calls")."""

    run: Callable[[], None]
    calls: int
    timing: str


def prepare(make_calls: Callable[[], Sequence[Callable[[], Any]]]) -> Replay:
    """Make the calls, warm them up and capture them in a CUDA graph; on a CPU they stay calls.

    The calls are made on the stream of the capture, where the backward of a forward that they have made runs too.
    """
    if not torch.cuda.is_available():
        calls = make_calls()
        return Replay(lambda: _run(calls), len(calls), "calls")
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
        return Replay(graph.replay, len(calls), "graph")
    except RuntimeError:  # it waits for the GPU somewhere, which a capture forbids
        torch.cuda.synchronize()
        calls = make_calls()  # anew: what the capture has touched is spoilt
        return Replay(lambda: _run(calls), len(calls), "calls")


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


# ---------------------------------------------------------------------------------------------------------------------------------- limits


class Roofline(NamedTuple):
    """What the device was measured to do at best."""

    bytes_per_second: float
    flops_per_second: float

    def seconds(self, bytes_moved: int, flops: int) -> tuple[float, str]:
        """The least time for so much work, and what sets it."""
        return max((bytes_moved / self.bytes_per_second, "bytes"), (flops / self.flops_per_second, "flops"))


def measure_roofline(device: torch.device, rounds: int) -> Roofline:
    """Copy bandwidth (bytes read and written; 1 GiB at a time) and the rate of a bfloat16 matrix product (8192 x 8192 x 8192, random numbers)."""
    on_gpu = device.type == "cuda"
    elements, size = (2**29, 8192) if on_gpu else (2**20, 128)
    source, target = (torch.empty(elements, dtype=torch.bfloat16, device=device) for _ in range(2))
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    product = torch.empty_like(a)
    replays = {
        "copy": prepare(lambda: [lambda: target.copy_(source)] * 3),
        "product": prepare(lambda: [lambda: torch.mm(a, b, out=product)] * 3),
    }
    seconds = {name: float(np.median(taken)) for name, taken in time_in_turn(replays, rounds).items()}
    return Roofline(4 * elements / seconds["copy"], 2 * size**3 / seconds["product"])


def machine_rates(device: torch.device, precisions: Sequence[str], rounds: int = 5) -> dict[str, float]:
    """Operations a second of a large matrix product, by precision ("fp32", "bf16", "fp16"); NaN where the device has none."""
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    size, rates = 8192 if device.type == "cuda" else 1024, {}
    for name in precisions:
        if name == "fp16" and device.type == "cpu":
            rates[name] = float("nan")
            continue
        a, b = (torch.randn(size, size, device=device).to(dtypes[name]) for _ in range(2))
        product = torch.empty_like(a)
        replay = prepare(lambda a=a, b=b, product=product: [lambda: torch.mm(a, b, out=product)] * 3)
        rates[name] = 2 * size**3 / float(np.median(time_in_turn({name: replay}, rounds)[name]))
    return rates


# ---------------------------------------------------------------------------------------------------------------------------------- errors


def errors_of(op: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """Output and gradients of op(*inputs) on the Triton backend against float64: each error over the largest value, and its budget.

    The budget is twice the error of torch in the same dtype and the dtype's floor, as in the tests. inputs: floating tensors of `dtype`.
    """
    from bertfast_kernels import use_backend

    with use_backend("torch"):
        truth = _output_and_gradients(op, [x.double() for x in inputs], dtype)
        torch_same = _output_and_gradients(op, inputs, dtype)
    with use_backend("triton"):
        ours = _output_and_gradients(op, inputs, dtype)
    found = {}
    for index, (a, b, c) in enumerate(zip(ours, torch_same, truth, strict=True)):
        size = c.abs().max().clamp_min(1e-30)
        error, torch_error = ((x.double() - c).abs().max() / size for x in (a, b))
        budget = 2 * torch_error.nan_to_num(0.0, 0.0, 0.0) + _FLOORS[a.dtype]
        found[f"gradient {index - 1}" if index else "output"] = {"error": error.item(), "budget": budget.item()}
    return found


def _output_and_gradients(op: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = op(*leaves)
    generator = torch.Generator(out.device).manual_seed(5)
    upstream = torch.randn(out.shape, generator=generator, device=out.device).to(dtype).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]
