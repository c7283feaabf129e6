"""Whole commands over a file, each from its start to its last answer written: `bertfast predict --onnx`, and a program that loads transformers."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.harness.intervals import MIN_ROUNDS, significant, take_turns, timing_rows
from bench.harness.processes import command_environment

PADDED = "a loop of transformers, padded to the longest"
_LOOP = """
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


def command_rows(checkpoint: Path, bundle: Path, variants: Sequence[str], source: Path, threads: int) -> list[dict[str, Any]]:
    """A row for each command over `source`, a TSV with a column named sentence."""
    environment = command_environment(OMP_NUM_THREADS=str(threads))

    def turn(*command: str) -> Callable[[int], float]:
        def run(_: int) -> float:
            began = time.perf_counter()
            subprocess.run([sys.executable, *command], env=environment, check=True, capture_output=True)
            return time.perf_counter() - began

        return run

    with open(source, encoding="utf-8") as file:
        texts = sum(1 for _ in file) - 1
    with tempfile.TemporaryDirectory() as scratch:
        answers = str(Path(scratch) / "answers.jsonl")
        contenders = {PADDED: turn("-c", _LOOP, str(checkpoint), str(source), answers, str(threads))}
        for name in variants:
            command = ("-m", "bertfast", "predict", "--onnx", str(bundle), "--variant", name, "--input", str(source), "--output", answers)
            contenders[f"bertfast predict --onnx, {name}"] = turn(*command)
        seconds = take_turns(contenders, MIN_ROUNDS, warm_up=1)
    common = {
        "suite": "inference",
        "measure": "command",
        "case": f"whole commands, a file of {texts} text{'s' * (texts > 1)}, {threads} threads",
        "texts": texts,
    }
    rows = timing_rows({**common, "threads": threads}, seconds, [PADDED])
    return [{**row, "milliseconds": [significant(1e3 * value) for value in row["seconds"]]} for row in rows]
