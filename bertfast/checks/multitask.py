"""A config of several tasks: each task's data and loss, and the weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from bertfast.checks.data import check_inputs
from bertfast.checks.recipe import check_loss
from bertfast.checks.step import STEP_EXAMPLES, step_facts
from bertfast.checks.table import Check, Checks, Found
from bertfast.checks.weights import weights_found
from bertfast.config import Config, LossConfig, task_configs
from bertfast.data import EncodedDataset, MixtureSet
from bertfast.errors import ConfigError
from bertfast.model import Loss, MultitaskClassifier, among_others, mixed_loss
from bertfast.packing import Plan
from bertfast.tasks import Task
from bertfast.weights import model_folder
from bertfast.wording import counted


def check_tasks(
    checks: Checks, config: Config, tokenizer: Any, checkpoint: Any
) -> tuple[MixtureSet | None, MultitaskClassifier | None, list[Loss | None]]:
    """Every split of every task, its loss, and the weights; gives the training data, the model and each task's loss, or None where they
    cannot be had."""
    sets, tasks, losses = [], [], []
    for name, part in task_configs(config).items():
        own = Checks()
        train, task = check_inputs(own, part, tokenizer, checkpoint)
        losses.append(own.make("loss", partial(_check_loss, config.bertfast.loss), task, train))
        checks.rows += [Check(f"{name}: {row.name}", row.result, row.detail) for row in own.rows]
        sets.append(None if task is not None and task.is_multilabel else train)
        tasks.append(task)
    settings, mixture = config.bertfast, None
    whole = [part for part in sets if part is not None]
    if len(whole) == len(sets):
        assert settings.multitask is not None and settings.train_input is not None  # a config of several tasks has both
        mixture = MixtureSet(whole, settings.multitask.sampling, settings.run.seed, settings.train_input.shuffle)
    model = checks.make("weights", lambda *_: _check_weights(config, tasks), checkpoint, *tasks)
    return mixture, model, losses


def check_step(config: Config, model: MultitaskClassifier, plan: Plan, train: MixtureSet, *losses: Loss) -> Found:
    """One forward and backward pass of a few examples of the first micro-batch, packed, in float32 on the CPU."""
    settings = config.bertfast
    assert settings.multitask is not None
    batch = train.training_batch(plan.micro_batches(0, 0)[0][:STEP_EXAMPLES], 0)
    n, held = len(batch.example_ids), ", ".join(f"{task.name} {count}" for task, count in zip(model.tasks, batch.task_counts, strict=True))
    examples = ", ".join(train.where(index) for index in batch.example_ids.tolist())
    batch = batch.twice() if settings.loss.r_drop else batch
    model.train()
    loss = mixed_loss(model(batch), batch, losses, [task.weight for task in settings.multitask.tasks]) / n
    shown = step_facts(model, loss, examples)
    return Found(loss.item(), f"{counted(n, 'example')} ({held}), {batch.num_tokens} tokens: loss {loss.item():.3f}, {shown}")


def _check_loss(block: LossConfig, task: Task, train: EncodedDataset) -> Found:
    if task.is_multilabel:
        raise ConfigError(f"{train.source}: its texts have several labels each; multitask trains tasks of one label a text, or one score")
    return check_loss(among_others(block, task.is_regression), task, train)


def _check_weights(config: Config, tasks: list[Any]) -> Found:
    block = config.bertfast
    torch.manual_seed(block.run.seed)
    return weights_found(MultitaskClassifier.from_pretrained(model_folder(block.model.checkpoint), tasks, block.head, block.model.strict))
