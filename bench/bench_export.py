"""Latency of an exported classifier, and the throughput of a whole file, against the model it was made from, in turn.

    python -m bench.bench_export --bundle BUNDLE --checkpoint FOLDER [--texts FILE] [--shapes 1x128 ...] [--rounds 30] [--threads 1] [--compile] [--output FILE]

Every contender runs the same batch once a round, one after the other, so that a machine that drifts slows all of them; a row holds the median of its
milliseconds and the quartiles of the ratios to torch eager, taken round by round. Other people's files are contenders too: --other NAME=FILE.onnx.
"""

from __future__ import annotations

import argparse
import json
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


def compare(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds (median) and ratio to the first contender (quartiles and median) of each, taken in turn."""
    for run in contenders.values():
        for _ in range(WARM_UP):
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.bench_export")
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--texts")
    parser.add_argument("--other", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = latency(arguments) + (throughput(arguments) if arguments.texts else [])
    facts = {"threads": arguments.threads, **provenance("bench.bench_export", ("torch", "transformers", "onnxruntime"))}
    lines = [json.dumps({**row, **facts}) for row in rows]
    print(*lines, sep="\n")
    if arguments.output:
        with open(arguments.output, "a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
