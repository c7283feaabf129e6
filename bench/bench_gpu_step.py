"""What a whole training step comes to on one GPU: speed beside the peers, matrix rate, a run's seconds, how busy the GPU is, losses, and memory.

    python -m bench.bench_gpu_step --parts step --lengths mnli --batches 32 --precisions bf16 --output rows.jsonl    # one call a case: see below
    python -m bench.bench_gpu_step --parts rate busy losses --output rows.jsonl
    python -m bench.bench_gpu_step --parts epochs --output rows.jsonl
    python -m bench.bench_gpu_step --parts memory --models base --output rows.jsonl
    python -m bench.bench_gpu_step --tiny --device cpu                                                             # the script itself, on a CPU

step: samples a second against transformers (sdpa, dynamic padding, autocast, fused AdamW), the same length-grouped, and compiled; as in bench_step, which
checks that all train alike. rate: the share of the machine's measured matrix rate at 512 tokens, large and base. epochs: a run of the trainer on made-up
pairs of MNLI's lengths, with evaluation and saving, by where its seconds go, and what three epochs of 392,702 pairs would take. busy: the share of a
step in which a kernel runs. losses: `--steps` steps replayed beside the plain path, that once more, and with each batch's examples in another order, which changes
rounding alone. memory: peak bytes at equal batches, and the largest batch that was found to fit.
Made so that each of these calls stays under 10 minutes; --batches, --models and --precisions cut a part further.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.bench_step import PACKAGES, measure, summary
from bench.cases.pair_files import write_pairs
from bench.cases.workloads import MODELS, Examples, lengths_of, write_model
from bench.contests.peers import PEERS, Contender, Peer, build, peers_for
from bench.contests.step_contest import Job, contest
from bench.harness.intervals import MIN_ROUNDS, significant
from bench.harness.provenance import provenance
from bench.harness.roofline import machine_rates
from bench.harness.rows import keep

PARTS = ("step", "rate", "epochs", "busy", "losses", "memory")
MNLI_PAIRS, MNLI_DEV_PAIRS = 392_702, 19_647
OURS = {"bf16": "bertfast bf16, graphs", "fp16": "bertfast fp16, graphs, ZeRO 1"}
PLAIN = {"bf16": "bertfast bf16", "fp16": "bertfast fp16"}
Row = dict[str, Any]


def bases_of(precision: str) -> tuple[str, ...]:
    """The peers that ratios are given to."""
    return tuple(f"transformers {precision} autocast{kind}" for kind in ("", ", length-grouped", ", torch.compile"))


def measure_step(options: argparse.Namespace, rates: dict[str, float]) -> Iterator[Row]:
    for precision in options.precisions:
        names = [*bases_of(precision), f"DeepSpeed, transformers {precision}", PLAIN[precision], OURS[precision]]
        if options.tiny:
            names = [names[0], *names[-2:]]
        for lengths in options.lengths:
            for batch_size in options.batches:
                peers = peers_for(options.device, names)
                yield from measure(options.models[0], lengths, batch_size, peers, rates, options, bases_of(precision))


def measure_rate(options: argparse.Namespace, rates: dict[str, float]) -> Iterator[Row]:
    for precision in options.precisions:
        peers = peers_for(options.device, [OURS[precision], PLAIN[precision]])
        for size in options.models:
            yield from measure(
                size, "fixed128" if options.tiny else "fixed512", 2 if options.tiny else 32, peers, rates, options, [PLAIN[precision]]
            )


# --------------------------------------------------------------------------------------------------------------------------- busy, losses


def _contender(peer: Peer, size: str, batch_size: int, options: argparse.Namespace) -> Contender:
    with tempfile.TemporaryDirectory() as folder:
        return build(peer, write_model(size, Path(folder), options.seed), batch_size, options.device)


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def measure_busy(options: argparse.Namespace, rates: dict[str, float]) -> Iterator[Row]:
    """Kernels' milliseconds a step from the profiler, which slows the host, over a step's without it; and the profiler's own share."""
    from bertfast.reporting.profiling import busy_and_whole, shares_of, step_profiler

    for precision in options.precisions:
        for peer in peers_for(options.device, [OURS[precision], PLAIN[precision]]):
            batch_size, steps = options.batches[0], options.steps * options.rounds
            examples = Examples(lengths_of("mnli", steps * batch_size, options.seed), options.seed)
            contender = _contender(peer, options.models[0], batch_size, options)
            batches = [contender.prepare(examples.batch(indices)) for indices in examples.random_batches(batch_size, options.seed)]
            contender.set_dropout(True)
            for batch in [*contender.warming(batches), *batches[:3]]:
                contender.step(batch)
            _synchronize(options.device)
            began = time.perf_counter()
            for batch in batches:
                contender.step(batch)
            _synchronize(options.device)
            step_ms = (time.perf_counter() - began) / len(batches) * 1e3
            with step_profiler(options.device != "cpu") as profiler:
                for batch in batches[:5]:
                    contender.step(batch)
                _synchronize(options.device)
            busy_ms, whole_ms = busy_and_whole(profiler)
            kernel_ms = busy_ms / len(batches[:5])
            yield {
                "part": "busy",
                "case": f"{options.models[0]}, mnli, batch {batch_size}",
                "contender": peer.name,
                "step_ms": significant(step_ms),
                "kernel_ms": significant(kernel_ms),
                "busy": significant(kernel_ms / step_ms),
                "busy_while_profiled": significant(busy_ms / whole_ms),
                "where": shares_of(profiler),
            }


