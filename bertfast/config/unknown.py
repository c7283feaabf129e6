"""Keys that a config has and nobody knows: words of transformers' Trainer and of other tools, keys in another's block, and slips of the pen."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import get_args, get_origin

from pydantic import BaseModel

from bertfast.config.schema import BertfastConfig
from bertfast.wording import did_you_mean, listed, nearest

_RATE, _LENGTH = "optimizer.params.lr", "bertfast.train_input.max_sequence_length"
_ADAPTERS = "bertfast trains whole weights; bertfast.optimization.frozen_layers trains fewer of them"
_PRECISION = "switch one on: bf16.enabled or fp16.enabled; neither is float32"
_PICKED = "the model of the best evaluation is what a run leaves, always"
_EVALUATED = "what is evaluated is evaluated each epoch, or every bertfast.run.eval_steps"
_SAVED = "a checkpoint is written at each evaluation, and every bertfast.run.save_steps"
_UPLOADS = "bertfast uploads nothing; the model in run.model_dir/model is a folder that huggingface_hub's upload takes"

# A word of transformers' TrainingArguments, of its scripts, or of other tools -> the key that it is here.
KEYS = {
    "learning_rate": _RATE,
    "lr": _RATE,
    "weight_decay": "optimizer.params.weight_decay",
    "adam_beta1": "optimizer.params.betas",
    "adam_beta2": "optimizer.params.betas",
    "adam_epsilon": "optimizer.params.eps",
    "optim": "optimizer.type",
    "optim_args": "optimizer.params",
    "max_grad_norm": "gradient_clipping",
    "lr_scheduler_type": "bertfast.optimization.schedule",
    "lr_scheduler_kwargs": "scheduler.params",
    "num_train_epochs": "bertfast.run.epochs",
    "num_epochs": "bertfast.run.epochs",
    "max_train_steps": "bertfast.run.max_steps",
    "num_warmup_steps": "bertfast.run.warmup_steps",
    "per_device_train_batch_size": "train_micro_batch_size_per_gpu",
    "per_gpu_train_batch_size": "train_micro_batch_size_per_gpu",
    "per_device_eval_batch_size": "bertfast.eval_input.batch_size",
    "eval_batch_size": "bertfast.eval_input.batch_size",
    "max_length": _LENGTH,
    "max_seq_length": _LENGTH,
    "max_seq_len": _LENGTH,
    "max_train_samples": "bertfast.train_input.max_examples",
    "max_eval_samples": "bertfast.eval_input.max_examples",
    "train_file": "bertfast.train_input.data_file",
    "train_data": "bertfast.train_input.data_file",
    "validation_file": "bertfast.eval_input.data_file",
    "dataset_name": "bertfast.task",
    "task_name": "bertfast.task",
    "dataloader_num_workers": "bertfast.train_input.num_workers",
    "output_dir": "bertfast.run.model_dir",
    "model_name_or_path": "bertfast.model.checkpoint",
    "pretrained_model_name_or_path": "bertfast.model.checkpoint",
    "model_name": "bertfast.model.checkpoint",
    "tokenizer_name": "bertfast.model.tokenizer",
    "save_total_limit": "bertfast.run.keep_checkpoints",
    "metric_for_best_model": "bertfast.task.metric",
    "early_stopping": "bertfast.run.early_stopping_patience",
    "label_smoothing_factor": "bertfast.loss.label_smoothing",
    "gradient_checkpointing_kwargs": "bertfast.model.gradient_checkpointing",
    "layer_decay": "bertfast.optimization.layer_learning_rate_decay",
    "freeze_layers": "bertfast.optimization.frozen_layers",
    "dropout_rate": "bertfast.model.hidden_dropout_prob",
    "label_column_name": "bertfast.task.label_column",
    "text_column_name": "bertfast.task.text_columns",
    "zero_stage": "zero_optimization.stage",
    "cpu_offload": "zero_optimization.offload_optimizer",
    "random_seed": "bertfast.run.seed",
    "data_seed": "bertfast.run.seed",
    "mlm_probability": "bertfast.pretrain.masked_lm_prob",
}
# A word that stands for nothing here -> why, and what there is in its place.
NONE = {
    "report_to": "switch on one of DeepSpeed's monitors: tensorboard.enabled, wandb.enabled, comet.enabled or csv_monitor.enabled",
    "run_name": "a run is named by bertfast.run.model_dir; a monitor's job by tensorboard.job_name or csv_monitor.job_name",
    "precision": _PRECISION,
    "mixed_precision": _PRECISION,
    "load_best_model_at_end": _PICKED,
    "greater_is_better": "each metric knows which way is better",
    "do_train": "bertfast train trains",
    "do_eval": "a config with an eval_input is evaluated, and bertfast eval evaluates alone",
    "do_predict": "bertfast predict answers",
    "eval_strategy": _EVALUATED,
    "evaluation_strategy": _EVALUATED,
    "save_strategy": _SAVED,
    "save_only_model": _SAVED,
    "logging_strategy": "the log is written every bertfast.run.logging_steps",
    "overwrite_output_dir": "a run that is there is gone on with by --resume, or deleted by hand",
    "resume_from_checkpoint": "--resume goes on from the newest checkpoint, with --checkpoint_path FOLDER from that one",
    "deepspeed": "the config is DeepSpeed's own: its keys stand at the top level",
    "fsdp": "ranks divide the states by zero_optimization.stage",
    "group_by_length": "sequences are packed without padding, always",
    "length_column_name": "sequences are packed without padding, always",
    "pad_to_max_length": "sequences are packed without padding, always",
    "padding": "sequences are packed without padding, always",
    "use_cpu": "write CPU before the flags: bertfast train CPU --config ...",
    "no_cuda": "write CPU before the flags: bertfast train CPU --config ...",
    "device": "write CPU or GPU before the flags: bertfast train CPU --config ...",
    "torch_compile": "the kernels are bertfast's own",
    "tf32": "float32 is computed as float32; bf16.enabled is faster",
    "full_determinism": "a run meets the same losses with the same seed on a CPU",
    "push_to_hub": _UPLOADS,
    "hub_model_id": _UPLOADS,
    "hub_token": _UPLOADS,
    "auto_find_batch_size": "bertfast validate estimates the memory of a batch size",
    "ddp_backend": "the deepspeed launcher starts the ranks",
    "ddp_find_unused_parameters": "the deepspeed launcher starts the ranks",
    "remove_unused_columns": "columns that bertfast.task does not name are left aside, always",
    "trust_remote_code": "no code of a checkpoint is run",
    "lora": _ADAPTERS,
    "lora_r": _ADAPTERS,
    "lora_alpha": _ADAPTERS,
    "peft": _ADAPTERS,
    "peft_config": _ADAPTERS,
    "adapter": _ADAPTERS,
    "load_in_8bit": "weights are trained in bf16, fp16 or float32",
    "load_in_4bit": "weights are trained in bf16, fp16 or float32",
    "neftune_noise_alpha": "bertfast.loss.r_drop and the dropout of bertfast.model are what there is of its kind",
}


def unknown_key(source: Callable[[str], str], key: str, place: str, known: Collection[str]) -> str:
    """The message for a key of a config that nobody knows. source: where the value at a dotted key came from; place: the dotted block."""
    where, (places, why) = f"in {place}" if place else "at the top level", meaning(key)
    near = nearest(key, known)
    others = f"it is a key of {' and of '.join(other.rpartition('.')[0] for other in places)}"
    if why:
        hint = f"bertfast has none: {why}"
    elif places and key.lower().replace("-", "_") in KEYS:
        hint = f"it is called {places[0]} here"
    elif places and near is None:
        hint = f"known keys: {listed(known)}; {others}" if place else others
    else:
        hint = did_you_mean(key, known, f"known keys: {listed(known)}") + (f" Or {' or '.join(places)}?" if places else "")
    return f"{source(f'{place}.{key}' if place else key)}: unknown key {key!r} {where}; {hint}"


def meaning(word: str) -> tuple[list[str], str]:
    """Which keys a word stands for that is none where it stands: another tool's, or of another block; or why bertfast has none. Neither of an unheard-of one."""
    name = word.lower().replace("-", "_")
    if name in NONE:
        return [], NONE[name]
    return [KEYS[name]] if name in KEYS else [place for place in own_places() if place.rpartition(".")[2] == name], ""


def own_places(block: type[BaseModel] = BertfastConfig, place: str = "bertfast") -> Iterator[str]:
    """Every key of the `bertfast` block, dotted; what stands in a list of blocks is left out."""
    for name, field in block.model_fields.items():
        yield f"{place}.{name}"
        for part in (field.annotation, *(() if get_origin(field.annotation) is tuple else get_args(field.annotation))):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from own_places(part, f"{place}.{name}")
