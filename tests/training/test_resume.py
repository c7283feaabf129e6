"""Runs that are killed, stopped or resumed: nothing is lost, and what follows equals the run that was never interrupted."""

import json
import os
import random
import signal
import time

import pytest

from tests.support.runs import losses, start, train, write_task

# How many kills the run goes through; at least a few, so that some fall into a save.
KILLS = int(os.environ.get("BERTFAST_KILLS", 3))


@pytest.fixture
def task(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(write_task(tmp_path)))
    return tmp_path


def test_kills_and_exact_resumes(task):
    longer = ("--set", f"bertfast.run.epochs={max(2, KILLS // 2)}")
    train(task, "--model_dir", "truth", *longer)
    truth = losses(task, "truth")
    rng = random.Random(1)
    seen = {}
    for _ in range(KILLS):
        process = start(task, "--resume", *longer)
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
    train(task, "--resume", *longer)
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
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 143 and "--resume" in output
    assert list((task / "run" / "checkpoints").glob("step-*"))


def test_an_earlier_run_is_not_overwritten(task):
    train(task)
    output = train(task, code=2)
    assert "--resume" in output and "step-00000012" in output


def test_other_settings_do_not_resume(task):
    train(task)
    output = train(task, "--resume", "--set", "bertfast.run.seed=7", code=2)
    assert "was written with seed = 42, this run has 7" in output
    process = start(task, "--resume", ranks=2)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0 and "was written with world_size = 1, this run has 2" in output and "Traceback" not in output
    train(task, "--model_dir", "divided", "--set", "zero_optimization.stage=1", ranks=2)
    output = train(task, "--model_dir", "divided", "--resume", "--set", "zero_optimization.stage=1", code=2)
    assert "was written with world_size = 2, this run has 1" in output and "Traceback" not in output
