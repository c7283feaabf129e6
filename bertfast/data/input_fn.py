"""A user's own input function, `input_fn: "package.module:function"`: called once, checked batch by batch, written to an Arrow file.

It is called as function(params), where params is the InputConfig as a dictionary (max_sequence_length, batch_size, ...) and `mode`:
"train", "eval" or "predict". It returns an iterable of feature dictionaries: input_ids, attention_mask and token_type_ids, int32
[batch, max_sequence_length], and labels, int32 [batch] (float32 for regression; of several labels a text [batch, C] of 0 and 1; left out in "predict"). Every rank calls it, and must get
the same batches. What it yields is not cached between runs, since a function has no fingerprint.
"""

from __future__ import annotations

import importlib
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from bertfast.config import InputConfig
from bertfast.data.cache import CacheWriter, cache_folder, header_of, label_type_of
from bertfast.data.encoded import EncodedDataset
from bertfast.data.tokenizing import TokenBlock
from bertfast.errors import DataError
from bertfast.packing import PackedBatch
from bertfast.readers import MAX_INFERRED_CLASSES, needs_labels
from bertfast.tasks import Task
from bertfast.wording import did_you_mean

_SEQUENCE_FEATURES = ("input_ids", "attention_mask", "token_type_ids")


def dataset_from_function(task: Task, config: InputConfig, split: str, tokenizer) -> EncodedDataset:
    """Call the function and collect what it yields, as a data set in an Arrow file that vanishes with it.

    Raises:
        DataError: naming the function, and the batch (from 0) whose features are missing, of another shape or dtype, masked with holes, or
            hold an id that is not in the tokenizer's vocabulary or a label that is no class.
    """
    assert config.input_fn is not None  # whoever calls has looked
    name = f"input_fn {config.input_fn}"
    function = _import(config.input_fn)
    mode = (
        "train"
        if split in ("train", *task.train_splits)
        else "eval"
        if needs_labels(task, split) or split in task.eval_splits
        else "predict"
    )
    batches = enumerate(_batches(function, name, {**config.model_dump(), "mode": mode}))
    checker = _Checker(task, config.max_sequence_length, len(tokenizer), mode != "predict", name)
    number, features = next(batches, (0, None))
    if features is None:
        raise DataError(f"{name}: it yields no batch")
    block, labels = checker.check(number, features)
    header = header_of(task, "", config.max_sequence_length, "row", (tokenizer.cls_token_id, tokenizer.sep_token_id))
    header["is_multilabel"] = checker.task.is_multilabel
    with CacheWriter(cache_folder(config.cache_dir), None, header, label_type_of(labels), has_parts=True) as writer:
        _write(writer, number, block, labels)
        for number, features in batches:
            _write(writer, number, *checker.check(number, features))
    try:
        return EncodedDataset(writer.beside, checker.completed_task(), name)
    finally:
        writer.beside.unlink()  # the mapping keeps the data alive as long as the data set


def _write(writer: CacheWriter, number: int, block: TokenBlock, labels: np.ndarray | None) -> None:
    rows = len(block.lengths)
    writer.write(block, labels, np.arange(rows, dtype=np.int32), [f"batch {number}"] * rows)


def _import(path: str) -> Callable[[dict[str, Any]], Iterable[Mapping]]:
    module_name, colon, attribute = path.partition(":")
    if not colon or not module_name or not attribute:
        raise DataError(f"input_fn = {path!r}: write it as package.module:function")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # an installed command does not look for modules where it is started; python -m does
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises while it is imported
        raise DataError(f"input_fn {path}: the module {module_name} cannot be imported ({type(error).__name__}: {error})") from error
    function = getattr(module, attribute, None)
    if function is None:
        meant = did_you_mean(attribute, dir(module))
        hint = f"; {meant}" if meant else ""
        raise DataError(f"input_fn {path}: the module {module_name} ({module.__file__}) has no {attribute!r}{hint}")
    if not callable(function):
        raise DataError(f"input_fn {path}: {attribute} is a {type(function).__name__}, not a function")
    return function


def _batches(function: Callable, name: str, params: dict[str, Any]) -> Iterator[Mapping]:
    try:
        batches = iter(function(params))
    except Exception as error:
        raise DataError(
            f"{name}: function(params) raised {type(error).__name__}: {error}; it must return an iterable of batches"
        ) from error
    for number in itertools.count():
        try:
            features = next(batches)
        except StopIteration:
            return
        except Exception as error:
            raise DataError(f"{name}: batch {number} raised {type(error).__name__}: {error}") from error
        yield features


