"""The config: an ordinary DeepSpeed JSON (or YAML) with one more block, `bertfast`.

`load_config(path, overrides)` reads, checks and freezes it. DeepSpeed's keys are passed on as they are, save that `"auto"` is worked out
later, by the trainer, from the rest. A key that neither DeepSpeed nor bertfast knows is an error that names the nearest known one.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from bertfast.blocks import (
    Block,
    HeadConfig,
    LossConfig,
    OptimizationConfig,
    PretrainConfig,
    TaskConfig,
    TruncationConfig,
    check_one_source,
)
from bertfast.config_files import find_config, parse_value, read_json_or_yaml, without_nulls
from bertfast.deepspeed_keys import (
    ADAM_PARAMS,
    NESTED_KEYS,
    OPTIMIZERS,
    SCHEDULER_PARAMS,
    SCHEDULERS,
    TOP_LEVEL_KEYS,
    TORCH_OPTIMIZERS,
    TORCH_SCHEDULERS,
    VALUES,
)
from bertfast.errors import ConfigError
from bertfast.multitask_blocks import MIXTURE, MultitaskConfig, SharedTask, TaskInput, check_multitask

TEXT = TaskConfig(name="text", text_columns=("text",))  # what stands for a task where there is plain text to pre-train on


class ModelConfig(Block):
    """Where the weights come from, and how strictly."""

    checkpoint: str  # a local folder, or the name of a model on the hub
    tokenizer: str | None = None  # left out: the checkpoint's own
    strict: bool = True  # False: missing, unexpected and misshapen encoder weights are reported and passed over
    is_pretrained_checkpoint: bool = False  # True: a classification head in the checkpoint is left aside and a new one made
    load_checkpoint_states: Literal["model"] | None = None  # "model": from a training checkpoint, take the weights and nothing else
    hidden_dropout_prob: float | None = Field(default=None, ge=0, lt=1)
    attention_probs_dropout_prob: float | None = Field(default=None, ge=0, lt=1)
    # "selective": outputs of GELU and LayerNorm, and dropout's masks, are computed again in the backward: 5/16 less activations to keep
    gradient_checkpointing: Literal[False, "selective"] = False


class InputConfig(Block):
    """One input: where its examples come from, and how they are cut into batches. Exactly one source, or none for the hub."""

    data_dir: str | None = None  # the folder of a known task
    data_file: str | None = None  # a CSV, TSV, JSONL or Parquet file
    input_fn: str | None = None  # "package.module:function", called as function(params), which yields feature dictionaries
    max_sequence_length: int = Field(default=128, ge=2)  # tokens, [CLS] and [SEP] included; left out of eval_input: as in train_input
    batch_size: int = Field(default=32, ge=1)  # examples in a global batch, over all ranks and micro-steps
    planner: Literal["examples", "tokens"] = "examples"
    tokens_per_batch: int | None = Field(default=None, ge=2)  # the token budget of one micro-batch, for planner "tokens"
    max_examples: int | None = Field(default=None, ge=1)  # a random subset of this size, by run.seed; an input_fn is told of it
    shuffle: bool = True
    cache_dir: str | None = None  # left out: $BERTFAST_CACHE, or ~/.cache/bertfast
    num_workers: int | None = Field(default=None, ge=1)  # tokenising processes; left out: one per core

    @model_validator(mode="after")
    def _one_source(self) -> InputConfig:
        check_one_source(self)
        if self.planner == "tokens" and self.tokens_per_batch is None:
            raise ValueError("planner 'tokens' needs tokens_per_batch, the token budget of one micro-batch")
        if self.tokens_per_batch is not None and self.tokens_per_batch < self.max_sequence_length:
            raise ValueError(
                f"tokens_per_batch is {self.tokens_per_batch}, less than max_sequence_length {self.max_sequence_length}: "
                "the longest example would fit in no micro-batch"
            )
        return self


class RunConfig(Block):
    """How long, how often, and where to."""

    model_dir: str = "runs/model"
    epochs: float = Field(default=3.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1)  # optimizer steps; overrides epochs
    seed: int = Field(default=42, ge=0, lt=2**32)
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)  # share of all steps
    warmup_steps: int | None = Field(default=None, ge=0)  # optimizer steps; overrides warmup_ratio
    eval_steps: int | None = Field(default=None, ge=1)  # optimizer steps between evaluations; left out: each epoch
    save_steps: int | None = Field(default=None, ge=1)  # optimizer steps between checkpoints, beside the one at each evaluation
    logging_steps: int = Field(default=10, ge=1)  # optimizer steps between log records
    keep_checkpoints: int = Field(default=2, ge=1)
    early_stopping_patience: int | None = Field(default=None, ge=1)  # evaluations without a better metric
    packing_invariant_dropout: bool | None = None  # left out: on for a GPU, off on a CPU, where it is slower
    # Forward and backward as CUDA graphs, on micro-batches padded to few sizes. "auto": on a GPU wherever the rest of the config allows it, and the
    # run's log says where it does not. true: an error where it cannot be. Off unless asked for: it is tested on a CPU with a stub that stands in for
    # CUDA, and has not been run on a GPU yet (python -m bench.bench_gpu_step --parts busy losses does that).
    cuda_graphs: Literal["auto"] | bool = False
    threads: int | None = Field(default=None, ge=1)  # CPU threads per rank; left out: all cores, shared between the ranks of a machine


class ExportConfig(Block):
    """What `bertfast train` exports once it has trained; an empty block means all the defaults. Needs the packages of bertfast[export]."""

    output: str | None = None  # the bundle's folder; left out: run.model_dir/onnx
    variants: tuple[Literal["portable", "optimized", "fp16", "int8"], ...] = Field(("portable", "optimized", "fp16", "int8"), min_length=1)
    opset: int = Field(default=20, ge=18, le=23)
    integers: Literal["int64", "int32"] = "int64"  # of the inputs
    layout: Literal["flat", "triton"] = "flat"


class BertfastConfig(Block):
    """The `bertfast` block."""

    task: str | TaskConfig
    model: ModelConfig
    train_input: InputConfig | None = None
    eval_input: InputConfig | None = None
    head: HeadConfig = HeadConfig()
    truncation: TruncationConfig = TruncationConfig()
    loss: LossConfig = LossConfig()
    optimization: OptimizationConfig = OptimizationConfig()
    pretrain: PretrainConfig | None = None
    multitask: MultitaskConfig | None = None
    run: RunConfig = RunConfig()
    export: ExportConfig | None = None  # left out: nothing is exported

    @model_validator(mode="before")
    @classmethod
    def _text_without_a_task(cls, values: Any) -> Any:
        """Plain text to pre-train on needs no task."""
        if isinstance(values, dict) and isinstance(values.get("pretrain"), dict) and values["pretrain"].get("text_files"):
            return {"task": TEXT.model_dump(exclude_unset=True), **values}
        return values

    @model_validator(mode="before")
    @classmethod
    def _evaluated_as_trained(cls, values: Any) -> Any:
        """A model is judged on texts that are cut as in its training, unless eval_input says otherwise."""
        key = "max_sequence_length"
        train, evaluation = (values.get(name) if isinstance(values, dict) else None for name in ("train_input", "eval_input"))
        if isinstance(train, dict) and isinstance(evaluation, dict) and key in train and key not in evaluation:
            return {**values, "eval_input": {**evaluation, key: train[key]}}
        return values

    @model_validator(mode="before")
    @classmethod
    def _tasks_in_the_place_of_one(cls, values: Any) -> Any:
        """Several tasks: `task` stands for their mixture, and the inputs tell how all of them are cut into batches."""
        if not isinstance(values, dict) or not isinstance(values.get("multitask"), dict):
            return values
        train = values.get("train_input", {})
        values = {"task": MIXTURE, **values, "train_input": train}
        tasks = values["multitask"].get("tasks")
        if any(isinstance(task, dict) and task.get("eval_input") is not None for task in (tasks if isinstance(tasks, list) else ())):
            length = (
                {"max_sequence_length": train["max_sequence_length"]} if isinstance(train, dict) and "max_sequence_length" in train else {}
            )
            values.setdefault("eval_input", length)
        return values

    @model_validator(mode="after")
    def _multitask_fits(self) -> BertfastConfig:
        if self.multitask is not None:
            check_multitask(self)
        return self


class Config:
    """A checked config: `deepspeed` (a plain dictionary), `bertfast` (frozen), and the `path` it was read from."""

    def __init__(self, deepspeed: dict[str, Any], bertfast: BertfastConfig, path: Path | None = None):
        self.deepspeed = deepspeed
        self.bertfast = bertfast
        self.path = path

    def without_pretraining(self) -> Config:
        """The config as training, evaluation and prediction read it: one with a `pretrain` block serves both steps.

        Raises:
            ConfigError: it has a `pretrain` block and names no task.
        """
        block = self.bertfast
        if block.pretrain is None:
            return self
        if block.task == TEXT:
            raise ConfigError(f"{self.path or 'config'}: bertfast.task is missing: plain text to pre-train on trains no classifier")
        return Config(self.deepspeed, block.model_copy(update={"pretrain": None}), self.path)

    def to_dict(self, defaults: bool = True) -> dict[str, Any]:
        """The whole config as plain JSON data, or what was given alone, without the defaults of the rest."""
        return {**self.deepspeed, "bertfast": self.bertfast.model_dump(mode="json", exclude_none=True, exclude_unset=not defaults)}


def load_config(path: str | Path | dict, overrides: list[str] | None = None, flag: str = "--set") -> Config:
    """Read a config file (JSON or YAML) or dictionary, apply `key.path=value` overrides, and check every key.

    null in the place of one of DeepSpeed's blocks or values means that it is left out. flag: where the overrides come from, for the errors.

    Raises:
        ConfigError: naming the file, the key and the value, and the nearest known key for an unknown one.
    """
    if isinstance(path, dict):
        raw, name, file = json.loads(json.dumps(path)), "config", None
    else:
        file = find_config(path)
        raw, name = read_json_or_yaml(file), str(file)
    if not isinstance(raw, dict):
        raise ConfigError(f"{name}: the top level must be an object with DeepSpeed's keys and a 'bertfast' block, not {type(raw).__name__}")
    overrides = overrides or []
    for override in overrides:
        _override(raw, override, flag)

    def source(dotted: str) -> str:
        """Where the value at this key came from: the last override that set it, or else the file."""
        keys = [override.partition("=")[0].strip() for override in overrides]
        setting = [text for key, text in zip(keys, overrides, strict=True) if f"{dotted}.".startswith(f"{key}.")]
        return f"{flag} {setting[-1]}" if setting else name

    block = raw.pop("bertfast", None)
    _check_deepspeed(source, raw)
    if not isinstance(block, dict):
        raise ConfigError(f"{name}: there is no 'bertfast' block; it names the task, the model and the data (see configs/ for examples)")
    try:
        return Config(without_nulls(raw), BertfastConfig.model_validate(block), file)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(source, item) for item in _relevant(error, block))) from None


def _check_deepspeed(source: Callable[[str], str], raw: dict[str, Any]) -> None:
    """Name the first of DeepSpeed's keys that DeepSpeed does not know, or whose value cannot be."""
    for key in raw:
        if key not in TOP_LEVEL_KEYS:
            raise ConfigError(_unknown_key(source, str(key), "", [*TOP_LEVEL_KEYS, "bertfast"]))
    for place, keys in (NESTED_KEYS | _params_of_types(source, raw)).items():
        node = _at(raw, place)
        if node is None:
            continue
        if not isinstance(node, dict):
            shown = json.dumps(node, default=str)
            raise ConfigError(f"{source(place)}: {place} = {shown}: it must be an object; its keys: {_listed(keys)}")
        for key in node:
            if key not in keys:
                raise ConfigError(_unknown_key(source, str(key), place, keys))
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
    lower = {known.lower(): known for known in exact}
    near = difflib.get_close_matches(str(name).lower(), lower, 1)
    hint = f"did you mean {lower[near[0]]!r}?" if near else f"known: {_listed(exact)}"
    raise ConfigError(f"{source(place)}: {place} = {json.dumps(name, default=str)}: DeepSpeed knows none of that name; {hint}")


