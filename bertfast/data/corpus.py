"""Plain text as documents of sentences, tokenised into files that are memory-mapped: what pre-training examples are cut from.

Memory does not grow with the text: ids and offsets lie in files without a name, which vanish with their last mapping, and no more than a
block of text is tokenised at once. A line of a file, and a text of a task, is read whole.
"""

from __future__ import annotations

import copy
import hashlib
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bertfast.errors import ConfigError, DataError
from bertfast.readers import line_blocks

# S sentences, D documents

DOCUMENT_LINES = 1000  # of a text file; a longer document is cut
_BLOCK_CHARACTERS = 1 << 19  # tokenised at once; the tokenizer's results take some fifty times their text
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def documents_of_files(files: Iterable[str], in_sentences: bool = False) -> Iterator[list[str]]:
    """Documents as lists of lines, or of the sentences of their lines; blank lines, and ends of files, stand between documents. One of more
    than DOCUMENT_LINES lines is cut into several.

    Raises:
        DataError: a file that cannot be read, is empty or is not UTF-8.
    """
    for lines in _paragraphs(files):
        yield [sentence for line in lines for sentence in sentences_of(line)] if in_sentences else lines


def _paragraphs(files: Iterable[str]) -> Iterator[list[str]]:
    for file in files:
        lines: list[str] = []
        for _, block in line_blocks(Path(file)):
            for line in map(str.strip, block):
                if line:
                    lines.append(line)
                if lines and (not line or len(lines) == DOCUMENT_LINES):
                    yield lines
                    lines = []
        if lines:
            yield lines


def documents_of_texts(texts: Iterable[str]) -> Iterator[list[str]]:
    """Each text as a document of its sentences."""
    for text in texts:
        if sentences := sentences_of(text):
            yield sentences


def sentences_of(text: str) -> list[str]:
    """A text cut where space follows a full stop, a question mark or an exclamation mark."""
    return [sentence for sentence in _SENTENCE_END.split(text.strip()) if sentence]


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
    """Tokenised documents. `len(corpus)` is D. ids: of all tokens, int32 [n_tokens], memory-mapped.

    Raises:
        ConfigError: the tokenizer is not a fast one.
        DataError: there is no token at all, or the files cannot be written into `folder`.
    """

    def __init__(self, documents: Iterable[list[str]], tokenizer, folder: Path, source: str):
        if not tokenizer.is_fast:
            raise ConfigError(f"pre-training needs a fast tokenizer; {type(tokenizer).__name__} is none")
        with ExitStack() as stack:
            with _writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                files = [stack.enter_context(_unnamed_file(folder)) for _ in range(3)]
                for file in files[1:]:
                    file.write(np.zeros(1, dtype=np.int64).tobytes())
            n_tokens = n_sentences = n_complete = 0  # n_complete: sentences of the documents that have ended
            for ids_T, lengths_S, is_last_S in _encoded(documents, tokenizer):
                bounds_S = n_tokens + np.cumsum(lengths_S[lengths_S > 0])
                starts_D = n_sentences + np.cumsum(lengths_S > 0)[is_last_S]
                starts_D = starts_D[np.diff(starts_D, prepend=n_complete) > 0]  # a document without a token is none
                n_tokens, n_sentences = n_tokens + len(ids_T), n_sentences + len(bounds_S)
                n_complete = int(starts_D[-1]) if len(starts_D) else n_complete
                with _writing(folder):
                    for file, array in zip(files, (ids_T, bounds_S, starts_D), strict=True):
                        file.write(array)
                        file.flush()
            if not n_tokens:
                raise DataError(f"{source}: there is no text in it")
            self.ids, self._bounds, self._starts = (
                np.asarray(np.memmap(file, dtype=dtype, mode="r"))
                for file, dtype in zip(files, (np.int32, np.int64, np.int64), strict=True)
            )

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def n_tokens(self) -> int:
        """How many tokens there are in all."""
        return len(self.ids)

    def bounds(self, document: int) -> np.ndarray:
        """Where the sentences of a document begin among all tokens, and where its last one ends: int64 [S + 1], a view."""
        return self._bounds[self._starts[document] : self._starts[document + 1] + 1]

    def tokens(self, document: int) -> np.ndarray:
        """The ids of a document, int32, a view."""
        bounds = self.bounds(document)
        return self.ids[bounds[0] : bounds[-1]]

    def place(self, token: int) -> tuple[int, int]:
        """Where the sentence of a token begins, and where its document ends, both among all tokens."""
        sentence = int(np.searchsorted(self._bounds, token, side="right")) - 1
        document = int(np.searchsorted(self._starts, sentence, side="right")) - 1
        return int(self._bounds[sentence]), int(self._bounds[self._starts[document + 1]])


@contextmanager
def _unnamed_file(folder: Path) -> Iterator[BinaryIO]:
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed below, whatever becomes of what it still holds)
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "make room, or set cache_dir or $BERTFAST_CACHE to a folder that can be written"
        raise DataError(f"cache folder {folder}: cannot be written ({error}); {hint}") from error


def _encoded(documents: Iterable[list[str]], tokenizer) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks of sentences: ids int32 [T], lengths int64 [S], and whether a sentence is its document's last, bool [S]."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    for block in _blocks(documents):
        encodings = backend.encode_batch_fast([sentence for sentence, _ in block], add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        lengths_S = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        ids_T = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=int(lengths_S.sum()))
        yield ids_T, lengths_S, np.array([is_last for _, is_last in block])


def _blocks(documents: Iterable[list[str]]) -> Iterator[list[tuple[str, bool]]]:
    """Sentences, each with whether it is its document's last, of about _BLOCK_CHARACTERS together."""
    block, size = [], 0
    for document in documents:
        for number, sentence in enumerate(document, 1):
            block.append((sentence, number == len(document)))
            size += len(sentence)
            if size >= _BLOCK_CHARACTERS:
                yield block
                block, size = [], 0
    if block:
        yield block
