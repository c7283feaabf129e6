"""The keys that DeepSpeed reads (deepspeed.ai/docs/config-json and deepspeed 0.19), so that a misspelt one is named before anything starts.

DeepSpeed ignores an unknown key at the top level in silence, and answers one inside a block, or a value that cannot be, with a traceback,
seconds later. What `NESTED_KEYS` and `VALUES` do not list is left to DeepSpeed.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Collection
from typing import Any

from bertfast.errors import ConfigError
from bertfast.wording import did_you_mean, listed, unknown_key


def _keys(names: str) -> frozenset[str]:
    return frozenset(names.split())


TOP_LEVEL_KEYS = _keys(
    """
    activation_checkpointing aio amp autotuning bf16 bfloat16 checkpoint comet comms_logger communication_data_type compile
    compression_training csv_monitor curriculum_learning data_efficiency data_types dataloader_drop_last disable_allgather
    disable_python_gc dump_state eigenvalue elasticity expert_parallel flops_profiler fp16 gradient_accumulation_steps
    gradient_allreduce_op gradient_clipping gradient_predivide_factor hybrid_engine log_level managed_gradient_accumulation
    memory_breakdown nebula optimizer pipeline prescale_gradients progressive_layer_drop quantize_training scheduler
    seq_parallel_communication_data_type sequence_parallel_size sparse_attention sparse_gradients steps_per_print tensor_parallel
    tensorboard timers torch_autocast train_batch_size train_micro_batch_size_per_gpu use_data_before_expert_parallelism
    vocabulary_size wall_clock_breakdown wandb weight_quantization zero_allow_untested_optimizer zero_force_ds_cpu_optimizer
    zero_optimization
    """
)

_ZERO_KEYS = _keys(
    """
    allgather_bucket_size allgather_partitions compute_grad_norm contiguous_gradients cpu_offload cpu_offload_param
    cpu_offload_use_pin_memory elastic_checkpoint enable_sanity_checks ignore_unused_parameters leaf_module legacy_stage1
    load_from_fp32_weights log_trace_cache_warnings memory_efficient_linear offload_optimizer offload_param overlap_comm
    override_module_apply parameter_alignment pipeline_loading_checkpoint reduce_bucket_size reduce_scatter round_robin_gradients
    save_muon_momentum_buffer_in_memory stage stage3_gather_fp16_weights_on_model_save sub_group_size
    use_multi_rank_bucket_allreduce zenflow zero_hpz_partition_size zero_quantized_gradients
    zero_quantized_nontrainable_weights zero_quantized_weights
    """
)
_STAGE_3_KEYS = _keys(  # each is read with the prefix stage3_ and without
    """
    allgather_sequential gather_16bit_weights_on_model_save max_live_parameters max_reuse_distance model_persistence_threshold
    module_granularity_threshold param_persistence_threshold prefetch_bucket_size use_all_reduce_for_fetch_params
    """
)
_BF16_KEYS = _keys("bf16_master_weights_and_grads bf16_optimizer_states check_grad_overflow enabled immediate_grad_update")
_MONITOR_KEYS = _keys("enabled job_name output_path")

NESTED_KEYS = {
    "activation_checkpointing": _keys(
        """
        contiguous_memory_optimization cpu_checkpointing number_checkpoints partition_activations profile synchronize_checkpoint_boundary
        """
    ),
    "aio": _keys("block_size intra_op_parallelism overlap_events queue_depth single_submit use_gds"),
    "bf16": _BF16_KEYS,
    "bfloat16": _BF16_KEYS,
    "checkpoint": _keys("load_universal parallel_write tag_validation use_node_local_storage writer"),
    "comms_logger": _keys("debug enabled prof_all prof_ops verbose"),
    "flops_profiler": _keys("detailed enabled module_depth output_file profile_step recompute_fwd_factor top_modules"),
    "fp16": _keys(
        """
        auto_cast consecutive_hysteresis enabled fp16_master_weights_and_grads hysteresis initial_scale_power loss_scale
        loss_scale_window min_loss_scale
        """
    ),
    "zero_optimization": _ZERO_KEYS | _STAGE_3_KEYS | {f"stage3_{key}" for key in _STAGE_3_KEYS},
    "zero_optimization.offload_param": _keys("buffer_count buffer_size device max_in_cpu nvme_path pin_memory"),
    "zero_optimization.offload_optimizer": _keys(
        "buffer_count cpuadam_cores_perc device fast_init nvme_path pin_memory pipeline_read pipeline_write ratio super_offload"
    ),
    "optimizer": _keys("legacy_fusion params type"),
    "scheduler": _keys("params type"),
    "tensorboard": _MONITOR_KEYS,
    "csv_monitor": _MONITOR_KEYS,
    "wandb": _keys("enabled group project team"),
    "comet": _keys("api_key enabled experiment_key experiment_name mode online project samples_log_interval workspace"),
}

_WARMUP_KEYS = _keys("last_batch_iteration warmup_max_lr warmup_min_lr warmup_num_steps warmup_type")
SCHEDULER_PARAMS = {
    "WarmupLR": _WARMUP_KEYS,
    "WarmupDecayLR": _WARMUP_KEYS | {"total_num_steps"},
    "WarmupCosineLR": _keys("cos_min_ratio last_batch_iteration total_num_steps warmup_min_ratio warmup_num_steps warmup_type"),
}

# DeepSpeed's optimizers, in any case; torch's by their exact name.
OPTIMIZERS = _keys("Adagrad Adam AdamW Lamb Lion MuAdam MuAdamW Muon MuSGD")
TORCH_OPTIMIZERS = _keys("ASGD Adadelta Adafactor Adamax NAdam RAdam RMSprop Rprop SGD")
ADAM_PARAMS = _keys(
    """
    adam_w_mode amsgrad betas bias_correction capturable differentiable eps foreach fp32_optimizer_states fused lr maximize set_grad_none
    torch_adam weight_decay
    """
)
SCHEDULERS = frozenset(SCHEDULER_PARAMS) | _keys("LRRangeTest OneCycle")
TORCH_SCHEDULERS = _keys(
    """
    ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR ExponentialLR LinearLR MultiStepLR OneCycleLR PolynomialLR StepLR
    """
)


_MONITOR_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml"}


def check_monitors(deepspeed: dict[str, Any]) -> None:
    """Check that the packages are there which the monitor blocks of this config need.

    Raises:
        ConfigError: naming the block and the package.
    """
    for block, package in _MONITOR_PACKAGES.items():
        if deepspeed.get(block, {}).get("enabled") and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"{block}.enabled is true, but the package {package} is not installed: pip install {package}, "
                f"or turn it off with --set {block}.enabled=false (csv_monitor needs no package)"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _from_zero(value: Any) -> bool:
    return value == "auto" or (_is_number(value) and value >= 0)


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _betas(value: Any) -> bool:
    return value == "auto" or (isinstance(value, list) and len(value) == 2 and all(_is_number(beta) and 0 <= beta < 1 for beta in value))


_FROM_ZERO = (_from_zero, "a number from 0 on, or 'auto'")
_SWITCH = (lambda value: isinstance(value, bool), "true or false")
_OFFLOAD = (lambda value: value in ("none", "cpu", "nvme"), "'none', 'cpu' or 'nvme'")
VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {  # key -> whether a value can be, and what it must be, in words
    **dict.fromkeys(("gradient_clipping", "optimizer.params.lr", "optimizer.params.weight_decay", "optimizer.params.eps"), _FROM_ZERO),
    "optimizer.params.betas": (_betas, "two numbers from 0 to below 1, or 'auto'"),
    "steps_per_print": (_whole(1), "a whole number from 1 on"),
    "zero_optimization.stage": (lambda value: _whole(0)(value) and value <= 3, "0, 1, 2 or 3"),
    "zero_optimization.offload_optimizer.device": _OFFLOAD,
    "zero_optimization.offload_param.device": _OFFLOAD,
    **dict.fromkeys(("tensorboard.enabled", "csv_monitor.enabled", "wandb.enabled", "comet.enabled"), _SWITCH),
    **dict.fromkeys(("wall_clock_breakdown", "dump_state", "memory_breakdown", "prescale_gradients"), _SWITCH),
}


def check_deepspeed(source: Callable[[str], str], raw: dict[str, Any]) -> None:
    """Name the first of DeepSpeed's keys that DeepSpeed does not know, or whose value cannot be."""
    for key in raw:
        if key not in TOP_LEVEL_KEYS:
            raise ConfigError(unknown_key(source, str(key), "", [*TOP_LEVEL_KEYS, "bertfast"]))
    for place, keys in (NESTED_KEYS | _params_of_types(source, raw)).items():
        node = _at(raw, place)
        if node is None:
            continue
        if not isinstance(node, dict):
            shown = json.dumps(node, default=str)
            raise ConfigError(f"{source(place)}: {place} = {shown}: it must be an object; its keys: {listed(keys)}")
        for key in node:
            if key not in keys:
                raise ConfigError(unknown_key(source, str(key), place, keys))
    for place, (can_be, words) in VALUES.items():
        value = _at(raw, place)
        if value is not None and not can_be(value):
            raise ConfigError(f"{source(place)}: {place} = {json.dumps(value, default=str)}: it must be {words}")


