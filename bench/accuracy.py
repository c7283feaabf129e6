"""Accuracy side by side: the same rows, epochs, batch size, rate and schedule, by transformers in a plain PyTorch loop and by bertfast.

    python -m bench.accuracy --data DIR --checkpoint FOLDER [--tasks sst2 mnli cola stsb] [--output FILE]

transformers runs as its documentation has it on a CPU: dynamic padding and bfloat16 autocast. bertfast runs through `Trainer`, in float32 and in
bfloat16. Prints and writes one JSON row a run; the time of a run is for orientation (runs follow one another; see bench/speed.py for speed).
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bertfast.config import load_config
from bertfast.data import load_dataset_for
from bertfast.metrics import compute_metrics
from bertfast.optim import linear_schedule, parameter_groups
from bertfast.planning import plan_examples, plan_sequential
from bertfast.tasks import get_task

SETTINGS = {  # task: folder, training rows (None: all), epochs
    "sst2": ("SST-2", 16_000, 1),
    "mnli": ("MNLI", None, 2),
    "cola": ("CoLA", None, 2),
    "stsb": ("STS-B", None, 2),
}
BATCH_SIZE, LEARNING_RATE, WARMUP_RATIO, WEIGHT_DECAY = 32, 5e-5, 0.06, 0.01


def config_of(task: str, data: Path, checkpoint: str, model_dir: str, seed: int, bf16: bool) -> dict:
    """The config of one run."""
    folder, rows, epochs = SETTINGS[task]
    return {
        "gradient_clipping": 1.0,
        "bf16": {"enabled": bf16},
        "optimizer": {"type": "AdamW", "params": {"lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY}},
        "bertfast": {
            "task": task,
            "model": {"checkpoint": checkpoint},
            "train_input": {"data_dir": str(data / folder), "batch_size": BATCH_SIZE, **({"max_examples": rows} if rows else {})},
            "eval_input": {"data_dir": str(data / folder), "batch_size": 128},
            "run": {"model_dir": model_dir, "epochs": epochs, "seed": seed, "warmup_ratio": WARMUP_RATIO, "logging_steps": 100},
        },
    }


def run_bertfast(config: dict) -> dict:
    """Fine-tune with bertfast; metrics by split, of the last step, and training samples a second."""
    from bertfast.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        config["bertfast"]["run"]["model_dir"] = folder
        config["bertfast"]["run"]["eval_steps"] = 10**9  # at the end alone, as the other side does
        results = Trainer(load_config(config), device="cpu").fit()
    return {"metrics": results["metrics"], "samples_per_second": results["training"]["samples_per_second"]}


def run_transformers(config: dict) -> dict:
    """The same with transformers: dynamic padding, bfloat16 autocast, AdamW and its linear schedule."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    loaded = load_config(config)
    block, run = loaded.bertfast, loaded.bertfast.run
    tokenizer = AutoTokenizer.from_pretrained(block.model.checkpoint)
    train = load_dataset_for(get_task(block.task), block.train_input, "train", tokenizer, run.seed)
    task = train.task
    torch.manual_seed(run.seed)
    model = AutoModelForSequenceClassification.from_pretrained(block.model.checkpoint, num_labels=task.num_labels, dtype=torch.float32)
    optimizer = torch.optim.AdamW(parameter_groups(model, WEIGHT_DECAY), lr=LEARNING_RATE)
    steps_per_epoch = len(plan_examples(train.lengths, BATCH_SIZE, seed=run.seed))
    total = round(run.epochs * steps_per_epoch)
    schedule = linear_schedule(round(WARMUP_RATIO * total), total)(optimizer)
    began = time.perf_counter()
    for step in range(total):
        epoch, index = divmod(step, steps_per_epoch)
        if index == 0:
            plan = plan_examples(train.lengths, BATCH_SIZE, seed=run.seed, epoch=epoch)
        features = train.batch(plan.micro_batches(index, 0)[0]).to_features()
        features["labels"] = features["labels"].long() if task.num_labels > 1 else features["labels"]
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**features).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - began
    model.eval()
    metrics = {}
    for split in task.eval_splits:
        dataset = load_dataset_for(task, block.eval_input, split, tokenizer, run.seed)
        logits = np.zeros((len(dataset), task.num_labels), np.float32)
        plan = plan_sequential(dataset.lengths, 128)
        for step in range(len(plan)):
            (indices,) = plan.micro_batches(step, 0)
            features = dataset.batch(indices).to_features()
            features.pop("labels")
            with torch.inference_mode():
                logits[indices] = model(**features).logits.float().numpy()
        metrics[split] = compute_metrics(task, logits, dataset.labels)
    return {"metrics": metrics, "samples_per_second": round(run.epochs * len(train) / seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of GLUE folders")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--tasks", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    for task in arguments.tasks:
        for name, contender, bf16 in (
            ("bertfast fp32", run_bertfast, False),
            ("bertfast bf16", run_bertfast, True),
            ("transformers bf16 autocast", run_transformers, True),
        ):
            config = config_of(task, arguments.data, arguments.checkpoint, "runs/accuracy", arguments.seed, bf16)
            row = {
                "task": task,
                "contender": name,
                **contender(config),
                "seed": arguments.seed,
                "rows": SETTINGS[task][1],
                "epochs": SETTINGS[task][2],
                "checkpoint": Path(arguments.checkpoint).name,
                "versions": {"torch": torch.__version__, "python": platform.python_version()},
                "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            }
            print(json.dumps(row), flush=True)
            if arguments.output:
                with open(arguments.output, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
