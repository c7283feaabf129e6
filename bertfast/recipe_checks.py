"""The checks of `bertfast validate` that recipes need: loss, optimizer and rates, and the text and the model of further pre-training.

What they ask is what the trainer asks: the same functions, before anything is trained.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bertfast.blocks import HeadConfig, LossConfig, TruncationConfig
from bertfast.config import Config
from bertfast.data import EncodedDataset
from bertfast.engine import Ranks
from bertfast.losses import Loss, class_weights
from bertfast.memory import Precision
from bertfast.optim import thaw_step, trained_groups
from bertfast.planning import Plan
from bertfast.preflight import STEP_EXAMPLES, check_memory, check_plan, step_facts
from bertfast.pretraining import PretrainingLoader, pretraining_loss
from bertfast.pretraining_data import PretrainingSet
from bertfast.pretraining_model import BertPretrainer
from bertfast.progress import counted
from bertfast.resolve import BatchSizes, resolve_deepspeed, resolve_total_steps, resolve_warmup_steps
from bertfast.tasks import Task
from bertfast.validate import Checks, Found

if TYPE_CHECKING:
    from transformers import BertConfig

_NOT_OF_PRETRAINING = {"head": HeadConfig(), "truncation": TruncationConfig(), "loss": LossConfig()}


def check_loss(block: LossConfig, task: Task, train: EncodedDataset) -> Found:
    """The loss that a block asks for, on these labels."""
    loss = Loss(block, task.num_labels, train.labels)
    kind = "squared error" if task.num_labels == 1 else "focal loss" if block.focal_gamma else "cross entropy"
    more = [f"{name} {value:g}" for name in ("label_smoothing", "focal_gamma", "r_drop") if (value := getattr(block, name))]
    weights = class_weights(block, task.num_labels, train.labels)
    if weights is not None:
        more.append("class weights " + ", ".join(f"{weight:.3g}" for weight in weights))
    warning = "every class has the weight 0, so nothing is trained" if weights is not None and not any(weights) else ""
    return Found(loss, "; ".join([kind, *more]), warning)


def optimizer_of(
    config: Config, device: str, sizes: BatchSizes, steps_per_epoch: int, model: torch.nn.Module
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What DeepSpeed is given, and the parameter groups. Freezes what the config freezes."""
    total = resolve_total_steps(config.bertfast, steps_per_epoch)
    resolved = resolve_deepspeed(config, sizes, total, "cpu" if device == "cpu" else "cuda", model.config.hidden_size)
    return resolved, trained_groups(model, resolved["optimizer"]["params"], config.bertfast.optimization)


def check_optimizer(config: Config, device: str, precision: Precision, sizes: BatchSizes, plan: Plan, model: torch.nn.Module) -> Found:
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


def check_pretraining(
    checks: Checks,
    config: Config,
    device: str,
    precision: Precision | None,
    sizes: BatchSizes | None,
    checkpoint: tuple[Path, BertConfig] | None,
    tokenizer: Any,
) -> None:
    """All checks of a config with a `pretrain` block that come after its tokenizer's."""
    loader = PretrainingLoader(config, Ranks(0, 1, torch.device("cpu")))
    train = checks.make("text: train", partial(_check_text, config, loader.training_set), tokenizer, checkpoint)
    checks.make("text: held out", partial(_check_held_out, config, loader), tokenizer, checkpoint)
    model = checks.make("weights", partial(_check_weights, config, loader), checkpoint)
    plan = checks.make("packing", check_plan, config, sizes, train)
    checks.make("optimizer", partial(check_optimizer, config, device), precision, sizes, plan, model)
    checks.make("one step", _check_step, model, plan, train)
    checks.make("memory per rank", check_memory, config, precision, model, plan, train)


def _check_text(config: Config, load: Any, tokenizer: Any, checkpoint: tuple[Path, BertConfig]) -> Found:
    data = load(tokenizer)
    data.check_vocabulary(checkpoint[1].vocab_size, checkpoint[1].type_vocab_size)
    unused = [name for name, default in _NOT_OF_PRETRAINING.items() if getattr(config.bertfast, name) != default]
    warnings = [f"bertfast.{' and '.join(unused)}: not for pre-training, and not used"] if unused else []
    return Found(data, _describe(data), "; ".join(filter(None, [*warnings, data.next_sentence_fault])))


def _check_held_out(config: Config, loader: PretrainingLoader, tokenizer: Any, checkpoint: tuple[Path, BertConfig]) -> Found:
    datasets = loader.evaluation_sets(tokenizer)
    if datasets:
        return Found(datasets, "; ".join(_describe(data) for data in datasets.values()))
    wanted = config.bertfast.eval_input is not None
    return Found(datasets, "none", "bertfast.eval_input is there, but pretrain.eval_text_files are not" if wanted else "")


def _describe(data: PretrainingSet) -> str:
    lengths = data.lengths
    return f"{data.source}: {counted(len(data), 'example')}; tokens: mean {lengths.mean():.1f}, longest {lengths.max()}"


def _check_weights(config: Config, loader: PretrainingLoader, checkpoint: tuple[Path, BertConfig]) -> Found:
    torch.manual_seed(config.bertfast.run.seed)
    model = loader.model(str(checkpoint[0]), new_head=True)
    report = model.load_report
    left_out = [name for name in report.missing if name not in report.made_anew]
    warning = "some of the encoder's weights are not from the checkpoint" if left_out or report.misshapen else ""
    return Found(model, f"{report.summary()}; {sum(parameter.numel() for parameter in model.parameters()):,} parameters", warning)


def _check_step(model: BertPretrainer, plan: Plan, train: PretrainingSet) -> Found:
    indices = plan.micro_batches(0, 0)[0][:STEP_EXAMPLES]
    batch = train.batch(indices)
    n_masked = len(batch.masked_rows)
    model.train()
    loss, _ = pretraining_loss(*model(batch), batch, max(n_masked, 1), len(indices))
    shown = step_facts(model, loss, ", ".join(train.where(int(index)) for index in indices))
    words = f"{counted(len(indices), 'example')}, {batch.num_tokens} tokens, {n_masked} of them masked"
    return Found(loss.item(), f"{words}: loss {loss.item():.3f}, {shown}")
