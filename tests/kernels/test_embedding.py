"""embedding_layer_norm's kernels against float64 and against torch in the same precision."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertfast_kernels import embedding_layer_norm
from bertfast_kernels.primitives.masks import keyed_mask
from tests.support.triton_cases import DTYPES, assert_op, assert_same_bits_twice, needs_triton, row_dropout, shapes

pytestmark = needs_triton

EPS = 1e-12
SHAPES = shapes(
    [
        pytest.param(1, 128, 20, id="one-token"),
        pytest.param(9, 312, 50, id="tinybert"),
        pytest.param(6, 768, 50, id="base"),
        pytest.param(4, 1024, 50, id="large"),
        pytest.param(13, 77, 5, id="odd-columns"),
        pytest.param(43, 16, 9, id="places-end-within-a-chunk"),
        pytest.param(128, 16, 300, id="places-end-with-a-chunk"),
        pytest.param(0, 16, 4, id="no-tokens"),
    ],
    [pytest.param(16384, 768, 30522, id="base-full"), pytest.param(1270, 1024, 30522, id="large-mnli-batch")],
)


def make(tokens, columns, vocabulary, device, seed=0, dtype=torch.int32):
    """(ids, the tables, weight and bias in float64). Id 3 is a fifth of all tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randint(size, (tokens,), generator=generator) for size in (vocabulary, 2, 16)]).to(dtype)
    ids[0, ::5] = 3
    sizes = [(vocabulary, columns), (2, columns), (16, columns), (columns,), (columns,)]
    return ids.to(device), [torch.randn(size, generator=generator, dtype=torch.float64).to(device) for size in sizes]


def op_with(ids, dropout=None):
    return lambda word, segment, position, weight, bias: embedding_layer_norm(*ids, word, segment, position, weight, bias, EPS, dropout)


@pytest.mark.parametrize("p", [0.0, 0.1], ids=["no-dropout", "dropout"])
@pytest.mark.parametrize(("tokens", "columns", "vocabulary"), SHAPES)
def test_output_and_gradients(device, tokens, columns, vocabulary, p):
    ids, inputs = make(tokens, columns, vocabulary, device)
    assert_op(op_with(ids, row_dropout(p, tokens, device) if p else None), inputs, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize(("tokens", "columns", "vocabulary"), SHAPES[1:2] + SHAPES[8:])
def test_in_16_bits(device, tokens, columns, vocabulary, dtype):
    ids, inputs = make(tokens, columns, vocabulary, device, dtype=torch.int64)
    assert_op(op_with(ids, row_dropout(0.1, tokens, device)), inputs, dtype)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([3] * 400, id="one-word-over-many-chunks"),
        pytest.param([0] * 127 + [1] * 2 + [2] * 127, id="words-across-a-chunk-end"),
        pytest.param([0] * 128 + [1] * 128 + [2], id="words-that-fill-chunks"),
        pytest.param([5, 0] * 65, id="interleaved"),
        pytest.param([0] * 129, id="one-place-past-a-chunk"),
    ],
)
def test_runs_and_chunks(device, words):
    """The sum into the tables at every way a run of equal ids can meet the ends of chunks of 128."""
    ids, inputs = make(len(words), 16, 6, device)
    ids[0] = torch.tensor(words, dtype=torch.int32)
    assert_op(op_with(ids), inputs, torch.float32)


def test_words_that_are_not_read_have_gradient_zero(device):
    ids, inputs = make(12, 16, 40, device)
    leaves = [x.float().requires_grad_() for x in inputs]
    (gradient,) = torch.autograd.grad(op_with(ids)(*leaves).sum(), leaves[0])
    unread = torch.ones(40, dtype=torch.bool)
    unread[ids[0].long().cpu()] = False
    assert (gradient[unread.to(device)] == 0).all()


@pytest.mark.parametrize("bad", [40, -1, 2**31 - 1])
def test_an_id_outside_its_table_is_seen(device, bad):
    ids, inputs = make(4, 16, 40, device)
    ids[0, 2] = bad
    leaves = [x.float().requires_grad_() for x in inputs]
    y = op_with(ids)(*leaves)
    torch.autograd.grad(y.sum(), leaves)
    assert y[2].isnan().all() and not y[[0, 1, 3]].isnan().any()


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens=st.integers(1, 90), columns=st.integers(4, 80), vocabulary=st.integers(4, 200), p=st.sampled_from([0.0, 0.3]))
def test_any_shape(device, tokens, columns, vocabulary, p):
    ids, inputs = make(tokens, columns, vocabulary, device, seed=tokens)
    assert_op(op_with(ids, row_dropout(p, tokens, device) if p else None), inputs, torch.float32)


def test_the_same_bits_every_time(device):
    ids, inputs = make(100, 32, 12, device)
    assert_same_bits_twice(op_with(ids, row_dropout(0.1, 100, device)), [x.float() for x in inputs])


def test_the_mask_is_the_twins(device):
    tokens, columns = 8, 96
    ids, (word, segment, position, weight, bias) = make(tokens, columns, 40, device)
    dropout = row_dropout(0.4, tokens, device)
    y = op_with(ids, dropout)(*(x.float() for x in (word, segment, position, weight, bias + 100)))
    assert torch.equal(y != 0, keyed_mask(dropout, dropout.example_ids, dropout.position_ids, columns))
    bias = bias.float().requires_grad_()
    y = op_with(ids, dropout)(*(x.float() for x in (word, segment, position, weight)), bias)
    (gradient,) = torch.autograd.grad(y.sum(), bias)
    kept = keyed_mask(dropout, dropout.example_ids, dropout.position_ids, columns).sum(0)
    torch.testing.assert_close(gradient, kept * dropout.scale)


@pytest.mark.parametrize("p", [0.0, 0.25])
def test_opcheck(device, p):
    ids, inputs = make(6, 16, 8, device)
    dropout = row_dropout(p, 6, device)
    rest = (EPS, p, 3, dropout.key, dropout.example_ids, dropout.position_ids)
    args = (*ids, *(x.float().requires_grad_() for x in inputs), *rest)
    torch.library.opcheck(torch.ops.bertfast.embedding_layer_norm.default, args)


def test_gradcheck_of_the_twin():
    ids, inputs = make(5, 6, 8, "cpu")
    assert torch.autograd.gradcheck(op_with(ids, row_dropout(0.3, 5, "cpu")), [x.requires_grad_() for x in inputs])
