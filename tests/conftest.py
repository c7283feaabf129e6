"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Triton reads this when a kernel is decorated, so it is set before any test imports bertfast_kernels. With a GPU the kernels run on it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow, so that `make check` can leave it out, and begin with the files that hold it: the longest must not end alone."""
    from tests.support.triton_cases import needs_triton

    for item in items:
        if any(getattr(value, "__module__", None) == "tests.support.runs" for value in vars(item.module).values()):
            item.add_marker("runs")
        if "device" in item.fixturenames or needs_triton.mark in item.iter_markers("skipif"):
            item.add_marker("triton")
    slow = {item.path for item in items if item.get_closest_marker("runs") or item.get_closest_marker("triton")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_sessionfinish() -> None:
    from tests.support.runs import close_pool

    close_pool()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real data sets: the folder that BERTFAST_DATA names."""
    return _folder("BERTFAST_DATA")


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """Real checkpoints: the folder that BERTFAST_MODELS names."""
    return _folder("BERTFAST_MODELS")


@pytest.fixture
def device():
    """Where the Triton kernels run, with the backend "triton" chosen: the GPU, or the CPU under Triton's interpreter."""
    from bertfast_kernels import use_backend
    from bertfast_kernels.primitives.lazy_triton import HAS_TRITON, is_interpreting

    on_gpu = torch.cuda.is_available()
    if not HAS_TRITON or not (on_gpu or is_interpreting()):
        pytest.skip("no Triton, or neither a GPU nor TRITON_INTERPRET=1")
    with use_backend("triton"):
        yield torch.device("cuda" if on_gpu else "cpu")


def _folder(variable: str) -> Path:
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set")
    return Path(os.environ[variable])


@pytest.fixture(scope="session")
def make_tokenizer():
    """make_tokenizer(words): a small uncased BERT tokenizer with [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, then the words."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import PreTrainedTokenizerFast

    def make(words: str = "a b c d e good bad film the ##s"):
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        vocabulary = {word: index for index, word in enumerate([*special, *words.split()])}
        names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
        return PreTrainedTokenizerFast(tokenizer_object=BertWordPieceTokenizer(vocabulary)._tokenizer, **names)

    return make
