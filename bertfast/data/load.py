"""Files, the hub or a function -> token ids, cached as Arrow under a fingerprint of data, tokenizer and length.

`load_dataset_for` is what training and evaluation call. `load_split` and `encode` are its two halves.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from bertfast.config import WHOLE_HEAD, InputConfig, TaskConfig, TruncationConfig
from bertfast.data.cache import CACHE_FORMAT, CacheWriter, cache_folder, header_of, label_type_of
from bertfast.data.encoded import EncodedDataset, open_cached
from bertfast.data.input_fn import dataset_from_function
from bertfast.data.tokenizing import BLOCK_EXAMPLES, check_cut, tokenise, tokenizer_fingerprint
from bertfast.errors import ConfigError, DataError
from bertfast.readers import RawSplit, find_source, fingerprint_of, read_split, sample_fingerprint, source_fingerprint
from bertfast.tasks import Task, get_task

logger = logging.getLogger(__name__)


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
    ~/.cache/bertfast. num_workers: threads, left out those of the process. truncation: see `bertfast.truncation`.

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
    with CacheWriter(path.parent, path, header, label_type_of(raw.labels), raw.parts is not None) as writer:
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
    fingerprint = source_fingerprint(task, source, split)
    if input_config.max_examples is not None:
        fingerprint = sample_fingerprint(fingerprint, input_config.max_examples, seed)
    fingerprint = _encoded_fingerprint(fingerprint, tokenizer, input_config.max_sequence_length, truncation)
    cached = open_cached(_cache_path(task, fingerprint, input_config.cache_dir), fingerprint, task, source.name)
    if cached is not None:
        return cached
    raw = read_split(task, source, split)
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


def _filler(tokenizer) -> tuple[int, int]:
    ids = (tokenizer.cls_token_id, tokenizer.sep_token_id)
    if None in ids:
        raise DataError("the tokenizer has no [CLS] or no [SEP] token, so it is not one of BERT's; name another as model.tokenizer")
    return ids


def _cache_path(task: Task, fingerprint: str, cache_dir: str | os.PathLike | None) -> Path:
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", task.name)
    return cache_folder(cache_dir) / f"{name}-{fingerprint[:32]}.arrow"


def _encoded_fingerprint(fingerprint: str, tokenizer, max_sequence_length: int, truncation: TruncationConfig) -> str:
    how = [] if truncation == WHOLE_HEAD else [truncation.model_dump_json()]
    return fingerprint_of("encoded", CACHE_FORMAT, fingerprint, tokenizer_fingerprint(tokenizer), max_sequence_length, *how)
