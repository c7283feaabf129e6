"""What the recipes gain on real data: further pre-training, ways to read long documents, and the speed of packed pre-training.

    python -m bench.bench_recipes [--parts further recipes documents speed] [--quick] [--seeds 3] [--output FILE]

`further`: masked language modelling on SST-2's training text, and on WikiText-2's validation file; the loss on held-out text of the weights as they
came (with a new head), of the head trained alone, and of all trained; then SST-2 fine-tuned from each. `recipes`: SST-2 by the plain recipe and by
each other head, rate, schedule, loss and by several tasks, one thing changed at a time. `documents`: IMDb by head, tail, head and tail, and in
pieces. `speed`: tokens a second and peak memory of packed pre-training against transformers' BertForMaskedLM (see
contests/pretraining_contest.py). Every training is a process of its own, and every figure is read from its results.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import ROOT
from bench.contests.pretraining_contest import CONTENDERS, Job, contest
from bench.harness.intervals import Ratio, timing_rows
from bench.harness.provenance import provenance
from bench.harness.rows import keep

PACKAGES = ("torch", "transformers", "deepspeed", "numpy")
PARTS = ("further", "recipes", "documents", "speed")
OWN_LIMIT = 3600  # seconds that one training may take
TEXTS = {"sst2": "the task's own text", "wikitext2": "WikiText-2 (validation file)"}
TOP_FOUR = [-1, -2, -3, -4]
TOGETHER = "SST-2 and MNLI together, then SST-2"
RECIPES = {  # what is added to the `bertfast` block
    "plain": {},
    "head: last 4 layers, concatenated": {"head": {"layers": TOP_FOUR}},
    "head: mean of the tokens": {"head": {"pooling": "mean"}},
    "rates: decay 0.95 a layer": {"optimization": {"layer_learning_rate_decay": 0.95}},
    "rates: a layer more each 1/4 epoch": {"optimization": {"unfreeze_epochs": 0.25}},
    "schedule: slanted triangular": {"optimization": {"schedule": "slanted_triangular"}},
    "loss: label smoothing 0.1": {"loss": {"label_smoothing": 0.1}},
    "loss: R-Drop, weight 1": {"loss": {"r_drop": 1.0}},
    TOGETHER: {},
    "head: attention over the tokens": {"head": {"pooling": "attention"}},
    "head: a hidden layer of 384": {"head": {"hidden_sizes": [384]}},
    "rates: 3 lowest layers frozen": {"optimization": {"frozen_layers": 3}},
    "loss: focal, gamma 2": {"loss": {"focal_gamma": 2.0}},
    "loss: balanced class weights": {"loss": {"class_weights": "balanced"}},
    "head: mean and maximum of the tokens": {"head": {"pooling": "mean_max"}},
    "head: last 4 layers, maximum": {"head": {"layers": TOP_FOUR, "layer_pooling": "max"}},
    "rates: decay 0.8 a layer": {"optimization": {"layer_learning_rate_decay": 0.8}},
    "schedule: cosine": {"optimization": {"schedule": "cosine"}},
}
STRATEGIES = {
    "head": {"strategy": "head"},
    "tail": {"strategy": "tail"},
    "head+tail": {"strategy": "head_tail"},
    "hierarchical": {"strategy": "hierarchical"},
}


def run(command: str, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train in a process of its own, in `folder`; what its results.json holds.

    Raises:
        SystemExit: it fails; the end of what it said.
    """
    folder.mkdir(parents=True)
    config["bertfast"]["run"] |= {"model_dir": str(folder / "run"), "logging_steps": 50, "eval_steps": 10**9, "save_steps": 10**9}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    words = [sys.executable, "-m", "bertfast", command, "CPU", "--config", str(folder / "config.json")]
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(ROOT / "export"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(words, capture_output=True, text=True, timeout=OWN_LIMIT, env={**os.environ, "PYTHONPATH": path})
    if done.returncode:
        raise SystemExit(f"{folder.name}: {done.stderr[-1500:]}")
    return json.loads((folder / "run" / "results.json").read_text(encoding="utf-8"))


def config_of(task: str, data: Path, checkpoint: str, options: Any, rate: float) -> dict[str, Any]:
    """What the configs of this suite have in common; bf16 throughout."""
    return {
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": rate, "weight_decay": 0.01}},
        "bertfast": {
            "task": task,
            "model": {"checkpoint": checkpoint},
            "train_input": {"data_dir": str(data), "batch_size": 32, "cache_dir": options.cache},
            "eval_input": {"data_dir": str(data), "batch_size": 128, "cache_dir": options.cache},
            "run": {"seed": options.seed, "warmup_ratio": 0.1},
        },
    }


def seconds_and_tokens(results: dict[str, Any]) -> dict[str, Any]:
    training = results["training"]
    return {"train_seconds": training["train_seconds"], "tokens": round(training["tokens_per_second"] * training["train_seconds"])}


def counted_epochs(epochs: float) -> str:
    return f"{epochs:g} epoch{'' if epochs == 1 else 's'}"


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation (None of one value), with the values themselves."""
    return {
        "mean": round(float(np.mean(values)), 5),
        "std": round(float(np.std(values, ddof=1)), 5) if len(values) > 1 else None,
        "values": list(values),
    }


# ------------------------------------------------------------------------------------------------------------ further pre-training


def measure_further(options: Any, folder: Path) -> Iterator[dict[str, Any]]:
    """Held-out MLM loss before and after, and SST-2's accuracy from each, over the seeds."""
    starts = {"as it came": options.checkpoint}
    sst2, wiki = options.data / "glue" / "SST-2", options.data / "wikitext2"
    for text in (name for name, path in (("sst2", sst2), ("wikitext2", wiki)) if name in options.texts and path.is_dir()):
        for kind in ("as it came, with a new head", "the head trained alone", "all trained"):
            config = config_of("sst2", sst2, options.checkpoint, options, 1e-4 if kind == "all trained" else 1e-3)
            block = config["bertfast"]
            block["pretrain"] = {"next_sentence": False}
            block["train_input"] |= {"planner": "tokens", "tokens_per_batch": options.tokens}
            block["run"]["max_steps"] = options.steps
            if text == "wikitext2":
                block["pretrain"] |= {"text_files": [str(wiki / "wiki.valid.txt")], "eval_text_files": [str(wiki / "wiki.test.txt")]}
            if kind == "the head trained alone":
                block["optimization"] = {"frozen_layers": "all"}
            if kind.startswith("as it came"):
                config["optimizer"]["params"] |= {"lr": 0.0, "weight_decay": 0.0}
                block["run"]["max_steps"] = 1
            place = folder / f"pretrain-{text}-{kind}"
            results = run("pretrain", config, place)
            facts = {"steps": results["training"]["steps"], **seconds_and_tokens(results)}
            yield {"case": f"MLM on {TEXTS[text]}", "text": text, "contender": kind, "held_out": results["metrics"]["dev"], **facts}
            if kind == "all trained":
                starts[f"pre-trained on {TEXTS[text]}"] = str(place / "run" / "model")
    for name, checkpoint in starts.items():
        yield tuned(options, folder, name, checkpoint, {})


def tuned(options: Any, folder: Path, name: str, checkpoint: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """SST-2 fine-tuned over the seeds, with a recipe's blocks added to the config."""
    scores, seconds = [], []
    for seed in range(options.seed, options.seed + options.seeds):
        config = config_of("sst2", options.data / "glue" / "SST-2", checkpoint, options, 5e-5)
        config["bertfast"] |= recipe
        config["bertfast"]["train_input"]["max_examples"] = options.rows
        config["bertfast"]["run"] |= {"epochs": 2, "seed": seed}
        results = run("train", config, folder / f"sst2-{len(list(folder.iterdir()))}")
        scores.append(results["metrics"]["dev"]["accuracy"])
        seconds.append(results["training"]["train_seconds"])
    case = f"SST-2, {options.rows} rows, 2 epochs"
    return {"case": case, "contender": name, "accuracy": spread(scores), "train_seconds": round(float(np.mean(seconds)), 1)}


# ---------------------------------------------------------------------------------------------------------------------- recipes


def measure_recipes(options: Any, folder: Path) -> Iterator[dict[str, Any]]:
    """SST-2's accuracy by each recipe, over the seeds."""
    for name in options.recipes:
        checkpoint = trained_together(options, folder / "together") if name == TOGETHER else options.checkpoint
        yield tuned(options, folder, name, checkpoint, RECIPES[name])


def trained_together(options: Any, folder: Path) -> str:
    """SST-2's model after a training on as many rows of SST-2 and of MNLI."""
    sets = {"sst2": options.data / "glue" / "SST-2", "mnli": options.data / "glue" / "MNLI"}
    config = config_of("", options.data, options.checkpoint, options, 5e-5)
    block = config["bertfast"]
    block["multitask"] = {
        "tasks": [{"task": task, "train_input": {"data_dir": str(place), "max_examples": options.rows}} for task, place in sets.items()]
    }
    del block["task"], block["eval_input"], block["train_input"]["data_dir"]
    block["run"]["epochs"] = 2
    run("train", config, folder)
    return str(folder / "run" / "model" / "sst2")


# ---------------------------------------------------------------------------------------------------------------- long documents


def measure_documents(options: Any, folder: Path) -> Iterator[dict[str, Any]]:
    """IMDb by each way to read a long text: accuracy over the seeds, seconds, and tokens read in training."""
    for name, truncation in STRATEGIES.items():
        found = []
        for seed in range(options.seed, options.seed + options.seeds):
            config = config_of("imdb", options.data / "imdb", options.checkpoint, options, 1e-4)
            block = config["bertfast"]
            block["truncation"] = truncation
            block["train_input"] |= {"max_sequence_length": options.length, "batch_size": 16, "max_examples": options.documents}
            block["eval_input"] |= {"max_sequence_length": options.length, "batch_size": 64, "max_examples": options.eval_documents}
            block["run"] |= {"epochs": options.epochs, "seed": seed}
            found.append(run("train", config, folder / f"imdb-{name}-{seed}"))
        each = [seconds_and_tokens(results) for results in found]
        case = f"IMDb, {options.documents} rows, {counted_epochs(options.epochs)}, {options.length} tokens"
        row = {"case": case, "contender": name, "accuracy": spread([next(iter(r["metrics"].values()))["accuracy"] for r in found])}
        row["train_seconds"] = round(float(np.mean([one["train_seconds"] for one in each])), 1)
        row["tokens"] = round(float(np.mean([one["tokens"] for one in each])))
        yield row


# ------------------------------------------------------------------------------------------------------------------------- speed


def measure_speed(options: Any, folder: Path) -> list[dict[str, Any]]:
    """Tokens a second and peak memory of pre-training, contenders taking turns."""
    text = options.data / "wikitext2" / "wiki.valid.txt"
    job = Job(str(text), options.checkpoint, 128, 32, options.rounds, options.round_steps, options.seed)
    seconds, facts, faults = contest(options.contenders, job)
    common = {"case": "MLM on WikiText-2, batches of 32 up to 128 tokens"}
    rows = timing_rows(common, seconds, CONTENDERS[:3])
    for row in rows:
        row["tokens_per_second"] = [round(1e3 / value, 1) for value in row.pop("seconds")[::-1]]
        row |= facts[row["contender"]]
    return rows + [{**common, "contender": name, "fault": fault} for name, fault in faults.items()]


MEASURES = {"further": measure_further, "recipes": measure_recipes, "documents": measure_documents, "speed": measure_speed}


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """A table that a person can read."""
    lines, case = [], None
    for row in rows:
        if row["case"] != case:
            case = row["case"]
            lines += ["", case]
        lines.append(f"  {row['contender']:44s} {figures(row)}")
    return "\n".join(lines)


def figures(row: dict[str, Any]) -> str:
    """A row's figures in words."""
    if "fault" in row:
        return f"did not run: {row['fault']}"
    if "held_out" in row:
        held = row["held_out"]
        return f"MLM loss {held['mlm_loss']:.3f}, accuracy {held['mlm_accuracy']:.3f}; {row['steps']} steps, {row['train_seconds']:.0f} s"
    if "accuracy" in row:
        of = row["accuracy"]
        tokens = f", {row['tokens']:,} tokens read" if "tokens" in row else ""
        return (
            f"accuracy {of['mean']:.4f}{'' if of['std'] is None else ' +- {:.4f}'.format(of['std'])}; {row['train_seconds']:.0f} s{tokens}"
        )
    ratios = "; ".join(f"{Ratio.from_row(ratio)} {ratio['to']}" for ratio in row["ratios"])
    return f"{row['tokens_per_second'][1]:8.0f} tokens/s, peak {row['peak_bytes'] / 1e9:.2f} GB   {ratios}"


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data, models = os.environ.get("BERTFAST_DATA"), os.environ.get("BERTFAST_MODELS")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--data", type=Path, default=data and Path(data))
    parser.add_argument("--checkpoint", default=models and str(Path(models) / "all-MiniLM-L6-v2"))
    parser.add_argument("--quick", action="store_true", help="everything in small, to see that it runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--texts", nargs="+", choices=list(TEXTS), help="further: what to pre-train on; left out: both, or sst2 with --quick"
    )
    parser.add_argument("--steps", type=int, help="further: optimizer steps; left out: 150, or 2 with --quick")
    parser.add_argument("--tokens", type=int, help="further: tokens in a step; left out: 4096, or 512 with --quick")
    parser.add_argument("--rows", type=int, help="further and recipes: training rows of SST-2; left out: 4000, or 64 with --quick")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--length", type=int, help="documents: max_sequence_length; left out: 128")
    parser.add_argument("--documents", type=int, help="documents: training rows; left out: 2000, or 32 with --quick")
    parser.add_argument("--eval_documents", type=int, help="documents: rows to evaluate on; left out: 1000, or 32 with --quick")
    parser.add_argument("--epochs", type=float, help="documents; left out: 1")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="of speed")
    parser.add_argument("--rounds", type=int, help="speed; left out: 12, or 8 with --quick")
    parser.add_argument("--round_steps", type=int, default=1, help="speed: steps in a round")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(words)
    full = {
        "steps": 150,
        "tokens": 4096,
        "rows": 4000,
        "length": 128,
        "documents": 2000,
        "eval_documents": 1000,
        "epochs": 1.0,
        "rounds": 12,
    }
    quick = {"steps": 2, "tokens": 512, "rows": 64, "documents": 32, "eval_documents": 32, "rounds": 8}
    options.texts = options.texts or (["sst2"] if options.quick else list(TEXTS))
    for name, value in {**full, **(quick if options.quick else {})}.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    if not options.data or not options.checkpoint:
        print("recipes: skipped, for want of data: give --data and --checkpoint, or set BERTFAST_DATA and BERTFAST_MODELS")
        return 0
    facts = {"seed": options.seed, **provenance("bench.bench_recipes", PACKAGES)}
    with tempfile.TemporaryDirectory() as folder:
        options.cache = str(Path(folder) / "cache")
        os.environ["BERTFAST_CACHE"] = options.cache
        measured = ({"suite": "recipes", "part": part, **row} for part in options.parts for row in MEASURES[part](options, Path(folder)))
        print(summary(keep(measured, facts, options.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
