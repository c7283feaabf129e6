"""The config's block for several tasks with one encoder; `schema` puts it together with the others."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from bertfast.config.blocks import Block, TaskConfig, check_one_source

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
