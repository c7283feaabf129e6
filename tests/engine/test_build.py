"""DeepSpeed's side of the trainer, as far as it can be seen without a run."""

import io
import json
import logging
import os
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from bertfast.config.load import load_config
from bertfast.config.resolve import BatchSizes, resolve_deepspeed
from bertfast.engine.build import _refusals_in_a_line, check_engine_config, clip_gradients, free_abandoned_builds, join_ranks
from bertfast.engine.ranks import start_ranks
from bertfast.errors import ConfigError
from tests.support.runs import environment, need_deepspeed, train, write_task


@pytest.mark.parametrize("between", ["", "py311_cpu"], ids=["set-by-the-user", "torch-s-own"])
def test_the_lock_of_a_build_that_was_killed_is_removed_and_others_are_kept(between, tmp_path, monkeypatch):
    need_deepspeed()
    from deepspeed.ops.op_builder import CPUAdamBuilder, FusedAdamBuilder
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    early, late, running, foreign = CPUAdamBuilder().name, FusedAdamBuilder().name, "cpu_lion", "someone_elses"
    namesake = "async_io"
    locks = {name: tmp_path / between / name / "lock" for name in (early, late, running, foreign, namesake)}
    for name, lock in locks.items():
        lock.parent.mkdir(parents=True)
        lock.touch()
        if name != running:
            os.utime(lock, (time.time() - 3600,) * 2)
    for name, source in ((late, "deepspeed/ops/csrc/cpu/adam/fused_adam.cpp"), (namesake, "/home/me/async_io.cpp")):
        (locks[name].parent / "build.ninja").write_text(f"build x.o: compile {source}\n")
    assert {early, late, running, namesake} <= set(ALL_OPS)
    free_abandoned_builds()
    assert {name for name, lock in locks.items() if lock.exists()} == {running, foreign, namesake}


OFFLOAD = {"stage": 2, "offload_optimizer": {"device": "cpu"}}


@pytest.mark.parametrize(
    ("zero", "ranks", "device", "stage"),
    [
        pytest.param({"stage": 1}, 1, "cpu", 0, id="one-cpu-rank-has-nothing-to-divide"),
        pytest.param({"stage": 1}, 2, "cpu", 1, id="two-cpu-ranks"),
        pytest.param({"stage": 1}, 1, "cuda", 0, id="one-gpu-takes-its-own-steps"),
        pytest.param({"stage": 1}, 2, "cuda", 1, id="two-gpus"),
        pytest.param({"stage": 3}, 1, "cuda", 3, id="one-gpu-with-weights-gathered"),
        pytest.param({"stage": 0}, 1, "cuda", 0, id="one-gpu-with-nothing-divided"),
        pytest.param(OFFLOAD, 1, "cpu", 2, id="offload"),
    ],
)
def test_zero_on_a_lone_rank_is_stage_0(zero, ranks, device, stage):
    config = load_config(
        {"zero_optimization": zero, "bf16": {"enabled": True}, "bertfast": {"task": "sst2", "model": {"checkpoint": "bert"}}}
    )
    resolved = resolve_deepspeed(config, BatchSizes(32 * ranks, 32, 1, ranks), 10, device, 128)
    assert resolved["zero_optimization"]["stage"] == stage
    assert resolved.get("bf16", {}).get("enabled", False) == (stage > 0), "where DeepSpeed does not keep bf16, the model does"


@pytest.mark.parametrize("scale", [1e-3, 10.0], ids=["below-the-norm", "above-it"])
def test_clipping_for_all_parameters_at_once_is_deepspeed_s(scale):
    """DeepSpeed's own goes through the parameters one by one, and copies numbers to the device."""
    need_deepspeed()
    from deepspeed.runtime.utils import clip_grad_norm_

    join_ranks(start_ranks("cpu", 1))
    results = []
    for clip in (lambda engine: clip_grad_norm_(engine.module.parameters(), 1.0), clip_gradients):
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
        for parameter in module.parameters():
            parameter.grad = torch.randn_like(parameter) * scale
        clip(SimpleNamespace(module=module, gradient_clipping=lambda: 1.0))
        results.append(torch.cat([parameter.grad.flatten() for parameter in module.parameters()]))
    assert torch.allclose(*results, rtol=1e-5, atol=0) and results[0].norm() <= 1.0001


