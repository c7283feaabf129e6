"""Files, the hub or a function -> token ids, cached as Arrow under a fingerprint of data, tokenizer and length.

`load_dataset_for` is what training and evaluation call. `load_split` and `encode` are its two halves.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from bertfast.arrow import number_array, text_array
from bertfast.blocks import WHOLE_HEAD, TruncationConfig
from bertfast.config import InputConfig, TaskConfig
from bertfast.encoded import CACHE_FORMAT, CacheWriter, EncodedDataset, cache_folder, header_of, open_cached
from bertfast.errors import ConfigError, DataError
from bertfast.input_fn import dataset_from_function
from bertfast.labels import LabelTable
from bertfast.sources import Source, find_source, needs_labels, place
from bertfast.tasks import Task, get_task
from bertfast.tokenizing import BLOCK_EXAMPLES, check_cut, tokenise, tokenizer_fingerprint

__all__ = ["EncodedDataset", "RawSplit", "SplitTexts", "TextColumn", "encode", "load_dataset_for", "load_split", "split_texts"]

logger = logging.getLogger(__name__)


class TextColumn(Sequence[str]):
    """A column of texts, held as Arrow (their bytes and 8 more each); it reads like a list of strings."""

    def __init__(self, texts: pa.ChunkedArray):
        self.arrow = texts

    def __len__(self) -> int:
        return len(self.arrow)

    def __getitem__(self, index):
        if isinstance(index, slice):
            begin, end, step = index.indices(len(self))
            return self.arrow.slice(begin, max(end - begin, 0)).to_pylist()[::step] if step > 0 else self.arrow.to_pylist()[index]
        return self.arrow[int(index)].as_py()

    def __iter__(self) -> Iterator[str]:
        for chunk in self.arrow.chunks:
            yield from chunk.to_pylist()


@dataclass
class RawSplit:
    """The rows of one split, as text.

    task: with its classes known, where the labels told. text_a, text_b: the texts (text_b None for single sentences). labels: int32 class
    ids or float32 scores [n], or None. source: the file (or hub set). lines: int32 [n], for `where`. fingerprint: of the rows.
    """

    task: Task
    text_a: TextColumn
    text_b: TextColumn | None
    labels: np.ndarray | None
    source: str
    lines: np.ndarray
    fingerprint: str
    unit: str = "line"
    parts: list[str] | None = None

    def __len__(self) -> int:
        return len(self.text_a)

    @classmethod
    def from_texts(
        cls, task: Task, text_a: Sequence[str], text_b: Sequence[str] | None = None, labels: np.ndarray | None = None, source: str = "input"
    ) -> RawSplit:
        """Rows that are in memory already; row i counts as line i + 1 of `source`.

        Raises:
            DataError: where the columns are not of one length, the task wants a pair and got none (or the other way round), or a text is
                none that UTF-8 can write.
        """
        if task.is_pair != (text_b is not None):
            wanted = "pairs of texts" if task.is_pair else "single texts"
            raise DataError(f"{source}: task {task.name} takes {wanted} ({', '.join(task.text_columns)})")
        columns = [column for column in (text_a, text_b) if column is not None]
        sizes = {len(column) for column in (*columns, *([] if labels is None else [labels]))}
        if len(sizes) > 1 or 0 in sizes:
            raise DataError(
                f"{source}: the texts and labels have {' and '.join(map(str, sorted(sizes)))} rows; there must be as many of each"
            )
        lines = np.arange(1, len(text_a) + 1, dtype=np.int32)
        texts = [_text_column([_checked(list(column), source, "line", lines, None)]) for column in columns]
        digest = hashlib.sha256()
        for column in (*columns, [] if labels is None else np.asarray(labels).tolist()):
            digest.update(json.dumps(list(column)).encode())
        fingerprint = _fingerprint("texts", repr(task), digest.hexdigest())
        return cls(task, texts[0], texts[1] if len(texts) > 1 else None, labels, source, lines, fingerprint)

    def where(self, index: int) -> str:
        """The place of row `index` in its source, for messages: file and line."""
        return place(self.source, self.unit, int(self.lines[index]), None if self.parts is None else self.parts[index])

    def sample(self, max_examples: int, seed: int) -> RawSplit:
        """A random subset of at most max_examples rows, chosen by seed, in the order of the source."""
        fingerprint = _sample_fingerprint(self.fingerprint, max_examples, seed)
        chosen = random_subset(len(self), max_examples, seed)
        if chosen is None:
            return replace(self, fingerprint=fingerprint)
        text_a, text_b = (
            None if column is None else TextColumn(column.arrow.take(number_array(chosen))) for column in (self.text_a, self.text_b)
        )
        return replace(
            self,
            text_a=text_a,
            text_b=text_b,
            labels=None if self.labels is None else self.labels[chosen],
            lines=self.lines[chosen],
            parts=None if self.parts is None else [self.parts[index] for index in chosen],
            fingerprint=fingerprint,
        )


def random_subset(n: int, max_examples: int | None, seed: int) -> np.ndarray | None:
    """Which of n examples max_examples leaves: a random subset by seed, int64, rising; None for all."""
    if max_examples is None or max_examples >= n:
        return None
    return np.sort(np.random.default_rng(seed).choice(n, max_examples, replace=False))


def load_split(task: Task | TaskConfig | str, input_config: InputConfig, split: str, with_labels: bool = True) -> RawSplit:
    """Read one split ("train", "dev", "test", or the task's own, such as "dev_matched") from data_file, data_dir or the hub.

    A user's own task whose classes are not known gets them from this split: read the training data first, and hand the task of what comes
    back to the other splits. Test data may be without labels; with_labels False passes over a column of them, whatever it holds.

    Raises:
        ConfigError: a split that the task has not, or an input that names no data.
        DataError: naming file and line of what is wrong.
    """
    task = get_task(task)
    source = find_source(task, input_config, split, with_labels)
    return _read(task, source, split, with_labels)


class SplitTexts(NamedTuple):
    """The texts of a split, not read yet. source: the file (or hub set). fingerprint: of its rows, from the contents of its files alone.
    read: yields the texts row by row, those of a pair one after the other, and keeps none; raises as `load_split` does."""

    source: str
    fingerprint: str
    read: Callable[[], Iterator[str]]


def split_texts(task: Task | TaskConfig | str, input_config: InputConfig, split: str) -> SplitTexts:
    """The texts of one split, without its labels; see `load_split`.

    Raises:
        ConfigError, DataError: as `load_split`, where there are no such data.
    """
    task = get_task(task)
    source = find_source(task, input_config, split, with_labels=False)

    def read() -> Iterator[str]:
        n_rows = 0
        for block in source.rows():
            n_rows += len(block.lines)
            for column in block.texts:
                _checked(column, source.name, source.unit, block.lines, block.parts)
            yield from chain.from_iterable(zip(*block.texts, strict=True))
        if not n_rows:
            raise DataError(f"{source.name}: there is no row for split {split!r}")

    return SplitTexts(source.name, _source_fingerprint(task, source, split), read)


def encode(
    raw: RawSplit,
    tokenizer,
    max_sequence_length: int,
    cache_dir: str | os.PathLike | None = None,
    num_workers: int | None = None,
    truncation: TruncationConfig = WHOLE_HEAD,
) -> EncodedDataset:
    """Tokenise the rows, or find them tokenised in the cache.

    Each example is what `tokenizer(a, b, truncation=True, max_length=max_sequence_length)` gives. cache_dir: left out, $BERTFAST_CACHE or
    ~/.cache/bertfast. num_workers: threads, left out one a core. truncation: see `bertfast.truncation`.

    Raises:
        ConfigError: a truncation that these rows cannot have.
        DataError: a cache folder that cannot be written, a max_sequence_length with no room for the special tokens.
    """
    fingerprint = _encoded_fingerprint(raw.fingerprint, tokenizer, max_sequence_length, truncation)
    path = _cache_path(raw.task, fingerprint, cache_dir)
    cached = open_cached(path, fingerprint, raw.task, raw.source)
    if cached is not None:
        return cached
    logger.info("tokenising %d examples of %s", len(raw), raw.source)
    header = header_of(raw.task, fingerprint, max_sequence_length, raw.unit, _filler(tokenizer), len(raw), truncation.is_hierarchical)
    label_type = None if raw.labels is None else raw.labels.dtype.type
    with CacheWriter(path.parent, path, header, label_type, raw.parts is not None) as writer:
        blocks = tokenise(raw.text_a, raw.text_b, tokenizer, max_sequence_length, num_workers, truncation)
        for begin, tokens in zip(range(0, len(raw), BLOCK_EXAMPLES), blocks, strict=True):
            rows = slice(begin, begin + BLOCK_EXAMPLES)
            labels = None if raw.labels is None else raw.labels[rows]
            writer.write(tokens, labels, raw.lines[rows], None if raw.parts is None else raw.parts[rows])
    return EncodedDataset(path, raw.task, raw.source)


def load_dataset_for(
    task: Task | TaskConfig | str,
    input_config: InputConfig,
    split: str,
    tokenizer,
    seed: int,
    truncation: TruncationConfig = WHOLE_HEAD,
) -> EncodedDataset:
    """The tokenised split: read, cut to a random subset of max_examples (chosen by seed) and encoded; or what input_fn yields.

    A cached split is found by the contents of its files alone: no row is read again.

    Raises:
        ConfigError, DataError: as `load_split`, `encode` and `dataset_from_function`.
    """
    task = get_task(task)
    if input_config.input_fn is not None:
        check_reading(task, input_config, tokenizer, truncation)
        return dataset_from_function(task, input_config, split, tokenizer)
    source = find_source(task, input_config, split)
    fingerprint = _source_fingerprint(task, source, split)
    if input_config.max_examples is not None:
        fingerprint = _sample_fingerprint(fingerprint, input_config.max_examples, seed)
    fingerprint = _encoded_fingerprint(fingerprint, tokenizer, input_config.max_sequence_length, truncation)
    cached = open_cached(_cache_path(task, fingerprint, input_config.cache_dir), fingerprint, task, source.name)
    if cached is not None:
        return cached
    raw = _read(task, source, split)
    if input_config.max_examples is not None:
        raw = raw.sample(input_config.max_examples, seed)
    return encode(raw, tokenizer, input_config.max_sequence_length, input_config.cache_dir, input_config.num_workers, truncation)


def check_reading(task: Task, input_config: InputConfig, tokenizer, truncation: TruncationConfig) -> None:
    """Hold a truncation and a max_sequence_length against an input's kind of texts, of which none is read.

    Raises:
        ConfigError, DataError: as `check_cut`; a truncation of what input_fn yields.
    """
    if input_config.input_fn is None:
        check_cut(tokenizer, input_config.max_sequence_length, task.is_pair, truncation)
    elif truncation.strategy != "head":
        raise ConfigError(
            f"bertfast.truncation.strategy = {truncation.strategy!r} is for texts; what input_fn {input_config.input_fn} yields is cut already"
        )


def _read(task: Task, source: Source, split: str, with_labels: bool = True) -> RawSplit:
    fingerprint = _source_fingerprint(task, source, split)
    texts: list[list[pa.Array]] = [[] for _ in task.text_columns]
    lines, parts, labels, has_labels = [], [], LabelTable(), True
    for block in source.rows():
        for chunks, column in zip(texts, block.texts, strict=True):
            chunks.append(_checked(column, source.name, source.unit, block.lines, block.parts))
        lines.append(np.asarray(block.lines, dtype=np.int32))
        parts += block.parts or []
        has_labels = with_labels and block.labels is not None
        if has_labels:
            labels.add(block.labels)
    if not lines:
        raise DataError(f"{source.name}: there is no row for split {split!r}")
    columns = [_text_column(chunks) for chunks in texts]
    text_b = columns[1] if task.is_pair else None
    raw = RawSplit(task, columns[0], text_b, None, source.name, np.concatenate(lines), fingerprint, source.unit, parts or None)
    if has_labels:
        raw.task, raw.labels = labels.resolve(task, raw.where, source.first_label, hidden=not needs_labels(task, split))
    return raw


def _checked(texts: list[str], source: str, unit: str, lines: Sequence[int], parts: list[str] | None) -> pa.Array:
    try:
        return text_array(texts)
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        row = next(row for row, text in enumerate(texts) if any("\ud800" <= character <= "\udfff" for character in text))
        where = place(source, unit, int(lines[row]), None if parts is None else parts[row])
        raise DataError(f"{where}: the text holds a lone surrogate (such as \\ud800), which is no character; remove it") from None


def _text_column(chunks: list[pa.Array]) -> TextColumn:
    return TextColumn(pa.chunked_array(chunks, pa.large_string()))


def _filler(tokenizer) -> tuple[int, int]:
    ids = (tokenizer.cls_token_id, tokenizer.sep_token_id)
    if None in ids:
        raise DataError("the tokenizer has no [CLS] or no [SEP] token, so it is not one of BERT's; name another as model.tokenizer")
    return ids


def _cache_path(task: Task, fingerprint: str, cache_dir: str | os.PathLike | None) -> Path:
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", task.name)
    return cache_folder(cache_dir) / f"{name}-{fingerprint[:32]}.arrow"


def _source_fingerprint(task: Task, source: Source, split: str) -> str:
    return _fingerprint("source", repr(task), split, source.digest())


def _sample_fingerprint(fingerprint: str, max_examples: int, seed: int) -> str:
    return _fingerprint("sample", fingerprint, max_examples, seed)


def _encoded_fingerprint(fingerprint: str, tokenizer, max_sequence_length: int, truncation: TruncationConfig) -> str:
    how = [] if truncation == WHOLE_HEAD else [truncation.model_dump_json()]
    return _fingerprint("encoded", CACHE_FORMAT, fingerprint, tokenizer_fingerprint(tokenizer), max_sequence_length, *how)


def _fingerprint(*parts: str | int) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
