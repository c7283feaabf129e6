"""Training speed side by side: transformers with dynamic padding against bertfast with DeepSpeed, the same batches, step by step in turn.

    python -m bench.speed --data DIR --checkpoint FOLDER [--tasks sst2 mnli] [--steps 30] [--output FILE]

Each contender lives in a process of its own, as its user would run it, and takes a whole step (forward, backward, clipping, AdamW) on the same
32 examples while the others wait; then the next one does, so that a machine that drifts slows all of them. Dropout is 0.1 on all sides. A row
holds the median and quartiles of the samples a second, and of the ratios taken step by step.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import subprocess
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from bench.accuracy import BATCH_SIZE, LEARNING_RATE, SETTINGS, config_of
from bertfast.config import load_config
from bertfast.data import load_dataset_for
from bertfast.engine import build_engine, start_ranks
from bertfast.model import BertClassifier, RandomBits, loss_sum
from bertfast.optim import parameter_groups
from bertfast.packing import PackedBatch
from bertfast.planning import plan_examples
from bertfast.resolve import resolve_batch_sizes
from bertfast.tasks import get_task

WARM_UP = 4  # steps of each contender before any is timed
Step = Callable[[PackedBatch], None]


def transformers_step(checkpoint: str, num_labels: int, autocast: bool) -> Step:
    """A plain PyTorch loop, as transformers' documentation has it, with AdamW in torch's fused form."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=num_labels, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=LEARNING_RATE, fused=True)

    def step(batch: PackedBatch) -> None:
        features = {name: value.long() for name, value in batch.to_features().items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(**features).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def bertfast_step(config: dict, num_labels: int) -> Step:
    """The trainer's own step: DeepSpeed's engine around the packed model."""
    loaded = load_config(config)
    ranks = start_ranks("cpu", None)
    model = BertClassifier.from_pretrained(loaded.bertfast.model.checkpoint, num_labels, new_head=True)
    engine = build_engine(model, loaded, resolve_batch_sizes(loaded, 1), 10_000, ranks)
    engine.train()

    def step(batch: PackedBatch) -> None:
        bits = RandomBits(stream=np.random.Generator(np.random.SFC64(0)))
        engine.backward(loss_sum(engine(batch, bits), batch.labels) / batch.num_sequences, scale_wrt_gas=False)
        engine.step()

    return step


CONTENDERS = ("transformers fp32", "transformers bf16 autocast", "bertfast fp32", "bertfast bf16")


def work(name: str, task: str, data: Path, checkpoint: str, steps: int, pipe: Connection) -> None:
    """The process of one contender: takes a step for each number received, and sends its seconds."""
    from transformers import AutoTokenizer

    torch.manual_seed(42)
    config = config_of(task, data, checkpoint, "runs/speed", 42, bf16=name.endswith("bf16"))
    source = load_config(config).bertfast.train_input
    train = load_dataset_for(get_task(task), source, "train", AutoTokenizer.from_pretrained(checkpoint), 42)
    labels = train.task.num_labels
    step = (
        bertfast_step(config, labels) if name.startswith("bertfast") else transformers_step(checkpoint, labels, name.endswith("autocast"))
    )
    plan = plan_examples(train.lengths, BATCH_SIZE, seed=42)
    batches = [train.batch(plan.micro_batches(index % len(plan), 0)[0]) for index in range(WARM_UP + steps)]
    pipe.send(torch.get_num_threads())
    while (index := pipe.recv()) is not None:
        began = time.perf_counter()
        step(batches[index])
        pipe.send(time.perf_counter() - began)


def measure(task: str, data: Path, checkpoint: str, steps: int) -> list[dict]:
    """One row a contender."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in CONTENDERS:
        pipes[name], theirs = context.Pipe()
        context.Process(target=work, args=(name, task, data, checkpoint, steps, theirs), daemon=True).start()
    threads = {name: pipe.recv() for name, pipe in pipes.items()}
    seconds = {name: [] for name in CONTENDERS}
    for index in range(WARM_UP + steps):
        for name, pipe in pipes.items():
            pipe.send(index)
            taken = pipe.recv()
            if index >= WARM_UP:
                seconds[name].append(taken)
    for pipe in pipes.values():
        pipe.send(None)
    quartiles = lambda values: [round(float(value), 2) for value in np.percentile(values, [25, 50, 75])]  # noqa: E731
    return [
        {
            "task": task,
            "contender": name,
            "samples_per_second": quartiles(BATCH_SIZE / np.array(taken)),
            "speedup": {base: quartiles(np.array(seconds[base]) / np.array(taken)) for base in CONTENDERS[:2]},
            "threads": threads[name],
        }
        for name, taken in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of GLUE folders")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--tasks", nargs="+", default=["sst2", "mnli"], choices=list(SETTINGS))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    for task in arguments.tasks:
        for row in measure(task, arguments.data, arguments.checkpoint, arguments.steps):
            row |= {
                "steps": arguments.steps,
                "batch_size": BATCH_SIZE,
                "checkpoint": Path(arguments.checkpoint).name,
                "versions": {"torch": torch.__version__, "python": platform.python_version()},
                "commit": commit,
            }
            print(json.dumps(row), flush=True)
            if arguments.output:
                with open(arguments.output, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
