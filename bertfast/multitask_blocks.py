"""The config's block for several tasks with one encoder; `config` puts it together with the others."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from bertfast.blocks import Block, TaskConfig, check_one_source

if TYPE_CHECKING:
    from bertfast.config import BertfastConfig

MIXTURE = {"name": "multitask", "text_columns": ["text"]}  # what `task` is where there are several


class TaskInput(Block):
    """Where the examples of one task of several come from; how they are cut into batches is the same for all, and stands in train_input."""

    data_dir: str | None = None  # the folder of a known task
    data_file: str | None = None  # a CSV, TSV, JSONL or Parquet file
    input_fn: str | None = None  # "package.module:function"
    max_sequence_length: int | None = Field(default=None, ge=2)  # left out: that of bertfast.train_input or eval_input
    max_examples: int | None = Field(default=None, ge=1)  # a random subset of this size, chosen by run.seed

    @model_validator(mode="after")
    def _one_source(self) -> TaskInput:
        check_one_source(self)
        return self


class SharedTask(Block):
    """One of the tasks that share an encoder."""

    task: str | TaskConfig
    train_input: TaskInput = TaskInput()
    eval_input: TaskInput | None = None  # left out: the task is not evaluated
    weight: float = Field(default=1.0, gt=0)  # factor of its loss

    @property
    def name(self) -> str:
        return self.task if isinstance(self.task, str) else self.task.name


class MultitaskConfig(Block):
    """Several tasks with one encoder and a head each (Liu et al. 2019, MT-DNN)."""

    tasks: tuple[SharedTask, ...]
    sampling: Literal["proportional", "square_root", "uniform", "annealed"] = "proportional"  # a task's share of the examples

    @model_validator(mode="after")
    def _names(self) -> MultitaskConfig:
        names = [task.name for task in self.tasks]
        if len(names) < 2:
            raise ValueError(f"tasks holds {len(names) or 'none'}; name two or more, or train on one without multitask")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"tasks holds {name!r} twice; give each a name of its own, in a task block")
            if not re.fullmatch(r"[\w-][\w.-]*", name, re.ASCII):
                raise ValueError(f"the task name {name!r} is to be a folder's name too: use letters, digits, '.', '_' and '-'")
        return self


def check_multitask(block: BertfastConfig) -> None:
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
        for task in block.multitask.tasks:
            own, budget = getattr(task, name), None if part is None else part.tokens_per_batch
            if own is not None and budget is not None and (own.max_sequence_length or 0) > budget:
                raise ValueError(
                    f"{name}.tokens_per_batch is {budget}, less than max_sequence_length {own.max_sequence_length} of task {task.name}: "
                    "its longest example would fit in no micro-batch"
                )
    if block.eval_input is not None and not any(task.eval_input is not None for task in block.multitask.tasks):
        raise ValueError("eval_input tells how to evaluate, but none of multitask.tasks has an eval_input that names what; {} is the hub's")
    if block.truncation.is_hierarchical or block.head.pieces != "mean":
        raise ValueError(
            "multitask reads each text once: truncation 'hierarchical' and head.pieces are for one task; choose another truncation"
        )
    if isinstance(block.loss.class_weights, tuple):
        raise ValueError("loss.class_weights holds the weights of one task's classes; with multitask it can be 'balanced', or be left out")
    if block.train_input.planner == "tokens" and block.multitask.sampling == "annealed":
        raise ValueError(
            "multitask.sampling 'annealed' changes from epoch to epoch how many tokens there are; use train_input.planner 'examples' with it"
        )
