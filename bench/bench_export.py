"""Latency of an exported classifier, and the throughput of a whole file, against the model it was made from, in turn.

    python -m bench.bench_export --bundle BUNDLE --checkpoint FOLDER [--texts FILE] [--shapes 1x128 ...] [--rounds 30] [--compile] [--output FILE]
    python -m bench.bench_export [--quick]

Every contender runs the same batch once a round, so that a machine that drifts slows all of them. Without a bundle, graphs of MiniLM's size with random
weights are written first: portable, optimized, and int8 with no product left out, none of which any judge has seen. Other people's files are contenders
too: --other NAME=FILE.onnx. `--command TSV` times whole commands over a file with a column named sentence: `bertfast predict --onnx`, its start among it,
and a program that loads the model with transformers and runs batches padded to their longest. Optimum's export is one where optimum is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.cases.workloads import write_model
from bench.harness.intervals import MIN_ROUNDS, Ratio, significant, take_turns, timing_rows
from bench.harness.provenance import provenance
from bench.harness.rows import keep

try:
    from bertfast_export.classifier import OnnxClassifier
    from bertfast_export.contract import VARIANTS
    from bertfast_export.judge.trial import run_cases
    from bertfast_export.runtime import open_session
except ModuleNotFoundError as missing:
    raise SystemExit(f"export: needs {missing.name}, which is not installed: pip install 'bertfast[export]'") from None

SHAPES = ("1x16", "1x128", "1x512", "8x16", "8x128", "8x512", "32x16", "32x128", "32x512")  # texts x tokens
WARM_UP = 3
OPTIMUM = "Optimum's export"
_PADDED = """
import csv, json, sys
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

checkpoint, source, output, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
with open(source, encoding="utf-8") as file:
    texts = [row["sentence"] for row in csv.DictReader(file, delimiter="\\t", quoting=csv.QUOTE_NONE)]
with open(output, "w", encoding="utf-8") as file, torch.inference_mode():
    for begin in range(0, len(texts), 32):
        logits = model(**tokenizer(texts[begin : begin + 32], padding=True, truncation=True, return_tensors="pt")).logits
        for row in logits.softmax(-1).tolist():
            file.write(json.dumps(dict(zip(model.config.id2label.values(), row))) + "\\n")
"""
Run = Callable[[dict[str, np.ndarray]], object]


def eager(checkpoint: str, compiled: bool = False) -> Run:
    """transformers' own model, as from_pretrained gives it."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    forward = torch.compile(model, dynamic=True) if compiled else model

    def run(features: dict[str, np.ndarray]) -> object:
        with torch.inference_mode():
            return forward(**{name: torch.from_numpy(values) for name, values in features.items()}).logits

    return run


def onnx_file(path: Path, threads: int) -> Run:
    """An ONNX file on the CPU."""
    session = open_session(path, threads=threads)
    return lambda features: run_cases(session, features)


