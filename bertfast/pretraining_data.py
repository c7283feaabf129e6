"""Pre-training examples cut from a corpus: pairs for masked language modelling with next-sentence prediction, or full stretches without.

They are cut once and cached as Arrow, like a task's; masks are put on as batches are made (see `bertfast.masking`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from bertfast.blocks import PretrainConfig
from bertfast.config import InputConfig
from bertfast.corpus import Corpus, digest_of_files, documents_of_files, documents_of_texts
from bertfast.data import load_split
from bertfast.encoded import CACHE_FORMAT, CacheWriter, EncodedDataset, cache_folder, header_of, open_cached
from bertfast.errors import ConfigError, DataError
from bertfast.masking import Masking
from bertfast.pretraining_model import MaskedBatch
from bertfast.tasks import Task, get_task
from bertfast.tokenizing import TokenBlock, tokenizer_fingerprint

PRETRAINING = Task("pretraining", ("text",), "label", ("next", "random"), metrics=("mlm_loss",), main_metric="mlm_loss")
_BLOCK_EXAMPLES = 512
_EXAMPLE_INPUT = '{"task": "ag_news", "data_dir": "..."}'


class PretrainingSet:
    """Examples whose tokens are masked anew each epoch, or, with dupe_factor, in the same way always. Otherwise like an EncodedDataset; its
    labels say whether the second part follows the first (0) or is a random one (1)."""

    def __init__(self, encoded: EncodedDataset, masking: Masking, seed: int, is_static: bool):
        self._encoded, self._masking, self._seed, self._is_static = encoded, masking, seed, is_static
        self.lengths, self.labels, self.task, self.source = encoded.lengths, encoded.labels, encoded.task, encoded.source
        self.max_sequence_length, self.where, self.check_vocabulary = encoded.max_sequence_length, encoded.where, encoded.check_vocabulary

    def __len__(self) -> int:
        return len(self._encoded)

    def batch(self, indices: np.ndarray) -> MaskedBatch:
        """Pack and mask these examples, as in epoch 0; see EncodedDataset.batch."""
        return self.training_batch(indices, 0)

    def training_lengths(self, epoch: int) -> np.ndarray:
        """See EncodedDataset."""
        return self.lengths

    def training_batch(self, indices: np.ndarray, epoch: int) -> MaskedBatch:
        """Pack and mask these examples for an epoch."""
        return MaskedBatch.of(self._encoded.batch(indices), self._masking, (self._seed, 0 if self._is_static else epoch))


def load_pretraining_set(
    task: Task, source: InputConfig, split: str, pretrain: PretrainConfig, tokenizer, vocab_size: int, seed: int
) -> PretrainingSet:
    """The examples of a split: "train" from text_files, or from the training text of the task and of `inputs`; any other from eval_text_files,
    or the task's split. split is the task's own name of it.

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
    files = pretrain.text_files if is_train else pretrain.eval_text_files
    if pretrain.text_files or files:
        digest, documents, name = digest_of_files(files), documents_of_files(files), ", ".join(files)
    else:
        digest, documents, name = _texts_of_tasks(task, source, split, pretrain if is_train else PretrainConfig())
    copies = pretrain.dupe_factor if is_train and pretrain.dupe_factor else 1
    cut = [pretrain.next_sentence, pretrain.short_seq_prob, copies, source.max_sequence_length, seed]
    parts = ["pretraining", CACHE_FORMAT, digest, tokenizer_fingerprint(tokenizer), *cut]
    fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    folder = cache_folder(source.cache_dir)
    path = folder / f"pretraining-{re.sub(r'[^A-Za-z0-9_.-]', '_', task.name)}-{fingerprint[:32]}.arrow"
    encoded = open_cached(path, fingerprint, PRETRAINING, name)
    if encoded is None:
        corpus = Corpus(documents, tokenizer, folder, name)
        _write(path, fingerprint, corpus, tokenizer, source.max_sequence_length, pretrain, copies, seed, name)
        encoded = EncodedDataset(path, PRETRAINING, name)
    masking = Masking.of(tokenizer, vocab_size, pretrain.masked_lm_prob, pretrain.max_predictions_per_seq, pretrain.whole_word_mask)
    return PretrainingSet(encoded, masking, seed, is_static=pretrain.dupe_factor is not None or not is_train)


