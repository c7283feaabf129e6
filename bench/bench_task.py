"""Whole fine-tuning runs side by side: time and accuracy of bertfast, of transformers in a plain loop, and of transformers' Trainer.

    python -m bench.bench_task --data DIR --checkpoint FOLDER [--tasks sst2 mnli cola stsb topics] [--quick] [--output FILE]

The same rows, epochs, batch size, rate and schedule. Each contender is a process of its own; a run is cut into segments of equally many steps, and
the contenders take turns with them, so that their times can be compared segment by segment. Evaluation is not in the times: after every segment on a
part of the dev set (the curve of score against seconds), and at the end on all of it. transformers pads to the longest of a batch and runs in
bfloat16 autocast; its Trainer groups by length.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bench.cases.topics import LABELS, write_topics
from bench.harness.intervals import Ratio, timing_rows, turns
from bench.harness.provenance import provenance
from bench.harness.rows import keep
from bertfast.config.load import load_config
from bertfast.data.load import EncodedDataset, load_dataset_for
from bertfast.engine.optimizer import linear_schedule, parameter_groups
from bertfast.engine.ranks import start_ranks
from bertfast.packing.plans import plan_examples, plan_sequential
from bertfast.tasks.catalogue import get_task
from bertfast.tasks.metrics import compute_metrics

SETTINGS = {  # task: folder, training rows (None: all), epochs
    "sst2": ("SST-2", 16_000, 1),
    "mnli": ("MNLI", None, 2),
    "cola": ("CoLA", None, 2),
    "stsb": ("STS-B", None, 2),
    "topics": ("../ag_news", None, 2),  # several labels a text, see cases/topics.py
}
TOPICS = {"name": "topics", "text_columns": ["text"], "label_column": "topics", "label_names": list(LABELS), "labels": "several"}
BATCH_SIZE, LEARNING_RATE, WARMUP_RATIO, WEIGHT_DECAY = 32, 5e-5, 0.06, 0.01
SEGMENTS = 10
PACKAGES = ("torch", "transformers", "deepspeed", "accelerate", "numpy")
CONTENDERS = ("transformers bf16 autocast", "transformers Trainer bf16, length-grouped", "bertfast fp32", "bertfast bf16")


class Run(NamedTuple):
    """What a contender is given. data: the folder of the task. curve: rows of the dev set that are scored after each segment."""

    task: str
    data: Path
    checkpoint: str
    rows: int | None
    epochs: int
    seed: int
    curve: int

    def config(self, bf16: bool, model_dir: str = "runs/bench-task") -> dict[str, Any]:
        data_dir, some = str(self.data), {"max_examples": self.rows} if self.rows else {}
        run = {"model_dir": model_dir, "epochs": self.epochs, "seed": self.seed, "warmup_ratio": WARMUP_RATIO, "logging_steps": 10**6}
        return {
            "gradient_clipping": 1.0,
            "bf16": {"enabled": bf16},
            "optimizer": {"type": "AdamW", "params": {"lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY}},
            "bertfast": {
                "task": TOPICS if self.task == "topics" else self.task,
                "model": {"checkpoint": self.checkpoint},
                "train_input": {"data_dir": data_dir, "batch_size": BATCH_SIZE, **some},
                "eval_input": {"data_dir": data_dir, "batch_size": 128},
                "run": {**run, "eval_steps": 10**9, "save_steps": 10**9},
            },
        }


class Turns:
    """One contender's side of taking turns: it waits before a segment's first step, and reports after its last."""

    def __init__(self, pipe: Connection, total_steps: int, score: Callable[[], float]):
        self._pipe, self._score = pipe, score
        self._ends = {round((index + 1) * total_steps / SEGMENTS) for index in range(SEGMENTS)}
        self._began: float | None = None

    def before(self) -> None:
        if self._began is None:
            self._pipe.recv()
            self._began = time.perf_counter()

    def after(self, steps_done: int) -> None:
        if steps_done in self._ends:
            seconds = time.perf_counter() - self._began
            self._pipe.send({"seconds": seconds, "score": self._score()})
            self._began = None


def run_bertfast(run: Run, bf16: bool, pipe: Connection) -> dict[str, Any]:
    """Fine-tune with bertfast's own trainer, which is made to wait for its turns."""
    from bertfast.training.batches import compute_logits
    from bertfast.training.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(load_config(run.config(bf16, folder)), device="cpu")
        take, turns = trainer._step, None

        def score_of_part(fitting, part: Part) -> float:
            task = trainer.task
            logits = compute_logits(fitting.engine, part, fitting.objective.evaluation_source, task.num_labels, fitting.ranks)
            return compute_metrics(task, logits, part.labels)[task.main_metric]

        def step_in_turn(fitting, watch, step, batches, n_examples):
            nonlocal turns
            if turns is None:
                part = curve_set(run, next(iter(fitting.eval_sets.values())))
                turns = Turns(pipe, fitting.total_steps, lambda: score_of_part(fitting, part))
            turns.before()
            stepped = take(fitting, watch, step, batches, n_examples)
            turns.after(step + 1)
            return stepped

        trainer._step = step_in_turn
        results = trainer.fit()
    return {"metrics": results["metrics"], "steps": results["training"]["steps"]}


