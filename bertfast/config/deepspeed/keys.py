"""The keys that DeepSpeed 0.19.8 reads (deepspeed.ai/docs/config-json and its config classes), and what becomes of each.

Every key is one of three. `HONOURED`: it does what DeepSpeed's documentation says, and a test shows that. `REFUSED`: DeepSpeed has removed it, or it would
change nothing here, or something that training here does not expect; the message says what to write in its place. All others are passed on to DeepSpeed
as they are: sizes of buckets, devices and the like.

DeepSpeed ignores an unknown key at the top level in silence, and answers one inside a block, or a value that cannot be, with a traceback after the data was read.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

from bertfast.config.deepspeed.optimizers import check_optimizer_block, check_scheduler_block
from bertfast.config.deepspeed.places import Source, at, check_keys, keys, shown
from bertfast.config.deepspeed.refused import check_refused
from bertfast.config.unknown import unknown_key
from bertfast.errors import ConfigError

TOP_LEVEL_KEYS = keys(
    """
    activation_checkpointing aio amp autotuning bf16 bfloat16 checkpoint comet comms_logger communication_data_type compile
    compression_training csv_monitor curriculum_learning data_efficiency data_types dataloader_drop_last datastates_ckpt disable_allgather
    disable_python_gc dump_state eigenvalue elasticity expert_parallel flops_profiler fp16 gradient_accumulation_steps
    gradient_allreduce_op gradient_clipping gradient_predivide_factor graph_harvesting hybrid_engine log_level
    managed_gradient_accumulation memory_breakdown nebula optimizer pipeline prescale_gradients progressive_layer_drop quantize_training
    scheduler seq_parallel_communication_data_type sequence_parallel_size sparse_attention sparse_gradients steps_per_print tensor_parallel
    tensorboard timers torch_autocast train_batch_size train_micro_batch_size_per_gpu use_data_before_expert_parallelism
    vocabulary_size wall_clock_breakdown wandb weight_quantization zero_allow_untested_optimizer zero_force_ds_cpu_optimizer
    zero_optimization
    """
)

_ZERO_SWITCHES = keys(
    """
    allgather_partitions compute_grad_norm contiguous_gradients cpu_offload cpu_offload_param cpu_offload_use_pin_memory elastic_checkpoint
    enable_sanity_checks ignore_unused_parameters legacy_stage1 load_from_fp32_weights log_trace_cache_warnings memory_efficient_linear
    overlap_comm override_module_apply parameter_alignment pipeline_loading_checkpoint reduce_scatter round_robin_gradients
    save_muon_momentum_buffer_in_memory stage3_gather_fp16_weights_on_model_save use_multi_rank_bucket_allreduce
    zero_quantized_gradients zero_quantized_nontrainable_weights zero_quantized_weights
    """
)
_ZERO_SIZES = keys("allgather_bucket_size reduce_bucket_size sub_group_size zero_hpz_partition_size")
_ZERO_BLOCKS = keys(
    """
    leaf_module mics_hierarchical_params_gather mics_shard_size offload_optimizer offload_param stage zenflow zeropp_loco_param
    """
)
_STAGE_3_SWITCHES = keys("allgather_sequential gather_16bit_weights_on_model_save use_all_reduce_for_fetch_params")
_STAGE_3_SIZES = keys(
    """
    max_live_parameters max_reuse_distance model_persistence_threshold module_granularity_threshold param_persistence_threshold
    prefetch_bucket_size
    """
)
_BF16_SWITCHES = keys("bf16_master_weights_and_grads bf16_optimizer_states check_grad_overflow immediate_grad_update")
_FP16_SWITCHES = keys("auto_cast consecutive_hysteresis fp16_master_weights_and_grads")
_MONITOR_KEYS = keys("enabled job_name output_path")
_COMET_TEXTS = keys("api_key experiment_key experiment_name mode project workspace")


def _stage_3(names: frozenset[str]) -> frozenset[str]:
    """DeepSpeed reads each of these with the prefix stage3_ and without."""
    return names | {f"stage3_{name}" for name in names}


NESTED_KEYS = {
    "aio": keys("block_size intra_op_parallelism overlap_events queue_depth single_submit use_gds"),
    "bf16": _BF16_SWITCHES | {"enabled"},
    "checkpoint": keys("checkpoint_serialization load_universal parallel_write tag_validation use_node_local_storage writer"),
    "data_types": keys("buffer_dtype grad_accum_dtype keep_in_fp32_modules param_dtype"),
    "flops_profiler": keys("detailed enabled module_depth output_file profile_step recompute_fwd_factor top_modules"),
    "fp16": _FP16_SWITCHES | keys("enabled hysteresis initial_scale_power loss_scale loss_scale_window min_loss_scale"),
    "timers": keys("throughput"),
    "timers.throughput": keys("enabled synchronized"),
    "zero_optimization": _ZERO_SWITCHES | _ZERO_SIZES | _ZERO_BLOCKS | _stage_3(_STAGE_3_SWITCHES | _STAGE_3_SIZES),
    "zero_optimization.leaf_module": keys("classes name_suffixes names"),
    "zero_optimization.offload_param": keys("buffer_count buffer_size device max_in_cpu nvme_path pin_memory"),
    "zero_optimization.offload_optimizer": keys(
        "buffer_count cpuadam_cores_perc device fast_init nvme_path pin_memory pipeline_read pipeline_write ratio super_offload"
    ),
    "zero_optimization.zenflow": keys(
        """
        auto_ratio full_warm_up_rounds offload overlap_step pt_reserved_cores_perc select_interval select_strategy steps_per_epoch
        topk_ratio update_interval
        """
    ),
    "optimizer": keys("legacy_fusion params type"),
    "scheduler": keys("params type"),
    "tensorboard": _MONITOR_KEYS,
    "csv_monitor": _MONITOR_KEYS,
    "wandb": keys("enabled group project team"),
    "comet": _COMET_TEXTS | keys("enabled online samples_log_interval"),
}

# Those of which a test shows what changes with them; the params of the optimizers and schedulers besides.
HONOURED = keys(
    """
    bf16.enabled disable_python_gc dump_state fp16.enabled gradient_accumulation_steps gradient_clipping log_level memory_breakdown
    optimizer.type scheduler.type steps_per_print train_batch_size train_micro_batch_size_per_gpu wall_clock_breakdown
    zero_allow_untested_optimizer zero_optimization.offload_optimizer.device zero_optimization.offload_param.device zero_optimization.stage
    """
) | {
    f"{block}.{key}"
    for block in ("tensorboard", "csv_monitor", "wandb", "comet", "flops_profiler", "timers.throughput")
    for key in NESTED_KEYS[block]
}
HONOURED |= {
    f"fp16.{key}" for key in keys("consecutive_hysteresis hysteresis initial_scale_power loss_scale loss_scale_window min_loss_scale")
}

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


# ---------------------------------------------------------------------------------------------------------------------------- values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _from_zero(value: Any) -> bool:
    return value == "auto" or (_is_number(value) and value >= 0)


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: _is_number(value) and float(value).is_integer() and value >= least  # 5e8 is whole, and a float


def _betas(value: Any) -> bool:
    return value == "auto" or (isinstance(value, list) and len(value) == 2 and all(_is_number(beta) and 0 <= beta < 1 for beta in value))


def _one_of(*choices: str) -> tuple[Callable[[Any], bool], str]:
    *others, last = (repr(choice) for choice in choices)
    return lambda value: value in choices, f"{', '.join(others)} or {last}"


def _places(block: str, names: frozenset[str]) -> list[str]:
    return [f"{block}.{name}" for name in names]


_FROM_ZERO = (_from_zero, "a number from 0 on, or 'auto'")
_SWITCH = (lambda value: isinstance(value, bool), "true or false")
_SHARE = (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
_COUNT = (_whole(0), "a whole number from 0 on")
_FROM_ONE = (_whole(1), "a whole number from 1 on")
_SIZE = (lambda value: value == "auto" or _whole(0)(value), "a whole number from 0 on")
_TEXT = (lambda value: isinstance(value, str), "a string")
_OFFLOAD = _one_of("none", "cpu", "nvme")
_DTYPE = _one_of("fp32", "fp16", "bf16")
_HOST, _PARAMETERS = "zero_optimization.offload_optimizer", "zero_optimization.offload_param"
VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {  # key -> whether a value can be, and what it must be, in words
    **dict.fromkeys(("gradient_clipping", "optimizer.params.lr", "optimizer.params.weight_decay"), _FROM_ZERO),
    "optimizer.params.eps": (lambda value: _from_zero(value) or isinstance(value, list), _FROM_ZERO[1]),  # Adafactor has two
    "optimizer.params.betas": (_betas, "two numbers from 0 to below 1, or 'auto'"),
    **dict.fromkeys(_places("optimizer.params", keys("adam_w_mode amsgrad bias_correction torch_adam")), _SWITCH),
    "scheduler.params.warmup_type": _one_of("linear", "log"),
    **dict.fromkeys(("scheduler.params.warmup_num_steps", "scheduler.params.total_num_steps"), _SIZE),
    "steps_per_print": _FROM_ONE,
    "log_level": _one_of("debug", "info", "warning", "error", "critical"),
    "communication_data_type": _DTYPE,
    "gradient_predivide_factor": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    **dict.fromkeys(("tensorboard.enabled", "csv_monitor.enabled", "wandb.enabled", "comet.enabled", "comet.online"), _SWITCH),
    **dict.fromkeys(_places("tensorboard", _MONITOR_KEYS - {"enabled"}), _TEXT),
    **dict.fromkeys(_places("csv_monitor", _MONITOR_KEYS - {"enabled"}), _TEXT),
    **dict.fromkeys(_places("wandb", keys("group project team")), _TEXT),
    **dict.fromkeys(_places("comet", _COMET_TEXTS), _TEXT),
    "comet.samples_log_interval": _FROM_ONE,
    **dict.fromkeys(("wall_clock_breakdown", "dump_state", "memory_breakdown", "prescale_gradients", "disable_python_gc"), _SWITCH),
    "zero_allow_untested_optimizer": _SWITCH,
    **dict.fromkeys(_places("timers.throughput", NESTED_KEYS["timers.throughput"]), _SWITCH),
    **dict.fromkeys(("flops_profiler.enabled", "flops_profiler.detailed"), _SWITCH),
    **dict.fromkeys(("flops_profiler.profile_step", "flops_profiler.top_modules"), _FROM_ONE),
    "flops_profiler.module_depth": (_whole(-1), "a whole number, or -1 for all modules"),
    "flops_profiler.output_file": _TEXT,
    "flops_profiler.recompute_fwd_factor": (lambda value: _is_number(value) and value >= 0, "a number from 0 on"),
    **dict.fromkeys(_places("bf16", _BF16_SWITCHES), _SWITCH),
    **dict.fromkeys(_places("fp16", _FP16_SWITCHES), _SWITCH),
    "fp16.loss_scale": (lambda value: _is_number(value) and value >= 0, "a number from 0 on; 0 is a scale that adapts itself"),
    **dict.fromkeys(("fp16.initial_scale_power", "fp16.hysteresis"), _COUNT),
    **dict.fromkeys(("fp16.loss_scale_window", "fp16.min_loss_scale"), _FROM_ONE),
    "zero_optimization.stage": (lambda value: _whole(0)(value) and value <= 3, "0, 1, 2 or 3"),
    **dict.fromkeys(_places("zero_optimization", _ZERO_SWITCHES | _stage_3(_STAGE_3_SWITCHES)), _SWITCH),
    **dict.fromkeys(_places("zero_optimization", _ZERO_SIZES | _stage_3(_STAGE_3_SIZES)), _SIZE),
    "zero_optimization.reduce_bucket_size": (lambda value: value == "auto" or _whole(1)(value), "a whole number from 1 on"),
    **dict.fromkeys((f"{_HOST}.device", f"{_PARAMETERS}.device"), _OFFLOAD),
    **dict.fromkeys((f"{_HOST}.nvme_path", f"{_PARAMETERS}.nvme_path"), _TEXT),
    **dict.fromkeys(_places(_HOST, keys("fast_init pin_memory pipeline_read pipeline_write super_offload")), _SWITCH),
    **dict.fromkeys((f"{_HOST}.ratio", f"{_HOST}.cpuadam_cores_perc"), _SHARE),
    f"{_HOST}.buffer_count": _COUNT,
    f"{_PARAMETERS}.pin_memory": _SWITCH,
    **dict.fromkeys(_places(_PARAMETERS, keys("buffer_count buffer_size max_in_cpu")), _COUNT),
    **dict.fromkeys(_places("aio", keys("overlap_events single_submit use_gds")), _SWITCH),
    **dict.fromkeys(_places("aio", keys("block_size intra_op_parallelism queue_depth")), _FROM_ONE),
    "checkpoint.tag_validation": (
        lambda value: isinstance(value, str) and value.upper() in ("WARN", "IGNORE", "FAIL"),
        "'Warn', 'Ignore' or 'Fail'",
    ),
    "checkpoint.checkpoint_serialization": _SWITCH,
}

# Where "auto" is worked out from the rest (config/resolve.py). keep_in_fp32_modules is "auto" of DeepSpeed's own, and so are three keys of ZenFlow.
_AUTO = keys(
    """
    bf16.enabled data_types.keep_in_fp32_modules fp16.enabled gradient_accumulation_steps gradient_clipping optimizer.params.betas
    optimizer.params.eps optimizer.params.lr optimizer.params.weight_decay scheduler.params.total_num_steps scheduler.params.warmup_max_lr
    scheduler.params.warmup_min_lr scheduler.params.warmup_num_steps train_batch_size train_micro_batch_size_per_gpu
    zero_optimization.reduce_bucket_size zero_optimization.stage3_param_persistence_threshold zero_optimization.stage3_prefetch_bucket_size
    zero_optimization.zenflow.select_interval zero_optimization.zenflow.select_strategy zero_optimization.zenflow.update_interval
    """
)


def check_deepspeed(source: Source, raw: dict[str, Any]) -> None:
    """Name the first of DeepSpeed's keys that DeepSpeed does not know, that is refused, or whose value cannot be.

    Raises:
        ConfigError: naming where it came from, key and value, and what to do.
    """
    for key in raw:
        if key not in TOP_LEVEL_KEYS:
            raise ConfigError(unknown_key(source, str(key), "", [*TOP_LEVEL_KEYS, "bertfast"]))
    check_refused(source, raw)
    for place, known in NESTED_KEYS.items():
        check_keys(source, raw, place, known)
    for place, (can_be, words) in VALUES.items():
        value = at(raw, place)
        if value is not None and not can_be(value):
            raise ConfigError(f"{source(place)}: {place} = {shown(value)}: it must be {words}")
    check_optimizer_block(source, raw)
    check_scheduler_block(source, raw)
    for place in _autos(raw, ""):
        if place not in _AUTO:
            raise ConfigError(
                f"{source(place)}: {place} = 'auto': bertfast does not know what that would be here; give a value, or leave the key out"
            )
    _check_stage(source, raw)


def _check_stage(source: Source, raw: dict[str, Any]) -> None:
    """What lies on the host, on a disk or in half precision needs a stage that divides it, and a disk needs a folder."""
    stage = at(raw, "zero_optimization.stage") or 0
    for place in ("bf16.bf16_master_weights_and_grads", "bf16.bf16_optimizer_states", "fp16.fp16_master_weights_and_grads"):
        if at(raw, place) and stage < 1:
            raise ConfigError(
                f"{source(place)}: {place} = true: it needs ZeRO stage 1 or more, not {stage}; set zero_optimization.stage=1, or leave it out"
            )
    if at(raw, "bf16.bf16_optimizer_states") and not at(raw, "bf16.bf16_master_weights_and_grads"):
        place = "bf16.bf16_optimizer_states"
        raise ConfigError(f"{source(place)}: {place} = true: it needs bf16.bf16_master_weights_and_grads=true beside it; or leave it out")
    for block, least in ((_HOST, 1), (_PARAMETERS, 3)):
        device = at(raw, f"{block}.device") or "none"
        needed = 3 if device == "nvme" else least
        if device != "none" and stage < needed:
            raise ConfigError(
                f"{source(f'{block}.device')}: {block}.device = {shown(device)}: it needs ZeRO stage {needed}{' or more' if needed < 3 else ''}, not {stage}; "
                f"set zero_optimization.stage={needed}, or {block}=null"
            )
        if device == "nvme" and not at(raw, f"{block}.nvme_path"):
            raise ConfigError(
                f"{source(f'{block}.device')}: {block}.nvme_path is missing: the folder of the disk that {block}.device = 'nvme' is to use"
            )
    for key in ("ratio", "super_offload"):
        value = at(raw, f"{_HOST}.{key}")
        if value not in (None, False, 1) and stage < 3:
            raise ConfigError(
                f"{source(f'{_HOST}.{key}')}: {_HOST}.{key} = {shown(value)}: it needs ZeRO stage 3, not {stage}; leave it out"
            )


def _autos(value: Any, place: str) -> Iterator[str]:
    """The places at which "auto" stands."""
    if value == "auto":
        yield place
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _autos(inner, f"{place}.{key}" if place else str(key))
