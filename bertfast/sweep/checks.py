"""What a sweep holds each of its settings against before the first is tried: what `bertfast validate` checks, save what needs tokens, weights or
a step. What several settings have in common is looked at once."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import numpy as np
import torch

from bertfast.checks import check_checkpoint, check_config, check_positions, check_tokenizer, optimizer_of
from bertfast.config import Config, InputConfig, configs_of, resolve_batch_sizes
from bertfast.data import check_reading
from bertfast.errors import BertfastError, ConfigError
from bertfast.model import BertClassifier, Loss, among_others, set_head
from bertfast.readers import find_source, load_split
from bertfast.sweep.space import Setting, Space, base_of, config_of
from bertfast.tasks import Task, get_task

_NO_LABELS = np.zeros(0, dtype=np.int32)


def check_space(base: Config, space: Space, settings: list[Setting], device: str) -> None:
    """Hold every setting against the config before the first of them is tried. device: "cpu" or "gpu", where trials run.

    Raises:
        ConfigError: naming the space, the setting and what the trainer would say to it, or that its scores could not be compared with others.
    """
    raw, checks, wanted = base_of(base), _Once(device), _scores(base)
    for setting in settings:
        config = config_of(raw, space, setting)
        try:
            checks.make(config)
            _check_rate(config, space)
            if _scores(config) != wanted:
                raise ConfigError(f"it is evaluated on {_scores(config)}, and the config on {wanted}: their scores cannot be compared")
        except BertfastError as error:
            shown = ", ".join(f"{key}={json.dumps(value)}" for key, value in setting.items())
            raise ConfigError(f"{space.name}: {shown}: {error}") from None


def _scores(config: Config) -> str:
    """The tasks that are evaluated, by which scores are compared."""
    tasks = [get_task(part.bertfast.task) for part in configs_of(config) if part.bertfast.eval_input is not None]
    return ", ".join(sorted(f"{task.name} ({task.main_metric})" if task.main_metric else task.name for task in tasks)) or "nothing"


def _check_rate(config: Config, space: Space) -> None:
    """Raise ConfigError where the config's scheduler would replace a rate that is searched."""
    rate = config.deepspeed.get("scheduler", {}).get("params", {}).get("warmup_max_lr", "auto")
    if "optimizer.params.lr" in space.keys and rate != "auto":
        raise ConfigError(
            f"scheduler.params.warmup_max_lr = {rate} is the rate of every trial, so optimizer.params.lr would change nothing; "
            "set warmup_max_lr to 'auto'"
        )


class _Once:
    """The checks of one config after the other; what several have in common is looked at once."""

    def __init__(self, device: str):
        self._device = device
        self._known: dict[Hashable, Any] = {}

    def make(self, config: Config) -> None:
        """Raise BertfastError where the trainer would."""
        block = config.bertfast
        check_config(config)
        sizes = resolve_batch_sizes(config, 1)
        checkpoint = self._once(("checkpoint", block.model.checkpoint), lambda: check_checkpoint(config).value)
        check_positions(config, checkpoint)
        names = ("tokenizer", block.model.checkpoint, block.model.tokenizer)
        tokenizer = self._once(names, lambda: check_tokenizer(config, checkpoint).value)
        for part in configs_of(config):
            task = get_task(part.bertfast.task)
            for source, splits in ((part.bertfast.train_input, task.train_splits), (part.bertfast.eval_input, task.eval_splits)):
                if source is not None:
                    check_reading(task, source, tokenizer, block.truncation)
                    self._find(task, source, splits)
            self._check_loss(config, part.bertfast.train_input, task)
        model = self._once(("model", block.model.checkpoint, block.head), lambda: _shape_of(config, checkpoint[1]))
        optimizer_of(config, self._device, sizes, 1, model)

    def _find(self, task: Task, source: InputConfig, splits: tuple[str, ...]) -> None:
        if source.input_fn is None:
            for split in splits:
                self._once(("source", task, source.data_dir, source.data_file, split), partial(find_source, task, source, split))

    def _check_loss(self, config: Config, source: InputConfig | None, task: Task) -> None:
        """Hold the loss against the task; the rows are read where it is they that tell the classes, or how many there are of each."""
        block, labels = config.bertfast.loss, _NO_LABELS
        if not (block.label_smoothing or block.class_weights or block.focal_gamma or block.pos_weight is not None):
            return
        if not task.is_complete or ("balanced" in (block.class_weights, block.pos_weight) and not task.is_regression):
            assert source is not None, "a sweep trains"
            if source.input_fn is not None:
                return
            names = ("labels", task, source.data_dir, source.data_file, source.max_examples)
            task, labels = self._once(names, lambda: _labels_of(task, source, config.bertfast.run.seed))
        if labels is not None:
            block = block if config.bertfast.multitask is None else among_others(block, task.is_regression)
            shaped = labels.reshape(0, task.num_labels) if labels is _NO_LABELS and task.is_multilabel else labels
            Loss(block, task.num_labels, shaped, names=None if task.is_regression else task.class_names)

    def _once(self, name: Hashable, look: Callable[[], Any]) -> Any:
        if name not in self._known:
            self._known[name] = look()
        return self._known[name]


def _labels_of(task: Task, source: InputConfig, seed: int) -> tuple[Task, np.ndarray | None]:
    raw = load_split(task, source, "train")
    raw = raw if source.max_examples is None else raw.sample(source.max_examples, seed)
    return raw.task, raw.labels


def _shape_of(config: Config, bert: Any) -> BertClassifier:
    """The model without any memory for its weights."""
    bert = copy.deepcopy(bert)
    set_head(bert, config.bertfast.head)
    with torch.device("meta"):
        return BertClassifier(bert)
