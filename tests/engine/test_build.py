"""DeepSpeed's side of the trainer, as far as it can be seen without a run."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from bertfast.config.load import load_config
from bertfast.config.resolve import BatchSizes, resolve_deepspeed
from bertfast.engine.build import clip_gradients, free_abandoned_builds
from tests.support.runs import environment, need_deepspeed


def test_the_lock_of_a_build_that_was_killed_is_removed_and_that_of_a_running_one_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    old, new, foreign = (tmp_path / name / "lock" for name in ("deepspeed_cpu_adam", "deepspeed_aio", "someone_elses"))
    for lock in (old, new, foreign):
        lock.parent.mkdir()
        lock.touch()
    for lock in (old, foreign):
        os.utime(lock, (time.time() - 3600,) * 2)
    free_abandoned_builds()
    assert not old.exists() and new.exists() and foreign.exists()


OFFLOAD = {"stage": 2, "offload_optimizer": {"device": "cpu"}}


@pytest.mark.parametrize(
    ("zero", "ranks", "device", "stage"),
    [
        pytest.param({"stage": 1}, 1, "cpu", 0, id="one-cpu-rank-has-nothing-to-divide"),
        pytest.param({"stage": 1}, 2, "cpu", 1, id="two-cpu-ranks"),
        pytest.param({"stage": 1}, 1, "cuda", 1, id="one-gpu"),
        pytest.param({"stage": 0}, 1, "cuda", 0, id="one-gpu-with-nothing-divided"),
        pytest.param(OFFLOAD, 1, "cpu", 2, id="offload"),
    ],
)
def test_zero_on_a_lone_cpu_rank_is_stage_0(zero, ranks, device, stage):
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

    from bertfast.engine.build import join_ranks
    from bertfast.engine.ranks import start_ranks

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
