"""The C++ kernels of attention against float64 and the torch twin."""

import numpy as np
import pytest
import torch

from bertfast_kernels import Dropout, varlen_attention, varlen_cls_attention
from tests.support.cpp_cases import DTYPES, assert_op, by_stream, draw, needs_cpp

pytestmark = needs_cpp
CASES = [  # lengths, heads, head size, tokens that belong to no sequence
    pytest.param([13, 1, 40], 3, 32, 0, id="minilm"),
    pytest.param([130, 64, 65], 2, 64, 3, id="several-blocks-of-queries"),
    pytest.param([5, 0, 20], 2, 24, 0, id="an-empty-one-and-a-ragged-head"),
    pytest.param([2, 17], 1, 5, 1, id="a-small-head"),
]


def bounds(lengths):
    return torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize(("lengths", "heads", "size", "idle"), CASES)
def test_all_queries(lengths, heads, size, idle, p, dtype):
    cu_seqlens = bounds(lengths)
    inputs = draw((sum(lengths) + idle, 3, heads, size))
    assert_op(lambda qkv: varlen_attention(qkv, cu_seqlens, max(lengths), by_stream(p)), inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize(("lengths", "heads", "size", "idle"), CASES)
def test_queries_of_cls_alone(lengths, heads, size, idle, p, dtype):
    cu_seqlens = bounds(lengths)
    inputs = draw((len(lengths), heads, size), (sum(lengths) + idle, 2, heads, size))
    assert_op(lambda q, kv: varlen_cls_attention(q, kv, cu_seqlens, max(lengths), by_stream(p)), inputs, dtype)


@pytest.mark.parametrize("lengths", [[9, 9, 4], [600, 420, 3]], ids=["one-chunk", "several-chunks-of-the-mask"])
def test_dropout_by_key_and_in_chunks(lengths):
    cu_seqlens, heads = bounds(lengths), 4
    ids = torch.arange(len(lengths)).repeat_interleave(cu_seqlens.diff())
    key = Dropout(0.1, 2, torch.tensor([3, 4]), ids, torch.arange(len(ids)))
    for dropout in (by_stream(0.1), key) if max(lengths) < 100 else (by_stream(0.1),):
        stood = dropout.stream and dropout.stream.bit_generator.state

        def op(qkv, dropout=dropout, stood=stood):
            if stood:
                dropout.stream.bit_generator.state = stood
            return varlen_attention(qkv, cu_seqlens, max(lengths), dropout)

        assert_op(op, draw((sum(lengths), 3, heads, 8)), torch.float32)


def test_scores_far_apart():
    """A softmax in which one key takes all: no score overflows, and what is lost is 0."""
    qkv = draw((40, 3, 2, 16))[0]
    qkv[:, :2] *= 30
    assert_op(lambda x: varlen_attention(x, bounds([40]), 40), [qkv], torch.float32)