def _params_of_types(source: Callable[[str], str], raw: dict[str, Any]) -> dict[str, Collection[str]]:
    """The keys that the params of this optimizer and scheduler may have, where they are known; a type that is not is an error."""
    known: dict[str, Collection[str]] = {}
    optimizer, scheduler = _at(raw, "optimizer.type") or "AdamW", _at(raw, "scheduler.type")
    _check_type(source, "optimizer.type", optimizer, {name.lower() for name in OPTIMIZERS}, OPTIMIZERS | TORCH_OPTIMIZERS)
    if optimizer.lower() in ("adam", "adamw"):
        known["optimizer.params"] = ADAM_PARAMS
    if scheduler is not None:
        _check_type(source, "scheduler.type", scheduler, (), SCHEDULERS | TORCH_SCHEDULERS)
        if scheduler in SCHEDULER_PARAMS:
            known["scheduler.params"] = SCHEDULER_PARAMS[scheduler]
    return known


def _check_type(source: Callable[[str], str], place: str, name: Any, in_any_case: Collection[str], exact: Collection[str]) -> None:
    if isinstance(name, str) and (name in exact or name.lower() in in_any_case):
        return
    hint = did_you_mean(str(name), exact, f"known: {listed(exact)}")
    raise ConfigError(f"{source(place)}: {place} = {json.dumps(name, default=str)}: DeepSpeed knows none of that name; {hint}")


def _at(raw: dict[str, Any], place: str) -> Any:
    """The value at a dotted place, or None where there is none."""
    node: Any = raw
    for part in place.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node
