"""The data of a config: its inputs, their rows, and the labels in them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertfast.checks.config import input_blocks
from bertfast.checks.table import Checks, Found
from bertfast.config import Config, InputConfig, TruncationConfig
from bertfast.data import NO_EVALUATION, EncodedDataset, describe, encode, load_dataset_for
from bertfast.readers import load_split
from bertfast.tasks import Task, get_task

if TYPE_CHECKING:
    from transformers import BertConfig


def check_inputs(checks: Checks, config: Config, tokenizer: Any, checkpoint: Any) -> tuple[EncodedDataset | None, Task | None]:
    """One check for each split of each input; gives the training data (or None) and the task, if the data told its classes.

    Without a tokenizer and a checkpoint (their checks failed) rows, columns and labels are checked nevertheless, and no data is given.
    """
    task, train = get_task(config.bertfast.task), None
    for name, part in input_blocks(config):
        for split in task.train_splits if name == "train_input" else task.eval_splits:
            look = partial(check_data, part, split, config.bertfast.run.seed, config.bertfast.truncation)
            if part.input_fn is None and (tokenizer is None or checkpoint is None):
                data = checks.make(f"{name}: {split}", partial(check_rows, part, split, config.bertfast.truncation), task)
            else:
                data = checks.make(f"{name}: {split}", look, task, tokenizer, checkpoint)
            if data is None:
                continue
            task = data.task if data.task.is_complete else task
            if name == "train_input" and train is None and isinstance(data, EncodedDataset):
                train = data
    if config.bertfast.train_input is not None and config.bertfast.eval_input is None:
        checks.make("eval_input", lambda: Found(None, NO_EVALUATION))
    return train, task if task.is_complete else None


def check_rows(part: InputConfig, split: str, truncation: TruncationConfig, task: Task) -> Found:
    """Every row is read, and its label looked up; nothing is tokenised."""
    raw = load_split(task, part, split)
    return Found(raw, *describe(raw, task, truncation))


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
        data = load_dataset_for(task, part, split, tokenizer, seed, truncation)
    else:
        raw = load_split(task, part, split)
        if part.max_examples is not None:
            raw = raw.sample(part.max_examples, seed)
        data = encode(raw, tokenizer, part.max_sequence_length, part.cache_dir, part.num_workers, truncation)
    data.check_vocabulary(checkpoint[1].vocab_size, checkpoint[1].type_vocab_size)
    return Found(data, *describe(data, task, truncation))
