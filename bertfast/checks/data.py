"""The data of a config: its inputs, their rows, and the labels in them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertfast.checks.config import input_blocks
from bertfast.checks.table import Checks, Found
from bertfast.config import Config, InputConfig, TruncationConfig
from bertfast.data import EncodedDataset, encode, leaves_no_tail, load_dataset_for, num_pieces
from bertfast.readers import RawSplit, load_split
from bertfast.tasks import Task, get_task
from bertfast.wording import counted

if TYPE_CHECKING:
    from transformers import BertConfig

_BLOCK_ROWS = 1000
_SHOWN_CLASSES = 8


def check_inputs(checks: Checks, config: Config, tokenizer: Any, checkpoint: Any) -> tuple[EncodedDataset | None, Task | None]:
    """One check for each split of each input; gives the training data (or None) and the task, if the data told its classes.

    Without a tokenizer and a checkpoint (their checks failed) rows, columns and labels are checked nevertheless, and no data is given.
    """
    task, train = get_task(config.bertfast.task), None
    for name, part in input_blocks(config):
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
    assert names is not None  # the data told them, where the task did not
    counts = np.bincount(data.labels, minlength=len(names)).tolist()
    shown = ", ".join(f"{name} {count:,}" for name, count in zip(names[:_SHOWN_CLASSES], counts, strict=False))
    more = f" and {len(names) - _SHOWN_CLASSES} more classes" if len(names) > _SHOWN_CLASSES else ""
    absent = [name for name, count in zip(names, counts, strict=True) if count == 0]
    return shown + more, f"no row of class {', '.join(absent[:_SHOWN_CLASSES])}" if absent else ""
