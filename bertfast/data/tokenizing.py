"""Texts -> token ids, on every core, exactly as `tokenizer(a, b, truncation=True, max_length=...)` of transformers gives them.

A fast tokenizer is called below transformers, as `encode_batch_fast` of its Rust backend, from one thread a core: it lets go of Python's
lock, so that one thread encodes while another unpacks. MNLI pairs a second on 2 busy cores, best of 8 (all-MiniLM-L6-v2, 128 tokens,
tokenizers 0.23.3): threads 35,500; the backend's own thread pool 30,700; transformers' call 9,300; `datasets.map` over it 6,300.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bertfast.data.truncation import Cut, check_room, cutter, pieces
from bertfast.errors import ConfigError, DataError
from bertfast.machine import threads
from bertfast.packing import ahead

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bertfast.config import TruncationConfig

BLOCK_EXAMPLES = 512  # a thread's piece of work: the lists of ids of 512 MNLI pairs are 1 MB


class TokenBlock(NamedTuple):
    """Examples end to end: input_ids int32 [T], token_type_ids uint8 [T], lengths int32 [B], over all pieces of an example. cut, empty: how
    many of them lost tokens, and how many have a text without any; None where it is not known."""

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    lengths: np.ndarray
    cut: int | None = None
    empty: int | None = None


def check_cut(tokenizer, max_sequence_length: int, is_pair: bool, truncation: TruncationConfig | None = None) -> None:
    """Hold a truncation and a max_sequence_length against the kind of texts and the tokenizer.

    Raises:
        ConfigError: a truncation that pairs, a tokenizer without a Rust backend, or this max_sequence_length cannot have.
        DataError: where max_sequence_length has no room for the special tokens.
    """
    if truncation is not None and truncation.is_hierarchical and is_pair:
        raise ConfigError("bertfast.truncation.strategy = 'hierarchical' cuts single texts in pieces, and this task takes pairs of texts")
    if truncation is not None and truncation.strategy != "head" and not tokenizer.is_fast:
        raise ConfigError(
            f"bertfast.truncation.strategy = {truncation.strategy!r} needs a fast tokenizer; {type(tokenizer).__name__} is none"
        )
    special = tokenizer.num_special_tokens_to_add(pair=is_pair)
    if max_sequence_length < special:
        kind = "a pair" if is_pair else "a text"
        raise DataError(f"max_sequence_length is {max_sequence_length}, but the special tokens of {kind} alone are {special}; raise it")
    if truncation is not None:
        check_room(truncation, max_sequence_length - special)


def tokenise(
    text_a: Sequence[str],
    text_b: Sequence[str] | None,
    tokenizer,
    max_sequence_length: int,
    num_workers: int | None = None,
    truncation: TruncationConfig | None = None,
) -> Iterator[TokenBlock]:
    """Tokenise texts (or pairs of them) in order, truncated longest first to max_sequence_length tokens, [CLS] and [SEP] included.

    tokenizer: any tokenizer of transformers; it is copied, never changed. num_workers: threads, those of the process where left out; tokenizers
    without a Rust backend run in one, since Python's lock would keep more apart. truncation: which tokens are read of a text that is too
    long (left out, its head); with "hierarchical" an example is all its pieces, each with special tokens of its own and all but the last of full length.

    Raises:
        ConfigError, DataError: as `check_cut`.
    """
    check_cut(tokenizer, max_sequence_length, text_b is not None, truncation)
    if tokenizer.is_fast:
        encode = _fast(tokenizer, max_sequence_length, text_b is not None, truncation)
    else:
        encode = _slow(tokenizer, max_sequence_length)
    workers = (num_workers or threads()) if tokenizer.is_fast else 1

    def work(begin: int) -> TokenBlock:
        end = begin + BLOCK_EXAMPLES
        return encode(text_a[begin:end], None if text_b is None else text_b[begin:end])

    with _serial_backend():  # twice as many blocks as threads keep every thread busy; more would hold the whole data set in memory
        yield from ahead(work, range(0, len(text_a), BLOCK_EXAMPLES), threads=workers, most=2 * workers)


def tokenizer_fingerprint(tokenizer) -> str:
    """A hash of everything that decides its ids: vocabulary, normaliser, special tokens, side of truncation; not of padding or truncation,
    which an earlier call may have left behind."""
    if tokenizer.is_fast:
        state = _state_without_cuts(tokenizer.backend_tokenizer)
    else:
        settings = {key: repr(value) for key, value in tokenizer.init_kwargs.items()}
        state = json.dumps([tokenizer.get_vocab(), settings, tokenizer.model_input_names], sort_keys=True)
    kind = [type(tokenizer).__name__, tokenizer.truncation_side, bool(tokenizer.split_special_tokens)]
    return hashlib.sha256(f"{kind}\0{state}".encode()).hexdigest()


def _state_without_cuts(backend: Tokenizer) -> str:
    """The backend as JSON, its truncation and padding left out. They are put back: a copy of a vocabulary of 30,000 takes 35 ms, its JSON 5."""
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        return backend.to_str()
    finally:
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


Encode = Callable[[Sequence[str], Sequence[str] | None], TokenBlock]


def _fast(tokenizer, max_sequence_length: int, is_pair: bool, truncation: TruncationConfig | None) -> Encode:
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.encode_special_tokens = tokenizer.split_special_tokens  # a copy of the backend forgets it
    return backend_encoder(backend, max_sequence_length, is_pair, truncation, cut_left=tokenizer.truncation_side == "left")


def backend_encoder(
    backend: Tokenizer, max_sequence_length: int, is_pair: bool, truncation: TruncationConfig | None = None, cut_left: bool = False
) -> Encode:
    """What a tokenizer of the `tokenizers` library makes of texts, or of pairs: it loses its own truncation and padding here.

    Texts are encoded whole and cut afterwards: the library's truncation keeps every piece that it cuts off, and for a pair every piece of the
    one with every piece of the other; two texts of 6,000 words at 4 tokens were 36 million of them, and more than 16 GB.

    truncation: left out, the head is read; so one who only answers need not import the configs (pydantic is 18 MB and 0.2 s).
    """
    backend.no_padding()
    backend.no_truncation()
    segments = _segments(backend, is_pair)
    room = max_sequence_length - sum(len(segment.special) for segment in segments)
    cut = cutter(truncation, cut_left)

    def encode(text_a: Sequence[str], text_b: Sequence[str] | None) -> TokenBlock:
        encodings = backend.encode_batch_fast([*text_a, *(text_b or ())], add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        if truncation is not None and truncation.is_hierarchical:
            return _in_pieces(segments, ids, room, truncation)
        sequences = [ids] if text_b is None else [ids[: len(text_a)], ids[len(text_a) :]]
        found = [np.fromiter(map(len, sequence), dtype=np.int64, count=len(sequence)) for sequence in sequences]
        kept = _kept(found, room)
        n_cut = int(np.count_nonzero(sum(found) > sum(kept)))
        n_empty = int(np.count_nonzero(np.minimum(found[0], found[-1]) == 0))
        return _assembled(segments, sequences, kept, cut)._replace(cut=n_cut, empty=n_empty)

    return encode


class _Segment(NamedTuple):
    """A stretch of an encoded example: special tokens, or one of its texts."""

    text: int | None
    special: list[int]
    token_type_id: int


def _segments(backend, is_pair: bool) -> list[_Segment]:
    """How the tokenizer puts texts and special tokens together, read from an example: [CLS], text 0, [SEP], text 1, [SEP]."""
    example = backend.encode("a", "a" if is_pair else None)
    tokens = zip(example.sequence_ids, example.type_ids, example.ids, strict=True)
    grouped = itertools.groupby(tokens, key=lambda token: token[:2])
    return [_Segment(text, [] if text is not None else [token[2] for token in group], kind) for (text, kind), group in grouped]


def _kept(counts: list[np.ndarray], room: int) -> list[np.ndarray]:
    """How many tokens [B] of each text are kept: the longest of a pair is cut first, and of an odd room the longer gets the one more."""
    if len(counts) == 1:
        return [np.minimum(counts[0], room)]
    shorter, longer = np.minimum(*counts), np.maximum(*counts)
    kept_shorter = np.minimum(shorter, room // 2)
    kept_longer = np.minimum(longer, room - kept_shorter)
    first_is_shorter = counts[0] <= counts[1]
    return [np.where(first_is_shorter, kept_shorter, kept_longer), np.where(first_is_shorter, kept_longer, kept_shorter)]


def _assembled(segments: list[_Segment], sequences: Sequence[Sequence[Sequence[int]]], kept: list[np.ndarray], cut: Cut) -> TokenBlock:
    rows = len(sequences[0])
    parts: list[list[Sequence[int]]] = []
    for segment in segments:
        if segment.text is None:
            parts.append([segment.special] * rows)
        else:
            parts.append([cut(ids, keep) for ids, keep in zip(sequences[segment.text], kept[segment.text].tolist(), strict=True)])
    sizes = np.stack([np.full(rows, len(segment.special)) if segment.text is None else kept[segment.text] for segment in segments], axis=1)
    flat = itertools.chain.from_iterable(itertools.chain.from_iterable(zip(*parts, strict=True)))
    types = np.repeat(np.tile(np.array([segment.token_type_id for segment in segments], dtype=np.uint8), rows), sizes.reshape(-1))
    return TokenBlock(np.fromiter(flat, dtype=np.int32, count=int(sizes.sum())), types, sizes.sum(axis=1).astype(np.int32))


def _in_pieces(segments: list[_Segment], ids: list[list[int]], room: int, truncation: TruncationConfig) -> TokenBlock:
    """Documents as all their pieces, one after another, each put together like an example of its own."""
    of_documents = [pieces(document, room, truncation) for document in ids]
    every = [piece for document in of_documents for piece in document]
    sizes = [np.fromiter(map(len, every), dtype=np.int64, count=len(every))]
    block = _assembled(segments, [every], sizes, cutter())
    counts = np.fromiter(map(len, of_documents), dtype=np.int64, count=len(ids))
    lengths = np.add.reduceat(block.lengths, np.cumsum(counts) - counts)
    read = ((n_pieces - 1) * (room - truncation.overlap) + room for n_pieces in counts.tolist())
    n_cut = sum(len(document) > most for document, most in zip(ids, read, strict=True))
    return block._replace(lengths=lengths.astype(np.int32), cut=n_cut, empty=sum(not document for document in ids))


def _slow(tokenizer, max_sequence_length: int) -> Encode:
    tokenizer = copy.deepcopy(tokenizer)
    has_segments = "token_type_ids" in tokenizer.model_input_names  # without them transformers' BERT takes every token for segment 0

    def encode(text_a: Sequence[str], text_b: Sequence[str] | None) -> TokenBlock:
        features = tokenizer(
            list(text_a),
            None if text_b is None else list(text_b),
            truncation=True,
            max_length=max_sequence_length,
            return_token_type_ids=True,
            return_attention_mask=False,
        )
        lengths = np.fromiter(map(len, features["input_ids"]), dtype=np.int32, count=len(text_a))
        ids, types = (itertools.chain.from_iterable(features[name]) for name in ("input_ids", "token_type_ids"))
        total = int(lengths.sum())
        full = np.flatnonzero(lengths == max_sequence_length).tolist()
        whole = (
            tokenizer([text_a[row] for row in full], text_b and [text_b[row] for row in full], verbose=False) if full else {"input_ids": []}
        )
        n_cut = sum(len(row) > max_sequence_length for row in whole["input_ids"])
        n_empty = sum(not all(text.strip() for text in texts) for texts in zip(text_a, *([] if text_b is None else [text_b]), strict=True))
        kinds = np.fromiter(types, np.uint8, total) if has_segments else np.zeros(total, np.uint8)
        return TokenBlock(np.fromiter(ids, np.int32, total), kinds, lengths, n_cut, n_empty)

    return encode


@contextmanager
def _serial_backend() -> Iterator[None]:
    """Keep the backend from starting threads of its own beside ours; it reads this variable at each call."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
