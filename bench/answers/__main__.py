"""What a trained classifier's answers are worth, and what they cost: calibration on texts that it did not see, and answers to texts in memory side by side.

    python -m bench.answers --task sst2 --checkpoint RUN/model [--data DIR] [--parts calibration speed] [--quick] [--output FILE]

`calibration`: the dev set is halved at random; one half calibrates, and on the other the expected calibration error is measured before and after, and the
precision of each class from the threshold on that was to have 95 %. `speed`: the dev set's texts through bertfast.Classifier, through transformers' pipeline at
several batch sizes, and, as token ids that lie in a cache, through the trainer's own packed evaluation. All float32, in one process, taking turns.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.harness.intervals import Ratio, take_turns, timing_rows
from bench.harness.provenance import provenance
from bench.harness.rows import keep
from bertfast.calibration import Aim, Aims, find_calibration, reliability
from bertfast.calibration.thresholds import Share
from bertfast.config.load import load_config
from bertfast.config.schema import InputConfig
from bertfast.data.load import encode
from bertfast.engine.ranks import start_ranks
from bertfast.errors import DataError
from bertfast.inference.classifier import Classifier
from bertfast.readers.splits import load_split
from bertfast.tasks.calibrated import Calibration
from bertfast.training.batches import compute_logits
from bertfast.training.loader import Loader

TASKS = {"sst2": ("SST-2", "dev"), "mnli": ("MNLI", "dev_matched")}
PARTS = ("calibration", "speed")
PRECISION = 0.95
BATCH_SIZES = (1, 8, 32, 128)  # of the pipeline
ROUNDS, HALVES = 10, 5
PACKAGES = ("torch", "transformers", "tokenizers", "scikit-learn", "scipy", "numpy")


def calibration_rows(
    task_name: str, classifier: Classifier, texts: tuple, labels: np.ndarray, seeds: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """A row for each way to halve the examples."""
    logits, task = classifier.logits(*texts), classifier.task
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(labels))
        seen, unseen = order[: len(order) // 2], order[len(order) // 2 :]
        try:
            found, unreached = find_calibration(task, logits[seen], labels[seen], Aims(Aim("precision", PRECISION)), seed), None
        except DataError as error:  # a class has no such threshold
            found, unreached = find_calibration(task, logits[seen], labels[seen], Aims(), seed), str(error)
        before, after = (one.probabilities(task, logits[unseen]) for one in (Calibration(), found))
        errors = [reliability(task, chances, labels[unseen]) for chances in (before, after)]
        answered, best = found.answered(task, after), after.argmax(axis=1)
        precisions = {}
        for index, name in enumerate(task.class_names):
            taken = answered & (best == index)
            precisions[name] = Share.of(int((labels[unseen][taken] == index).sum()), int(taken.sum()))
        yield {
            "suite": "answers",
            "case": f"{task_name}, half of the dev set by the other, halves {seed}",
            "method": found.method,
            "examples": len(unseen),
            "error_before": [round(value, 5) for value in errors[0][:3]],
            "error_after": [round(value, 5) for value in errors[1][:3]],
            "precision": {name: [round(value, 4) for value in share] for name, share in precisions.items()},
            "unreached": unreached,
            "answered": round(float(answered.mean()), 4),
            "accuracy": round(float((best == labels[unseen]).mean()), 4),
            "accuracy_of_answered": round(float((best == labels[unseen])[answered].mean()), 4),
        }


def speed_rows(task_name: str, checkpoint: Path, classifier: Classifier, rows: Any, texts: tuple, rounds: int) -> list[dict[str, Any]]:
    """Seconds for all texts, by contenders that take turns; their answers are held against each other first."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    config = load_config(checkpoint / "bertfast.json")
    source, ranks = config.bertfast.eval_input or InputConfig(), start_ranks("cpu", None)
    trained, tokenizer = Loader(config, ranks).trained(str(checkpoint), "fp32")
    data = encode(rows, tokenizer, source.max_sequence_length)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32)
    piped = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(checkpoint), top_k=None, device="cpu")
    pairs = texts[0] if texts[1] is None else [{"text": a, "text_pair": b} for a, b in zip(*texts, strict=True)]
    source, count = source.model_copy(update={"batch_size": 256, "tokens_per_batch": 8192}), classifier.task.num_labels
    contenders = {
        f"transformers pipeline, batches of {size}": (lambda size=size: piped(pairs, batch_size=size, truncation=True))
        for size in BATCH_SIZES
    }
    contenders["the trainer's packed evaluation, from cached ids"] = lambda: compute_logits(trained, data, source, count, ranks)
    contenders["bertfast.Classifier"] = lambda: classifier.predict(*texts)
    theirs = [max(answer, key=lambda one: one["score"])["label"] for answer in piped(pairs, batch_size=32, truncation=True)]
    same = float(np.mean([ours.label == label for ours, label in zip(classifier.predict(*texts), theirs, strict=True)]))
    seconds = take_turns({name: timed(answer) for name, answer in contenders.items()}, rounds, warm_up=1)
    best = min(list(contenders)[: len(BATCH_SIZES)], key=lambda name: float(np.median(seconds[name])))
    common = {
        "suite": "answers",
        "case": f"{task_name} dev, {len(texts[0])} texts in memory, {torch.get_num_threads()} threads",
        "same": same,
    }
    return timing_rows(common, seconds, [best, "the trainer's packed evaluation, from cached ids"])


