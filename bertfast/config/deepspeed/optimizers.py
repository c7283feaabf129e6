"""The optimizers and schedulers that a config can ask DeepSpeed for, and the params that each takes (deepspeed 0.19.8, torch 2.11 to 2.13).

A param is passed on to the constructor of the class that DeepSpeed builds, which depends on `torch_adam` and on where the optimizer lies.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from bertfast.config.deepspeed.places import Source, at, check_keys, keys, shown
from bertfast.errors import ConfigError
from bertfast.wording import did_you_mean, listed

_ADAM = keys("betas bias_correction eps lr weight_decay")
_ADAM_CHOICES = keys("adam_w_mode torch_adam")  # which class it is, not a param of it
_ON_TORCH = keys("differentiable foreach maximize")
# What our AdamW takes: torch's fused one, which bertfast builds itself wherever these are all that is asked for.
OWN_ADAMW = _ADAM | _ADAM_CHOICES | {"amsgrad"}
TORCH_ADAM = keys("amsgrad betas capturable eps fused lr weight_decay") | _ON_TORCH | _ADAM_CHOICES
FUSED_ADAM = OWN_ADAMW | {"set_grad_none"}
HOST_ADAM = OWN_ADAMW | {"fp32_optimizer_states"}
OPTIMIZER_PARAMS = {  # DeepSpeed's own are known in any case, torch's by their exact name
    "Adagrad": keys("eps fused initial_accumulator_value lr lr_decay weight_decay") | _ON_TORCH,
    "Lamb": _ADAM | keys("amsgrad eps_inside_sqrt max_coeff min_coeff"),
    "Lion": keys("betas lr set_grad_none weight_decay"),
    "Muon": keys("adam_lr betas eps lr momentum muon_lr ns_method weight_decay") | _ADAM_CHOICES,
    "ASGD": keys("alpha capturable lambd lr t0 weight_decay") | _ON_TORCH,
    "Adadelta": keys("capturable eps lr rho weight_decay") | _ON_TORCH,
    "Adafactor": keys("beta2_decay d eps foreach lr maximize weight_decay"),
    "Adamax": keys("betas capturable eps lr weight_decay") | _ON_TORCH,
    "NAdam": keys("betas capturable decoupled_weight_decay eps lr momentum_decay weight_decay") | _ON_TORCH,
    "RAdam": keys("betas capturable decoupled_weight_decay eps lr weight_decay") | _ON_TORCH,
    "RMSprop": keys("alpha capturable centered eps lr momentum weight_decay") | _ON_TORCH,
    "Rprop": keys("capturable etas lr step_sizes") | _ON_TORCH,
    "SGD": keys("dampening fused lr momentum nesterov weight_decay") | _ON_TORCH,
}
HOST_PARAMS = {  # of those that DeepSpeed writes anew for the host
    "Adagrad": keys("eps fp32_optimizer_states lr weight_decay"),
    "Lion": keys("betas fp32_optimizer_states lr weight_decay"),
}
OPTIMIZERS = keys("Adagrad Adam AdamW Lamb Lion Muon")
TORCH_OPTIMIZERS = frozenset(OPTIMIZER_PARAMS) - OPTIMIZERS
MUP_OPTIMIZERS = keys("MuAdam MuAdamW MuSGD")

_WARMUP = keys("last_batch_iteration warmup_max_lr warmup_min_lr warmup_num_steps warmup_type")
SCHEDULER_PARAMS = {
    "LRRangeTest": keys(
        "last_batch_iteration lr_range_test_min_lr lr_range_test_staircase lr_range_test_step_rate lr_range_test_step_size"
    ),
    "OneCycle": keys(
        """
        cycle_first_stair_count cycle_first_step_size cycle_max_lr cycle_max_mom cycle_min_lr cycle_min_mom cycle_momentum
        cycle_second_stair_count cycle_second_step_size decay_lr_rate decay_mom_rate decay_step_size last_batch_iteration
        """
    ),
    "WarmupLR": _WARMUP,
    "WarmupDecayLR": _WARMUP | {"total_num_steps"},
    "WarmupCosineLR": keys("cos_min_ratio last_batch_iteration total_num_steps warmup_min_ratio warmup_num_steps warmup_type"),
}
TORCH_SCHEDULER_PARAMS = {
    "ConstantLR": keys("factor last_epoch total_iters"),
    "CosineAnnealingLR": keys("T_max eta_min last_epoch"),
    "CosineAnnealingWarmRestarts": keys("T_0 T_mult eta_min last_epoch"),
    "CyclicLR": keys(
        "base_lr base_momentum cycle_momentum gamma last_epoch max_lr max_momentum mode scale_fn scale_mode step_size_down step_size_up"
    ),
    "ExponentialLR": keys("gamma last_epoch"),
    "LinearLR": keys("end_factor last_epoch start_factor total_iters"),
    "MultiStepLR": keys("gamma last_epoch milestones"),
    "OneCycleLR": keys(
        """
        anneal_strategy base_momentum cycle_momentum div_factor epochs final_div_factor last_epoch max_lr max_momentum pct_start
        steps_per_epoch three_phase total_steps
        """
    ),
    "PolynomialLR": keys("last_epoch power total_iters"),
    "StepLR": keys("gamma last_epoch step_size"),
}
REQUIRED_PARAMS = {  # the params without a default, but for total_num_steps, which bertfast knows
    "OneCycle": ("cycle_min_lr", "cycle_max_lr"),
    "CosineAnnealingLR": ("T_max",),
    "CosineAnnealingWarmRestarts": ("T_0",),
    "CyclicLR": ("base_lr", "max_lr"),
    "ExponentialLR": ("gamma",),
    "MultiStepLR": ("milestones",),
    "OneCycleLR": ("max_lr",),
    "StepLR": ("step_size",),
}
_SETS_ALL_RATES = keys("LRRangeTest OneCycle WarmupDecayLR WarmupLR")


def optimizer_type(block: dict[str, Any]) -> str:
    """The type of an optimizer block as the tables here write it: "AdamW" for "adamw", and where none is given."""
    name = block.get("type") or "AdamW"
    return next((known for known in OPTIMIZERS if known.lower() == name.lower()), name)


def is_own_adamw(block: dict[str, Any], offloaded: bool) -> bool:
    """Whether bertfast builds the optimizer of this block itself: AdamW, not offloaded, with no param but those that it takes."""
    kind, params = optimizer_type(block), block.get("params") or {}
    decoupled = kind == "AdamW" or (kind == "Adam" and params.get("adam_w_mode", True))
    return decoupled and not offloaded and set(params) <= OWN_ADAMW


def check_optimizer_block(source: Source, raw: dict[str, Any]) -> None:
    """Check the type of the optimizer, and its params against those that the class takes which is built for it.

    Raises:
        ConfigError: naming type or param, and what to write in its place.
    """
    place = "optimizer.params"
    _check_type(source, "optimizer.type", at(raw, "optimizer.type") or "AdamW", OPTIMIZERS, TORCH_OPTIMIZERS)
    block = raw.get("optimizer") or {}
    kind, params = optimizer_type(block), block.get("params") or {}
    offloaded = (at(raw, "zero_optimization.offload_optimizer.device") or "none") != "none"
    if isinstance(params, dict):
        given = {key: value for key, value in params.items() if value is not None}
        if fault := _param_fault(kind, given, offloaded):
            key, why = fault
            raise ConfigError(f"{source(f'{place}.{key}')}: {place}.{key} = {shown(given[key])}: {why}")
        scheduler = at(raw, "scheduler.type")
        for key in ("muon_lr", "adam_lr"):
            if key in given and scheduler in _SETS_ALL_RATES:
                raise ConfigError(
                    f"{source(f'{place}.{key}')}: {place}.{key} contradicts scheduler.type = {shown(scheduler)}, which sets one rate for all "
                    "parameters; leave out the scheduler block: --set scheduler=null"
                )
    else:
        given = {}
    check_keys(source, raw, place, _known_params(kind, given, offloaded))


def _param_fault(kind: str, params: dict[str, Any], offloaded: bool) -> tuple[str, str] | None:
    """The first of the params that another class takes, or that this one would pass over; and why."""
    own = is_own_adamw({"type": kind, "params": params}, offloaded)
    by_torch = bool(params.get("torch_adam"))
    if "fp32_optimizer_states" in params and not (offloaded and kind in ("Adam", "AdamW", *HOST_PARAMS) and not by_torch):
        return (
            "fp32_optimizer_states",
            "DeepSpeed's optimizers on the host alone have it (zero_optimization.offload_optimizer); leave it out",
        )
    if kind == "AdamW" and params.get("adam_w_mode") is False:
        return "adam_w_mode", 'AdamW decays weights apart from the gradient in any case; set optimizer.type to "Adam", or leave it out'
    if params.get("amsgrad") and not own and not by_torch and kind in ("Adam", "AdamW", "Lamb"):
        fix = "leave it out" if kind == "Lamb" else "set optimizer.params.torch_adam=true beside it, or leave it out"
        return "amsgrad", f"DeepSpeed's {kind} has no AMSGrad; {fix}"
    if kind in ("Adam", "AdamW") and not own:
        if by_torch and "bias_correction" in params:
            return "bias_correction", "torch's Adam, which torch_adam asks for, has no such switch; leave one of them out"
        for key in sorted(TORCH_ADAM - OWN_ADAMW):
            if key in params and not by_torch:
                return key, "torch's own Adam alone has it; set optimizer.params.torch_adam=true beside it, or leave it out"
        if "set_grad_none" in params and (by_torch or offloaded):
            return "set_grad_none", "DeepSpeed's fused Adam alone has it; leave it out"
    return None


def _known_params(kind: str, params: dict[str, Any], offloaded: bool) -> Collection[str]:
    """The params that the class takes which is built for this type."""
    if kind in ("Adam", "AdamW"):
        if is_own_adamw({"type": kind, "params": params}, offloaded):
            return OWN_ADAMW
        return TORCH_ADAM if params.get("torch_adam") else HOST_ADAM if offloaded else FUSED_ADAM
    return HOST_PARAMS.get(kind, OPTIMIZER_PARAMS[kind]) if offloaded else OPTIMIZER_PARAMS[kind]


def check_scheduler_block(source: Source, raw: dict[str, Any]) -> None:
    """Check that a scheduler block, where there is one, names a scheduler and what it needs, and nothing else.

    Raises:
        ConfigError: naming type or param, and what to write in its place.
    """
    if raw.get("scheduler") is None:
        return
    known = SCHEDULER_PARAMS | TORCH_SCHEDULER_PARAMS
    kind, place = at(raw, "scheduler.type"), "scheduler.params"
    if kind is None:
        raise ConfigError(
            f"{source('scheduler')}: scheduler.type is missing, so that DeepSpeed would keep one rate; known: {listed(known)}; "
            "or leave out the scheduler block: --set scheduler=null"
        )
    _check_type(source, "scheduler.type", kind, (), known)
    check_keys(source, raw, place, known[kind])
    for key in REQUIRED_PARAMS.get(kind, ()):
        if at(raw, f"{place}.{key}") is None:
            raise ConfigError(f"{source(place)}: {place}.{key} is missing: scheduler {kind} has no default for it; give a value")


def _check_type(source: Source, place: str, name: Any, in_any_case: Collection[str], exact: Collection[str]) -> None:
    known = {*in_any_case, *exact}
    if isinstance(name, str) and (name in exact or name.lower() in {known.lower() for known in in_any_case}):
        return
    if place == "optimizer.type" and str(name).lower() in {known.lower() for known in MUP_OPTIMIZERS}:
        raise ConfigError(
            f"{source(place)}: {place} = {shown(name)}: it needs a model whose base shapes the package mup has set, and bertfast sets none; "
            'set optimizer.type to "AdamW"'
        )
    hint = did_you_mean(str(name), known, f"known: {listed(known)}")
    raise ConfigError(f"{source(place)}: {place} = {shown(name)}: DeepSpeed knows none of that name; {hint}")
