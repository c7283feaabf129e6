"""What must be equal for a resumed run to be the same run, and what of a config may change by design.

An identity is plain data: facts by name, blocks within blocks. Every setting is in it, whether or not it matters; what may change is left out when two
identities are held against each other. So a new key of the config is held to its value, unless it is named here.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from bertfast.config import HEAD_KEY, BertfastConfig, Block, Config
from bertfast.model import BertEncoder
from bertfast.reporting import RECIPE_BLOCKS, changed

# Reason -> keys, each with all below it; `*` is any number in a list. DeepSpeed's stand below "deepspeed".
MAY_CHANGE: dict[str, tuple[str, ...]] = {
    "a schedule is a function of the step: from the resume on, the rates are those of the new length": (
        "run.epochs",
        "run.max_steps",
        "run.warmup_ratio",
        "run.warmup_steps",
        "deepspeed.scheduler.params.total_num_steps",
        "deepspeed.scheduler.params.warmup_num_steps",
    ),
    "when the run looks, judges, saves and ends, and what is made of its model": (
        "run.logging_steps",
        "run.eval_steps",
        "run.save_steps",
        "run.keep_checkpoints",
        "run.early_stopping_patience",
        "export",
        "deepspeed.steps_per_print",
        *(f"deepspeed.{name}" for name in ("tensorboard", "csv_monitor", "wandb", "comet", "comms_logger", "flops_profiler", "log_level")),
        *(f"deepspeed.{name}" for name in ("wall_clock_breakdown", "memory_breakdown", "dump_state", "timers", "checkpoint")),
    ),
    "where files lie: what is read there is held by its checksum": (
        "run.model_dir",
        "model.checkpoint",
        "model.tokenizer",
        *(f"train_input.{name}" for name in ("data_dir", "data_file", "input_fn", "cache_dir")),
        *(f"multitask.tasks.*.train_input.{name}" for name in ("data_dir", "data_file", "input_fn")),
        *(f"pretrain.{name}" for name in ("text_files", "eval_text_files", "inputs.*.data_dir", "inputs.*.data_file")),
        *(f"deepspeed.zero_optimization.{name}.nvme_path" for name in ("offload_optimizer", "offload_param")),
    ),
    "speed and memory: the same numbers, but for rounding": (
        "run.threads",
        "run.cuda_graphs",
        "train_input.num_workers",
        "model.gradient_checkpointing",
        "deepspeed.aio",
        "deepspeed.activation_checkpointing",
        *(f"deepspeed.zero_optimization.{name}" for name in ("allgather_bucket_size", "reduce_bucket_size", "overlap_comm")),
        *(f"deepspeed.zero_optimization.{name}" for name in ("stage3_prefetch_bucket_size", "stage3_max_live_parameters")),
        *(f"deepspeed.zero_optimization.{name}" for name in ("stage3_max_reuse_distance", "stage3_param_persistence_threshold")),
        *(f"deepspeed.zero_optimization.{name}.pin_memory" for name in ("offload_optimizer", "offload_param")),
    ),
    "held under another name: classes, metric, network, dropout, precision, weights, the data's checksums, the sizes of batches": (
        "task",
        "eval_input",
        "multitask.tasks.*.task",
        "multitask.tasks.*.eval_input",
        "train_input.batch_size",
        "run.seed",
        "run.packing_invariant_dropout",
        "model.hidden_dropout_prob",
        "model.attention_probs_dropout_prob",
        "model.strict",
        "model.is_pretrained_checkpoint",
        "model.load_checkpoint_states",
        *(f"deepspeed.{name}" for name in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")),
        *(f"deepspeed.{name}" for name in ("optimizer", "fp16.enabled", "bf16.enabled", "zero_optimization.stage")),
    ),
}

# Facts that no flag allows to change: DeepSpeed would load a state of one kind into an optimizer or a schedule of another.
FIXED = ("optimizer.type", "deepspeed.scheduler.type")

# What the best model so far was found by: where one of these is another, its score says nothing of the scores to come.
JUDGED_BY = ("metric", "classes", "evaluation data")

# What every checkpoint tells, those of earlier versions too. Of any other fact, one that is not there was not written down yet.
_ALWAYS_TOLD = {
    *("seed", "world_size", "batch size", "micro-steps", "planner", "steps per epoch", "training examples", "training tokens"),
    *("tasks", "sampling", "epochs", *RECIPE_BLOCKS),
}
_NETWORK = (
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    HEAD_KEY,
)
_SAMPLED = 1 << 14  # numbers of each tensor that are looked at: 13 MB of BERT-base's 440


def settings_of(config: Config, resolved: dict[str, Any], clipping: float) -> dict[str, Any]:
    """Every setting of a config that is not as it is by default. resolved: what DeepSpeed is given, without "auto". clipping: the norm that gradients
    are clipped at; left out of a config, it is DeepSpeed's default, which has changed from version to version."""
    blocks = {name: changed(value) if isinstance(value, Block) else value for name, value in config.bertfast}
    return {**blocks, "deepspeed": {**_at_work(resolved), "gradient_clipping": clipping}}