def timed(answer: Callable[[], Any]) -> Callable[[int], float]:
    """The same as a round of taking turns."""

    def run(_: int) -> float:
        began = time.perf_counter()
        answer()
        return time.perf_counter() - began

    return run


def shown(row: dict[str, Any]) -> str:
    if "method" in row:
        (before, *_), (after, low, high) = row["error_before"], row["error_after"]
        precisions = ", ".join(f"{name} {value:.3f} [{low:.3f}, {high:.3f}]" for name, (value, low, high) in row["precision"].items())
        return f"{row['case']}: {row['method']}, error {before:.4f} -> {after:.4f} [{low:.4f}, {high:.4f}]; {row['answered']:.1%} answered, precision {precisions}"
    ratios = ", ".join(f"{Ratio.from_row(ratio)} {ratio['to']}" for ratio in row["ratios"])
    return f"{row['case']}: {row['contender']:52s} {np.median(row['samples']):7.3f} s  {ratios}"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("BERTFAST_DATA")
    parser.add_argument("--data", type=Path, default=data and Path(data) / "glue", help="a folder of GLUE folders")
    parser.add_argument("--task", choices=list(TASKS), default="sst2")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a model that was fine-tuned on the task")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--texts", type=int, help="of the dev set, evenly; left out: all")
    parser.add_argument("--quick", action="store_true", help="128 texts, two halves, 8 rounds")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(words)
    folder, split = TASKS[options.task]
    rows = load_split(options.task, InputConfig(data_dir=str(options.data / folder)), split)
    rows = rows.sample(128, 0) if options.quick else rows.sample(options.texts, 0) if options.texts else rows
    texts = (list(rows.text_a), None if rows.text_b is None else list(rows.text_b))
    classifier, facts = Classifier.from_pretrained(options.checkpoint, device="cpu"), provenance("bench.answers", PACKAGES)
    if "calibration" in options.parts:
        halves = calibration_rows(options.task, classifier, texts, rows.labels, range(2 if options.quick else HALVES))
        for row in keep(halves, facts, options.output):
            print(shown(row), flush=True)
    if "speed" in options.parts:
        timed = speed_rows(options.task, options.checkpoint, classifier, rows, texts, 8 if options.quick else ROUNDS)
        for row in keep(timed, facts, options.output):
            print(shown(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
