"""Whole runs of a tiny BERT: ranks, ZeRO stages, kills and resumes, and what they leave behind."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_bert import WORDS, write_tiny_bert
from tolerances import GRADIENT, LOSSES_ZERO_STAGES

ROOT = Path(__file__).parent.parent


def write_task(folder: Path) -> dict:
    """A tiny checkpoint, 96 training rows and 20 dev rows; the config of 12 steps on them."""
    rng = random.Random(0)
    for name, rows in (("train", 96), ("dev", 20)):
        lines = ["text\tlabel"]
        for _ in range(rows):
            words = [rng.choice(WORDS) for _ in range(rng.randint(0, 20))]
            lines.append(" ".join(words) + "\t" + ("yes" if "good" in words or "great" in words else "no"))
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    write_tiny_bert(folder / "bert")
    source = {"batch_size": 16, "max_sequence_length": 32, "cache_dir": str(folder / "cache")}
    return {
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.01}},
        "bertfast": {
            "task": {"text_columns": ["text"], "label_names": ["no", "yes"]},
            "model": {"checkpoint": str(folder / "bert")},
            "train_input": {"data_file": str(folder / "train.tsv"), **source},
            "eval_input": {"data_file": str(folder / "dev.tsv"), **source},
            "run": {"epochs": 2, "model_dir": str(folder / "run"), "logging_steps": 1, "save_steps": 2, "threads": 1},
        },
    }


@pytest.fixture
def task(tmp_path):
    config = write_task(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def environment():
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def start(folder: Path, *arguments: str, ranks: int = 0) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "launch.py")]
    if ranks:
        port = str(random.SystemRandom().randint(20_000, 60_000))
        command = [
            sys.executable,
            "-m",
            "deepspeed.launcher.runner",
            "--num_gpus",
            str(ranks),
            "--master_port",
            port,
            str(ROOT / "launch.py"),
        ]
    command += ["--config", str(folder / "config.json"), *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def train(folder: Path, *arguments: str, ranks: int = 0, code: int = 0) -> str:
    process = start(folder, *arguments, ranks=ranks)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output[-3000:]
    return output


def losses(folder: Path, run: str = "run") -> dict[int, float]:
    records = [json.loads(line) for line in (folder / run / "log.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


QUIET = ("--set", "bertfast.model.hidden_dropout_prob=0", "--set", "bertfast.model.attention_probs_dropout_prob=0")


def test_two_ranks_and_every_zero_stage_follow_one_rank(task):
    train(task, "--model_dir", "alone", *QUIET)
    truth = losses(task, "alone")
    assert len(truth) == 12
    for stage in range(4):
        train(task, "--model_dir", f"zero{stage}", "--set", f"zero_optimization.stage={stage}", *QUIET, ranks=2)
        found = losses(task, f"zero{stage}")
        assert max(abs(found[step] - truth[step]) for step in truth) < LOSSES_ZERO_STAGES, stage
    evaluations = [json.loads((task / run / "results.json").read_text())["metrics"] for run in ("alone", "zero0", "zero3")]
    assert evaluations[0] == evaluations[1] == evaluations[2]


def test_micro_steps_and_keyed_dropout_change_no_loss(task):
    keyed = ("--set", "bertfast.run.packing_invariant_dropout=true")
    train(task, "--model_dir", "whole", *keyed)
    train(task, "--model_dir", "four", "--set", "gradient_accumulation_steps=4", *keyed)
    truth, found = losses(task, "whole"), losses(task, "four")
    assert max(abs(found[step] / truth[step] - 1) for step in truth) < 10 * GRADIENT


LAYOUTS = [
    pytest.param(["gradient_accumulation_steps=4"], 0, id="four-micro-steps"),
    pytest.param(["bertfast.train_input.planner=tokens", "bertfast.train_input.tokens_per_batch=4096"], 0, id="planned-by-tokens"),
    pytest.param(["zero_optimization.stage=1"], 2, id="two-ranks"),
    pytest.param(["bertfast.train_input.planner=tokens", "bertfast.train_input.tokens_per_batch=640"], 2, id="two-ranks-planned-by-tokens"),
    pytest.param(["gradient_accumulation_steps=2", "zero_optimization.stage=2"], 2, id="two-ranks-of-two-micro-steps"),
]


@pytest.fixture(scope="module")
def one_step(tmp_path_factory):
    """A run of one SGD step over all examples, with dropout by key: its weights before and after it."""
    folder = tmp_path_factory.mktemp("one-step")
    config = write_task(folder)
    config["gradient_clipping"] = 0.0
    config["zero_allow_untested_optimizer"] = True
    config["optimizer"] = {"type": "SGD", "params": {"lr": 1.0}}
    block = config["bertfast"]
    del block["eval_input"]
    block["run"] |= {"max_steps": 1, "warmup_steps": 0, "packing_invariant_dropout": True}
    (folder / "config.json").write_text(json.dumps(config))
    whole = ("--set", "bertfast.train_input.batch_size=96")
    train(folder, "--model_dir", "before", *whole, "--set", "optimizer.params.lr=0.0")
    train(folder, "--model_dir", "after", *whole)
    return folder, weights(folder / "before"), weights(folder / "after")


def weights(run: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(run / "model" / "model.safetensors")


@pytest.mark.parametrize(("settings", "ranks"), LAYOUTS)
def test_gradients_do_not_depend_on_how_examples_are_packed(one_step, settings, ranks, request):
    folder, before, after = one_step
    name = request.node.callspec.id
    if not any("planner=tokens" in setting for setting in settings):
        settings = [*settings, "bertfast.train_input.batch_size=96"]
    train(folder, "--model_dir", name, *(word for setting in settings for word in ("--set", setting)), ranks=ranks)
    found = weights(folder / name)
    assert json.loads((folder / name / "results.json").read_text())["training"]["examples"] == 96
    for tensor in before:
        gradient = after[tensor].astype(np.float64) - before[tensor]
        error = np.linalg.norm(found[tensor].astype(np.float64) - after[tensor])
        rounding = 1e-7 * np.linalg.norm(before[tensor]) + 1e-9  # of the weights; a key's bias has no gradient but rounding
        assert error <= GRADIENT * np.linalg.norm(gradient) + rounding, tensor


def test_bf16_trains(task):
    train(task, "--set", "bf16.enabled=true", "--set", "zero_optimization.stage=1")
    assert all(np.isfinite(list(losses(task).values())))


def test_what_a_run_leaves_behind_loads_in_transformers(task):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    train(task)
    model = AutoModelForSequenceClassification.from_pretrained(task / "run" / "model")
    assert model.config.id2label == {0: "no", 1: "yes"}
    assert AutoTokenizer.from_pretrained(task / "run" / "model")("good film")["input_ids"][0] == 2
    results = json.loads((task / "run" / "results.json").read_text())
    assert results["training"]["steps"] == 12 and 0 <= results["metrics"]["dev"]["accuracy"] <= 1


def test_kills_and_exact_resumes(task):
    train(task, "--model_dir", "truth")
    truth = losses(task, "truth")
    rng = random.Random(1)
    seen = {}
    for _ in range(3):
        process = start(task, "--resume")
        log, goal = task / "run" / "log.jsonl", rng.randint(1, 3) + len(seen)
        deadline = time.time() + 120
        while process.poll() is None and time.time() < deadline:
            if log.is_file() and sum('"loss"' in line for line in log.read_text().splitlines()) >= goal:
                break
            time.sleep(0.005)
        time.sleep(rng.random() * 0.2)
        process.kill()
        process.communicate()
        seen.update(losses(task) if log.is_file() else {})
    train(task, "--resume")
    assert losses(task) == truth
    assert {step: truth[step] for step in seen} == seen


def test_a_torn_checkpoint_is_passed_over(task):
    train(task)
    truth = losses(task)
    newest = sorted((task / "run" / "checkpoints").iterdir())[-1]
    victim = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-100])
    output = train(task, "--resume")
    assert f"{newest.name} is torn" in output.replace("\n", " ")
    assert losses(task) == truth


def test_sigterm_saves_and_leaves(task):
    process = start(
        task, "--set", "bertfast.run.epochs=500", "--set", "bertfast.run.save_steps=100000", "--set", "bertfast.run.eval_steps=100000"
    )
    log = task / "run" / "log.jsonl"
    while process.poll() is None and not (log.is_file() and log.read_text()):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "--resume" in output
    assert list((task / "run" / "checkpoints").glob("step-*"))


def test_an_earlier_run_is_not_overwritten(task):
    train(task)
    output = train(task, code=2)
    assert "--resume" in output and "step-00000012" in output


def test_a_loss_that_is_not_finite_names_step_and_examples(task):
    output = train(
        task, "--set", "optimizer.params.lr=1e30", "--set", "bertfast.run.warmup_steps=0", "--set", "gradient_clipping=0.0", code=3
    )
    assert "not finite at step" in output and "train.tsv" in output


def test_a_loss_that_is_not_finite_stops_both_ranks_in_step(task):
    settings = ("--set", "optimizer.params.lr=1e30", "--set", "bertfast.run.warmup_steps=0", "--set", "gradient_clipping=0.0")
    process = start(task, *settings, ranks=2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "not finite at step" in output and "train.tsv" in output
    assert "exit code -15" not in output and "SIGTERM" not in output, "one rank had to be ended by the launcher"


def test_other_settings_do_not_resume(task):
    train(task)
    output = train(task, "--resume", "--set", "bertfast.run.seed=7", code=2)
    assert "seed" in output
    shutil.rmtree(task / "run")
