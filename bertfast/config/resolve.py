"""What `"auto"` stands for in the DeepSpeed part of a config, once the device, the ranks and the number of steps are known.

As with Hugging Face's DeepSpeed integration, a value of "auto" is worked out from the rest of the config. Knows no DeepSpeed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

from bertfast.config.blocks import OptimizationConfig
from bertfast.config.deepspeed.optimizers import is_own_adamw, optimizer_type
from bertfast.config.schema import BertfastConfig, Config
from bertfast.errors import ConfigError
from bertfast.machine import has_bf16, has_triton

LEARNING_RATE = 3e-5  # one of the four rates of the BERT paper's grid (Devlin et al. 2019, appendix A.3)
WEIGHT_DECAY = 0.01
GRADIENT_CLIPPING = 1.0  # the BERT paper's code clips at it, and DeepSpeed from 0.19.3 on; before, it did not clip where nothing was said
_WARMUPS = ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR")
_FOR_GPUS = ("Lamb", "Lion")  # compiled for GPUs alone; Lion for the host too, where it is offloaded
# What ZeRO divides without zero_allow_untested_optimizer (is_zero_supported_optimizer in deepspeed/runtime/zero/utils.py).
_ZERO_OPTIMIZERS = ("Adagrad", "Adam", "AdamW", "Lion", "Muon")
# With any other key at the top of a config, or in its blocks of 16 bits, a step is DeepSpeed's own.
_OF_WHOLE_STEPS = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping", "optimizer", "scheduler", "fp16", "bf16",
    "zero_optimization", "zero_allow_untested_optimizer", "log_level",
}  # fmt: skip
_OF_LOSS_SCALES = {"loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "consecutive_hysteresis", "min_loss_scale"}


@dataclass(frozen=True)
class BatchSizes:
    """How a global batch is cut: global_batch = world_size * micro_steps * micro_batch examples (for planner "tokens", packs)."""

    global_batch: int
    micro_batch: int
    micro_steps: int
    world_size: int


def resolve_batch_sizes(config: Config, world_size: int) -> BatchSizes:
    """Reconcile train_input.batch_size with DeepSpeed's three batch keys, any of which may be "auto" or left out.

    Raises:
        ConfigError: where they contradict each other or do not divide, naming the keys, the values and the nearest that fit.
    """
    block = config.bertfast.train_input
    raw = config.deepspeed
    total, micro, steps = (
        _given(raw, key) for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    )
    if block is not None and block.planner == "tokens":
        steps = steps or 1
        return BatchSizes(world_size * steps, 1, steps, world_size)
    wanted = block.batch_size if block is not None and "batch_size" in block.model_fields_set else None
    if total is not None and wanted is not None and total != wanted:
        raise ConfigError(
            f"train_batch_size = {total} contradicts bertfast.train_input.batch_size = {wanted}: both are the global batch; set train_batch_size to 'auto'"
        )
    total = total or wanted
    if total is None and micro is not None:
        total = micro * (steps or 1) * world_size
    total = total or (block.batch_size if block is not None else 32)
    if steps is None:
        steps = max(1, total // (micro * world_size)) if micro is not None else 1
    parts = world_size * steps
    if total % parts:
        below = total // parts * parts
        near = f"{below} or {below + parts}" if below else str(parts)
        raise ConfigError(
            f"train_batch_size = {total} does not divide into {world_size} ranks x {steps} gradient_accumulation_steps = {parts} equal parts; "
            f"set bertfast.train_input.batch_size to {near}, or change gradient_accumulation_steps"
        )
    if micro is not None and micro * parts != total:
        raise ConfigError(
            f"train_micro_batch_size_per_gpu = {micro} x gradient_accumulation_steps = {steps} x {world_size} ranks is {micro * parts}, "
            f"not train_batch_size = {total}; leave one of them 'auto'"
        )
    return BatchSizes(total, total // parts, steps, world_size)


def resolve_precision(deepspeed: dict[str, Any], device_type: str) -> Literal["fp16", "bf16", "fp32"]:
    """ "fp16", "bf16" or "fp32": what the fp16 and bf16 blocks ask for; "auto" is fp16 on a GPU; on a CPU it is bf16
    where that block says so and the CPU has the instructions, and off elsewhere, where bf16 would be slower than float32.

    Raises:
        ConfigError: fp16 on a CPU, or both at once.
    """
    on_cpu = device_type == "cpu"
    fp16, bf16 = _enabled(deepspeed, "fp16", auto=not on_cpu), _enabled(deepspeed, "bf16", auto=on_cpu and has_bf16())
    if fp16 and bf16 and deepspeed["fp16"].get("enabled") == "auto":
        fp16 = False
    if fp16 and bf16:
        raise ConfigError("fp16.enabled and bf16.enabled are both true; turn one of them off")
    if fp16 and on_cpu:
        raise ConfigError(
            'fp16.enabled is true, but a CPU cannot train in fp16: set "fp16": {"enabled": "auto"} or "bf16": {"enabled": true}'
        )
    return "fp16" if fp16 else "bf16" if bf16 else "fp32"


def resolve_deepspeed(config: Config, sizes: BatchSizes, total_steps: int, device_type: str, hidden_size: int) -> dict[str, Any]:
    """The dictionary that DeepSpeed is given: no "auto" left, no `bertfast` block.

    Raises:
        ConfigError: naming a value that cannot be.
    """
    raw = copy.deepcopy(config.deepspeed)
    run = config.bertfast.run
    precision = resolve_precision(raw, device_type)
    raw["train_batch_size"] = sizes.global_batch
    raw["train_micro_batch_size_per_gpu"] = sizes.micro_batch
    raw["gradient_accumulation_steps"] = sizes.micro_steps
    for name in ("fp16", "bf16"):
        if name in raw:
            raw[name]["enabled"] = precision == name
    if device_type == "cpu":
        raw.pop("fp16", None)
    raw["gradient_clipping"] = clipping_of(raw)
    raw.setdefault("log_level", "info" if raw.get("dump_state") else "warning")  # DeepSpeed dumps its state at level info
    optimizer = raw["optimizer"] = resolve_optimizer(raw)
    if "scheduler" in raw:
        _check_scheduler(config.bertfast.optimization)
        params = raw["scheduler"].setdefault("params", {})
        kind = raw["scheduler"].get("type")
        _fill(
            params,
            warmup_num_steps=max(1, resolve_warmup_steps(run, total_steps)),
            total_num_steps=total_steps,
            warmup_min_lr=0.0,
            warmup_max_lr=optimizer["params"]["lr"],
        )
        if kind in _WARMUPS:  # DeepSpeed's own default is a logarithmic rise: half of it is over after the root of the steps
            params.setdefault("warmup_type", "linear")
        if kind in ("WarmupDecayLR", "WarmupCosineLR"):  # which have no default for it
            params.setdefault("total_num_steps", total_steps)
        if kind in ("WarmupLR", "WarmupDecayLR"):  # WarmupDecayLR's own default is 1e-3, a rate at which no BERT survives
            params.setdefault("warmup_max_lr", optimizer["params"]["lr"])
    zero = raw.get("zero_optimization", {})
    _fill(
        zero,
        reduce_bucket_size=hidden_size * hidden_size,
        stage3_prefetch_bucket_size=int(0.9 * hidden_size * hidden_size),
        stage3_param_persistence_threshold=10 * hidden_size,
    )
    if is_lone_cpu(config, sizes.world_size, device_type):
        # As stage 0, and with the model casting float32 weights itself in bf16, a step of MiniLM on two cores takes 80 and 20 ms less.
        zero["stage"] = 0
        zero.pop("compute_grad_norm", None)  # which stage 0 does not know
        raw.pop("bf16", None)
    elif takes_whole_steps(config, sizes.world_size, device_type):
        # DeepSpeed would go through the parameters one by one, in Python, in every step.
        zero["stage"] = 0
        zero.pop("compute_grad_norm", None)
        for name in ("fp16", "bf16"):
            raw.pop(name, None)
    return raw


def clipping_of(deepspeed: dict[str, Any]) -> float:
    """The norm that gradients are clipped to; 0 is none."""
    given = deepspeed.get("gradient_clipping")
    return GRADIENT_CLIPPING if given is None or given == "auto" else given


def check_optimizer_fits(config: Config, world_size: int, device_type: str) -> None:
    """Check that DeepSpeed can build the optimizer of this config on this device, and divide it.

    Raises:
        ConfigError: naming the keys that contradict each other, and which to change.
    """
    raw, kind = config.deepspeed, optimizer_type(config.deepspeed.get("optimizer", {}))
    zero, place = raw.get("zero_optimization", {}), f"optimizer.type = {optimizer_type(raw.get('optimizer', {}))!r}"
    stage = 0 if is_lone_cpu(config, world_size, device_type) else config.zero.stage
    clipping, offloaded = clipping_of(raw), config.zero.offloads_optimizer
    if kind in _FOR_GPUS and device_type == "cpu" and not (kind == "Lion" and offloaded):
        raise ConfigError(f"{place}: DeepSpeed compiles it for GPUs alone, and this is a CPU; set optimizer.type=AdamW")
    if stage and kind not in _ZERO_OPTIMIZERS and not raw.get("zero_allow_untested_optimizer"):
        raise ConfigError(
            f"{place}: DeepSpeed has not tried it with ZeRO stage {stage}; set zero_allow_untested_optimizer=true, or zero_optimization.stage=0"
        )
    if not zero.get("compute_grad_norm", True) and (config.zero.stage not in (1, 2) or (stage and (clipping or offloaded))):
        raise ConfigError(
            f"zero_optimization.compute_grad_norm = false: DeepSpeed can leave the norm out under ZeRO stage 1 and 2, without offload_optimizer and with "
            f"gradient_clipping=0, and this config has stage {config.zero.stage} and clips at {clipping:g}; change those, or leave it out"
        )
    if kind == "Muon" and stage and clipping:
        # DeepSpeed orthogonalises a matrix's gradient, and clips the whole afterwards: matrices then move 10 to 60 times less than under stage 0.
        raise ConfigError(
            f"{place}: under ZeRO stage {stage} DeepSpeed clips the finished steps of matrices at gradient_clipping = {clipping:g}, so that they hardly "
            "move; set gradient_clipping=0, or zero_optimization.stage=0"
        )
    if kind == "Muon" and stage == 3 and zero.get("reduce_scatter", True):
        raise ConfigError(
            f"{place}: DeepSpeed refuses it under ZeRO stage 3 with reduce_scatter; set zero_optimization.reduce_scatter=false"
        )


def resolve_optimizer(deepspeed: dict[str, Any]) -> dict[str, Any]:
    """The optimizer's `type` and `params` without "auto". With no type given it is our default, AdamW with a weight decay of 0.01, save for the
    params that are given; with one, params that are left out are DeepSpeed's (which decays nothing), but for the rate."""
    optimizer = copy.deepcopy(deepspeed.get("optimizer", {}))
    params = optimizer.setdefault("params", {})
    if "type" not in optimizer:
        optimizer["type"] = "AdamW"
        params.setdefault("weight_decay", WEIGHT_DECAY)
    _fill(params, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=[0.9, 0.999], eps=1e-8)
    params.setdefault("lr", LEARNING_RATE)
    return optimizer


