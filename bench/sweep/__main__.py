"""Which launch of a kernel is the quickest on this GPU: tiles, warps, stages, registers and programs, timed from CUDA graphs.

    python -m bench.sweep --output sweep.jsonl --table launches.json      # on a GPU, under 3 minutes
    python -m bench.sweep --tiny                                          # on a CPU, in small: does all of it run?

A case is a kernel at a size, its candidates are launches; the first, "default", is what training takes. A candidate's result is held to the default's
before it is timed, and one that is wrong, or does not run, is a row that says so. Candidates are compiled ahead by all cores, and timed in turn.
--only chooses cases by a part of their name. --table writes the winners: {device: {case: {"candidate", "options", "microseconds", "default"}}}; where none beats the
default by 2 %, the default. Exit code 1: a candidate is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.harness.provenance import gpu_state, provenance
from bench.harness.replays import Replay, input_sets, prepare, time_in_turn
from bench.harness.rows import quartiles, write_row

PACKAGES = ("torch", "triton")
_LARGEST_DIFFERENCE = 0.02  # over the largest value: two or three roundings of bfloat16 where sums come in another order
_LEAST_GAIN = 0.98


def all_cases(tiny: bool, seed: int, only: Sequence[str]) -> list[Any]:
    from bench.cases.kernel_cases import Maker
    from bench.sweep.attention_candidates import attention_cases
    from bench.sweep.row_candidates import row_cases

    make = Maker(torch.device("cuda" if torch.cuda.is_available() else "cpu"), tiny, seed)
    cases = [*row_cases(make), *attention_cases(make)]
    return [case for case in cases if not only or any(part in case.name for part in only)]


def compile_all(cases: Sequence[Any]) -> int:
    """Every candidate's launches on one set of inputs, compiled for this machine's GPU."""
    from bench.sweep.compilation import compile_ahead
    from bertfast_kernels.compile import local_target

    target = local_target()
    assert target is not None, "on a GPU"
    recorded = (
        case.record(change, 0) for case in cases for change in case.candidates.values()
    )  # one at a time: each has outputs of its own
    return compile_ahead((launch for one in recorded for launch in (*one.before, *one.timed)), target)


def measure(case: Any, rounds: int, on_gpu: bool) -> list[dict[str, Any]]:
    """A row a candidate."""
    sets = input_sets(case.set_bytes, on_gpu)
    replays: dict[str, Replay] = {}
    rows: dict[str, dict[str, Any]] = {}
    truth: list[torch.Tensor] = []
    for name, change in case.candidates.items():
        row = rows[name] = {"case": case.name, "kernel": case.kernel, "size": case.size, "dropout": case.dropout, "candidate": name}
        try:
            difference, compiled, launch = _checked(case, change, truth)
            row |= {"difference": difference, "options": {**launch.options}, "grid": [*launch.grid]}
            row |= {"registers": getattr(compiled, "n_regs", None), "spills": getattr(compiled, "n_spills", None)}
            row["right"] = difference <= _LARGEST_DIFFERENCE
            if row["right"]:
                replays[name] = prepare(lambda change=change: _calls(case, change, sets))
        except Exception as error:  # a candidate that does not fit is a row that says so
            row["fault"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    seconds = time_in_turn(replays, rounds)
    for name, values in seconds.items():
        rows[name] |= {"microseconds": quartiles([1e6 * value for value in values]), "timing": replays[name].timing, "input_sets": sets}
    return list(rows.values())


def _checked(case: Any, change: Any, truth: list[torch.Tensor]) -> tuple[float, Any, Any]:
    """(largest difference from the default's outputs over their largest value, what was compiled, the launch). The first call's outputs become truth."""
    from bench.sweep.candidates import make

    recorded = case.record(change, 0)
    make(recorded.before)
    for output in recorded.outputs:
        output.zero_()
    compiled = make(recorded.timed)[0]
    if not truth:
        truth.extend(output.clone() for output in recorded.outputs)
    differences = [0.0]
    for output, right in zip(recorded.outputs, truth, strict=True):
        size = right.float().abs().max().clamp_min(1e-30)
        differences.append(((output.float() - right.float()).abs().max() / size).nan_to_num(1e9).item() if right.numel() else 0.0)
    return max(differences), compiled, recorded.timed[0]


def _calls(case: Any, change: Any, sets: int) -> list[Any]:
    from bench.sweep.candidates import make

    recorded = [case.record(change, index) for index in range(sets)]
    for one in recorded:
        make(one.before)
    return [lambda one=one: make(one.timed) for one in recorded]


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """A line a candidate, the quickest of each case first."""
    lines = [f"{'case':46s} {'candidate':28s} {'us':>8s} {'of default':>10s} {'regs':>5s} {'spill':>5s}"]
    for case in dict.fromkeys(row["case"] for row in rows):
        own = [row for row in rows if row["case"] == case]
        default = _median(next(row for row in own if row["candidate"] == "default"))
        for row in sorted(own, key=_median):
            shown = f"{row['microseconds'][1]:8.2f} {_median(row) / default:10.3f}" if "microseconds" in row else f"{'-':>8s} {'-':>10s}"
            said = row.get("fault") or ("" if row["right"] else f"WRONG by {row['difference']:.2g}")
            used = f"{row.get('registers') or '':>5} {row.get('spills') or 0:>5}"
            lines.append(f"{case:46s} {row['candidate']:28s} {shown} {used} {said[:80]}")
    return "\n".join(lines)


def _median(row: dict[str, Any]) -> float:
    return row["microseconds"][1] if "microseconds" in row else float("inf")


def winners(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """case -> the launch to take."""
    found = {}
    for case in dict.fromkeys(row["case"] for row in rows):
        own = {row["candidate"]: row for row in rows if row["case"] == case and "microseconds" in row}
        if "default" not in own:
            continue
        best = min(own.values(), key=_median)
        if _median(best) > _LEAST_GAIN * _median(own["default"]):
            best = own["default"]
        taken = {name: best[name] for name in ("candidate", "options", "grid")}
        found[case] = {**taken, "microseconds": _median(best), "default": _median(own["default"])}
    return found


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="a file that rows are added to, as JSON lines; without it only the table is shown")
    parser.add_argument("--table", type=Path, help="a JSON file for the winners")
    parser.add_argument("--only", nargs="+", default=[], help="cases whose name holds one of these, as layer_norm or 'MNLI 32'")
    parser.add_argument("--rounds", type=int, default=20, help="replays of each candidate's graph")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--tiny", action="store_true", help="small sizes and two candidates, on a CPU too")
    arguments = parser.parse_args(words)
    if not torch.cuda.is_available() and not arguments.tiny:
        parser.error("torch sees no GPU here; --tiny runs all of it in small on a CPU")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(words)
    began = time.perf_counter()
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when bertfast_kernels is imported
    facts = provenance("bench.sweep", PACKAGES) | {"seed": arguments.seed, "tiny": arguments.tiny}
    cases = all_cases(arguments.tiny, arguments.seed, arguments.only)
    if on_gpu:
        print(f"{compile_all(cases)} compilations after {time.perf_counter() - began:.0f} s", flush=True)
    rows = []
    while cases:  # a case goes with its inputs
        found = measure(cases.pop(0), arguments.rounds, on_gpu)
        rows += found
        if arguments.output:
            state = gpu_state()
            for row in found:
                write_row({**row, "gpu": state, **facts}, arguments.output)
        if on_gpu:
            torch.cuda.empty_cache()
    print(summary(rows))
    if arguments.table:
        arguments.table.write_text(json.dumps({facts["device"]: winners(rows)}, indent=1) + "\n", encoding="utf-8")
    wrong = [row for row in rows if row.get("right") is False]
    print(
        f"{len(rows)} candidates, {len(wrong)} wrong, {sum('fault' in row for row in rows)} with a fault; {time.perf_counter() - began:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