class Part:
    """The first rows of a data set, in the shape that evaluation asks for."""

    def __init__(self, dataset: EncodedDataset, rows: int):
        self._dataset, self.lengths, self.labels = dataset, dataset.lengths[:rows], dataset.labels[:rows]
        self.batch = dataset.batch

    def __len__(self) -> int:
        return len(self.lengths)


def curve_set(run: Run, dataset: EncodedDataset) -> Part:
    return Part(dataset, run.curve)


def run_transformers(run: Run, pipe: Connection) -> dict[str, Any]:
    """A plain PyTorch loop with dynamic padding, bfloat16 autocast, fused AdamW and transformers' linear schedule."""
    from transformers import AutoModelForSequenceClassification

    train, splits = datasets_of(run)
    task = train.task
    torch.manual_seed(run.seed)
    kind = {"problem_type": "multi_label_classification"} if task.is_multilabel else {}
    model = AutoModelForSequenceClassification.from_pretrained(run.checkpoint, num_labels=task.num_labels, dtype=torch.float32, **kind)
    optimizer = torch.optim.AdamW(parameter_groups(model, WEIGHT_DECAY), lr=LEARNING_RATE, fused=True)
    per_epoch = len(plan_examples(train.lengths, BATCH_SIZE, seed=run.seed))
    total = round(run.epochs * per_epoch)
    schedule = linear_schedule(round(WARMUP_RATIO * total), total)(optimizer)
    part = curve_set(run, next(iter(splits.values())))
    taking = Turns(pipe, total, lambda: score(model, part, task)[task.main_metric])
    for step in range(total):
        taking.before()
        epoch, index = divmod(step, per_epoch)
        if index == 0:
            plan = plan_examples(train.lengths, BATCH_SIZE, seed=run.seed, epoch=epoch)
        features = train.batch(plan.micro_batches(index, 0)[0]).to_features()
        features["labels"] = features["labels"] if task.is_regression or task.is_multilabel else features["labels"].long()
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**features).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        taking.after(step + 1)
    return {"metrics": {split: score(model, dataset, task) for split, dataset in splits.items()}, "steps": total}