def compare(contenders: dict[str, Callable[[], object]], rounds: int, common: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each contender: milliseconds, and its ratios to the first, to torch.compile and to Optimum's export, where they are there."""

    def turn(run: Callable[[], object]) -> Callable[[int], float]:
        def timed(_: int) -> float:
            began = time.perf_counter()
            run()
            return time.perf_counter() - began

        return timed

    seconds = take_turns({name: turn(run) for name, run in contenders.items()}, rounds, WARM_UP)
    rows = timing_rows(common, seconds, [next(iter(contenders)), "torch.compile", OPTIMUM])
    return [{**row, "milliseconds": [significant(1e3 * value) for value in row["seconds"]]} for row in rows]


def write_graphs(folder: Path, checkpoint: str) -> None:
    """The graphs of a checkpoint with no judgement passed on them, under the names of a bundle's files."""
    from bertfast.model.bert import BertClassifier
    from bertfast_export.graphs.fused import fused_graph
    from bertfast_export.graphs.network import portable_graph
    from bertfast_export.graphs.operators import Network
    from bertfast_export.graphs.quantized import Recipe, measure, quantized_graph
    from bertfast_export.graphs.writer import save_model

    network = Network.of(BertClassifier.from_pretrained(checkpoint).eval())
    ids = np.random.default_rng(0).integers(1000, network.config.vocab_size, (8, 64))
    sample = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    save_model(portable_graph(network), folder / VARIANTS["portable"])
    save_model(fused_graph(network), folder / VARIANTS["optimized"])
    save_model(quantized_graph(network, measure(network, [sample]), Recipe("all products")), folder / VARIANTS["int8"])


def optimum_graph(folder: Path, checkpoint: str) -> dict[str, Path]:
    """Optimum's export, where it is installed."""
    if importlib.util.find_spec("optimum") is None or importlib.util.find_spec("optimum.onnxruntime") is None:
        print("optimum is not installed: it is no contender (pip install optimum-onnx, which needs transformers < 4.58)", file=sys.stderr)
        return {}
    from optimum.onnxruntime import ORTModelForSequenceClassification

    ORTModelForSequenceClassification.from_pretrained(checkpoint, export=True).save_pretrained(folder / "optimum")
    return {OPTIMUM: folder / "optimum" / "model.onnx"}


def agreement_of(bundle: Path) -> dict[str, float]:
    """By variant, the share of real examples that the file answers as the eager model does, as the bundle's own judge found it; the lowest of its splits."""
    try:
        verdicts = json.loads((bundle / "verification.json").read_text(encoding="utf-8"))["verdicts"]
    except FileNotFoundError:
        return {}
    found = {}
    for variant, file in VARIANTS.items():
        splits = verdicts.get(file, {}).get("data", {}).values()
        if splits:
            found[variant] = min(split["agreement"] for split in splits)
    return found


def latency(bundle: Path, arguments: argparse.Namespace, others: dict[str, Path]) -> list[dict[str, Any]]:
    """A row for each shape and contender."""
    runs = {"torch eager": eager(arguments.checkpoint)}
    if arguments.compile:
        runs["torch.compile"] = eager(arguments.checkpoint, compiled=True)
    files = {name: bundle / file for name, file in VARIANTS.items() if (bundle / file).is_file() and name != "fp16"}
    runs |= {name: onnx_file(path, arguments.threads) for name, path in (files | others).items()}
    agreement, rng, rows = agreement_of(bundle), np.random.default_rng(arguments.seed), []
    for batch, width in (map(int, shape.split("x")) for shape in arguments.shapes):
        ids = rng.integers(1000, 20_000, (batch, width))
        features = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        rounds = max(MIN_ROUNDS, arguments.rounds * 128 // (batch * width)) if batch * width > 128 else arguments.rounds
        common = {"suite": "export", "measure": "latency", "case": f"{batch} x {width}", "batch": batch, "tokens": width, "rounds": rounds}
        rows += compare({name: (lambda run=run, features=features: run(features)) for name, run in runs.items()}, rounds, common)
    return [{**row, "agreement": 1.0 if row["contender"].startswith("torch") else agreement.get(row["contender"])} for row in rows]


def throughput(bundle: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each contender over a whole file, one text a line: a loop over batches of 32 padded to their longest, and the classifier."""
    from transformers import AutoTokenizer

    texts = Path(arguments.texts).read_text(encoding="utf-8").splitlines()
    tokenizer, model = AutoTokenizer.from_pretrained(arguments.checkpoint), eager(arguments.checkpoint)

    def loop() -> None:
        for begin in range(0, len(texts), 32):
            model(dict(tokenizer(texts[begin : begin + 32], padding=True, truncation=True, return_tensors="np")))

    contenders: dict[str, Callable[[], object]] = {"torch eager, padded to the longest": loop}
    for name, file in VARIANTS.items():
        if name != "fp16" and (bundle / file).is_file():
            classifier = OnnxClassifier.from_bundle(bundle, name, threads=arguments.threads)
            contenders[f"predict --onnx, {name}"] = lambda classifier=classifier: classifier.logits(texts)
    common = {"suite": "export", "measure": "throughput", "case": f"{len(texts)} texts", "texts": len(texts), "rounds": MIN_ROUNDS}
    return compare(contenders, MIN_ROUNDS, common)


def commands(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each contender over a whole file, as a process of its own from its start to its last answer written."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}

    def process(*command: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *command], env=environment, check=True, capture_output=True)

    with open(arguments.command, encoding="utf-8") as file:
        texts = sum(1 for _ in file) - 1
    with tempfile.TemporaryDirectory() as scratch:
        answers = str(Path(scratch) / "answers.jsonl")
        padded = process("-c", _PADDED, arguments.checkpoint, arguments.command, answers, str(arguments.threads))
        contenders = {"a loop of transformers, padded to the longest": padded}
        for name, file in VARIANTS.items():
            if name != "fp16" and (Path(arguments.bundle) / file).is_file():
                command = ("-m", "bertfast", "predict", "--onnx", arguments.bundle, "--variant", name, "--input", arguments.command)
                contenders[f"bertfast predict --onnx, {name}"] = process(*command, "--output", answers)
        common = {"suite": "export", "measure": "command", "case": f"a file of {texts} texts", "texts": texts, "rounds": MIN_ROUNDS}
        return compare(contenders, MIN_ROUNDS, common)


def summary(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["", f"{'texts x tokens':16s} {'contender':36s} {'ms':>10s}   against torch eager"]
    for row in rows:
        ratios = "; ".join(f"{Ratio.from_row(ratio)}" for ratio in row["ratios"][:1])
        lines.append(f"{row['case']:16s} {row['contender']:36s} {row['milliseconds'][1]:10.2f}   {ratios}")
    return "\n".join(lines)


def measure_all(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every row; `folder` holds what is written on the way."""
    bundle = Path(arguments.bundle) if arguments.bundle else folder
    if not arguments.checkpoint:
        arguments.checkpoint = str(write_model("minilm", folder / "checkpoint", arguments.seed))
    if not arguments.bundle:
        write_graphs(folder, arguments.checkpoint)
    others = {name: Path(path) for name, _, path in (other.partition("=") for other in arguments.other)}
    others |= {} if arguments.quick else optimum_graph(folder, arguments.checkpoint)
    rows = latency(bundle, arguments, others)
    rows += throughput(bundle, arguments) if arguments.texts else []
    return rows + (commands(arguments) if arguments.command else [])


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="of `bertfast export`; left out: graphs that are written on the spot")
    parser.add_argument("--checkpoint", help="the model it was made from; left out: MiniLM's size with random weights")
    parser.add_argument("--texts", help="a file with one text a line, to be classified as a whole; needs a bundle")
    parser.add_argument("--command", metavar="TSV", help="a file to be classified by whole commands; needs a bundle")
    parser.add_argument("--other", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--shapes", nargs="+", help="texts x tokens; left out: 1, 8 and 32 texts of 16, 128 and 512 tokens")
    parser.add_argument("--rounds", type=int, help="left out: 30, or 10 with --quick")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--quick", action="store_true", help="1x16, 1x128 and 8x128, 10 rounds")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(words)
    if (arguments.bundle and not arguments.checkpoint) or ((arguments.texts or arguments.command) and not arguments.bundle):
        parser.error("--bundle needs the --checkpoint that it was made from, and --texts and --command need a --bundle")
    arguments.shapes = arguments.shapes or (("1x16", "1x128", "8x128") if arguments.quick else SHAPES)
    arguments.rounds = arguments.rounds or (10 if arguments.quick else 30)
    torch.set_num_threads(arguments.threads)
    facts = {
        "seed": arguments.seed,
        "threads": arguments.threads,
        **provenance("bench.bench_export", ("torch", "transformers", "onnxruntime")),
    }
    with tempfile.TemporaryDirectory() as folder:
        print(summary(keep(measure_all(Path(folder), arguments), facts, arguments.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
