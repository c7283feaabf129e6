"""Whole runs of a tiny BERT: ranks, ZeRO stages, packings, and what they leave behind."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bertfast.errors import BertfastError
from tests.support.runs import losses, start, train, write_task
from tests.support.tolerances import GRADIENT, LOSSES_ZERO_STAGES

QUIET = ("--set", "bertfast.model.hidden_dropout_prob=0", "--set", "bertfast.model.attention_probs_dropout_prob=0")


@pytest.fixture
def task(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(write_task(tmp_path)))
    return tmp_path


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


def test_bf16_trains_and_is_not_fp32(task):
    train(task, "--model_dir", "fp32", *QUIET)
    train(task, "--model_dir", "bf16", "--set", "bf16.enabled=true", "--set", "zero_optimization.stage=1", *QUIET)
    precisions = [json.loads((task / run / "results.json").read_text())["training"]["precision"] for run in ("fp32", "bf16")]
    assert precisions == ["fp32", "bf16"]
    exact, rough = losses(task, "fp32"), losses(task, "bf16")
    assert len(exact) == len(rough) == 12
    apart = [abs(rough[step] - exact[step]) for step in exact]
    assert min(apart[:3]) > 0 and max(apart) < 0.02, "bf16 rounds to 3 digits, and no worse"


def test_what_a_run_leaves_behind_loads_in_transformers(task):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    train(task)
    model = AutoModelForSequenceClassification.from_pretrained(task / "run" / "model")
    assert model.config.id2label == {0: "no", 1: "yes"}
    assert AutoTokenizer.from_pretrained(task / "run" / "model")("good film")["input_ids"][0] == 2
    results = json.loads((task / "run" / "results.json").read_text())
    assert results["training"]["steps"] == 12 and 0 <= results["metrics"]["dev"]["accuracy"] <= 1


def test_a_loss_that_is_not_finite_names_step_and_examples(task):
    output = train(
        task, "--set", "optimizer.params.lr=1e30", "--set", "bertfast.run.warmup_steps=0", "--set", "gradient_clipping=0.0", code=3
    )
    assert "not finite at step" in output and "train.tsv" in output


def test_a_loss_that_is_not_finite_stops_both_ranks_in_step(task):
    settings = ("--set", "optimizer.params.lr=1e30", "--set", "bertfast.run.warmup_steps=0", "--set", "gradient_clipping=0.0")
    process = start(task, *settings, ranks=2)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "not finite at step" in output and "train.tsv" in output
    assert "exit code -15" not in output and "SIGTERM" not in output, "one rank had to be ended by the launcher"


def test_training_without_deepspeed_names_what_to_install(monkeypatch):
    import torch

    from bertfast.engine.build import join_ranks
    from bertfast.engine.ranks import Ranks

    monkeypatch.setitem(sys.modules, "deepspeed", None)  # `import deepspeed` then fails as where it is not installed
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)  # whatever this process trained before
    with pytest.raises(BertfastError, match="needs deepspeed, which is not installed: pip install deepspeed"):
        join_ranks(Ranks(0, 1, torch.device("cpu")))
