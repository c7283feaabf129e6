"""The kernels against what a user would take instead, and against what the GPU can do: every figure of docs/kernels.md in one go.

    python -m bench.bench_kernels --output bench/results/h200-kernels.jsonl      # on a GPU, under 10 minutes
    python -m bench.bench_kernels --tiny                                         # on a CPU, in small: does all of it run?

First the roofline (copy bandwidth, matrix rate), then each op: its output and gradients against float64 at the full size, then its forward, its
backward and both, in turn with the other contenders. A row holds quartiles of microseconds a call, and the share of the roofline: the least time
for the bytes that must move, or the operations that must be done, over the median. --tests runs the kernels' tests first, on the GPU. --ops
chooses among the ops. Exit code 1: a result is wrong.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._functorch.config

from bench import ROOT
from bench.harness.errors import errors_of
from bench.harness.provenance import gpu_state, provenance
from bench.harness.replays import input_sets, prepare, time_in_turn
from bench.harness.roofline import Roofline, measure_roofline
from bench.harness.rows import quartiles, write_row

PACKAGES = ("torch", "triton", "numpy", "liger-kernel")
OPS = ("varlen_attention", "dropout_add_layer_norm", "bias_gelu", "embedding_layer_norm", "cross_entropy")


TESTS = (
    "tests/kernels",
    "tests/model/test_triton.py",
    "-m",
    "triton",
    "--ignore=tests/kernels/test_compile.py",
    "--ignore-glob=*/test_mutations.py",
)  # what runs on Triton


class Goal(NamedTuple):
    """What a row is to reach: `measure` of the op at sizes that start so, in a direction, with dropout or without."""

    op: str
    size: str
    direction: str
    dropout: float
    measure: (
        str  # "speedup": times the fastest of the others; "teraflops"; "share": of the roofline; "cost": time over that without dropout
    )
    value: float

    def is_met(self, figure: float) -> bool:
        return figure <= self.value if self.measure == "cost" else figure >= self.value


GOALS = (
    *(Goal("varlen_attention", size, "forward", 0.0, "speedup", 1.3) for size in ("MNLI", "fixed 128")),
    *(Goal("varlen_attention", size, "forward+backward", 0.0, "speedup", 1.2) for size in ("MNLI", "fixed 128")),
    *(Goal("varlen_attention", size, way, 0.1, "cost", 1.1) for size in ("MNLI", "fixed 128") for way in ("forward", "forward+backward")),
    Goal("varlen_attention", "fixed 512", "forward", 0.0, "teraflops", 340),
    Goal("varlen_attention", "fixed 512", "backward", 0.0, "teraflops", 272),
    *(Goal("dropout_add_layer_norm", "16384", direction, 0.1, "share", v) for direction, v in (("forward", 0.85), ("backward", 0.75))),
    *(Goal("bias_gelu", "16384", direction, 0.0, "share", v) for direction, v in (("forward", 0.85), ("backward", 0.8))),
)


def measure_case(case: Any, roofline: Roofline, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """One row a contender and direction."""
    from bench.cases.kernel_cases import DIRECTIONS, DTYPE, calls_of

    sets = input_sets(case.set_bytes, device.type == "cuda")
    rows = []
    for direction in DIRECTIONS:
        replays, faults = {}, {}
        for name, contender in case.contenders.items():
            try:
                replays[name] = prepare(lambda contender=contender: calls_of(contender, direction, sets))  # noqa: B023
            except Exception as error:  # a contender that cannot run here is a row that says so
                faults[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        seconds = time_in_turn(replays, rounds)
        moved, flops = case.work(direction)
        least, bound = roofline.seconds(moved, flops)
        common = {"measure": "time", "op": case.op, "size": case.size, "dropout": case.dropout, "dtype": str(DTYPE), "direction": direction}
        for name in case.contenders:
            row = {**common, "contender": name, **case.facts}
            if name in faults:
                rows.append({**row, "fault": faults[name]})
                continue
            median = quartiles(seconds[name], 12)[1]
            row |= {"microseconds": quartiles([1e6 * value for value in seconds[name]]), "share": round(least / median, 4), "bound": bound}
            row |= {"gigabytes_per_second": round(moved / median / 1e9, 1), "teraflops": round(flops / median / 1e12, 2)}
            rows.append({**row, "timing": replays[name].timing, "calls": replays[name].calls, "rounds": rounds, "input_sets": sets})
        del replays
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def measure_errors(case: Any) -> dict[str, Any]:
    """Our output and gradients against float64, at the size of the case."""
    from bench.cases.kernel_cases import DTYPE

    op, inputs = case.check()
    errors = errors_of(op, inputs, DTYPE)
    right = all(found["error"] <= found["budget"] for found in errors.values())
    return {"measure": "errors", "op": case.op, "size": case.size, "dropout": case.dropout, "dtype": str(DTYPE), "right": right, **errors}


def measure_all(arguments: argparse.Namespace, roofline: Roofline, device: torch.device, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Every row of the ops that were asked for, written as it comes."""
    from bench.cases.attention_cases import attention_cases
    from bench.cases.kernel_cases import Maker, row_cases

    make, rows = Maker(device, arguments.tiny, arguments.seed), []
    for cases in (attention_cases, row_cases):
        for case in cases(make):
            if case.op not in arguments.ops:
                continue
            found = [measure_errors(case), *measure_case(case, roofline, arguments.rounds, device)]
            state = gpu_state()
            for row in found:
                write_row({**row, "gpu": state, **facts}, arguments.output)
            rows += found
            torch._dynamo.reset()
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """Ours beside the fastest other, a line an op, size and direction; then the goals, and what was reached."""
    timed = [row for row in rows if row.get("microseconds")]
    key = lambda row: (row["op"], row["size"], row["dropout"], row["direction"])  # noqa: E731
    ours = {key(row): row for row in timed if row["contender"] == "bertfast"}
    lines = [f"{'op, size, dropout, direction':86s} {'us':>9s} {'share':>6s} {'TFLOP/s':>8s}   fastest other"]
    for place, row in ours.items():
        others = [other for other in timed if key(other) == place and other["contender"] != "bertfast"]
        best = min(others, key=lambda other: other["microseconds"][1], default=None)
        row["speedup"] = round(best["microseconds"][1] / row["microseconds"][1], 3) if best else float("nan")
        plain = ours.get((place[0], place[1], 0.0, place[3]))
        row["cost"] = round(row["microseconds"][1] / plain["microseconds"][1], 3) if plain else float("nan")
        shown = f"{place[0]}, {place[1]}, {place[2]:g}, {place[3]}"
        beside = f"{row['speedup']:5.2f} x {best['contender']} ({best['microseconds'][1]:.1f})" if best else ""
        lines.append(f"{shown:86s} {row['microseconds'][1]:9.1f} {row['share']:6.1%} {row['teraflops']:8.1f}   {beside}")
    for goal in GOALS:
        for place, row in ours.items():
            if place[0] == goal.op and place[1].startswith(goal.size) and place[2:] == (goal.dropout, goal.direction):
                verdict = "met" if goal.is_met(row[goal.measure]) else "MISSED"
                lines.append(f"{verdict:7s}{', '.join(map(str, place))}: {goal.measure} {row[goal.measure]:.3g}, goal {goal.value:g}")
    return "\n".join(lines)