def run_trainer(run: Run, pipe: Connection) -> dict[str, Any]:
    """transformers' Trainer, with its collator, its length grouping and bfloat16."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    train, splits = datasets_of(run)
    task = train.task
    torch.manual_seed(run.seed)
    kind = {"problem_type": "multi_label_classification"} if task.is_multilabel else {}
    model = AutoModelForSequenceClassification.from_pretrained(run.checkpoint, num_labels=task.num_labels, dtype=torch.float32, **kind)
    part = curve_set(run, next(iter(splits.values())))

    class TakingTurns(TrainerCallback):
        turns: Turns | None = None

        def on_step_begin(self, args, state, control, **more):
            self.turns = self.turns or Turns(pipe, state.max_steps, lambda: score(model, part, task)[task.main_metric])
            self.turns.before()

        def on_step_end(self, args, state, control, **more):
            self.turns.after(state.global_step)
            model.train()

    def rows() -> list[dict[str, Any]]:
        found = []
        for index in range(len(train)):
            batch = train.batch(np.array([index]))
            label = train.labels[index].astype(float if task.is_regression or task.is_multilabel else int).tolist()
            ids = {"input_ids": batch.input_ids.tolist(), "token_type_ids": batch.token_type_ids.tolist()}
            found.append({**ids, "attention_mask": [1] * batch.num_tokens, "labels": label, "length": batch.num_tokens})
        return found

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, num_train_epochs=run.epochs, per_device_train_batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY, warmup_steps=WARMUP_RATIO, bf16=True, use_cpu=True, seed=run.seed, save_strategy="no", report_to="none",
            train_sampling_strategy="group_by_length", disable_tqdm=True, logging_strategy="no", optim="adamw_torch_fused",
        )  # fmt: skip
        from datasets import Dataset

        collator = DataCollatorWithPadding(AutoTokenizer.from_pretrained(run.checkpoint))
        trainer = Trainer(model, arguments, collator, Dataset.from_list(rows()), callbacks=[TakingTurns()])
        trainer.train()
    steps = trainer.state.global_step
    return {"metrics": {split: score(model, dataset, task) for split, dataset in splits.items()}, "steps": steps}


def datasets_of(run: Run) -> tuple[EncodedDataset, dict[str, EncodedDataset]]:
    """The training set and the splits to evaluate on, as bertfast reads them; so both sides have the same rows and tokens."""
    from transformers import AutoTokenizer

    block = load_config(run.config(False)).bertfast
    tokenizer = AutoTokenizer.from_pretrained(run.checkpoint)
    train = load_dataset_for(get_task(block.task), block.train_input, "train", tokenizer, run.seed)
    return train, {split: load_dataset_for(train.task, block.eval_input, split, tokenizer, run.seed) for split in train.task.eval_splits}


def score(model, dataset, task) -> dict[str, float]:
    """Metrics of a transformers model."""
    model.eval()
    logits = np.zeros((len(dataset), task.num_labels), np.float32)
    plan = plan_sequential(dataset.lengths, 128)
    for step in range(len(plan)):
        (indices,) = plan.micro_batches(step, 0)
        features = dataset.batch(indices).to_features()
        features.pop("labels")
        with torch.inference_mode():
            logits[indices] = model(**features).logits.float().numpy()
    return compute_metrics(task, logits, dataset.labels)


def work(name: str, run: Run, pipe: Connection) -> None:
    """The process of one contender."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    start_ranks("cpu", None)  # the same threads and allocator for all
    try:
        if name.startswith("bertfast"):
            answer = run_bertfast(run, name.endswith("bf16"), pipe)
        else:
            answer = run_trainer(run, pipe) if "Trainer" in name else run_transformers(run, pipe)
    except Exception as error:  # the others go on, and the row says so
        traceback.print_exc()
        answer = {"fault": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}
    pipe.send(answer)


def ask(pipe: Connection, word: str | None = None) -> dict[str, Any]:
    """A contender's answer to a word, or without one what it says unasked. A process that has ended may have said why before."""
    try:
        if word is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                pipe.send(word)
        return pipe.recv()
    except (EOFError, ConnectionResetError):
        return {"fault": "its process ended (out of memory?)"}


