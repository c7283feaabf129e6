"""Parameter groups with their rates, AdamW, and the schedule of a run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import nn

from bertfast.config import OptimizationConfig
from bertfast.engine.schedules import Factor, schedule
from bertfast.errors import ConfigError
from bertfast.model import BertEncoder
from bertfast_kernels import CpuAdamW, GpuAdamW, LossScale, cpu_kernels_fault

_ADAMW_KEYS = {"lr", "betas", "eps", "weight_decay", "amsgrad"}
_LAYER = re.compile(r"layers\.(\d+)\.")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices with weight decay; biases and LayerNorm weights, the vectors, without (Devlin et al. 2019, appendix A.2)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return _with_and_without_decay(trained, weight_decay)


def groups_by_depth(model: BertEncoder, weight_decay: float, rate: float, optimization: OptimizationConfig) -> list[dict[str, Any]]:
    """Groups for the head, for each encoder layer and for the embeddings, each with its `name`, `depth` and `lr`.

    The head has `rate`. Layers have layer_learning_rate * layer_learning_rate_decay^depth, the top layer's depth being 0 and that of the
    embeddings the number of layers (Sun et al. 2019, section 5.4.3). Left out, the one is `rate` and the other 1.

    Raises:
        ConfigError: several rates that are not one for each layer.
    """
    n_layers = len(model.layers)
    rates, decay = optimization.layer_learning_rate or (rate,), optimization.layer_learning_rate_decay or 1.0
    if len(rates) not in (1, n_layers):
        raise ConfigError(
            f"bertfast.optimization.layer_learning_rate holds {len(rates)} rates, but the model has {n_layers} layers; "
            "give one for each, from the lowest, or one for the top layer"
        )
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts.setdefault(part_of(name), []).append(parameter)
    groups = []
    for name in ["head", *(f"layer {index}" for index in reversed(range(n_layers))), "embeddings"]:
        depth = depth_of(name, n_layers)
        if name == "head":
            own = rate
        elif len(rates) == 1:
            own = rates[0] * decay**depth
        else:
            own = rates[max(0, n_layers - 1 - depth)]
        for group in _with_and_without_decay(parts.get(name, []), weight_decay):
            if group["params"]:
                groups.append({**group, "lr": own, "name": name, "depth": depth})
    return groups


def trained_groups(model: BertEncoder, params: dict[str, Any], optimization: OptimizationConfig) -> list[dict[str, Any]]:
    """The groups of what a config trains, after freezing the rest; params: of the optimizer, with `lr` and perhaps `weight_decay`.

    Raises:
        ConfigError: see `freeze` and `groups_by_depth`.
    """
    freeze(model, optimization.frozen_layers)
    decay = params.get("weight_decay", 0.0)
    if optimization.is_by_layer:
        return groups_by_depth(model, decay, params["lr"], optimization)
    return parameter_groups(model, decay)


def thaw_step(part: str, depth: int, unfreeze_epochs: float, steps_per_epoch: int) -> int:
    """The step from which a part of the model is trained, with gradual unfreezing."""
    return 0 if part == "head" else round((depth + 1) * unfreeze_epochs * steps_per_epoch)


def part_of(name: str) -> str:
    """ "head", "layer 3" or "embeddings": which part of the model a parameter belongs to."""
    if match := _LAYER.match(name):
        return f"layer {match[1]}"
    return "embeddings" if name.startswith("embeddings.") else "head"


def depth_of(part: str, n_layers: int) -> int:
    """How far a part lies below the top layer: 0 for that and the head, the number of layers for the embeddings."""
    return {"head": 0, "embeddings": n_layers}.get(part, n_layers - 1 - int(part.rpartition(" ")[2]) if " " in part else 0)


def freeze(model: BertEncoder, frozen_layers: int | Literal["all"] | None) -> None:
    """Take the embeddings and the lowest `frozen_layers` layers ("all" of them) out of training; None leaves everything in.

    Raises:
        ConfigError: more layers than the model has.
    """
    n_layers = len(model.layers)
    if frozen_layers is None:
        return
    lowest = n_layers if frozen_layers == "all" else frozen_layers
    if lowest > n_layers:
        raise ConfigError(f"bertfast.optimization.frozen_layers = {lowest}, but the model has {n_layers} layers; 'all' freezes them all")
    for module in (model.embeddings, *model.layers[:lowest]):
        module.requires_grad_(False)


def adamw(groups: Iterable[dict[str, Any]], params: dict[str, Any], on_cpu: bool = False) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), torch's fused one; params as in DeepSpeed's optimizer block, keys that say which Adam it is left out.

    on_cpu: the parameters are float32 on a CPU and stay so, and the optimizer may be the C++ kernels'.

    bias_correction: false leaves the moments as they are, as in the code of Devlin et al. 2019.
    """
    known: dict[str, Any] = {key: tuple(value) if key == "betas" else value for key, value in params.items() if key in _ADAMW_KEYS}
    if on_cpu and not known.get("amsgrad") and cpu_kernels_fault() is None:
        optimizer: torch.optim.Optimizer = CpuAdamW(list(groups), **known)
    else:
        optimizer = torch.optim.AdamW(list(groups), fused=True, **known)
    if not params.get("bias_correction", True):
        optimizer.register_step_pre_hook(_leave_moments_uncorrected)
    return optimizer


def whole_adamw(
    groups: Iterable[dict[str, Any]], params: dict[str, Any], dtype: torch.dtype, max_norm: float, fp16: dict[str, Any] | None
) -> GpuAdamW:
    """The AdamW of a lone GPU, with copies in 16 bits; params: as for `adamw`; fp16: DeepSpeed's block of that name, whose loss scale float16 takes."""
    known: dict[str, Any] = {key: tuple(value) if key == "betas" else value for key, value in params.items() if key in _ADAMW_KEYS}
    known.pop("amsgrad", None)
    scale = loss_scale_of(fp16 or {}) if dtype == torch.float16 else None
    return GpuAdamW(list(groups), dtype, max_norm, scale, corrects=params.get("bias_correction", True), **known)


def loss_scale_of(fp16: dict[str, Any]) -> LossScale:
    """What DeepSpeed's block asks for, with its defaults: a loss_scale of 0 adapts itself."""

    def given(key: str, default: float) -> float:
        value = fp16.get(key, default)
        return default if value == "auto" else value

    if fixed := given("loss_scale", 0):
        return LossScale(first=float(fixed), adapts=False)
    return LossScale(
        first=2.0 ** given("initial_scale_power", 16),
        window=int(given("loss_scale_window", 1000)),
        hysteresis=int(given("hysteresis", 2)),
        renews=bool(fp16.get("consecutive_hysteresis", False)),
        least=float(given("min_loss_scale", 1)),
    )


def _leave_moments_uncorrected(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Begin the states of an AdamW at step infinity, where 1 - beta**step, by which it divides its moments, is 1. torch has no switch for it."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None or optimizer.state[parameter]:
                continue
            state = optimizer.state[parameter]
            state["step"] = torch.full((), math.inf, device=parameter.device)
            for name in ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ())):
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)


Scheduler = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LambdaLR]


def linear_schedule(warmup_steps: int, total_steps: int) -> Scheduler:
    """A schedule that rises linearly from 0 over warmup_steps and falls linearly to 0 at total_steps, as in BERT and in transformers."""
    return scheduler_of(schedule("linear", warmup_steps, total_steps))


def scheduler_of(factor: Factor | list[Factor]) -> Scheduler:
    """A scheduler of one factor for all groups, or of one for each."""
    return lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _with_and_without_decay(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
