"""Loss, optimizer and rates.

What they ask is what the trainer asks: the same functions, before anything is trained.
"""

from __future__ import annotations

from typing import Any

from bertfast.checks.table import Found
from bertfast.config import (
    BatchSizes,
    Config,
    LossConfig,
    check_optimizer_fits,
    resolve_deepspeed,
    resolve_total_steps,
    resolve_warmup_steps,
)
from bertfast.data import EncodedDataset
from bertfast.engine import Precision, thaw_step, trained_groups
from bertfast.model import BertEncoder, Loss, class_weights, positive_weights
from bertfast.packing import Plan
from bertfast.tasks import Task
from bertfast.wording import counted


def check_loss(block: LossConfig, task: Task, train: EncodedDataset) -> Found:
    """The loss that a block asks for, on these labels."""
    names = None if task.is_regression else task.class_names
    loss = Loss(block, task.num_labels, train.training_labels, names=names)
    kind = "squared error" if task.is_regression else "focal loss" if block.focal_gamma else "cross entropy"
    kind += " of each label" if task.is_multilabel else ""
    more = [f"{name} {value:g}" for name in ("label_smoothing", "focal_gamma", "r_drop") if (value := getattr(block, name))]
    weights = class_weights(block, task.num_labels, train.training_labels, names)
    of_positives = positive_weights(block, task.num_labels, train.training_labels, names)
    for name, values in (("class weights", weights), ("weights of labels that hold", of_positives)):
        if values is not None:
            more.append(f"{name} " + ", ".join(f"{weight:.3g}" for weight in values))
    warning = "every class has the weight 0, so nothing is trained" if weights is not None and not any(weights) else ""
    return Found(loss, "; ".join([kind, *more]), warning)


def optimizer_of(
    config: Config, device: str, sizes: BatchSizes, steps_per_epoch: int, model: BertEncoder
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What DeepSpeed is given, and the parameter groups. Freezes what the config freezes.

    Raises:
        ConfigError: DeepSpeed cannot build the optimizer on this device, or divide it.
    """
    kind = "cpu" if device == "cpu" else "cuda"
    check_optimizer_fits(config, sizes.world_size, kind)
    total = resolve_total_steps(config.bertfast, steps_per_epoch)
    resolved = resolve_deepspeed(config, sizes, total, kind, model.config.hidden_size)
    return resolved, trained_groups(model, resolved["optimizer"]["params"], config.bertfast.optimization)


def check_optimizer(config: Config, device: str, precision: Precision, sizes: BatchSizes, plan: Plan, model: BertEncoder) -> Found:
    """What DeepSpeed is given, the rate of each part of the model, and the schedule. Freezes what the config freezes."""
    block, run = config.bertfast.optimization, config.bertfast.run
    total = resolve_total_steps(config.bertfast, len(plan))
    resolved, groups = optimizer_of(config, device, sizes, len(plan), model)
    params = resolved["optimizer"]["params"]
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    parts = [f"{resolved['optimizer']['type']}, {trained:,} parameters, weight decay {params.get('weight_decay', 0.0):g}"]
    if block.is_by_layer:
        rates = {group["name"]: group["lr"] for group in groups}
        parts.append("rates: " + ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items()))
    else:
        parts.append(f"rate {params['lr']:g}")
    warmup, odd = resolve_warmup_steps(run, total), []
    if "scheduler" in resolved:
        parts.append(f"DeepSpeed's {resolved['scheduler'].get('type')}")
    else:
        parts.append(f"{block.schedule} schedule, {warmup:,} of {counted(total, 'step')} of warm-up")
        if warmup >= total:
            odd.append("the rate is still rising at the last step")
    if block.unfreeze_epochs is not None:
        never = [group["name"] for group in groups if thaw_step(group["name"], group["depth"], block.unfreeze_epochs, len(plan)) >= total]
        if never:
            odd.append(f"the run ends before {', '.join(dict.fromkeys(never))} are trained: lower unfreeze_epochs, or train longer")
    return Found(groups, "; ".join(parts), "; ".join(odd))


# ----------------------------------------------------------------------------------------------------------------------- pre-training