def measure(run: Run, names: Sequence[str] = CONTENDERS) -> list[dict[str, Any]]:
    """One row a contender: seconds by segment, the curve, and the final metrics."""
    context = multiprocessing.get_context("spawn")
    pipes, final, reports = {}, {}, {name: [] for name in names}
    for name in names:
        pipes[name], theirs = context.Pipe()
        context.Process(target=work, args=(name, run, theirs), daemon=True).start()
        theirs.close()
    for index in range(SEGMENTS):
        for name in turns(list(names), index):
            if name not in final:
                answer = ask(pipes[name], "go")
                if "fault" in answer:
                    final[name] = answer
                else:
                    reports[name].append(answer)
    for name in names:
        final[name] = final.get(name) or ask(pipes[name])
    common = {"suite": "task", "case": run.task, "task": run.task, "rows": run.rows, "epochs": run.epochs, "batch_size": BATCH_SIZE}
    faults = [{**common, "contender": name, "fault": found["fault"]} for name, found in final.items() if "fault" in found]
    seconds = {name: [answer["seconds"] for answer in reports[name]] for name in names if "fault" not in final[name]}
    rows = timing_rows(common, seconds, CONTENDERS[:2])
    for row in rows:
        taken, done = np.cumsum(row["samples"]), final[row["contender"]]
        row["curve"] = [[round(float(at), 2), answer["score"]] for at, answer in zip(taken, reports[row["contender"]], strict=True)]
        row |= {"train_seconds": round(float(taken[-1]), 2), "samples_per_second": round(done["steps"] * BATCH_SIZE / float(taken[-1]), 2)}
        row |= {"metrics": done["metrics"], "checkpoint": Path(run.checkpoint).name}
    return rows + faults


def summary(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        head = f"{row['task']:8s} {row['contender']:44s}"
        if "fault" in row:
            lines.append(f"{head} did not run: {row['fault']}")
            continue
        scores = ", ".join(f"{split} {name} {value:.4f}" for split, found in row["metrics"].items() for name, value in found.items())
        ratio = f"{Ratio.from_row(row['ratios'][0])}" if row["ratios"] else ""
        lines.append(f"{head} {row['train_seconds']:9.1f} s  {row['samples_per_second']:8.1f} samples/s  {ratio:24s} {scores}")
    return "\n".join(["", *lines])


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data, models = os.environ.get("BERTFAST_DATA"), os.environ.get("BERTFAST_MODELS")
    parser.add_argument("--data", type=Path, default=data and Path(data) / "glue", help="a folder of GLUE folders")
    parser.add_argument("--checkpoint", default=models and str(Path(models) / "all-MiniLM-L6-v2"))
    parser.add_argument("--quick", action="store_true", help="SST-2 alone, 320 rows, two contenders")
    parser.add_argument("--tasks", nargs="+", default=None, choices=list(SETTINGS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS)
    parser.add_argument("--rows", type=int, help="of the training set, in place of the task's own number")
    parser.add_argument("--curve", type=int, help="dev rows that are scored after each segment; left out: 500, or 64 with --quick")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(words)
    if not options.data or not options.checkpoint:
        print("task: skipped, for want of data: give --data and --checkpoint, or set BERTFAST_DATA and BERTFAST_MODELS")
        return 0
    names = options.contenders or ((CONTENDERS[0], CONTENDERS[-1]) if options.quick else CONTENDERS)
    facts, rows = {"seed": options.seed, **provenance("bench.bench_task", PACKAGES)}, []
    for task in options.tasks or (["sst2"] if options.quick else list(SETTINGS)):
        name, count, epochs = SETTINGS[task]
        count, curve = options.rows or (320 if options.quick else count), options.curve or (64 if options.quick else 500)
        with tempfile.TemporaryDirectory() as made:
            folder = write_topics(options.data / name, Path(made)) if task == "topics" else options.data / name
            rows += keep(measure(Run(task, folder, options.checkpoint, count, epochs, options.seed, curve), names), facts, options.output)
    print(summary(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
