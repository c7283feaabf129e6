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
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from bertfast.errors import DataError

BLOCK_EXAMPLES = 512  # a thread's piece of work: the lists of ids of 512 MNLI pairs are 1 MB


class TokenBlock(NamedTuple):
    """Examples end to end: input_ids int32 [T], token_type_ids uint8 [T], lengths int32 [B]."""

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    lengths: np.ndarray


def tokenise(
    text_a: Sequence[str], text_b: Sequence[str] | None, tokenizer, max_sequence_length: int, num_workers: int | None = None
) -> Iterator[TokenBlock]:
    """Tokenise texts (or pairs of them) in order, truncated longest first to max_sequence_length tokens, [CLS] and [SEP] included.

    tokenizer: any tokenizer of transformers; it is copied, never changed. num_workers: threads, one a core where left out; tokenizers
    without a Rust backend run in one, since Python's lock would keep more apart.

    Raises:
        DataError: where max_sequence_length has no room for the special tokens.
    """
    special = tokenizer.num_special_tokens_to_add(pair=text_b is not None)
    if max_sequence_length < special:
        kind = "a pair" if text_b is not None else "a text"
        raise DataError(f"max_sequence_length is {max_sequence_length}, but the special tokens of {kind} alone are {special}; raise it")
    encode = (_fast if tokenizer.is_fast else _slow)(tokenizer, max_sequence_length)
    workers = (num_workers or len(os.sched_getaffinity(0))) if tokenizer.is_fast else 1

    def work(begin: int) -> TokenBlock:
        end = begin + BLOCK_EXAMPLES
        return encode(text_a[begin:end], None if text_b is None else text_b[begin:end])

    with _serial_backend(), ThreadPoolExecutor(workers) as pool:
        waiting = deque()
        try:
            for begin in range(0, len(text_a), BLOCK_EXAMPLES):
                waiting.append(pool.submit(work, begin))
                if len(waiting) > 2 * workers:  # enough to keep every thread busy; more would hold the whole data set in memory
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def tokenizer_fingerprint(tokenizer) -> str:
    """A hash of everything that decides its ids: vocabulary, normaliser, special tokens, side of truncation; not of padding or truncation,
    which an earlier call may have left behind."""
    if tokenizer.is_fast:
        backend = copy.deepcopy(tokenizer.backend_tokenizer)
        backend.no_truncation()
        backend.no_padding()
        state = backend.to_str()
    else:
        settings = {key: repr(value) for key, value in tokenizer.init_kwargs.items()}
        state = json.dumps([tokenizer.get_vocab(), settings], sort_keys=True)
    kind = [type(tokenizer).__name__, tokenizer.truncation_side, bool(tokenizer.split_special_tokens)]
    return hashlib.sha256(f"{kind}\0{state}".encode()).hexdigest()


Encode = Callable[[Sequence[str], Sequence[str] | None], TokenBlock]


def _fast(tokenizer, max_sequence_length: int) -> Encode:
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.enable_truncation(max_sequence_length, stride=0, strategy="longest_first", direction=tokenizer.truncation_side)
    backend.encode_special_tokens = tokenizer.split_special_tokens  # a copy of the backend forgets it

    def encode(text_a: Sequence[str], text_b: Sequence[str] | None) -> TokenBlock:
        encodings = backend.encode_batch_fast(list(text_a) if text_b is None else list(zip(text_a, text_b, strict=True)))
        return _flat([encoding.ids for encoding in encodings], [encoding.type_ids for encoding in encodings])

    return encode


def _slow(tokenizer, max_sequence_length: int) -> Encode:
    tokenizer = copy.deepcopy(tokenizer)

    def encode(text_a: Sequence[str], text_b: Sequence[str] | None) -> TokenBlock:
        features = tokenizer(
            list(text_a),
            None if text_b is None else list(text_b),
            truncation=True,
            max_length=max_sequence_length,
            return_token_type_ids=True,
            return_attention_mask=False,
        )
        return _flat(features["input_ids"], features["token_type_ids"])

    return encode


def _flat(ids: list[list[int]], type_ids: list[list[int]]) -> TokenBlock:
    lengths = np.fromiter(map(len, ids), dtype=np.int32, count=len(ids))
    total = int(lengths.sum())
    flat_ids = np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int32, count=total)
    return TokenBlock(flat_ids, np.fromiter(itertools.chain.from_iterable(type_ids), dtype=np.uint8, count=total), lengths)


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
