"""How a step's cost grows, what DeepSpeed adds to it, what ZeRO saves, and how far data parallelism would carry it.

    python -m bench.bench_scale [--quick] [--parts cost overhead zero parallel] [--output FILE]

cost: a training step against batch size, length and model size, and planning against the size of the data; each with the exponent of a power law, the
sizes taking turns and each round giving one slope. overhead: the engine against a bare PyTorch loop, ours and transformers', for a base-sized model in
batches of 32. zero: peak memory of two CPU ranks by ZeRO stage, beside the model states on paper. parallel: the efficiency of up to 1,024 GPUs, simulated:
the step time a + b tokens + c (sum of squared lengths) fitted to what was measured, the parts as the planner cuts them (and as they fall at random), and
the sum of gradients at --link gigabytes a second, none of it hidden behind the backward. No network was measured.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.cases.workloads import MODELS, Examples, lengths_of, network_of, origin_of, write_model
from bench.contests.peers import PEERS, bertfast_config, build, peers_for
from bench.contests.step_contest import Job, contest
from bench.harness.intervals import MIN_ROUNDS, Ratio, paired_ratio, significant, take_turns, timing_rows
from bench.harness.memory import peak_resident_bytes, resident_bytes
from bench.harness.provenance import provenance
from bench.harness.rows import keep
from bertfast.engine.memory import estimate_memory
from bertfast.packing.plans import plan_examples, plan_tokens

PACKAGES = ("torch", "transformers", "deepspeed", "numpy")
PARTS = ("cost", "overhead", "zero", "parallel")
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
EXAMPLES_A_RANK = 32


def exponent(sizes: Sequence[float], seconds: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """The power of the sizes that the seconds (by size, each a list of rounds) grow with, and its interval: of each round's slope in logs."""
    x = np.log(np.asarray(sizes, dtype=np.float64))
    slopes = (x - x.mean()) @ np.log(np.asarray(seconds, dtype=np.float64)) / ((x - x.mean()) ** 2).sum()
    ratio = paired_ratio(np.exp(slopes), np.ones(len(slopes)))
    return tuple(round(float(np.log(value)), 3) for value in (ratio.value, ratio.low, ratio.high))


def cost_rows(
    name: str, unit: str, sizes: Sequence[float], runs: Sequence[Callable[[], Any]], rounds: int, on_gpu: bool
) -> Iterator[dict[str, Any]]:
    """A row of each size's seconds, and last the row of the exponent."""

    def turn(run: Callable[[], Any]) -> Callable[[int], float]:
        def timed(_: int) -> float:
            began = time.perf_counter()
            run()
            if on_gpu:
                torch.cuda.synchronize()
            return time.perf_counter() - began

        return timed

    seconds = take_turns({str(size): turn(run) for size, run in zip(sizes, runs, strict=True)}, rounds)
    common = {"suite": "scale", "part": "cost", "axis": name, "unit": unit, "contender": "bertfast fp32"}
    for size, taken in zip(sizes, seconds.values(), strict=True):
        middle = [significant(value) for value in np.percentile(taken, [25, 50, 75])]
        yield {**common, "case": f"{name} {size}", "size": size, "seconds": middle, "samples": [significant(value) for value in taken]}
    value, low, high = exponent(sizes, list(seconds.values()))
    yield {**common, "case": f"{name}, {sizes[0]} to {sizes[-1]} {unit}", "exponent": value, "interval": [low, high], "rounds": rounds}


