"""Latency of an exported classifier, and the throughput of a whole file, against the model it was made from, in turn.

    python -m bench.bench_export --bundle BUNDLE --checkpoint FOLDER [--texts FILE] [--shapes 1x128 ...] [--rounds 30] [--threads 1] [--compile] [--command TSV] [--output FILE]

Every contender runs the same batch once a round, one after the other, so that a machine that drifts slows all of them; a row holds the median of its
milliseconds and the quartiles of the ratios to torch eager, taken round by round. Other people's files are contenders too: --other NAME=FILE.onnx.
`--command TSV` times whole commands over a file: `bertfast predict --onnx`, its start among it, and a program that loads the model with transformers and
runs batches padded to their longest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bench.harness import provenance
from bertfast_export.classifier import FILES, OnnxClassifier
from bertfast_export.runtime import open_session
from bertfast_export.verify import run_cases

SHAPES = ("1x16", "1x128", "1x512", "8x16", "8x128", "8x512", "32x16", "32x128", "32x512")  # texts x tokens
WARM_UP = 3
# What is written by most who deploy nothing: a file's rows in their order, 32 at a time, each batch padded to its longest.
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


def compare(contenders: dict[str, Callable[[], object]], rounds: int, warm_up: int = WARM_UP) -> dict[str, dict[str, list[float]]]:
    """Milliseconds (median) and ratio to the first contender (quartiles and median) of each, taken in turn."""
    for run in contenders.values():
        for _ in range(warm_up):
            run()
    seconds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    first = np.array(next(iter(seconds.values())))
    return {
        name: {
            "milliseconds": round(float(np.median(taken)) * 1e3, 3),
            "speedup": np.percentile(first / np.array(taken), [25, 50, 75]).round(2).tolist(),
        }
        for name, taken in seconds.items()
    }


def latency(arguments: argparse.Namespace) -> list[dict]:
    """A row for each shape and contender."""
    runs = {"torch eager": eager(arguments.checkpoint)}
    if arguments.compile:
        runs["torch.compile"] = eager(arguments.checkpoint, compiled=True)
    files = {
        name: Path(arguments.bundle) / file for name, file in FILES.items() if (Path(arguments.bundle) / file).is_file() and name != "fp16"
    }
    files |= {name: Path(path) for name, _, path in (other.partition("=") for other in arguments.other)}
    runs |= {name: onnx_file(path, arguments.threads) for name, path in files.items()}
    rng, rows = np.random.default_rng(0), []
    for batch, width in (map(int, shape.split("x")) for shape in arguments.shapes):
        ids = rng.integers(1000, 20_000, (batch, width))
        features = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        rounds = max(5, arguments.rounds * 128 // (batch * width)) if batch * width > 128 else arguments.rounds
        measured = compare({name: (lambda run=run, features=features: run(features)) for name, run in runs.items()}, rounds)
        rows += [
            {"what": "latency", "batch": batch, "tokens": width, "contender": name, "rounds": rounds, **row}
            for name, row in measured.items()
        ]
    return rows


def throughput(arguments: argparse.Namespace) -> list[dict]:
    """A row for each contender over a whole file, one text a line: a loop over batches of 32 padded to their longest, and the classifier."""
    from transformers import AutoTokenizer

    texts = Path(arguments.texts).read_text(encoding="utf-8").splitlines()
    tokenizer, model = AutoTokenizer.from_pretrained(arguments.checkpoint), eager(arguments.checkpoint)

    def loop() -> None:
        for begin in range(0, len(texts), 32):
            model(dict(tokenizer(texts[begin : begin + 32], padding=True, truncation=True, return_tensors="np")))

    contenders: dict[str, Callable[[], object]] = {"torch eager, padded to the longest": loop}
    for name, file in FILES.items():
        if name != "fp16" and (Path(arguments.bundle) / file).is_file():
            classifier = OnnxClassifier.from_bundle(arguments.bundle, name, threads=arguments.threads)
            contenders[f"predict --onnx, {name}"] = lambda classifier=classifier: classifier.logits(texts)
    return [{"what": "throughput", "texts": len(texts), "contender": name, **row} for name, row in compare(contenders, 5).items()]


def commands(arguments: argparse.Namespace) -> list[dict]:
    """A row for each contender over a whole file, as a process of its own from its start to its last answer written."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}

    def process(*command: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *command], env=environment, check=True, capture_output=True)

    with tempfile.TemporaryDirectory(prefix="bertfast-") as scratch:
        answers = str(Path(scratch) / "answers.jsonl")
        padded = process("-c", _PADDED, arguments.checkpoint, arguments.command, answers, str(arguments.threads))
        contenders = {"a loop of transformers, padded to the longest": padded}
        for name, file in FILES.items():
            if name != "fp16" and (Path(arguments.bundle) / file).is_file():
                command = ("-m", "bertfast", "predict", "--onnx", arguments.bundle, "--variant", name, "--input", arguments.command)
                contenders[f"bertfast predict --onnx, {name}"] = process(*command, "--output", answers)
        measured = compare(contenders, arguments.command_rounds, warm_up=1)
    with open(arguments.command, encoding="utf-8") as file:
        rows = sum(1 for _ in file) - 1
    return [{"what": "command", "rows": rows, "contender": name, **row} for name, row in measured.items()]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.bench_export")
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--texts")
    parser.add_argument("--command", metavar="TSV", help="a file with a column named sentence")
    parser.add_argument("--command_rounds", type=int, default=5)
    parser.add_argument("--other", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--shapes", nargs="*", default=SHAPES, help="none, where only --texts or --command are asked for: --shapes")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = (latency(arguments) if arguments.shapes else []) + (throughput(arguments) if arguments.texts else [])
    rows += commands(arguments) if arguments.command else []
    facts = {"threads": arguments.threads, **provenance("bench.bench_export", ("torch", "transformers", "onnxruntime"))}
    lines = [json.dumps({**row, **facts}) for row in rows]
    print(*lines, sep="\n")
    if arguments.output:
        with open(arguments.output, "a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
