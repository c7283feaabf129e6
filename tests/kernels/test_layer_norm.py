"""dropout_add_layer_norm's kernels against float64 and against torch in the same precision."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertfast_kernels import Dropout, dropout_add_layer_norm
from bertfast_kernels.primitives.masks import keyed_mask
from tests.support.triton_cases import DTYPES, assert_op, assert_same_bits_twice, needs_triton, row_dropout, shapes

pytestmark = needs_triton

EPS = 1e-12
SHAPES = shapes(
    [
        pytest.param(1, 128, id="one-row"),
        pytest.param(9, 312, id="tinybert"),
        pytest.param(5, 384, id="minilm"),
        pytest.param(9, 768, id="base"),
        pytest.param(5, 1024, id="large"),
        pytest.param(3, 313, id="odd-columns"),
        pytest.param(40, 1, id="one-column"),
        pytest.param(150, 96, id="more-rows-than-programs"),
        pytest.param(17, 7, id="few-columns"),
        pytest.param(2, 4096, id="wide"),
        pytest.param(0, 64, id="no-rows"),
    ],
    [
        pytest.param(16384, 768, id="base-full"),
        pytest.param(16384, 1024, id="large-full"),
        pytest.param(1270, 768, id="mnli-batch"),
        pytest.param(999, 3333, id="odd-full"),
    ],
)


def make(rows, columns, device, seed=0):
    """x, x_bias, residual, weight, bias in float64."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(rows, columns), (columns,), (rows, columns), (columns,), (columns,)]
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(device) for size in sizes]


def op_with(dropout):
    return lambda x, x_bias, residual, weight, bias: dropout_add_layer_norm(x, x_bias, residual, weight, bias, EPS, dropout)


@pytest.mark.parametrize("p", [0.0, 0.1], ids=["no-dropout", "dropout"])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_output_and_gradients(device, rows, columns, p):
    # Of one column the gradient is 0, of a difference that is multiplied by 1 / sqrt(eps).
    least = EPS**-0.5 if columns == 1 else 1e-30
    assert_op(op_with(row_dropout(p, rows, device) if p else None), make(rows, columns, device), torch.float32, least)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize(("rows", "columns"), SHAPES[1:4] + SHAPES[11:])
def test_in_16_bits(device, rows, columns, dtype):
    assert_op(op_with(row_dropout(0.1, rows, device)), make(rows, columns, device), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda x, xb, r, w, b: x[0].mul_(1e3), id="one-huge-row"),
        pytest.param(lambda x, xb, r, w, b: (x[0].mul_(1e-4), r[0].mul_(1e-4), xb.zero_()), id="one-tiny-row"),
        pytest.param(lambda x, xb, r, w, b: w.zero_(), id="weight-zero"),
        pytest.param(lambda x, xb, r, w, b: r.add_(30.0), id="mean-far-from-zero"),
        pytest.param(lambda x, xb, r, w, b: (x.mul_(1e4), r.mul_(1e4)), id="float16-near-overflow"),
    ],
)
def test_awkward_values(device, dtype, change):
    inputs = make(4, 128, device)
    change(*inputs)
    assert_op(op_with(row_dropout(0.1, 4, device)), inputs, dtype)


def test_a_sum_beyond_float16_is_right(device):
    """x + residual passes 65,504: torch gives infinity there, the kernel's float32 does not."""
    inputs = [x.half() for x in make(3, 64, device)]
    inputs[0].fill_(40000.0)[:, ::2] = 60000.0
    inputs[2].copy_(inputs[0])
    y = op_with(None)(*inputs)
    truth = op_with(None)(*(x.float() for x in inputs))
    assert torch.isfinite(y).all() and (y.float() - truth).abs().max() < 1e-2


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 20),
    columns=st.integers(8, 400),  # fewer can have next to no variance, and then no digits
    p=st.sampled_from([0.0, 0.1, 0.5]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    scale=st.floats(-3, 2),
)
def test_any_shape(device, rows, columns, p, dtype, scale):
    inputs = make(rows, columns, device, seed=rows)
    inputs[0] *= 10.0**scale
    assert_op(op_with(row_dropout(p, rows, device) if p else None), inputs, dtype)