def test_deepspeed_s_refusals_come_in_a_line_before_the_data_is_read():
    need_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfigError
    from deepspeed.runtime.zero.utils import ZeRORuntimeException

    ranks, sizes = start_ranks("cpu", 1), BatchSizes(32, 32, 1, 1)
    join_ranks(ranks)
    base = {"bertfast": {"task": "sst2", "model": {"checkpoint": "bert"}}}
    check_engine_config(load_config(base), sizes, ranks)
    zenflow = ["zero_optimization.zenflow.topk_ratio=2"]
    with pytest.raises(
        ConfigError, match=r"DeepSpeed cannot start with this config \(ValidationError: zenflow.topk_ratio: .* less than 1\)$"
    ):
        check_engine_config(load_config(base, zenflow), sizes, ranks)
    for error in (DeepSpeedConfigError("no\nmore"), ZeRORuntimeException("no"), AssertionError("no")):
        with pytest.raises(ConfigError, match=r"\(\w+: no\)$"), _refusals_in_a_line():
            raise error


SAID = {  # what a run says of what is turned on
    "wall_clock_breakdown=true": r"time \(ms\) \| fwd",
    "memory_breakdown=true": r"Engine before step\nMA ",
    "dump_state=true": r"DeepSpeedEngine:\n",
    'flops_profiler={"enabled": true, "profile_step": 1}': r"Profile Summary at step",
}


def test_what_deepspeed_is_asked_to_say_is_said(tmp_path):
    config = write_task(tmp_path)
    config["csv_monitor"] = {"output_path": str(tmp_path / "csv"), "job_name": "job"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    from deepspeed.utils import logger  # its own handler writes to what standard output was when it was made

    def said(folder, *settings):
        heard = logging.StreamHandler(io.StringIO())
        logger.addHandler(heard)
        words = ["bertfast.run.max_steps=2", *settings]
        try:
            printed = train(tmp_path, "--model_dir", folder, *(word for setting in words for word in ("--set", setting)))
        finally:
            logger.removeHandler(heard)
        return printed + heard.stream.getvalue()

    steps, rest = said("steps", "steps_per_print=2"), said("rest", "csv_monitor.enabled=true", *SAID)
    assert re.findall(r"step=(\d), skipped=0, lr=", steps) == ["2"] and "step=2, skipped" not in rest
    for words in SAID.values():
        assert re.search(words, rest) and not re.search(words, steps), words
    assert list((tmp_path / "csv" / "job").glob("*.csv"))


def test_bf16_products_of_float32_weights_are_near_float32_ones(tmp_path):
    from bertfast import BertClassifier, PackedBatch
    from tests.support.tiny_bert import write_tiny_bert

    model = BertClassifier.from_pretrained(write_tiny_bert(tmp_path / "bert"), 2).eval()
    ids = torch.tensor([[2, 5, 9, 3], [2, 11, 3, 0]], dtype=torch.int32)
    features = {
        "input_ids": ids,
        "attention_mask": (ids > 0).int(),
        "token_type_ids": torch.zeros_like(ids),
        "labels": torch.zeros(2).int(),
    }
    batch = PackedBatch.from_features(features)
    exact = model(batch)
    model.compute_dtype = torch.bfloat16
    rough = model(batch)
    rough.float().sum().backward()
    assert rough.dtype == torch.bfloat16 and all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    assert 0 < (rough.float() - exact).abs().max() < 0.02 * exact.abs().max() + 0.01


def test_a_lone_rank_leaves_nothing_to_its_children():
    """A port kept in the environment would be in use already for whatever this process starts next."""
    need_deepspeed()
    code = (
        "import os\n"
        "from bertfast.engine import join_ranks, start_ranks\n"
        "before = set(os.environ)\n"
        "join_ranks(start_ranks('cpu', 1))\n"
        "print(*sorted(set(os.environ) - before))"
    )
    rendezvous = {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"}
    given = {name: value for name, value in environment().items() if name not in rendezvous | {"DS_ACCELERATOR"}}
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True)
    left = set(done.stdout.splitlines()[-1].split())
    assert "DS_ACCELERATOR" in left
    assert not left & rendezvous
