"""Memory that runs out, and memory that will, name the keys that help."""

import copy

import pytest
import torch

from bertfast.config.load import load_config
from bertfast.config.resolve import resolve_batch_sizes
from bertfast.engine import memory
from bertfast.errors import CheckpointError, OutOfMemoryError
from bertfast.training import Trainer
from bertfast.training.footprint import memory_named, smaller_evaluation, smaller_training
from bertfast.training.objectives.classification import Classification
from tests.support.runs import write_task

MICRO, LENGTH = "train_micro_batch_size_per_gpu (now", "bertfast.train_input.max_sequence_length (now 64)"
BUDGET, SELECTIVE = "bertfast.train_input.tokens_per_batch (now 128)", "bertfast.model.gradient_checkpointing = selective"


@pytest.mark.parametrize(
    "deepspeed, source, model, ways",
    [
        pytest.param({}, {}, {}, [f"{MICRO} 16;", LENGTH, SELECTIVE], id="plain"),
        pytest.param({"gradient_accumulation_steps": 4}, {}, {}, [f"{MICRO} 4;", LENGTH, SELECTIVE], id="accumulated"),
        pytest.param({"gradient_accumulation_steps": 16}, {}, {}, [LENGTH, SELECTIVE], id="one-example-already"),
        pytest.param({}, {"planner": "tokens", "tokens_per_batch": 128}, {}, [BUDGET, LENGTH, SELECTIVE], id="tokens"),
        pytest.param({}, {}, {"gradient_checkpointing": "selective"}, [f"{MICRO} 16;", LENGTH], id="recomputed-already"),
    ],
)
def test_what_makes_training_smaller(deepspeed, source, model, ways):
    part = {"data_dir": "d", "max_sequence_length": 64, "batch_size": 16, **source}
    config = load_config({**deepspeed, "bertfast": {"task": "sst2", "model": {"checkpoint": "b", **model}, "train_input": part}})
    text = smaller_training(config, resolve_batch_sizes(config, 1))
    assert all(way in text for way in ways) and text.count(", or ") == len(ways) - 1, text


def test_what_makes_evaluation_smaller():
    block = {"task": "sst2", "model": {"checkpoint": "b"}, "eval_input": {"data_dir": "d", "max_sequence_length": 64, "batch_size": 7}}
    expected = "lower bertfast.eval_input.batch_size (now 7), or bertfast.eval_input.max_sequence_length (now 64)"
    assert smaller_evaluation(load_config({"bertfast": block})) == expected


def test_only_memory_is_named_so():
    with pytest.raises(ZeroDivisionError), memory_named("less"):
        1 / 0  # noqa: B018
    with pytest.raises(CheckpointError, match=r"^out of memory\?$"), memory_named("less"):
        raise CheckpointError("out of memory?")
    with pytest.raises(OutOfMemoryError, match=r"^memory ran out: less$"), memory_named("less"):
        raise MemoryError


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("task"))


def too_large(*_):
    return torch.empty(10**15)


@pytest.mark.parametrize(
    "method, words",
    [
        pytest.param("loss", r"GB more were asked for\): make micro-batches .* \(now 16; .*max_sequence_length \(now 32\)", id="in-a-step"),
        pytest.param("metrics", r"GB more were asked for\): lower bertfast\.eval_input\.batch_size \(now 16\)", id="in-an-evaluation"),
    ],
)
def test_a_run_whose_memory_runs_out(task, tmp_path, monkeypatch, capsys, method, words):
    config = copy.deepcopy(task)
    config["bertfast"]["run"] |= {"model_dir": str(tmp_path), "eval_steps": 1}
    monkeypatch.setattr(Classification, method, too_large)
    monkeypatch.setattr(memory, "memory_total", lambda: 1000)
    with pytest.raises(OutOfMemoryError, match=words):
        Trainer(load_config(config), device="cpu").fit()
    assert "GB or more of memory, and there are 0.0 GB; should it run out: make micro-batches" in capsys.readouterr().err