def test_not_contiguous(device):
    x, x_bias, residual, weight, bias = make(6, 96, device)
    assert_op(
        lambda x, xb, r, w, b: dropout_add_layer_norm(x.t(), xb, r[::2], w, b, EPS, None),
        [x[:3].t().contiguous(), x_bias, residual, weight, bias],
        torch.float32,
    )


def test_dtypes_may_differ_as_under_autocast(device):
    """x in bfloat16, the residual and the parameters in float32: y comes in x's dtype, each gradient in its input's."""
    inputs = [x.float() for x in make(4, 64, device)]
    inputs[0] = inputs[0].bfloat16()
    leaves = [x.requires_grad_() for x in inputs]
    y = op_with(None)(*leaves)
    gradients = torch.autograd.grad(y.float().square().sum(), leaves)
    truth = op_with(None)(*(x.detach().float() for x in leaves))
    assert y.dtype == torch.bfloat16 and (y.float() - truth).abs().max() < 0.05
    assert [g.dtype for g in gradients] == [x.dtype for x in leaves]


def test_the_same_bits_every_time(device):
    assert_same_bits_twice(op_with(row_dropout(0.1, 33, device)), [x.float() for x in make(33, 128, device)])


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("columns", [64, 313, 768])
def test_forward_and_backward_drop_the_same_elements(device, p, columns):
    rows = 6
    dropout = row_dropout(p, rows, device)
    ones, zeros = torch.ones(rows, columns, device=device, requires_grad=True), torch.zeros(rows, columns, device=device)
    y = dropout_add_layer_norm(ones, zeros[0], zeros, zeros[0] + 1, zeros[0], EPS, dropout)
    (gradient,) = torch.autograd.grad((y * torch.randn_like(y)).sum(), ones)
    truth = keyed_mask(dropout, dropout.example_ids, dropout.position_ids, columns)
    assert torch.equal(y > 0, truth)
    assert torch.equal(gradient != 0, truth)


def test_packing_moves_no_mask(device):
    rows, columns = 21, 64
    inputs = [x.float() for x in make(rows, columns, device)]
    dropout = row_dropout(0.3, rows, device)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(1)).to(device)
    packed = dropout._replace(example_ids=dropout.example_ids[order], position_ids=dropout.position_ids[order])
    x, x_bias, residual, weight, bias = inputs
    y = dropout_add_layer_norm(x, x_bias, residual, weight, bias, EPS, dropout)
    moved = dropout_add_layer_norm(x[order], x_bias, residual[order], weight, bias, EPS, packed)
    assert torch.equal(moved, y[order])


def test_dropout_is_independent(device):
    """The keep rate within 4 sigma; no correlation between neighbouring rows, columns, steps, sites (each also within 4 sigma)."""
    rows, columns, p = 64, 512, 0.1
    zeros = torch.zeros(rows, columns, device=device)

    def mask(step, site):
        dropout = row_dropout(p, rows, device, step)._replace(site=site)
        return (dropout_add_layer_norm(zeros + 1, zeros[0], zeros, zeros[0] + 1, zeros[0], EPS, dropout) > 0).double()

    first = mask(1, 2)
    n, sigma = rows * columns, (p * (1 - p)) ** 0.5
    assert abs(first.mean() - (1 - p)) < 4 * sigma / n**0.5
    for other in (first.roll(1, 0), first.roll(1, 1), mask(2, 2), mask(1, 3)):
        correlation = ((first - (1 - p)) * (other - (1 - p))).mean() / sigma**2
        assert abs(correlation) < 4 / n**0.5


@pytest.mark.parametrize("p", [0.0, 0.25])
def test_opcheck(device, p):
    x, x_bias, residual, weight, bias = (x.float().requires_grad_() for x in make(5, 32, device))
    dropout = row_dropout(p, 5, device)
    ids = (dropout.key, dropout.example_ids, dropout.position_ids)
    args = (x, x_bias, residual, weight, bias, EPS, p, 3, *ids)
    torch.library.opcheck(torch.ops.bertfast.dropout_add_layer_norm.default, args)


def test_gradcheck_of_the_twin():
    dropout = Dropout(0.3, 3, torch.tensor([1, 2]), torch.arange(3), torch.arange(3))
    inputs = [x.requires_grad_() for x in make(3, 8, "cpu")]
    assert torch.autograd.gradcheck(op_with(dropout), inputs)
