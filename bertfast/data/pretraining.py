"""Pre-training examples cut from a corpus: pairs for masked language modelling with next-sentence prediction, or full stretches without.

They are cut once and cached as Arrow, like a task's; masks are put on as batches are made (see `bertfast.packing.masking`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from bertfast.config import InputConfig, PretrainConfig, TextInput
from bertfast.data.cache import CACHE_FORMAT, CacheWriter, cache_folder, header_of
from bertfast.data.corpus import Corpus, digest_of_files, documents_of_files, documents_of_texts
from bertfast.data.encoded import EncodedDataset, open_cached
from bertfast.data.tokenizing import TokenBlock, tokenizer_fingerprint
from bertfast.errors import ConfigError, DataError
from bertfast.packing import MaskedBatch, Masking
from bertfast.readers import random_subset, split_texts
from bertfast.tasks import TASKS, Task

PRETRAINING = Task("pretraining", ("text",), "label", ("next", "random"), metrics=("mlm_loss",), main_metric="mlm_loss")
MAX_RANDOM_SHARE = 0.75  # of second parts; with more, a model that always says "random" is hard to beat
_CUT_FORMAT = 2  # raise it when other examples are cut of the same text
_BLOCK_EXAMPLES = 512


class PretrainingSet:
    """Examples whose tokens are masked anew each epoch, or, with dupe_factor, in the same way always. Otherwise like an EncodedDataset; its
    labels say whether the second part follows the first (0) or is a random one (1). chosen: the rows of `encoded` that are examples, int64
    [n], or None for all."""

    def __init__(self, encoded: EncodedDataset, masking: Masking, seed: int, is_static: bool, chosen: np.ndarray | None = None):
        self._encoded, self._masking, self._seed, self._is_static, self._chosen = encoded, masking, seed, is_static, chosen
        self.lengths, self.labels = (values if chosen is None else values[chosen] for values in (encoded.lengths, encoded.training_labels))
        self.task, self.source, self.max_sequence_length = encoded.task, encoded.source, encoded.max_sequence_length
        self.check_vocabulary, self.checksums = encoded.check_vocabulary, encoded.checksums

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def next_sentence_fault(self) -> str:
        """What is wrong with the examples for next-sentence prediction, and what to do; nothing where there is nothing."""
        share = float(self.labels.mean())
        if share <= MAX_RANDOM_SHARE:
            return ""
        return (
            f"{self.source}: {share:.0%} of the pairs have a random second part, for most of its documents are too short for two parts: there is "
            "little to be learnt from next sentences; set bertfast.pretrain.next_sentence to false"
        )

    def where(self, index: int) -> str:
        """See EncodedDataset."""
        return self._encoded.where(index if self._chosen is None else int(self._chosen[index]))

    def batch(self, indices: np.ndarray) -> MaskedBatch:
        """Pack and mask these examples, as in epoch 0; see EncodedDataset.batch."""
        return self.training_batch(indices, 0)

    def training_lengths(self, epoch: int) -> np.ndarray:
        """See EncodedDataset."""
        return self.lengths

    def training_batch(self, indices: np.ndarray, epoch: int) -> MaskedBatch:
        """Pack and mask these examples for an epoch."""
        indices = np.asarray(indices, dtype=np.int64)
        batch = self._encoded.batch(indices if self._chosen is None else np.where(indices < 0, -1, self._chosen[indices]))
        batch = replace(batch, example_ids=torch.from_numpy(indices.astype(np.int32)))
        return MaskedBatch.of(batch, self._masking, (self._seed, 0 if self._is_static else epoch))


def load_pretraining_set(
    task: Task, source: InputConfig, split: str, pretrain: PretrainConfig, tokenizer, vocab_size: int, seed: int
) -> PretrainingSet:
    """The examples of a split: "train" from text_files, or else from the training text of the task, and from that of `inputs`; any other from
    eval_text_files, or the task's split. split is the task's own name of it. Of source.max_examples, so many of the examples that are cut, a
    random subset by seed. Text is read where the cache does not hold its examples yet.

    Raises:
        ConfigError, DataError: the text cannot be read, or is too little for pairs.
    """
    special = 3 if pretrain.next_sentence else 2
    least = special + (2 if pretrain.next_sentence else 1)  # a token of each part
    if source.max_sequence_length < least:
        raise ConfigError(
            f"max_sequence_length = {source.max_sequence_length}, but {special} tokens of a pre-training example are special ones; "
            f"set it to {least} or more"
        )
    is_train = split in task.train_splits
    text = _text_of(task, source, split, pretrain, is_train)
    copies = pretrain.dupe_factor if is_train and pretrain.dupe_factor else 1
    cut = [pretrain.next_sentence, pretrain.short_seq_prob, copies, source.max_sequence_length, seed]
    parts = ["pretraining", _CUT_FORMAT, CACHE_FORMAT, text.digest, tokenizer_fingerprint(tokenizer), *cut]
    fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    folder = cache_folder(source.cache_dir)
    path = folder / f"pretraining-{re.sub(r'[^A-Za-z0-9_.-]', '_', task.name)}-{fingerprint[:32]}.arrow"
    encoded = open_cached(path, fingerprint, PRETRAINING, text.name)
    if encoded is None:
        corpus = Corpus(text.documents, tokenizer, folder, text.name)
        _write(path, fingerprint, corpus, tokenizer, source.max_sequence_length, pretrain, copies, seed, text.name)
        encoded = EncodedDataset(path, PRETRAINING, text.name)
    masking = Masking.of(tokenizer, vocab_size, pretrain.masked_lm_prob, pretrain.max_predictions_per_seq, pretrain.whole_word_mask)
    is_static = pretrain.dupe_factor is not None or not is_train
    return PretrainingSet(encoded, masking, seed, is_static, random_subset(len(encoded), source.max_examples, seed))


class _Text(NamedTuple):
    """Text that is not read yet: a hash of it, its documents and its name."""

    digest: str
    documents: Iterator[list[str]]
    name: str


def _text_of(task: Task, source: InputConfig, split: str, pretrain: PretrainConfig, is_train: bool) -> _Text:
    files, texts = pretrain.text_files if is_train else pretrain.eval_text_files, []
    if not files:
        if source.input_fn is not None:
            raise ConfigError(
                f"bertfast.{'train' if is_train else 'eval'}_input.input_fn = {source.input_fn!r}: pre-training reads text, and a function yields "
                "tokens; take it out, and name the text as data_dir or data_file, or as "
                f"bertfast.pretrain.{'' if is_train else 'eval_'}text_files"
            )
        texts.append(split_texts(task, source, split))
    for more in pretrain.inputs if is_train else ():
        other, part = _other_input(more)
        texts += [split_texts(other, part, name) for name in other.train_splits]
    digest = json.dumps([digest_of_files(files), *(text.fingerprint for text in texts)])
    documents = chain(
        documents_of_files(files, pretrain.next_sentence), documents_of_texts(chain.from_iterable(text.read() for text in texts))
    )
    return _Text(digest, documents, ", ".join([*files, *(text.source for text in texts)]))


def _other_input(more: TextInput) -> tuple[Task, InputConfig]:
    """One entry of pretrain.inputs."""
    task = TASKS.get(more.task)
    if task is None or not task.train_splits:
        known = ", ".join(name for name, known in TASKS.items() if known.train_splits)
        raise ConfigError(
            f"bertfast.pretrain.inputs: task {more.task!r} is not one of the known ones that have training text, and only those can stand here: "
            f"{known}. Text of your own goes into bertfast.pretrain.text_files, or is that of bertfast.task"
        )
    return task, InputConfig(data_dir=more.data_dir, data_file=more.data_file)


def _write(
    path: Path, fingerprint: str, corpus: Corpus, tokenizer, length: int, pretrain: PretrainConfig, copies: int, seed: int, name: str
) -> None:
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    header = header_of(PRETRAINING, fingerprint, length, "document", (cls, sep))
    with CacheWriter(path.parent, path, header, pa.int32(), has_parts=False) as writer:
        block: list[tuple[np.ndarray, np.ndarray | None, int, int]] = []
        for copy in range(copies):
            rng = np.random.default_rng([seed, copy])
            examples = pairs(corpus, length - 3, pretrain.short_seq_prob, rng) if pretrain.next_sentence else stretches(corpus, length - 2)
            for example in examples:
                block.append(example)
                if len(block) == _BLOCK_EXAMPLES:
                    _write_block(writer, block, cls, sep)
                    block = []
        if block:
            _write_block(writer, block, cls, sep)


def _write_block(writer: CacheWriter, block: list, cls: int, sep: int) -> None:
    ids, types, lengths = [], [], []
    for first, second, _, _ in block:
        parts = [[cls], first, [sep]] + ([] if second is None else [second, [sep]])
        ids += parts
        head, tail = len(first) + 2, 0 if second is None else len(second) + 1
        types += [np.zeros(head, dtype=np.uint8), np.ones(tail, dtype=np.uint8)]
        lengths.append(head + tail)
    tokens = TokenBlock(np.concatenate(ids).astype(np.int32), np.concatenate(types), np.array(lengths, dtype=np.int32))
    labels, documents = (np.array([example[place] for example in block], dtype=np.int32) for place in (2, 3))
    writer.write(tokens, labels, documents)


def stretches(corpus: Corpus, room: int) -> Iterator[tuple[np.ndarray, None, int, int]]:
    """Each document in stretches of `room` tokens, the last of what remains: (ids, None, 0, document)."""
    for document in range(len(corpus)):
        ids = corpus.tokens(document)
        for start in range(0, len(ids), room):
            yield ids[start : start + room], None, 0, document


def pairs(corpus: Corpus, room: int, short_share: float, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray, int, int]]:
    """Pairs of neighbouring stretches, half of them with a second part from another document (Devlin et al. 2019, appendix A.2): (first,
    second, 1 where the second is a random one, document), `room` tokens together at most.

    A pair takes as many tokens as it has room for, and is parted where one of its sentences ends (in the middle where none does); what a
    random second part leaves over begins the next pair. So every token is read once, where Google's create_pretraining_data.py trims what is
    too much. No sentence follows the last one of a document, so what follows it is random; for each that had to be, a later one is not.

    Raises:
        DataError: one document alone, in which no random sentence can be found.
    """
    if len(corpus) < 2:
        raise DataError(
            "next-sentence prediction needs two documents or more; put blank lines between them, or set pretrain.next_sentence = false"
        )
    owed = 0
    for document in range(len(corpus)):
        bounds = corpus.bounds(document)
        begin, last = int(bounds[0]), int(bounds[-1])
        while begin < last:
            target = int(rng.integers(2, room + 1)) if rng.random() < short_share else room
            end = min(begin + target, last)
            low, high = np.searchsorted(bounds, begin, side="right"), np.searchsorted(bounds, end)
            middle = int(bounds[rng.integers(low, high)]) if low < high else min(begin + target // 2, last)
            is_random, is_last_sentence = rng.random() < 0.5, low >= high and end == last
            if is_last_sentence and not is_random:
                is_random, owed = True, owed + 1
            elif is_random and owed and not is_last_sentence:
                is_random, owed = False, owed - 1
            first, second = corpus.ids[begin:middle], corpus.ids[middle:end]
            if is_random:
                second = _random_part(corpus, bounds, target - len(first), bool(low < high or is_last_sentence), rng)
            yield first, second, int(is_random), document
            begin = middle if is_random else end


def _random_part(corpus: Corpus, bounds: np.ndarray, room: int, at_sentence: bool, rng: np.random.Generator) -> np.ndarray:
    """A stretch of another document, from a random token on, or, as the first part's neighbour would, from the beginning of its sentence."""
    token = int(rng.integers(corpus.n_tokens - (bounds[-1] - bounds[0])))
    token += int(bounds[-1] - bounds[0]) * (token >= bounds[0])
    begin, end = corpus.place(token)
    begin = begin if at_sentence else token
    return corpus.ids[begin : min(begin + room, end)]
