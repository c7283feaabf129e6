"""The checks of `bertfast validate` that need the data, the tokenizer and the weights: each takes what it needs and gives a `Found`."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bertfast.blocks import TruncationConfig
from bertfast.config import Config, InputConfig
from bertfast.data import EncodedDataset, RawSplit, encode, load_dataset_for, load_split
from bertfast.engine import model_folder
from bertfast.errors import CheckpointError, NonFiniteLossError
from bertfast.loading import head_to_train
from bertfast.losses import Loss
from bertfast.memory import Precision, activation_bytes, estimate_memory
from bertfast.model import BertClassifier
from bertfast.multitask_config import configs_of
from bertfast.planning import Plan, plan_examples, plan_tokens
from bertfast.pretrained import load_tokenizer
from bertfast.progress import counted
from bertfast.resolve import BatchSizes, resolve_total_steps
from bertfast.tasks import Task, get_task
from bertfast.truncation import leaves_no_tail, num_pieces
from bertfast.validate import INPUTS, Checks, Found
from bertfast.weights import read_config, resolve_folder

if TYPE_CHECKING:
    from transformers import BertConfig

STEP_EXAMPLES = 8  # of the first micro-batch: enough to see a loss, few enough for a large model on a CPU
_SAMPLED_STEPS = 64
_BLOCK_ROWS = 1000
_SHOWN_CLASSES = 8
_SPARE_EMBEDDINGS = 256  # vocabularies are rounded up, to multiples of 64 or 128 for the most part


def check_checkpoint(config: Config) -> Found:
    folder = resolve_folder(model_folder(config.bertfast.model.checkpoint))
    bert = read_config(folder)
    shape = f"{bert.num_hidden_layers} layers, hidden {bert.hidden_size}, {bert.num_attention_heads} heads, vocabulary {bert.vocab_size:,}"
    return Found((folder, bert), f"{folder}: BERT, {shape}, {bert.max_position_embeddings} positions")


def check_positions(config: Config, checkpoint: tuple[Path, BertConfig]) -> Found:
    folder, bert = checkpoint
    lengths = {}
    for part in configs_of(config):
        task = "" if config.bertfast.multitask is None else f"multitask.tasks: {get_task(part.bertfast.task).name}: "
        lengths |= {f"{task}{name}": given.max_sequence_length for name, given in _inputs(part)}
    for name, length in lengths.items():
        if length > bert.max_position_embeddings:
            raise CheckpointError(
                f"bertfast.{name}.max_sequence_length = {length}, but {folder} has {bert.max_position_embeddings} position embeddings; "
                f"set it to {bert.max_position_embeddings} or less"
            )
    return Found(lengths, ", ".join(f"{name} {length}" for name, length in lengths.items()) + f" of {bert.max_position_embeddings}")


def check_tokenizer(config: Config, checkpoint: tuple[Path, BertConfig]) -> Found:
    folder, bert = checkpoint
    source = resolve_folder(config.bertfast.model.tokenizer) if config.bertfast.model.tokenizer else folder
    tokenizer = load_tokenizer(source, bert)
    unused = bert.vocab_size - len(tokenizer)
    warning = f"{unused:,} embeddings have no token: is it the checkpoint's own tokenizer?" if unused > _SPARE_EMBEDDINGS else ""
    return Found(tokenizer, f"{source}: {len(tokenizer):,} tokens for {bert.vocab_size:,} embeddings", warning)


def check_inputs(checks: Checks, config: Config, tokenizer: Any, checkpoint: Any) -> tuple[EncodedDataset | None, Task | None]:
    """One check for each split of each input; gives the training data (or None) and the task, if the data told its classes.

    Without a tokenizer and a checkpoint (their checks failed) rows, columns and labels are checked nevertheless, and no data is given.
    """
    task, train = get_task(config.bertfast.task), None
    for name, part in _inputs(config):
        for split in task.train_splits if name == "train_input" else task.eval_splits:
            look = partial(check_data, part, split, config.bertfast.run.seed, config.bertfast.truncation)
            if part.input_fn is None and (tokenizer is None or checkpoint is None):
                data = checks.make(f"{name}: {split}", partial(check_rows, part, split), task)
            else:
                data = checks.make(f"{name}: {split}", look, task, tokenizer, checkpoint)
            if data is None:
                continue
            task = data.task if data.task.is_complete else task
            if name == "train_input" and train is None and isinstance(data, EncodedDataset):
                train = data
    return train, task if task.is_complete else None


def check_rows(part: InputConfig, split: str, task: Task) -> Found:
    """Every row is read, and its label looked up; nothing is tokenised."""
    raw = load_split(task, part, split)
    counts, warning = _describe_labels(raw)
    return Found(raw, f"{raw.source}: {counted(len(raw), 'row')}; {counts}; not tokenised", warning)


def check_data(
    part: InputConfig,
    split: str,
    seed: int,
    truncation: TruncationConfig,
    task: Task,
    tokenizer: Any,
    checkpoint: tuple[Path, BertConfig],
) -> Found:
    """Every row is read and tokenised again or found in the cache under the hash of the same rows."""
    if part.input_fn is not None:
        data, cut = load_dataset_for(task, part, split, tokenizer, seed, truncation), None
    else:
        raw = load_split(task, part, split)
        if part.max_examples is not None:
            raw = raw.sample(part.max_examples, seed)
        data = encode(raw, tokenizer, part.max_sequence_length, part.cache_dir, part.num_workers, truncation)
        cut = None if data.has_pieces else _count_cut(raw, data, tokenizer)
    data.check_vocabulary(checkpoint[1].vocab_size, checkpoint[1].type_vocab_size)
    lengths = np.sort(data.lengths)
    tokens = f"tokens: mean {lengths.mean():.1f}, 95 % up to {lengths[int(0.95 * (len(lengths) - 1))]}, longest {lengths[-1]}"
    if cut is not None:
        tokens += f", {cut / len(data):.2%} cut at {part.max_sequence_length}"
    if data.has_pieces:
        tokens += f", in {num_pieces(lengths, data.max_sequence_length).mean():.2f} pieces of up to {data.max_sequence_length}"
    counts, warning = _describe_labels(data)
    if leaves_no_tail(truncation, part.max_sequence_length - tokenizer.num_special_tokens_to_add(pair=len(task.text_columns) == 2)):
        warning += f"{'; ' if warning else ''}truncation.head_tokens = {truncation.head_tokens} leaves no room for any token of the tail"
    return Found(data, f"{data.source}: {counted(len(data), 'row')}; {counts}; {tokens}", warning)


def _count_cut(raw: RawSplit, data: EncodedDataset, tokenizer: Any) -> int:
    """How many rows lose tokens to max_sequence_length: of those that reach it, the ones that are longer uncut."""
    full = np.flatnonzero(data.lengths == data.max_sequence_length)
    cut = 0
    for start in range(0, len(full), _BLOCK_ROWS):
        rows = full[start : start + _BLOCK_ROWS].tolist()
        pair = None if raw.text_b is None else [raw.text_b[row] for row in rows]
        features = tokenizer([raw.text_a[row] for row in rows], pair, truncation=False, padding=False, verbose=False)
        cut += sum(len(ids) > data.max_sequence_length for ids in features["input_ids"])
    return cut


def _describe_labels(data: EncodedDataset | RawSplit) -> tuple[str, str]:
    """The labels in a line, and what is odd about them."""
    if data.labels is None:
        return "no labels", ""
    if data.task.is_regression:
        scores = f"labels {data.labels.min():g} to {data.labels.max():g}, mean {data.labels.mean():.3f}"
        return scores, "every label is the same" if data.labels.min() == data.labels.max() else ""
    names = data.task.label_names
    counts = np.bincount(data.labels, minlength=len(names)).tolist()
    shown = ", ".join(f"{name} {count:,}" for name, count in zip(names[:_SHOWN_CLASSES], counts, strict=False))
    more = f" and {len(names) - _SHOWN_CLASSES} more classes" if len(names) > _SHOWN_CLASSES else ""
    absent = [name for name, count in zip(names, counts, strict=True) if count == 0]
    return shown + more, f"no row of class {', '.join(absent[:_SHOWN_CLASSES])}" if absent else ""


def check_weights(config: Config, checkpoint: tuple[Path, BertConfig], task: Task) -> Found:
    block = config.bertfast.model
    new_head, head = head_to_train(config.bertfast)
    torch.manual_seed(config.bertfast.run.seed)
    model = BertClassifier.from_pretrained(
        str(checkpoint[0]), num_labels=task.num_labels, strict=block.strict, new_head=new_head, head=head
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    report = model.load_report
    left_out = [name for name in report.missing if name not in report.made_anew]
    warning = "some of the encoder's weights are not from the checkpoint" if left_out or report.misshapen else ""
    return Found(model, f"{report.summary()}; {parameters:,} parameters", warning)


def check_plan(config: Config, sizes: BatchSizes, train: EncodedDataset) -> Found:
    part = config.bertfast.train_input
    parts = {"world_size": sizes.world_size, "micro_steps": sizes.micro_steps, "seed": config.bertfast.run.seed, "shuffle": part.shuffle}
    if part.planner == "tokens":
        plan = plan_tokens(train.training_lengths(0), part.tokens_per_batch, **parts)
    else:
        plan = plan_examples(train.training_lengths(0), sizes.global_batch, **parts)
    facts = plan.describe()
    steps = resolve_total_steps(config.bertfast, len(plan))
    return Found(
        plan,
        f"{facts['planner']}: {counted(len(plan), 'step')} an epoch, {steps:,} in all; {facts['fill']:.1%} of each batch is real tokens; "
        f"the fullest part of a step holds {facts['balance']:.2f} times the mean",
    )


def check_step(model: BertClassifier, plan: Plan, train: EncodedDataset, loss_of: Loss) -> Found:
    """One forward and backward pass of a few examples of the first micro-batch, packed, in float32 on the CPU."""
    indices = plan.micro_batches(0, 0)[0][:STEP_EXAMPLES]
    batch = loss_of.prepared(train.batch(indices))
    model.train()
    loss = loss_of(model(batch), batch.labels) / len(indices)
    shown = step_facts(model, loss, ", ".join(train.where(int(index)) for index in indices))
    chance = f" (guessing: {math.log(model.num_labels):.3f})" if loss_of.is_plain and model.num_labels > 1 else ""
    return Found(loss.item(), f"{counted(len(indices), 'example')}, {batch.num_tokens} tokens: loss {loss.item():.3f}{chance}, {shown}")


def step_facts(model: torch.nn.Module, loss: torch.Tensor, examples: str) -> str:
    """Take the gradients of a loss, and tell their norm.

    Raises:
        NonFiniteLossError: naming the examples.
    """
    loss.backward()
    norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.stack(norms).norm().item()
    model.zero_grad(set_to_none=True)
    if not math.isfinite(loss.item()) or not math.isfinite(norm):
        raise NonFiniteLossError(f"the loss is {loss.item()} and the gradient's norm {norm}; the examples: {examples}")
    return f"gradient norm {norm:.3f}"


def check_memory(config: Config, precision: Precision, model: torch.nn.Module, plan: Plan, train: EncodedDataset) -> Found:
    zero = config.deepspeed.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    offload = {name: (zero.get(name) or {}).get("device", "none") != "none" for name in ("offload_optimizer", "offload_param")}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tokens = _largest_micro_batch(plan, train.training_lengths(0))
    activations = activation_bytes(model.config, tokens, precision, config.bertfast.model.gradient_checkpointing == "selective")
    estimate = estimate_memory(parameters, precision, stage, plan.world_size, **offload, activations=activations)
    parts = {
        "parameters": estimate.parameters,
        "gradients": estimate.gradients,
        "optimizer": estimate.optimizer,
        f"activations of {tokens:,} tokens": estimate.activations,
    }
    shown = " + ".join(f"{name} {_megabytes(size)}" for name, size in parts.items() if size)
    host = f"; offloaded to the host: {_megabytes(estimate.host)}" if estimate.host else ""
    return Found(
        estimate,
        f"about {_megabytes(estimate.device)}: {shown}{host} (ZeRO stage {stage}, {counted(plan.world_size, 'rank')}, {precision})",
    )


def _largest_micro_batch(plan: Plan, lengths: np.ndarray) -> int:
    """The most tokens of a micro-batch, over steps spread evenly."""
    steps = np.unique(np.linspace(0, len(plan) - 1, _SAMPLED_STEPS, dtype=np.int64)).tolist()
    batches = (part for step in steps for rank in range(plan.world_size) for part in plan.micro_batches(step, rank))
    return max(int(lengths[part[part >= 0]].sum()) for part in batches)


def _inputs(config: Config) -> list[tuple[str, InputConfig]]:
    return [(name, part) for name in INPUTS if (part := getattr(config.bertfast, name)) is not None]


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"
