"""The checkpoint, its tokenizer, its positions and its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bertfast.checks.config import input_blocks
from bertfast.checks.table import Found
from bertfast.config import Config, configs_of
from bertfast.errors import CheckpointError
from bertfast.model import BertClassifier, BertEncoder
from bertfast.tasks import Task, get_task
from bertfast.training import head_to_train
from bertfast.weights import load_tokenizer, model_folder, read_config, resolve_folder

if TYPE_CHECKING:
    from transformers import BertConfig

_SPARE_EMBEDDINGS = 256  # vocabularies are rounded up, to multiples of 64 or 128 for the most part


def check_checkpoint(config: Config) -> Found:
    folder = resolve_folder(model_folder(config.bertfast.model.checkpoint))
    bert = read_config(folder)
    shape = f"{bert.num_hidden_layers} layers, hidden {bert.hidden_size}, {bert.num_attention_heads} heads, vocabulary {bert.vocab_size:,}"
    return Found((folder, bert), f"{folder}: BERT, {shape}, {bert.max_position_embeddings} positions")


def check_positions(config: Config, checkpoint: tuple[Path, BertConfig]) -> Found:
    folder, bert = checkpoint
    lengths: dict[str, int] = {}
    for part in configs_of(config):
        task = "" if config.bertfast.multitask is None else f"multitask.tasks: {get_task(part.bertfast.task).name}: "
        lengths |= {f"{task}{name}": given.max_sequence_length for name, given in input_blocks(part)}
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


def check_weights(config: Config, checkpoint: tuple[Path, BertConfig], task: Task) -> Found:
    block = config.bertfast.model
    new_head, head = head_to_train(config.bertfast)
    torch.manual_seed(config.bertfast.run.seed)
    model = BertClassifier.from_pretrained(
        str(checkpoint[0]),
        task.num_labels,
        task.label_names,
        strict=block.strict,
        new_head=new_head,
        head=head,
        several=task.is_multilabel,
    )
    return weights_found(model)


def weights_found(model: BertEncoder) -> Found:
    """What became of a checkpoint's weights in a model that was loaded."""
    report, parameters = model.loaded, sum(parameter.numel() for parameter in model.parameters())
    left_out = [name for name in report.missing if name not in report.made_anew]
    warning = "some of the encoder's weights are not from the checkpoint" if left_out or report.misshapen else ""
    return Found(model, f"{report.summary()}; {parameters:,} parameters", warning)