def _check_scheduler(optimization: OptimizationConfig) -> None:
    """DeepSpeed's schedulers set one rate for all groups, and know nothing of ours."""
    mine = ("schedule", "layer_learning_rate", "layer_learning_rate_decay", "unfreeze_epochs")
    for key in mine:
        if getattr(optimization, key) not in (None, "linear"):
            raise ConfigError(
                f"bertfast.optimization.{key} = {getattr(optimization, key)!r} contradicts the scheduler block, which sets one rate for all "
                "parameters; leave out the scheduler block: --set scheduler=null"
            )


def is_lone_cpu(config: Config, world_size: int, device_type: str) -> bool:
    """Whether there is one rank, on a CPU, and nothing to offload: ZeRO has nothing to divide then, and a step is spared DeepSpeed's copies."""
    return device_type == "cpu" and world_size == 1 and not config.zero.offloads and not _asks_for_copies(config)


def takes_whole_steps(config: Config, world_size: int, device_type: str) -> bool:
    """Whether there is one rank, on a GPU, that trains in 16 bits with our AdamW and asks for nothing that DeepSpeed's step alone can give: ZeRO has
    nothing to divide then, and the step is ours (see engine/whole_step.py)."""
    raw = config.deepspeed
    if device_type != "cuda" or world_size != 1 or not has_triton() or config.zero.stage > 2 or config.zero.offloads:
        return False
    if resolve_precision(raw, device_type) == "fp32" or not is_own_adamw(resolve_optimizer(raw), config.zero.offloads_optimizer):
        return False
    if raw.get("optimizer", {}).get("params", {}).get("amsgrad"):
        return False
    return (
        set(raw) <= _OF_WHOLE_STEPS
        and set(raw.get("fp16", {})) <= {"enabled", *_OF_LOSS_SCALES}
        and set(raw.get("bf16", {})) <= {"enabled"}
    )