def measure_losses(options: argparse.Namespace, rates: dict[str, float]) -> Iterator[Row]:
    """Differences of losses, step by step, from those of the plain path: of the same run again, of reordered batches, and replayed."""
    batch_size, steps = options.batches[0], options.loss_steps
    examples = Examples(lengths_of("mnli", steps * batch_size, options.seed), options.seed)
    plan = examples.random_batches(batch_size, options.seed)

    def run(peer: Peer, order: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        contender = _contender(peer, options.models[0], batch_size, options)
        contender.set_dropout(True)
        losses = [contender.step(contender.prepare(examples.batch(order(indices)))) for indices in plan]
        return torch.stack(losses).double().cpu().numpy()

    for precision in options.precisions:
        if precision == "fp16" and options.device == "cpu":
            continue
        plain = PEERS[PLAIN[precision]]
        truth = run(plain, lambda indices: indices)
        runs = {"plain, again": (plain, False), "plain, reordered": (plain, True), "replayed": (PEERS[OURS[precision]], False)}
        for name, (peer, reverse) in runs.items():
            off = np.abs(run(peer, (lambda indices: indices[::-1]) if reverse else (lambda indices: indices)) - truth)
            common = {
                "part": "losses",
                "case": f"{options.models[0]}, mnli, batch {batch_size}, {precision}",
                "contender": name,
                "steps": steps,
            }
            differences = {
                "largest": float(off.max()),
                "mean": float(off.mean()),
                "mean_of_last_tenth": float(off[-max(steps // 10, 1) :].mean()),
            }
            yield {
                **common,
                "differences": {key: significant(value) for key, value in differences.items()},
                "last_loss": significant(truth[-1]),
            }


# --------------------------------------------------------------------------------------------------------------------------------- epochs


def measure_epochs(options: argparse.Namespace, rates: dict[str, float]) -> Iterator[Row]:
    """One epoch of the trainer, and where its seconds go."""
    from bertfast.config.load import load_config
    from bertfast.training.trainer import Trainer

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, whose seconds on the host are added to those of that name."""

        def watched(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                found.append(work(*arguments))
                return found[-1]
            finally:
                spent[name] += time.perf_counter() - began

        return watched

    precision = options.precisions[0]
    with tempfile.TemporaryDirectory() as folder:
        config = write_pairs(Path(folder), options.models[0], lengths_of("mnli", options.examples, options.seed), options.seed)
        config["bf16" if precision == "bf16" else "fp16"] = {"enabled": True}
        config["zero_optimization"] = {"stage": 1 if precision == "fp16" else 0}
        config["bertfast"]["train_input"]["batch_size"] = options.epoch_batch
        config["bertfast"]["run"] |= {"logging_steps": 50, "seed": options.seed, "cuda_graphs": "auto"}
        for cached in (False, True):
            config["bertfast"]["run"]["model_dir"] = str(Path(folder) / f"run-{cached}")
            trainer = Trainer(load_config(config), device="cpu" if options.device == "cpu" else "gpu")
            found: list[Any] = []
            spent = {"starting": 0.0, "evaluating": 0.0}  # what is left of `fit` is steps, and saving
            trainer._prepare, trainer._evaluate = timed("starting", trainer._prepare), timed("evaluating", trainer._evaluate)
            began = time.perf_counter()
            training = trainer.fit()["training"]
            whole = time.perf_counter() - began
        where = {**spent, "stepping": training["train_seconds"]}
        where["saving and the rest"] = whole - sum(where.values())
        dev = len(next(iter(found[0].eval_sets.values())))
        three = 3 * (MNLI_PAIRS * where["stepping"] / training["examples"] + MNLI_DEV_PAIRS * where["evaluating"] / dev)
        yield {
            "part": "epochs",
            "case": f"{options.models[0]}, {options.examples} pairs of mnli's lengths, batch {options.epoch_batch}, cached",
            "contender": f"bertfast {precision}",
            "seconds": significant(whole),
            "where": {name: significant(value) for name, value in where.items()},
            "seconds_of_three_mnli_epochs": significant(three + where["starting"] + where["saving and the rest"]),
            "training": training,
        }


# --------------------------------------------------------------------------------------------------------------------------------- memory


def measure_memory(options: argparse.Namespace, rates: dict[str, float]) -> Iterator[Row]:
    """Peaks at two batch sizes; the line through them tells the largest batch, and a little less is tried out."""
    room = options.memory_gb * 1e9 if options.memory_gb else torch.cuda.mem_get_info()[0]
    small, large = options.memory_batches
    names = (f"transformers {options.precisions[0]} autocast", PLAIN["bf16"], OURS["bf16"], "bertfast bf16, graphs, recomputing")
    for size in options.models:
        for lengths in options.memory_lengths:
            for peer in peers_for(options.device, names):
                common = {"part": "memory", "case": f"{size}, {lengths}", "contender": peer.name}
                peaks = {count: peak_bytes(peer, size, lengths, count, options) for count in (small, large)}
                faults = [found for found in peaks.values() if isinstance(found, str)]
                if faults:
                    yield {**common, "fault": faults[0]}
                    continue
                slope = max((peaks[large] - peaks[small]) / (large - small), 1.0)
                predicted = int((room - peaks[small]) / slope) + small
                fits = 0
                for share in () if options.tiny else (0.96, 0.9, 0.8):
                    tried = int(predicted * share) // 8 * 8
                    if not isinstance(peak_bytes(peer, size, lengths, tried, options), str):
                        fits = tried
                        break
                yield {
                    **common,
                    "peak_bytes": {str(count): peak for count, peak in peaks.items()},
                    "predicted_largest": predicted,
                    "largest_tried": fits,
                }


def peak_bytes(peer: Peer, size: str, lengths_name: str, batch_size: int, options: argparse.Namespace) -> int | str:
    """Peak bytes of a few steps in a process of their own, or why they could not be taken."""
    lengths = lengths_of(lengths_name, batch_size, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        write_model(size, Path(folder), options.seed)
        job = Job(Path(folder), lengths, batch_size, 1, 1, options.device, options.seed)
        outcome = contest([peer], job, check=False)
    return outcome.faults.get(peer.name) or outcome.facts[peer.name]["peak_bytes"]


# ------------------------------------------------------------------------------------------------------------------------------------ run

MEASURES = {
    "step": measure_step,
    "rate": measure_rate,
    "epochs": measure_epochs,
    "busy": measure_busy,
    "losses": measure_losses,
    "memory": measure_memory,
}


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="a tiny model, few steps: tries the script, on a CPU too")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), help="left out: base; for rate and memory large as well")
    parser.add_argument("--lengths", nargs="+", default=["mnli", "sst2"])
    parser.add_argument("--batches", nargs="+", type=int, help="left out: 32 and 256; busy and losses take the first")
    parser.add_argument("--precisions", nargs="+", choices=list(OURS), default=list(OURS))
    parser.add_argument("--rounds", type=int, default=MIN_ROUNDS)
    parser.add_argument("--steps", type=int, help="in a round; left out: 5")
    parser.add_argument("--loss-steps", type=int, help="of losses; left out: 200")
    parser.add_argument("--examples", type=int, help="of epochs; left out: 40,000")
    parser.add_argument("--epoch-batch", type=int, default=128)
    parser.add_argument("--memory-batches", nargs=2, type=int, help="left out: 32 and 128")
    parser.add_argument("--memory-lengths", nargs="+", default=["fixed128", "fixed512"])
    parser.add_argument("--memory-gb", type=float, help="room for a batch; left out: what the GPU has free")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(words)
    full = {"steps": 5, "loss_steps": 200, "examples": 40_000, "memory_batches": [32, 128], "batches": [32, 256], "memory_gb": None}
    tiny = {"steps": 1, "loss_steps": 6, "examples": 200, "memory_batches": [2, 8], "batches": [4], "memory_gb": 1.0}
    for name, value in (tiny if options.tiny else full).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.tiny:
        options.precisions, options.lengths, options.memory_lengths = (
            options.precisions[:1],
            options.lengths[:1],
            options.memory_lengths[:1],
        )
    options.profile = False
    return options


def shown(row: Row) -> str:
    """A row of the parts that no table of bench_step shows."""
    facts = {key: value for key, value in row.items() if key not in ("suite", "part", "case", "contender", "training")}
    return f"{row['part']}: {row['case']}: {row['contender']}: " + ", ".join(f"{key} {value}" for key, value in facts.items())


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    facts = {"seed": options.seed, **provenance("bench.bench_gpu_step", PACKAGES)}
    rates = machine_rates(torch.device(options.device), ["fp32", *options.precisions]) if {"step", "rate"} & set(options.parts) else {}
    given = options.models
    for part in options.parts:
        options.models = given or (["tiny"] if options.tiny else ["base", "large"] if part in ("rate", "memory") else ["base"])
        rows = keep(({"suite": "gpu_step", **row} for row in MEASURES[part](options, rates)), facts, options.output)
        print(summary(rows) if part in ("step", "rate") else "\n".join(map(shown, rows)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
