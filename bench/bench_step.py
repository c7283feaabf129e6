"""A whole training step, bertfast's and its peers': samples and real tokens a second, peak memory, and the share of the machine's matrix rate.

    python -m bench.bench_step                                             # MiniLM's sizes, lengths of SST-2 and MNLI, every contender
    python -m bench.bench_step --quick                                     # five contenders, few steps
    python -m bench.bench_step --models base large --lengths mnli fixed128 fixed512 --batches 32 256 --output rows.jsonl

Each contender is a process of its own and takes a round of steps (forward, backward, clipping, AdamW) while the others wait; then the next does,
and a ratio is that of one round with itself (see harness/intervals.py). All start from the same weights, and their losses without dropout must agree before
anything is timed. Over the run each contender takes the same examples once; a length-grouped one takes them in its own batches.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.cases.workloads import FIXED, LENGTHS, MODELS, lengths_of, network_of, origin_of, write_model
from bench.contests.peers import BASELINE, DTYPES, PEERS, QUICK, Peer, peers_for
from bench.contests.step_contest import Job, contest
from bench.harness.intervals import MIN_ROUNDS, Ratio, fastest, timing_rows
from bench.harness.provenance import provenance
from bench.harness.roofline import machine_rates
from bench.harness.rows import keep

PACKAGES = ("torch", "transformers", "deepspeed", "numpy")
BASES = (BASELINE, "transformers bf16 autocast")  # of ratios, beside the strongest peer of each case


def measure(
    size: str,
    lengths_name: str,
    batch_size: int,
    peers: Sequence[Peer],
    rates: dict[str, float],
    options: Any,
    bases: Sequence[str] = BASES,
) -> list[dict[str, Any]]:
    """The rows of one case: one a contender, and those that could not run with the reason. bases: contenders that ratios are given to, beside the
    fastest of the peers."""
    steps = options.rounds * options.steps
    lengths = lengths_of(lengths_name, steps * batch_size, options.seed)
    common = {"suite": "step", "case": f"{size}, {lengths_name}, batch {batch_size}", "model": size, "lengths": lengths_name}
    common |= {"batch_size": batch_size, "origin": origin_of(lengths_name), "mean_length": round(float(lengths.mean()), 2)}
    with tempfile.TemporaryDirectory() as folder:
        write_model(size, Path(folder), options.seed)
        job = Job(Path(folder), lengths, batch_size, options.rounds, options.steps, options.device, options.seed, options.profile)
        outcome = contest(peers, job)
    flops = network_of(size).training_flops(lengths) / steps
    strongest = fastest(outcome.seconds, (peer.name for peer in peers if not peer.is_ours))
    rows = timing_rows(common, outcome.seconds, list(dict.fromkeys([*bases, *filter(None, [strongest])])))
    for row in rows:
        peer, taken = PEERS[row["contender"]], np.array(row["seconds"])
        row["samples_per_second"] = [round(float(value), 2) for value in batch_size / taken[::-1]]
        row["tokens_per_second"] = round(float(lengths.sum() / steps / taken[1]), 1)
        row["matrix_rate_share"] = round(flops / taken[1] / rates[peer.precision], 4)
        row |= {"steps_per_round": options.steps, "rounds": options.rounds, **outcome.facts[peer.name]}
    return rows + [{**common, "contender": name, "fault": fault} for name, fault in outcome.faults.items()]


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """A table that a person can read: a case after the other, ratios with their intervals."""
    lines, case = [], None
    for row in rows:
        if row["case"] != case:
            case = row["case"]
            lines += [
                "",
                f"{case} ({row['origin']} lengths)",
                f"  {'contender':44s} {'samples/s':>10s} {'peak GB':>8s} {'of rate':>8s}   against",
            ]
        if "fault" in row:
            lines.append(f"  {row['contender']:44s} did not run: {row['fault']}")
            continue
        ratios = "; ".join(f"{short(ratio['to'])} {Ratio.from_row(ratio)}" for ratio in row["ratios"])
        figures = f"{row['samples_per_second'][1]:10.1f} {row['peak_bytes'] / 1e9:8.2f} {row['matrix_rate_share']:8.1%}"
        lines.append(f"  {row['contender']:44s} {figures}   {ratios}")
        if "where" in row:
            lines.append(" " * 8 + ", ".join(f"{kind} {share:.0%}" for kind, share in row["where"].items()))
    return "\n".join(lines)


def short(name: str) -> str:
    """The name of a base, for a table."""
    return name.removeprefix("transformers ").replace("length-grouped", "grouped").replace(" autocast", "")


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="five contenders, 8 rounds of one step")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["minilm"])
    parser.add_argument("--lengths", nargs="+", choices=[*LENGTHS, *FIXED], default=["sst2", "mnli"])
    parser.add_argument("--batches", nargs="+", type=int, default=[32])
    parser.add_argument("--contenders", nargs="+", choices=list(PEERS), help="left out: all that the device can run")
    parser.add_argument("--rounds", type=int, help="left out: 10, or 8 with --quick")
    parser.add_argument("--steps", type=int, help="in a round; left out: 5, or 1 with --quick")
    parser.add_argument("--profile", action="store_true", help="say where the time of a step goes, too")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(words)
    options.rounds = options.rounds or (MIN_ROUNDS if options.quick else 10)
    options.steps = options.steps or (1 if options.quick else 5)
    options.contenders = options.contenders or (list(QUICK) if options.quick else None)
    return options


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    facts = {"seed": options.seed, **provenance("bench.bench_step", PACKAGES)}
    rates = machine_rates(torch.device(options.device), ["fp32", *DTYPES])
    peers, rows = peers_for(options.device, options.contenders), []
    for size in options.models:
        for name in options.lengths:
            for batch_size in options.batches:
                rows += keep(measure(size, name, batch_size, peers, rates, options), facts, options.output)
    print(summary(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