def _texts_of_tasks(task: Task, source: InputConfig, split: str, pretrain: PretrainConfig) -> tuple[str, Iterator[list[str]], str]:
    """A hash, the documents and the name of the task's text, and of that of pretrain.inputs."""
    raws = [load_split(task, source, split)]
    for more in pretrain.inputs:
        other, part = _other_input(more)
        raws += [load_split(other, part, name) for name in other.train_splits]
    columns = [column for raw in raws for column in (raw.text_a, raw.text_b) if column is not None]
    digest = json.dumps([raw.fingerprint for raw in raws])
    return digest, documents_of_texts(text for column in columns for text in column), ", ".join(raw.source for raw in raws)


def _other_input(more: dict[str, str]) -> tuple[Task, InputConfig]:
    """One entry of pretrain.inputs."""
    if "task" not in more:
        raise ConfigError(f"bertfast.pretrain.inputs: {json.dumps(more)} names no task; write it as {_EXAMPLE_INPUT}")
    try:
        return get_task(more["task"]), InputConfig(**{key: value for key, value in more.items() if key != "task"})
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        raise ConfigError(f"bertfast.pretrain.inputs: {json.dumps(more)}: {key}: {fault['msg']}") from None


def _write(
    path: Path, fingerprint: str, corpus: Corpus, tokenizer, length: int, pretrain: PretrainConfig, copies: int, seed: int, name: str
) -> None:
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    header = header_of(PRETRAINING, fingerprint, length, "document", (cls, sep))
    with CacheWriter(path.parent, path, header, np.int32, has_parts=False) as writer:
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
    """Pairs of neighbouring stretches of sentences, half of them with a second part from another document (Devlin et al. 2019, appendix A.2):
    (first, second, 1 where the second is a random one, document), `room` tokens together at most.

    Sentences are collected until there is enough for an example; what a random second part leaves over is used for the next one.

    Raises:
        DataError: one document alone, in which no random sentence can be found.
    """
    if len(corpus) < 2:
        raise DataError(
            "next-sentence prediction needs two documents or more; put blank lines between them, or set pretrain.next_sentence = false"
        )
    for document in range(len(corpus)):
        lengths, begin = corpus.lengths(document), 0
        while begin < len(lengths):
            target = int(rng.integers(2, room + 1)) if rng.random() < short_share else room
            enough = int(np.searchsorted(np.cumsum(lengths[begin:]), target)) + 1
            end = min(begin + enough, len(lengths))
            middle = begin + (int(rng.integers(1, end - begin)) if end - begin > 1 else 1)
            is_random = end - begin == 1 or rng.random() < 0.5
            first = corpus.tokens(document, begin, middle)
            second = _random_part(corpus, document, max(1, target - len(first)), rng) if is_random else corpus.tokens(document, middle, end)
            first, second = _trimmed(first, second, room, rng)
            yield first, second, int(is_random), document
            begin = middle if is_random else end


def _random_part(corpus: Corpus, document: int, target: int, rng: np.random.Generator) -> np.ndarray:
    """Sentences from a random place of another document, until there are enough."""
    other = int(rng.integers(len(corpus) - 1))
    other += other >= document
    lengths = corpus.lengths(other)
    start = int(rng.integers(len(lengths)))
    enough = int(np.searchsorted(np.cumsum(lengths[start:]), target)) + 1
    return corpus.tokens(other, start, min(start + enough, len(lengths)))


def _trimmed(first: np.ndarray, second: np.ndarray, room: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Both parts within `room`: the longer loses tokens first, each from its front or its back by chance."""
    shorter = min(len(first), len(second), room // 2)
    longer = min(max(len(first), len(second)), room - shorter)
    keeps = (longer, shorter) if len(first) > len(second) else (shorter, longer)
    parts = []
    for part, keep in zip((first, second), keeps, strict=True):
        front = int(rng.binomial(len(part) - keep, 0.5))
        parts.append(part[front : front + keep])
    return parts[0], parts[1]
