"""The real examples that an export is judged on: the splits that a config names, or a file that the user gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bertfast.config import BertfastConfig, InputConfig
from bertfast.data import EncodedDataset, encode, load_dataset_for
from bertfast.readers import read_inputs
from bertfast.tasks import Task

Data = Callable[[Task, Any, int], dict[str, EncodedDataset]]


def configured(block: BertfastConfig | None) -> Data | None:
    """The evaluation splits of a config's eval_input, as training evaluated on them; None where it names none."""
    if block is None or block.eval_input is None or not names_data(block.eval_input):
        return None
    given = block.eval_input

    def load(task: Task, tokenizer: Any, max_sequence_length: int) -> dict[str, EncodedDataset]:
        source = given.model_copy(update={"max_sequence_length": max_sequence_length})
        return {split: load_dataset_for(task, source, split, tokenizer, block.run.seed) for split in task.eval_splits}

    return load


def from_file(block: BertfastConfig | None, given: str, scratch: str) -> Data:
    """A file of texts, with labels or without, as `bertfast predict --input` reads it; the folder `scratch` holds the tokens."""

    def load(task: Task, tokenizer: Any, max_sequence_length: int) -> dict[str, EncodedDataset]:
        splits = read_inputs(block, task, given, single=True)
        return {name: encode(raw, tokenizer, max_sequence_length, cache_dir=scratch) for name, raw in splits}

    return load


def names_data(source: InputConfig) -> bool:
    """Whether an input names files or a function: one that names none means the hub, which a bundle's own config does not."""
    return any(value is not None for value in (source.data_dir, source.data_file, source.input_fn))