def run_tests() -> int:
    """The kernels' tests on this device; their exit code."""
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS], cwd=ROOT).returncode


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="a file that rows are added to, as JSON lines")
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS))
    parser.add_argument("--rounds", type=int, default=30, help="replays of each contender's graph")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--tests", action="store_true", help="run the kernels' tests first")
    parser.add_argument("--tiny", action="store_true", help="small sizes, on a CPU too")
    arguments = parser.parse_args(words)
    if not torch.cuda.is_available() and not arguments.tiny:
        parser.error("torch sees no GPU here; --tiny runs all of it in small on a CPU")
    return arguments


def main(words: list[str] | None = None) -> int:
    arguments = parse(words)
    began = time.perf_counter()
    if arguments.tests and (code := run_tests()):
        return code
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when bertfast_kernels is imported
    torch._functorch.config.donated_buffer = False  # else a compiled backward runs only once

    from bertfast_kernels import use_backend

    facts = provenance("bench.bench_kernels", PACKAGES) | {"seed": arguments.seed, "tiny": arguments.tiny}
    roofline = measure_roofline(device, arguments.rounds)
    limits = {"bytes_per_second": roofline.bytes_per_second, "flops_per_second": roofline.flops_per_second}
    write_row({"measure": "roofline", **limits, "gpu": gpu_state(), **facts}, arguments.output)
    with use_backend("triton"):
        rows = measure_all(arguments, roofline, device, facts)
    wrong = [row for row in rows if row.get("right") is False]
    print(summary(rows))
    print(f"roofline: copy {roofline.bytes_per_second / 1e12:.2f} TB/s, matrix product {roofline.flops_per_second / 1e12:.0f} TFLOP/s")
    print(f"{len(wrong)} results are wrong; {time.perf_counter() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
