"""The params of every optimizer and scheduler are those of the class that is built for it."""

import inspect

import pytest
import torch

from bertfast.config.deepspeed.optimizers import (
    FUSED_ADAM,
    HOST_ADAM,
    HOST_PARAMS,
    MUP_OPTIMIZERS,
    OPTIMIZER_PARAMS,
    OPTIMIZERS,
    REQUIRED_PARAMS,
    SCHEDULER_PARAMS,
    TORCH_ADAM,
    TORCH_OPTIMIZERS,
    TORCH_SCHEDULER_PARAMS,
    is_own_adamw,
)
from bertfast.config.load import load_config
from bertfast.errors import ConfigError

BASE = {"bertfast": {"task": "mnli", "model": {"checkpoint": "bert-base-uncased"}}}
NO_DEEPSPEED = "deepspeed is not installed: its own classes are the truth here"
HOST = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}


def params(made, *, needed=False):
    """The params of a class's constructor but the model's parameters or the optimizer; needed: those without a default."""
    found = list(inspect.signature(made.__init__).parameters.values())[2:]
    return {param.name for param in found if not needed or param.default is param.empty}


def test_torch_s_optimizers_have_these_params():
    for name in TORCH_OPTIMIZERS | {"Adagrad"}:
        assert params(getattr(torch.optim, name)) == OPTIMIZER_PARAMS[name], name
    assert params(torch.optim.AdamW) == TORCH_ADAM - {"adam_w_mode", "torch_adam"}


def test_deepspeed_s_optimizers_have_these_params():
    pytest.importorskip("deepspeed", reason=NO_DEEPSPEED)
    from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from deepspeed.ops.lamb import FusedLamb
    from deepspeed.ops.lion import DeepSpeedCPULion, FusedLion
    from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS
    from deepspeed.runtime.engine import DeepSpeedEngine as Engine

    assert {name.lower() for name in OPTIMIZERS | MUP_OPTIMIZERS} == set(DEEPSPEED_OPTIMIZERS)
    assert params(FusedAdam) == FUSED_ADAM - {"torch_adam"}
    assert params(DeepSpeedCPUAdam) - {"adamw_mode"} == HOST_ADAM - {"adam_w_mode", "torch_adam"}
    assert params(FusedLamb) - {"max_grad_norm"} == OPTIMIZER_PARAMS["Lamb"]
    assert params(FusedLion) == OPTIMIZER_PARAMS["Lion"]
    assert params(DeepSpeedCPULion) == HOST_PARAMS["Lion"]
    assert params(DeepSpeedCPUAdagrad) - {"amsgrad"} == HOST_PARAMS["Adagrad"]  # it passes amsgrad over
    halves = {*Engine._MUON_HALF_KEYS, *Engine._ADAM_HALF_KEYS, "muon_lr", "adam_lr"}
    assert halves == OPTIMIZER_PARAMS["Muon"] - {"adam_w_mode", "torch_adam"}


def test_the_schedulers_have_these_params():
    for name, known in TORCH_SCHEDULER_PARAMS.items():
        made = getattr(torch.optim.lr_scheduler, name)
        assert params(made) == known and params(made, needed=True) == set(REQUIRED_PARAMS.get(name, ())), name
    schedulers = pytest.importorskip("deepspeed.runtime.lr_schedules", reason=NO_DEEPSPEED)
    assert set(schedulers.VALID_LR_SCHEDULES) == set(SCHEDULER_PARAMS)
    for name, known in SCHEDULER_PARAMS.items():
        made = getattr(schedulers, name)
        assert params(made) == known and params(made, needed=True) - {"total_num_steps"} == set(REQUIRED_PARAMS.get(name, ())), name