class _Checker:
    """Checks batch after batch, and learns the labels of a task whose classes are not known."""

    def __init__(self, task: Task, max_sequence_length: int, vocab_size: int, needs_labels: bool, name: str):
        self.task, self.name, self.needs_labels = task, name, needs_labels
        self.max_sequence_length, self.vocab_size = max_sequence_length, vocab_size
        self.label_type: type | None = None
        self._largest_label = -1
        self._started = False

    def check(self, number: int, features: Any) -> tuple[TokenBlock, np.ndarray | None]:
        """The batch as tokens end to end and labels [batch]."""
        where = f"{self.name}, batch {number}"
        if not isinstance(features, Mapping):
            raise DataError(f"{where}: it is a {type(features).__name__}; each batch must be a dictionary of features")
        arrays = {name: _array(features, name, where) for name in (*_SEQUENCE_FEATURES, "labels") if features.get(name) is not None}
        for name in ("input_ids", "attention_mask"):
            if name not in arrays:
                raise DataError(f"{where}: there is no {name}; the features are {', '.join(map(str, features)) or 'none'}")
        for name in _SEQUENCE_FEATURES:
            if name in arrays:
                self._check_sequences(name, arrays[name], where)
        try:
            packed = PackedBatch.from_features({name: array for name, array in arrays.items() if name != "labels"})
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        ids, types = packed.input_ids.numpy(), packed.token_type_ids.numpy()
        lengths = np.diff(packed.cu_seqlens.numpy())
        for name, values, size in (("input_ids", ids, self.vocab_size), ("token_type_ids", types, 256)):
            outside = np.flatnonzero((values < 0) | (values >= size))
            if len(outside):
                row = int(np.searchsorted(np.cumsum(lengths), outside[0], side="right"))
                limit = f"the tokenizer's vocabulary of {size}" if name == "input_ids" else f"0 to {size - 1}"
                raise DataError(f"{where}, row {row} (from 0): {name} holds {values[outside[0]]}, which is outside {limit}")
        return TokenBlock(ids, types.astype(np.uint8), lengths), self._labels(arrays.get("labels"), len(lengths), where)

    def _check_sequences(self, name: str, array: np.ndarray, where: str) -> None:
        if array.ndim != 2 or not len(array) or array.shape[1] > self.max_sequence_length:
            wanted = f"[batch, {self.max_sequence_length}], the last being max_sequence_length"
            raise DataError(f"{where}: {name} has shape {list(array.shape)}; it must be {wanted}")
        if array.dtype.kind not in "iub":
            raise DataError(f"{where}: {name} has dtype {array.dtype}; it must be int32")
        if name == "attention_mask" and not np.isin(array, (0, 1)).all():
            raise DataError(f"{where}: attention_mask holds {array[~np.isin(array, (0, 1))][0]}; it must be 1 for tokens and 0 for padding")

    def _labels(self, labels: np.ndarray | None, rows: int, where: str) -> np.ndarray | None:
        first, self._started = not self._started, True
        if labels is None:
            if self.needs_labels or self.label_type is not None:
                raise DataError(f"{where}: there are no labels")
            return None
        if not first and self.label_type is None:
            raise DataError(f"{where}: there are labels, and in the batches before there were none")
        if self.task.is_multilabel:
            self.label_type = np.uint8
            return self._several(labels, rows, where)
        if labels.shape != (rows,):
            raise DataError(
                f"{where}: labels has shape {list(labels.shape)}; it must be [{rows}], one label an example (task.labels = 'several' makes it [{rows}, C])"
            )
        if first:
            scores = self.task.is_regression or (not self.task.is_complete and self.task.kind is None and labels.dtype.kind == "f")
            self.label_type = np.float32 if scores else np.int32
        if labels.dtype.kind not in ("iuf" if self.label_type is np.float32 else "iu"):
            raise DataError(f"{where}: labels has dtype {labels.dtype}; it must be {np.dtype(self.label_type)}")
        if self.label_type is np.float32:
            if not np.isfinite(labels).all():
                raise DataError(f"{where}: labels holds {labels[~np.isfinite(labels)][0]}; a score must be a finite number")
            return labels.astype(np.float32)
        limit = self.task.num_labels if self.task.is_complete else MAX_INFERRED_CLASSES
        if labels.min() < 0 or labels.max() >= limit:
            wrong = labels[(labels < 0) | (labels >= limit)][0]
            raise DataError(f"{where}: labels holds {wrong}; the classes are 0 to {limit - 1}")
        self._largest_label = max(self._largest_label, int(labels.max()))
        return labels.astype(np.int32)

    def _several(self, labels: np.ndarray, rows: int, where: str) -> np.ndarray:
        """Several labels an example: 0 and 1 [batch, C], of any type."""
        width = self.task.num_labels if self.task.is_complete else max(labels.shape[1], 2) if labels.ndim == 2 else 2
        if labels.shape != (rows, width):
            raise DataError(f"{where}: labels has shape {list(labels.shape)}; of several labels an example it must be [{rows}, {width}]")
        if not np.isin(labels, (0, 1)).all():
            raise DataError(f"{where}: labels holds {labels[~np.isin(labels, (0, 1))][0]}; of several labels an example each is 0 or 1")
        if not self.task.is_complete:
            self.task = self.task.with_labels(tuple(str(number) for number in range(width)))
        return labels.astype(np.uint8)

    def completed_task(self) -> Task:
        """The task, with the classes that the labels implied."""
        if self.task.is_complete or self.label_type is None:
            return self.task
        if self.label_type is np.float32:
            return self.task.with_labels(None)
        if self._largest_label == 0:
            raise DataError(f"{self.name}: every label is 0, and a classifier needs two classes; give label_names")
        return self.task.with_labels(tuple(str(number) for number in range(self._largest_label + 1)))


def _array(features: Mapping, name: str, where: str) -> np.ndarray:
    try:
        return np.asarray(features[name])
    except Exception as error:  # ragged lists, a tensor on a GPU
        raise DataError(f"{where}: {name} cannot be read as an array ({error}); give numpy arrays or CPU tensors") from error