def _at_work(resolved: dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed's blocks without those that are switched off, and ZeRO's only where it divides something."""
    off = [name for name, block in resolved.items() if isinstance(block, dict) and block.get("enabled") is False]
    if not resolved.get("zero_optimization", {}).get("stage"):
        off.append("zero_optimization")
    return {name: block for name, block in resolved.items() if name not in off}


def network_of(model: BertEncoder) -> dict[str, Any]:
    """What a model's config.json says that its tensors do not show."""
    return {name: getattr(model.config, name, None) for name in _NETWORK}


def checksum_of_weights(model: BertEncoder) -> str:
    """A CRC-32 of the tensors that came from the checkpoint: their names and shapes, and some 16,000 numbers of each, evenly spaced. What is made anew
    is left out: it comes from the seed. A checkpoint that was trained further has other numbers everywhere; one row that was edited can pass unseen."""
    state, crc = model.state_dict(), 0
    for name in sorted(model.loaded.loaded):
        flat = state[name].detach().reshape(-1)
        crc = zlib.crc32(f"{name} {list(state[name].shape)}".encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(flat[:: max(1, len(flat) // _SAMPLED)].numpy()).data, crc)
    return f"crc32 {crc:08x}"


def differences(written: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """By name what differs between the identity in a checkpoint and this run's: the value there and the value here, None where nothing is set. Left
    out is what may change by design, and what the checkpoint does not tell."""
    silent = untold(written, now)
    was, here = (dict(_leaves({name: fact for name, fact in identity.items() if name not in silent})) for identity in (written, now))
    if not (written.get("evaluation data") and now.get("evaluation data")):  # nothing was judged before, or nothing will be
        was, here = ({name: value for name, value in facts.items() if not is_of(name, ("evaluation data",))} for facts in (was, here))
    return {name: (was.get(name), here.get(name)) for name in {**here, **was} if was.get(name) != here.get(name)}


def untold(written: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The names of what a checkpoint of an earlier version does not tell, of all that would be compared."""
    return [name for name, fact in now.items() if name not in {*written, *_ALWAYS_TOLD} and any(_leaves(fact, name))]


def is_of(name: str, facts: tuple[str, ...]) -> bool:
    """Whether a name is one of these facts, or of something within one."""
    return any(name == fact or name.startswith(f"{fact}.") for fact in facts)


def shown(name: str) -> str:
    """A name as the config has it."""
    own = name.split(".")[0] in BertfastConfig.model_fields
    return f"bertfast.{name}" if own else name.removeprefix("deepspeed.")


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The values within blocks and lists of blocks, by dotted place, without those that may change or are not set."""
    if place and any(fnmatchcase(place, pattern) for keys in MAY_CHANGE.values() for pattern in keys):
        return
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{place}.{key}" if place else str(key))
    elif value is not None:
        yield place, value
