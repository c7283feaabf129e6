"""The config: an ordinary DeepSpeed JSON (or YAML) with one more block, `bertfast`.

`load_config(path, overrides)` reads, checks and freezes it. DeepSpeed's keys are passed on as they are, save that `"auto"` is worked out
later, by the trainer, from the rest. A key that neither DeepSpeed nor bertfast knows is an error that names the nearest known one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import model_validator

from bertfast.config.blocks import (
    Block,
    ExportConfig,
    HeadConfig,
    InputConfig,
    LossConfig,
    ModelConfig,
    OptimizationConfig,
    PretrainConfig,
    RunConfig,
    TaskConfig,
    TruncationConfig,
)
from bertfast.config.multitask import MIXTURE, MultitaskConfig
from bertfast.errors import ConfigError

TEXT = TaskConfig(name="text", text_columns=("text",))  # what stands for a task where there is plain text to pre-train on


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
        train = {} if values.get("train_input") is None else values["train_input"]  # null is what is left out
        values = {"task": MIXTURE, **values, "train_input": train}
        tasks = values["multitask"].get("tasks")
        if any(isinstance(task, dict) and task.get("eval_input") is not None for task in (tasks if isinstance(tasks, list) else ())):
            length = (
                {"max_sequence_length": train["max_sequence_length"]} if isinstance(train, dict) and "max_sequence_length" in train else {}
            )
            values["eval_input"] = length if values.get("eval_input") is None else values["eval_input"]
        return values

    @model_validator(mode="after")
    def _multitask_fits(self) -> BertfastConfig:
        if self.multitask is not None:
            check_multitask(self, self.multitask)
        return self


class Zero(NamedTuple):
    """What a config asks of ZeRO: the stage, and which states lie on the host or a disk in place of the device."""

    stage: int = 0
    offloads_optimizer: bool = False
    offloads_parameters: bool = False

    @property
    def offloads(self) -> list[str]:
        """The names of DeepSpeed's blocks that offload something."""
        names = {"offload_optimizer": self.offloads_optimizer, "offload_param": self.offloads_parameters}
        return [name for name, asked in names.items() if asked]


class Config:
    """A checked config: `deepspeed` (a plain dictionary), `bertfast` (frozen), and the `path` it was read from."""

    def __init__(self, deepspeed: dict[str, Any], bertfast: BertfastConfig, path: Path | None = None):
        self.deepspeed = deepspeed
        self.bertfast = bertfast
        self.path = path

    @property
    def zero(self) -> Zero:
        """DeepSpeed's block `zero_optimization`, read."""
        block = self.deepspeed.get("zero_optimization", {})
        offloads = [(block.get(name) or {}).get("device", "none") != "none" for name in ("offload_optimizer", "offload_param")]
        return Zero(block.get("stage", 0), *offloads)

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


def check_multitask(block: BertfastConfig, multitask: MultitaskConfig) -> None:
    """Raise ValueError where other blocks contradict `multitask`."""
    if not isinstance(block.task, TaskConfig) or block.task.name != MIXTURE["name"]:
        raise ValueError("task and multitask contradict each other: multitask.tasks names the tasks; take bertfast.task out")
    if block.pretrain is not None:
        raise ValueError("pretrain and multitask contradict each other: pre-train first, and then train on the tasks from its model")
    if block.model.load_checkpoint_states is not None:
        raise ValueError("model.load_checkpoint_states keeps the head of one task's model; multitask makes every head anew: leave it out")
    for name in ("train_input", "eval_input"):
        part = getattr(block, name)
        named = [
            key for key in ("data_dir", "data_file", "input_fn", "max_examples") if part is not None and getattr(part, key) is not None
        ]
        if named:
            raise ValueError(f"{name}.{named[0]} belongs to one task: write it into {name} of that task of multitask.tasks")
        for task in multitask.tasks:
            own, budget = getattr(task, name), None if part is None else part.tokens_per_batch
            if own is not None and budget is not None and (own.max_sequence_length or 0) > budget:
                raise ValueError(
                    f"{name}.tokens_per_batch is {budget}, less than max_sequence_length {own.max_sequence_length} of task {task.name}: "
                    "its longest example would fit in no micro-batch"
                )
    if block.eval_input is not None and not any(task.eval_input is not None for task in multitask.tasks):
        raise ValueError("eval_input tells how to evaluate, but none of multitask.tasks has an eval_input that names what; {} is the hub's")
    if block.truncation.is_hierarchical or block.head.pieces != "mean":
        raise ValueError(
            "multitask reads each text once: truncation 'hierarchical' and head.pieces are for one task; choose another truncation"
        )
    if isinstance(block.loss.class_weights, tuple | dict):
        raise ValueError("loss.class_weights holds the weights of one task's classes; with multitask it can be 'balanced', or be left out")
    if block.loss.pos_weight is not None or any(isinstance(task.task, TaskConfig) and task.task.is_multilabel for task in multitask.tasks):
        raise ValueError("multitask trains tasks of one label a text, or one score; train a task of several labels a text by itself")
    if block.train_input is None:
        raise ValueError("multitask needs a train_input, which tells how the examples of all tasks are cut into batches; {} will do")
    if block.train_input.planner == "tokens" and multitask.sampling == "annealed":
        raise ValueError(
            "multitask.sampling 'annealed' changes from epoch to epoch how many tokens there are; use train_input.planner 'examples' with it"
        )
