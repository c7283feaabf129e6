"""Plain text as documents of sentences, tokenised into files that are memory-mapped: what pre-training examples are cut from.

Memory does not grow with the text: ids and offsets lie in files without a name, which vanish with their last mapping.
"""

from __future__ import annotations

import copy
import hashlib
import re
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from bertfast.errors import ConfigError, DataError
from bertfast.files import line_blocks

# S sentences, D documents

_BLOCK_DOCUMENTS = 256
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def documents_of_files(files: Iterable[str]) -> Iterator[list[str]]:
    """Documents as lists of lines; blank lines, and ends of files, stand between them.

    Raises:
        DataError: a file that cannot be read, is empty or is not UTF-8.
    """
    for file in files:
        lines: list[str] = []
        for _, block in line_blocks(Path(file)):
            for line in block:
                if line.strip():
                    lines.append(line.strip())
                elif lines:
                    yield lines
                    lines = []
        if lines:
            yield lines


def documents_of_texts(texts: Iterable[str]) -> Iterator[list[str]]:
    """Each text as a document, cut after full stops, question and exclamation marks."""
    for text in texts:
        sentences = [sentence for sentence in _SENTENCE_END.split(text.strip()) if sentence]
        if sentences:
            yield sentences


def digest_of_files(files: Iterable[str]) -> str:
    """A hash of the files' contents.

    Raises:
        DataError: a file that cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        try:
            with open(file, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


class Corpus:
    """Tokenised documents. `len(corpus)` is D.

    Raises:
        ConfigError: the tokenizer is not a fast one.
        DataError: there is no token at all.
    """

    def __init__(self, documents: Iterable[list[str]], tokenizer, folder: Path, source: str):
        if not tokenizer.is_fast:
            raise ConfigError(f"pre-training needs a fast tokenizer; {type(tokenizer).__name__} is none")
        folder.mkdir(parents=True, exist_ok=True)
        files = [tempfile.TemporaryFile(dir=folder) for _ in range(3)]  # noqa: SIM115 (their mappings outlive this function)
        ids, sentences, starts = files
        n_tokens = n_sentences = 0
        for file in (sentences, starts):
            np.zeros(1, dtype=np.int64).tofile(file)
        for encoded in _encoded(documents, tokenizer):
            kept = [sentence for sentence in encoded if sentence]
            if not kept:
                continue
            np.concatenate([np.asarray(sentence, dtype=np.int32) for sentence in kept]).tofile(ids)
            ends = n_tokens + np.cumsum([len(sentence) for sentence in kept])
            ends.astype(np.int64).tofile(sentences)
            n_tokens, n_sentences = int(ends[-1]), n_sentences + len(kept)
            np.array([n_sentences], dtype=np.int64).tofile(starts)
        if not n_tokens:
            raise DataError(f"{source}: there is no text in it")
        for file in files:
            file.flush()
        self._ids = np.memmap(ids, dtype=np.int32, mode="r")
        self._sentences, self._starts = (np.memmap(file, dtype=np.int64, mode="r") for file in (sentences, starts))
        self.n_tokens = n_tokens

    def __len__(self) -> int:
        return len(self._starts) - 1

    def n_sentences(self, document: int) -> int:
        """How many sentences a document has."""
        return int(self._starts[document + 1] - self._starts[document])

    def lengths(self, document: int) -> np.ndarray:
        """The tokens of each sentence of a document, int64 [S]."""
        return np.diff(self._sentences[self._starts[document] : self._starts[document + 1] + 1])

    def tokens(self, document: int, first: int = 0, last: int | None = None) -> np.ndarray:
        """The ids of the sentences first to last (not included) of a document, int32."""
        begin = self._starts[document]
        end = self._starts[document + 1] if last is None else begin + last
        return self._ids[self._sentences[begin + first] : self._sentences[end]]


def _encoded(documents: Iterable[list[str]], tokenizer) -> Iterator[list[list[int]]]:
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    documents = iter(documents)
    while block := list(islice(documents, _BLOCK_DOCUMENTS)):
        encodings = iter(backend.encode_batch_fast([sentence for document in block for sentence in document], add_special_tokens=False))
        for document in block:
            yield [next(encodings).ids for _ in document]