def _asks_for_copies(config: Config) -> bool:
    """Whether a config says in which precision DeepSpeed is to keep its copies of weights, gradients and states."""
    block = config.deepspeed.get("bf16", {})
    return "data_types" in config.deepspeed or any(block.get(key) for key in ("bf16_master_weights_and_grads", "bf16_optimizer_states"))


def resolve_total_steps(config: BertfastConfig, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run: run.max_steps, else run.epochs times those of an epoch, rounded."""
    return config.run.max_steps or max(1, round(config.run.epochs * steps_per_epoch))


def resolve_warmup_steps(run, total_steps: int) -> int:
    """Optimizer steps of the warm-up: run.warmup_steps, else run.warmup_ratio of all."""
    return run.warmup_steps if run.warmup_steps is not None else round(run.warmup_ratio * total_steps)


def _given(raw: dict[str, Any], key: str) -> int | None:
    value = raw.get(key)
    if value is None or value == "auto":
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{key} = {value!r}: it must be a whole number from 1 on, or 'auto'")
    return value


def _enabled(deepspeed: dict[str, Any], name: str, auto: bool) -> bool:
    block = deepspeed.get(name, {})
    if not isinstance(block, dict):
        raise ConfigError(f'{name} = {block!r}: it must be a block, such as {{"enabled": true}}')
    enabled = block.get("enabled", False)
    if enabled not in (True, False, "auto"):
        raise ConfigError(f"{name}.enabled = {enabled!r}: it must be true, false or 'auto'")
    return auto if enabled == "auto" else enabled


def _fill(block: dict[str, Any], **values: Any) -> None:
    for key, value in values.items():
        if block.get(key) == "auto":
            block[key] = value
