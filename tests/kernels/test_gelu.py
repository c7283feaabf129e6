"""bias_gelu's kernels against float64 and against torch in the same precision."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertfast_kernels import bias_gelu
from tests.support.triton_cases import DTYPES, assert_op, assert_same_bits_twice, needs_triton, shapes

pytestmark = needs_triton

APPROXIMATIONS = ["none", "tanh"]
SHAPES = shapes(
    [
        pytest.param(1, 512, id="one-row"),
        pytest.param(5, 1248, id="tinybert"),
        pytest.param(6, 3072, id="base"),
        pytest.param(9, 4096, id="large"),
        pytest.param(3, 313, id="odd-columns"),
        pytest.param(40, 1, id="one-column"),
        pytest.param(300, 20, id="more-rows-than-programs"),
        pytest.param(0, 64, id="no-rows"),
    ],
    [
        pytest.param(16384, 3072, id="base-full"),
        pytest.param(16384, 4096, id="large-full"),
        pytest.param(1001, 4099, id="odd-full"),
    ],
)


def make(rows, columns, device, scale=2.0, seed=0):
    """x and bias in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * scale
    return [x.to(device), torch.randn(columns, generator=generator, dtype=torch.float64).to(device)]


def op_with(approximate):
    return lambda x, bias: bias_gelu(x, bias, approximate)


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_output_and_gradients(device, rows, columns, approximate):
    assert_op(op_with(approximate), make(rows, columns, device), torch.float32)


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize(("rows", "columns"), SHAPES[1:3] + SHAPES[8:])
def test_in_16_bits(device, rows, columns, dtype, approximate):
    assert_op(op_with(approximate), make(rows, columns, device), dtype)


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-4, 30.0, 1e4], ids=["tiny", "tails", "huge"])
def test_awkward_values(device, dtype, approximate, scale):
    assert_op(op_with(approximate), make(4, 64, device, scale), dtype)


def test_the_negative_tail_keeps_its_digits(device):
    """Where 1 + erf has cancelled to nothing, the kernel is still right to 4e-5 of the value itself."""
    x = -torch.linspace(0.01, 6.4, 500, dtype=torch.float64, device=device).view(1, -1)
    truth = x * torch.special.ndtr(x)
    ours = bias_gelu(x.float(), torch.zeros(500, device=device))
    assert ((ours.double() - truth) / truth).abs().max() < 4e-5


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
def test_not_a_number_and_infinity(device, approximate):
    x = torch.tensor([[float("nan"), float("inf"), 70000.0, -70000.0]], device=device, requires_grad=True)
    y = bias_gelu(x, torch.zeros(4, device=device), approximate)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y[0, 0].isnan() and y[0, 1] == float("inf") and y[0, 2] == 70000.0 and abs(y[0, 3]) < 1e-15
    assert gradient[0, 0].isnan() and gradient[0, 2] == 1.0 and abs(gradient[0, 3]) < 1e-15


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 1100),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    approximate=st.sampled_from(APPROXIMATIONS),
    scale=st.floats(-3, 3),
)
def test_any_shape(device, rows, columns, dtype, approximate, scale):
    assert_op(op_with(approximate), make(rows, columns, device, 10.0**scale, seed=rows), dtype)


def test_not_contiguous(device):
    x, bias = make(6, 20, device)
    assert_op(lambda x, bias: bias_gelu(x.t(), bias), [x.t().contiguous(), bias], torch.float32)


def test_the_same_bits_every_time(device):
    assert_same_bits_twice(op_with("none"), [x.float() for x in make(50, 48, device)])


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
def test_opcheck(device, approximate):
    args = [x.float().requires_grad_() for x in make(3, 32, device)]
    torch.library.opcheck(torch.ops.bertfast.bias_gelu.default, (*args, approximate))


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
def test_gradcheck_of_the_twin(approximate):
    assert torch.autograd.gradcheck(op_with(approximate), [x.requires_grad_() for x in make(3, 8, "cpu")])


def test_an_unknown_approximation_is_named():
    with pytest.raises(ValueError, match="approximate is 'sigmoid'; it must be one of none, tanh"):
        bias_gelu(torch.zeros(1, 2), torch.zeros(2), "sigmoid")
