"""The keys of DeepSpeed that are refused, each with what to write in its place."""

from __future__ import annotations

from typing import Any, NamedTuple

from bertfast.config.deepspeed.places import Source, at, shown
from bertfast.errors import ConfigError


class Refused(NamedTuple):
    """Why a key is refused, with the fix. It is let through where its value turns nothing on, or is one of `fine`; `removed`: never."""

    why: str
    fine: tuple[Any, ...] = ()
    removed: bool = False


def _removed(instead: str) -> Refused:
    return Refused(f"DeepSpeed has removed it, and refuses it even where it is off; {instead}", removed=True)


_LEAVE_OUT = _removed("leave it out")
_ONE_MODEL = "bertfast divides no model that way; leave it out"
REFUSED: dict[str, Refused] = {
    # What DeepSpeed 0.19.7 and 0.19.8 removed (its issue 8489).
    "amp": _removed('use "bf16": {"enabled": true} or "fp16"'),
    "compression_training": _LEAVE_OUT,
    "curriculum_learning": _LEAVE_OUT,
    "eigenvalue": _LEAVE_OUT,
    "elasticity": _LEAVE_OUT,
    "graph_harvesting": _removed("use bertfast.run.cuda_graphs"),
    "nebula": _LEAVE_OUT,
    "progressive_layer_drop": _LEAVE_OUT,
    "quantize_training": _removed("leave it out; export makes int8 models"),
    "sparse_attention": _LEAVE_OUT,
    "sparse_gradients": _LEAVE_OUT,
    "zero_optimization.mics_hierarchical_params_gather": _LEAVE_OUT,
    "zero_optimization.mics_shard_size": _LEAVE_OUT,
    "zero_optimization.zeropp_loco_param": _LEAVE_OUT,
    # Old names, of which bertfast would not know.
    "bfloat16": Refused("that is its old name; call it bf16"),
    "zero_optimization.cpu_offload": Refused("that is its old name; set zero_optimization.offload_optimizer.device=cpu"),
    "zero_optimization.cpu_offload_param": Refused("that is its old name; set zero_optimization.offload_param.device=cpu"),
    "zero_optimization.cpu_offload_use_pin_memory": Refused(
        "DeepSpeed no longer reads it; set pin_memory in zero_optimization.offload_optimizer or offload_param"
    ),
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": Refused(
        "that is its old name; call it stage3_gather_16bit_weights_on_model_save"
    ),
    # What would change nothing, because bertfast does it itself, or never comes by.
    "activation_checkpointing": Refused("DeepSpeed's checkpoints are for models that call them; set bertfast.model.gradient_checkpointing"),
    "autotuning": Refused("DeepSpeed's launcher alone tunes; leave it out, and try settings with bertfast sweep"),
    "comms_logger": Refused("its summary is never printed here; leave it out"),
    "compile": Refused("it is for engines that are compiled, and bertfast's is not; leave it out"),
    "data_efficiency": Refused("bertfast plans the batches; leave it out"),
    "dataloader_drop_last": Refused("bertfast plans the batches, and drops no example; leave it out"),
    "disable_allgather": Refused("DeepSpeed no longer reads it; leave it out"),
    "fp16.auto_cast": Refused("a batch holds token ids, of which none is cast; leave it out"),
    "optimizer.legacy_fusion": Refused("no optimizer that bertfast asks for reads it; leave it out"),
    "optimizer.params.max_grad_norm": Refused("DeepSpeed does not clip there; set gradient_clipping"),
    "pipeline": Refused(_ONE_MODEL),
    "vocabulary_size": Refused("the vocabulary is the checkpoint's; leave it out"),
    "weight_quantization": Refused("it is for DeepSpeed's inference; leave it out"),
    "zero_force_ds_cpu_optimizer": Refused("what is offloaded is DeepSpeed's own optimizer in any case; leave it out", (True,)),
    # What would change what is trained, or break a run.
    "checkpoint.load_universal": Refused("a checkpoint of bertfast's is no universal one; leave it out"),
    "checkpoint.parallel_write": Refused(_ONE_MODEL),
    "checkpoint.use_node_local_storage": Refused("a checkpoint of bertfast's is one folder for all nodes; leave it out"),
    "checkpoint.writer": Refused("a checkpoint is sealed when it is written, which a writer of its own would outlast; leave it out"),
    "datastates_ckpt": Refused("a checkpoint is sealed when it is written, which DataStates would outlast; leave it out"),
    "expert_parallel": Refused(_ONE_MODEL),
    "gradient_allreduce_op": Refused(
        "the loss is a mean over all ranks, so their gradients are averaged; leave it out", ("mean", "Mean", "MEAN")
    ),
    "hybrid_engine": Refused("it is for reinforcement learning; leave it out"),
    "managed_gradient_accumulation": Refused(
        "bertfast leaves it to DeepSpeed when a step is whole; leave it out, and set gradient_accumulation_steps", (True,)
    ),
    "seq_parallel_communication_data_type": Refused(_ONE_MODEL, ("fp32",)),
    "sequence_parallel_size": Refused(_ONE_MODEL, (1,)),
    "tensor_parallel": Refused(_ONE_MODEL),
    "torch_autocast": Refused('the model casts its weights itself; use "bf16": {"enabled": true} or "fp16"'),
    "use_data_before_expert_parallelism": Refused(_ONE_MODEL),
}


def check_refused(source: Source, raw: dict[str, Any]) -> None:
    """Name the first key that is refused.

    Raises:
        ConfigError: naming key and value, the reason, and what to write in its place.
    """
    for place, (why, fine, removed) in REFUSED.items():
        value = at(raw, place)
        if value is None or (not removed and (_is_off(value) or value in fine)):
            continue
        raise ConfigError(f"{source(place)}: {place} = {shown(value)}: {why}")


def _is_off(value: Any) -> bool:
    """Whether a value turns nothing on: false, 0, nothing, or a block whose `enabled` is off or all of whose values are."""
    if isinstance(value, dict):
        return not value["enabled"] if "enabled" in value else all(_is_off(part) for part in value.values())
    return value is None or value is False or value == 0