def measure_cost(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Step time against batch, length and model; planning time against the data."""
    on_gpu, size = options.device != "cpu", options.model

    def stepper(model: str, lengths: Sequence[np.ndarray]) -> list[Callable[[], Any]]:
        with tempfile.TemporaryDirectory() as folder:
            contender = build(PEERS["bertfast fp32"], write_model(model, Path(folder), options.seed), 32, options.device)
        prepared = [contender.prepare(Examples(np.sort(part), options.seed).batch(np.arange(len(part)))) for part in lengths]
        return [lambda batch=batch: contender.step(batch) for batch in prepared]

    batches = options.batches
    yield from cost_rows(
        "batch", "examples", batches, stepper(size, [lengths_of("mnli", n, options.seed) for n in batches]), options.rounds, on_gpu
    )
    widths = options.widths
    yield from cost_rows("length", "tokens", widths, stepper(size, [np.full(8, n, dtype=np.int32) for n in widths]), options.rounds, on_gpu)
    models = options.models
    runs = [stepper(model, [lengths_of("mnli", 8, options.seed)])[0] for model in models]
    yield from cost_rows("model", "weights in products", [network_of(model).products for model in models], runs, options.rounds, on_gpu)
    rows = options.data_sizes
    drawn = [lengths_of("mnli", n, options.seed) for n in rows]
    plans = [lambda lengths=lengths: plan_tokens(lengths, 512) for lengths in drawn]
    yield from cost_rows("data", "examples planned", rows, plans, options.rounds, False)


def measure_overhead(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """DeepSpeed's engine against a bare loop around the same model."""
    names = ("bertfast fp32, bare loop", "bertfast fp32", "transformers fp32", "DeepSpeed, transformers fp32")
    lengths = lengths_of("mnli", options.rounds * 32, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        write_model(options.overhead_model, Path(folder), options.seed)
        outcome = contest(peers_for(options.device, names), Job(Path(folder), lengths, 32, options.rounds, 1, options.device, options.seed))
    common = {
        "suite": "scale",
        "part": "overhead",
        "case": f"{options.overhead_model}, mnli, batch 32",
        "overhead": True,
        "origin": origin_of("mnli"),
    }
    rows = timing_rows(common, outcome.seconds, (names[0], names[2]))
    yield from ({**row, **outcome.facts[row["contender"]]} for row in rows)
    yield from ({**common, "contender": name, "fault": fault} for name, fault in outcome.faults.items())


# ------------------------------------------------------------------------------------------------------------------------- ZeRO's memory


def zero_rank(rank: int, ranks: int, port: int, stage: int, folder: str, results: Any) -> None:
    """One of several CPU ranks: two steps under a ZeRO stage, and the bytes that the process grew by at most."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    from bertfast.config.resolve import resolve_batch_sizes
    from bertfast.engine.build import build_engine, join_ranks
    from bertfast.engine.ranks import start_ranks
    from bertfast.model.bert import BertClassifier
    from bertfast.model.losses import loss_sum

    started = start_ranks("cpu", 1)
    join_ranks(started)
    before = resident_bytes()
    config = bertfast_config(Path(folder), 8 * ranks)
    config.deepspeed["zero_optimization"] = {"stage": stage}
    engine = build_engine(BertClassifier.from_pretrained(folder), config, resolve_batch_sizes(config, ranks), 100, started)
    batch = Examples(np.full(8, 16, dtype=np.int32), rank).batch(np.arange(8))
    for _ in range(2):
        engine.backward(loss_sum(engine(batch), batch.labels) / batch.num_sequences, scale_wrt_gas=False)
        engine.step()
    results.put((rank, peak_resident_bytes() - before))


def measure_zero(options: argparse.Namespace, ranks: int = 2) -> Iterator[dict[str, Any]]:
    """A row a stage: the peak of the largest rank, and what its parameters, gradients and optimizer states come to on paper."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        write_model(options.zero_model, Path(folder), options.seed)
        weights = sum(p.numel() for p in _parameters(folder))
        for stage in range(4):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            results = context.Queue()
            processes = [context.Process(target=zero_rank, args=(rank, ranks, port, stage, folder, results)) for rank in range(ranks)]
            for process in processes:
                process.start()
            for process in processes:
                process.join(300)
            row = {"suite": "scale", "part": "zero", "case": f"{options.zero_model}, stage {stage}", "contender": "bertfast fp32"}
            if any(process.exitcode != 0 for process in processes):
                for process in processes:
                    process.kill()
                yield {**row, "fault": "a rank did not end well; see the log"}
                continue
            peak = max(results.get()[1] for _ in processes)
            paper = estimate_memory(weights, "fp32", stage, ranks).device
            yield {**row, "stage": stage, "ranks": ranks, "parameters": weights, "peak_bytes": peak, "estimate_bytes": int(paper)}


def _parameters(folder: str) -> list[torch.nn.Parameter]:
    from bertfast.model.bert import BertClassifier

    return list(BertClassifier.from_pretrained(folder).parameters())


# --------------------------------------------------------------------------------------------------------------------- many simulated GPUs


def fit_step_time(batches: Sequence[np.ndarray], seconds: Sequence[float]) -> np.ndarray:
    """a, b, c of a + b (tokens) + c (sum of squared lengths), none of them negative, by least squares of relative errors."""
    work = np.array([work_of(batch) for batch in batches])
    target, columns = np.asarray(seconds, dtype=np.float64), [0, 1, 2]
    while True:
        found = np.linalg.lstsq(work[:, columns] / target[:, None], np.ones(len(target)), rcond=None)[0]
        if (found >= 0).all() or len(columns) == 1:
            whole = np.zeros(3)
            whole[columns] = found
            return whole
        columns.pop(int(np.argmin(found)))


def work_of(lengths: np.ndarray) -> list[float]:
    values = lengths.astype(np.float64)
    return [1.0, values.sum(), (values**2).sum()]


def efficiency(lengths: np.ndarray, ranks: int, model: np.ndarray, gradient_bytes: float, link: float, planned: bool) -> float:
    """The share of the ranks' time that is not spent waiting for the slowest, or on the ring's sum of gradients. link: bytes a second."""
    sums = 2 * gradient_bytes * (ranks - 1) / ranks / link
    batch_size, busy, whole = EXAMPLES_A_RANK * ranks, 0.0, 0.0
    plan = plan_examples(lengths, batch_size, world_size=ranks)
    for step in range(min(len(lengths) // batch_size, 8)):
        if planned:
            parts = [lengths[plan.micro_batches(step, rank)[0]] for rank in range(ranks)]
        else:
            parts = np.split(lengths[step * batch_size : (step + 1) * batch_size], ranks)
        times = np.array([work_of(part) for part in parts]) @ model
        busy += times.mean()
        whole += times.max() + sums
    return busy / whole


def measure_parallel(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows by lengths and ranks, from steps of several batch sizes that are timed here."""
    with tempfile.TemporaryDirectory() as folder:
        contender = build(PEERS["bertfast fp32"], write_model(options.model, Path(folder), options.seed), 32, options.device)
    batches = [np.sort(lengths_of(name, n, options.seed + n)) for name in ("sst2", "mnli", "fixed128") for n in options.parallel_batches]
    prepared = [contender.prepare(Examples(part, options.seed).batch(np.arange(len(part)))) for part in batches]
    runs = [lambda batch=batch: contender.step(batch) for batch in prepared]
    seconds = _medians(runs, options.rounds, options.device != "cpu")
    model, weights = fit_step_time(batches, seconds), 4.0 * sum(p.numel() for p in contender.module.parameters())
    errors = np.abs(np.array([work_of(part) for part in batches]) @ model / seconds - 1)
    for name in ("sst2", "mnli"):
        for ranks in RANKS:
            lengths = lengths_of(name, 8 * EXAMPLES_A_RANK * ranks, options.seed)
            row = {
                "suite": "scale",
                "part": "parallel",
                "case": f"{name}, {ranks} GPUs",
                "contender": "bertfast fp32",
                "lengths": name,
                "ranks": ranks,
            }
            row |= {
                "link_bytes_per_second": options.link * 1e9,
                "model": options.model,
                "fit": [significant(float(value)) for value in model],
            }
            row |= {"fit_error": round(float(np.median(errors)), 3), "simulated": True}
            found = (efficiency(lengths, ranks, model, weights, options.link * 1e9, planned) for planned in (True, False))
            yield {**row, **dict(zip(("efficiency", "at_random"), (round(float(value), 4) for value in found), strict=True))}


def _medians(runs: Sequence[Callable[[], Any]], rounds: int, on_gpu: bool) -> np.ndarray:
    rows = cost_rows("steps", "", list(range(1, len(runs) + 1)), runs, rounds, on_gpu)
    return np.array([row["seconds"][1] for row in rows if "seconds" in row])


def summary(rows: Sequence[dict[str, Any]]) -> str:
    lines = [""]
    for row in rows:
        if "fault" in row:
            lines.append(f"{row['case']:40s} {row['contender']} did not run: {row['fault']}")
        elif "exponent" in row:
            lines.append(f"{row['case']:40s} cost grows with its power {row['exponent']:.2f} {row['interval']}")
        elif "overhead" in row:
            ratios = "; ".join(f"{Ratio.from_row(ratio)} of {ratio['to']}" for ratio in row["ratios"])
            lines.append(f"{row['case']:40s} {row['contender']:30s} {row['seconds'][1]:8.3f} s a step  {ratios}")
        elif "stage" in row:
            lines.append(
                f"{row['case']:40s} {row['peak_bytes'] / 1e6:8.0f} MB a rank, on paper {row['estimate_bytes'] / 1e6:.0f} MB of model states"
            )
        elif "efficiency" in row:
            lines.append(f"{row['case']:40s} simulated efficiency {row['efficiency']:.1%}, with parts cut at random {row['at_random']:.1%}")
    return "\n".join(lines)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, 8 rounds")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, help="left out: 12, or 8 with --quick")
    parser.add_argument("--model", choices=list(MODELS), help="left out: minilm, or tiny with --quick")
    parser.add_argument("--link", type=float, default=50.0, help="gigabytes a second of a GPU's network")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(words)
    quick = options.quick
    options.rounds = options.rounds or (MIN_ROUNDS if quick else 12)
    options.model = options.model or ("tiny" if quick else "minilm")
    options.overhead_model, options.zero_model = ("tiny", "tiny") if quick else ("base", "base")
    options.batches, options.widths = ((2, 4, 8), (16, 32, 64)) if quick else ((8, 16, 32, 64, 128), (16, 32, 64, 128, 256, 512))
    options.models = ("tiny", "minilm") if quick else ("tiny", "minilm", "base")
    options.data_sizes = (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000)
    options.parallel_batches = (4, 16) if quick else (8, 32, 128)
    return options


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    facts = {"seed": options.seed, **provenance("bench.bench_scale", PACKAGES)}
    measures = {"cost": measure_cost, "overhead": measure_overhead, "zero": measure_zero, "parallel": measure_parallel}
    print(summary(keep((row for part in options.parts for row in measures[part](options)), facts, options.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