@pytest.mark.parametrize(
    "block, more, words",
    [
        ({"params": {"lrr": 1}}, {}, "unknown key 'lrr' in optimizer.params; did you mean 'lr'"),
        ({"type": "SGD", "params": {"betas": [0.9, 0.99]}}, {}, "unknown key 'betas'"),
        ({"type": "Lion", "params": {"eps": 1e-8}}, {}, "unknown key 'eps'"),
        ({"type": "lamb", "params": {"max_grad_norm": 1.0}}, {}, "set gradient_clipping"),
        ({"type": "Lamb", "params": {"amsgrad": True}}, {}, "DeepSpeed's Lamb has no AMSGrad; leave it out"),
        ({"type": "Muon", "params": {"bias_correction": False}}, {}, "unknown key 'bias_correction'"),
        ({"type": "AdamW", "params": {"adam_w_mode": False}}, {}, 'set optimizer.type to "Adam"'),
        ({"type": "Adam", "params": {"adam_w_mode": False, "amsgrad": True}}, {}, "optimizer.params.torch_adam=true"),
        ({"params": {"amsgrad": True}}, HOST, "DeepSpeed's AdamW has no AMSGrad"),
        ({"params": {"maximize": True}}, {}, "torch's own Adam alone has it; set optimizer.params.torch_adam=true"),
        ({"params": {"torch_adam": True, "fused": True, "bias_correction": False}}, {}, "has no such switch"),
        ({"params": {"fp32_optimizer_states": False}}, {}, "on the host alone"),
        ({"type": "Lion", "params": {"fp32_optimizer_states": False}}, {}, "on the host alone"),
        ({"params": {"set_grad_none": False}}, HOST, "fused Adam alone has it"),
        ({"type": "Adagrad", "params": {"amsgrad": True}}, HOST, "unknown key 'amsgrad'"),
        ({"params": {"bias_correction": "no"}}, {}, "it must be true or false"),
        ({"type": "muadamw"}, {}, "base shapes"),
        ({"type": "OneBitAdam"}, {}, "DeepSpeed knows none of that name"),
        (
            {"type": "Muon", "params": {"muon_lr": 0.02}},
            {"scheduler": {"type": "WarmupLR"}},
            "muon_lr contradicts scheduler.type",
        ),
        ({"params": 3}, {}, "optimizer.params = 3: it must be an object"),
    ],
)
def test_params_that_would_do_nothing_or_end_in_a_traceback(block, more, words):
    with pytest.raises(ConfigError) as error:
        load_config({**BASE, **more, "optimizer": block})
    assert str(error.value).startswith("config: optimizer.") or "unknown key" in str(error.value)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "block, offloaded, own",
    [
        ({}, False, True),
        ({"type": "adam", "params": {"amsgrad": True, "bias_correction": False, "torch_adam": True}}, False, True),
        ({"type": "Adam", "params": {"adam_w_mode": False}}, False, False),
        ({"type": "AdamW", "params": {"lr": 1e-5}}, True, False),
        ({"type": "AdamW", "params": {"set_grad_none": True}}, False, False),
        ({"type": "SGD"}, False, False),
    ],
)
def test_which_optimizers_are_our_adamw(block, offloaded, own):
    assert is_own_adamw(block, offloaded) == own
    load_config({**BASE, **(HOST if offloaded else {}), "optimizer": block})


@pytest.mark.parametrize(
    "block, words",
    [
        ({}, "scheduler.type is missing"),
        ({"params": {"warmup_num_steps": 3}}, "--set scheduler=null"),
        ({"type": "StepLR", "params": {"gamma": 0.5}}, "scheduler.params.step_size is missing"),
        ({"type": "OneCycle", "params": {"cycle_min_lr": 0.0, "max_lr": 1.0}}, "unknown key 'max_lr' in scheduler.params"),
        ({"type": "ReduceLROnPlateau"}, "DeepSpeed knows none of that name"),
    ],
)
def test_schedulers_that_would_do_nothing_or_end_in_a_traceback(block, words):
    with pytest.raises(ConfigError) as error:
        load_config({**BASE, "scheduler": block})
    assert str(error.value).startswith("config: ") and words in str(error.value) and "\n" not in str(error.value)