def _at(raw: dict[str, Any], place: str) -> Any:
    """The value at a dotted place, or None where there is none."""
    node: Any = raw
    for part in place.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _override(raw: dict[str, Any], override: str, flag: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{flag} {override}: write it as key.path=value, for example bertfast.train_input.batch_size=64")
    *parents, last = key.strip().split(".")
    node = raw
    for depth, parent in enumerate(parents):
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise ConfigError(f"{flag} {override}: {'.'.join(parents[: depth + 1])} is a value, not a block")
    node[last] = parse_value(text)


def _relevant(error: ValidationError, block: dict) -> list[dict]:
    """Pydantic reports every branch of `task: str | TaskConfig`; keep the branch that the user meant."""

    def is_meant(place: tuple) -> bool:
        branch = next((depth for depth, part in enumerate(place) if depth and part in ("TaskConfig", "str")), None)
        if branch is None:
            return True
        value: Any = block
        for part in place[:branch]:
            value = value[part]
        return place[branch] == ("TaskConfig" if isinstance(value, dict) else "str")

    return [item for item in error.errors() if is_meant(item["loc"])]


def _explain(source: Callable[[str], str], item: dict) -> str:
    """One of pydantic's errors in our words: source, key, value, and what to do."""
    path = [str(part) for part in item["loc"] if part not in ("TaskConfig", "str")]
    dotted, value, kind = ".".join(["bertfast", *path]), item.get("input"), item["type"]
    if kind == "extra_forbidden":
        return _unknown_key(source, path[-1], ".".join(["bertfast", *path[:-1]]), _fields_at(path[:-1]))
    if kind == "missing":
        return f"{source(dotted)}: {dotted} is missing; it is required"
    message = item["msg"].removeprefix("Value error, ")
    if kind == "model_type":
        message = f"it must be an object; its keys: {_listed(_fields_at(path))}"
    elif kind == "tuple_type":
        message = 'it must be a list, for example ["sentence"]'
    elif kind == "string_type" and value is not None:
        message = "it must be a string; put it in quotation marks"
    shown = "" if isinstance(value, dict) else f" = {json.dumps(value, default=str)}"
    return f"{source(dotted)}: {dotted}{shown}: {message}"


def _fields_at(path: list[str]) -> list[str]:
    blocks = {
        "task": TaskConfig,
        "model": ModelConfig,
        "train_input": InputConfig,
        "eval_input": InputConfig,
        "head": HeadConfig,
        "truncation": TruncationConfig,
        "loss": LossConfig,
        "optimization": OptimizationConfig,
        "pretrain": PretrainConfig,
        "multitask": MultitaskConfig,
        "multitask.tasks": SharedTask,
        "multitask.tasks.task": TaskConfig,
        "multitask.tasks.train_input": TaskInput,
        "multitask.tasks.eval_input": TaskInput,
        "run": RunConfig,
        "export": ExportConfig,
    }
    place = ".".join(part for part in path if not part.isdigit())
    return list(blocks[place].model_fields if path else BertfastConfig.model_fields)


def _unknown_key(source: Callable[[str], str], key: str, place: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(key, known, 1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {_listed(known)}"
    where = f"in {place}" if place else "at the top level"
    return f"{source(f'{place}.{key}' if place else key)}: unknown key {key!r} {where}; {hint}"


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
