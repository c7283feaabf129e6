"""The checks of `bertfast validate` for a config of several tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bertfast.config import Config
from bertfast.engine import model_folder
from bertfast.mixture import MixtureSet
from bertfast.model import loss_sum
from bertfast.multitask_config import task_configs
from bertfast.multitask_model import MultitaskClassifier
from bertfast.planning import Plan
from bertfast.preflight import STEP_EXAMPLES, check_inputs, step_facts
from bertfast.progress import counted
from bertfast.validate import Check, Checks, Found


def check_tasks(checks: Checks, config: Config, tokenizer: Any, checkpoint: Any) -> tuple[MixtureSet | None, MultitaskClassifier | None]:
    """Every split of every task, and the weights; gives the training data and the model, or None where they cannot be had."""
    sets, tasks = [], []
    for name, part in task_configs(config).items():
        own = Checks()
        train, task = check_inputs(own, part, tokenizer, checkpoint)
        checks.rows += [Check(f"{name}: {row.name}", row.result, row.detail) for row in own.rows]
        sets.append(train)
        tasks.append(task)
    settings = config.bertfast
    mixture = None
    if all(part is not None for part in sets):
        mixture = MixtureSet(sets, settings.multitask.sampling, settings.run.seed, settings.train_input.shuffle)
    model = checks.make("weights", lambda *_: _check_weights(config, tasks), checkpoint, *tasks)
    return mixture, model


def check_step(model: MultitaskClassifier, plan: Plan, train: MixtureSet) -> Found:
    """One forward and backward pass of a few examples of the first micro-batch, packed, in float32 on the CPU."""
    batch = train.training_batch(plan.micro_batches(0, 0)[0][:STEP_EXAMPLES], 0)
    model.train()
    loss = torch.zeros(())
    for logits_bC, labels_b in zip(model(batch), batch.by_task(batch.labels), strict=True):
        labels_b = labels_b if logits_bC.shape[1] == 1 else labels_b.to(torch.int32)
        loss = loss + (loss_sum(logits_bC, labels_b) if len(labels_b) else logits_bC.sum())
    n = len(batch.example_ids)
    shown = step_facts(model, loss / n, ", ".join(train.where(index) for index in batch.example_ids.tolist()))
    held = ", ".join(f"{task.name} {count}" for task, count in zip(model.tasks, batch.task_counts, strict=True))
    return Found(loss.item() / n, f"{counted(n, 'example')} ({held}), {batch.num_tokens} tokens: loss {loss.item() / n:.3f}, {shown}")


def _check_weights(config: Config, tasks: list[Any]) -> Found:
    block = config.bertfast
    torch.manual_seed(block.run.seed)
    model = MultitaskClassifier.from_pretrained(model_folder(block.model.checkpoint), tasks, block.head, block.model.strict)
    parameters, report = int(np.sum([parameter.numel() for parameter in model.parameters()])), model.load_report
    left_out = [name for name in report.missing if name not in report.made_anew]
    warning = "some of the encoder's weights are not from the checkpoint" if left_out or report.misshapen else ""
    return Found(model, f"{report.summary()}; {parameters:,} parameters", warning)
