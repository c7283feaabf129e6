"""The row-wise C++ kernels against float64 and the torch twins."""

import pytest
import torch

from bertfast_kernels import Dropout, bias_gelu, dropout_add_layer_norm, embedding_layer_norm, use_backend
from tests.support.cpp_cases import DTYPES, assert_op, by_stream, draw, needs_cpp, outcome

pytestmark = needs_cpp
EPS = 1e-12


def by_key(rows):
    return Dropout(0.1, 1, torch.tensor([3, 4]), torch.arange(rows) % 3, torch.arange(rows))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize(("rows", "columns"), [(37, 384), (5, 313), (70, 7), (1, 96), (0, 64)])
def test_norm(rows, columns, p, dtype):
    def op(*inputs):
        return dropout_add_layer_norm(*inputs, EPS, by_stream(p))

    assert_op(op, draw((rows, columns), (columns,), (rows, columns), (columns,), (columns,)), dtype)


def test_norm_with_dropout_by_key():
    assert_op(lambda *inputs: dropout_add_layer_norm(*inputs, EPS, by_key(9)), draw((9, 48), (48,), (9, 48), (48,), (48,)), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize(("rows", "columns"), [(37, 1536), (5, 313), (3, 1)])
def test_gelu(rows, columns, approximate, dtype):
    assert_op(lambda x, bias: bias_gelu(x, bias, approximate), [3 * x for x in draw((rows, columns), (columns,))], dtype)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_of_large_infinite_and_no_numbers(approximate):
    x = torch.tensor([[-1e30, -100.0, -20.0, 20.0, 1e30, float("inf"), float("nan")]])
    y = bias_gelu(x, torch.zeros(7), approximate)
    assert torch.equal(y[0, :3].abs(), torch.zeros(3)) and torch.equal(y[0, 3:6], x[0, 3:6]) and y[0, 6].isnan()


def test_a_nan_stays_one():
    inputs = [x.bfloat16() for x in draw((3, 32), (32,), (3, 32), (32,), (32,))]
    inputs[0][1, 5] = float("nan")
    y = dropout_add_layer_norm(*inputs, EPS)
    assert y[1].isnan().all() and y[[0, 2]].isfinite().all()


IDS = [torch.tensor([1, 5, 5, 0, 99, 7]), torch.tensor([0, 0, 1, 1, 1, 0]), torch.tensor([0, 1, 2, 0, 1, 2])]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_embedding(p, sparse):
    def op(*parameters):
        return embedding_layer_norm(*IDS, *parameters, EPS, by_stream(p), None, sparse)

    assert_op(op, draw((100, 40), (2, 40), (3, 40), (40,), (40,)), torch.float32)


def test_embedding_in_bfloat16_is_float32_rounded_and_its_gradient_sparse():
    parameters = [x.float().requires_grad_() for x in draw((100, 40), (2, 40), (3, 40), (40,), (40,))]
    y = embedding_layer_norm(*IDS, *parameters, EPS, None, torch.bfloat16, True)
    assert torch.equal(y, embedding_layer_norm(*IDS, *parameters, EPS).bfloat16())
    y.sum().backward()
    grad = parameters[0].grad
    assert grad.is_sparse and grad._indices().tolist() == [[0, 1, 5, 7, 99]]


def test_an_id_outside_its_table_is_named():
    tables = [x.float() for x in draw((100, 40), (2, 40), (3, 40), (40,), (40,))]
    with pytest.raises(IndexError, match=r"token 2 has an id outside its table: \[5, 2, 2\] of \[100, 2, 3\] rows"):
        embedding_layer_norm(IDS[0], torch.tensor([0, 0, 2, 1, 1, 0]), IDS[2], *tables, EPS)


def test_dropout_drops_what_the_twin_drops():
    inputs = draw((20, 64), (64,), (20, 64), (64,), (64,))
    inputs[2].zero_()
    ours = outcome(lambda *given: dropout_add_layer_norm(*given, EPS, by_stream(0.5)), inputs, torch.float32)[1]
    with use_backend("torch"):
        theirs = outcome(lambda *given: dropout_add_layer_norm(*given, EPS, by_stream(0.5)), inputs, torch.float32)[1]
    assert torch.equal(ours == 0, theirs == 0) and 500 < (ours == 0).sum() < 780


def test_sums_do_not_depend_on_the_threads():
    inputs, before, results = draw((150, 48), (48,), (150, 48), (48,), (48,)), torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(outcome(lambda *given: dropout_add_layer_norm(*given, EPS, by_stream(0.1)), inputs, torch.float32))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
