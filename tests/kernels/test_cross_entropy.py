"""cross_entropy's kernels against float64 and against torch in the same precision."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertfast_kernels import cross_entropy
from tests.support.triton_cases import DTYPES, assert_op, assert_same_bits_twice, needs_triton, shapes

pytestmark = needs_triton

SHAPES = shapes(
    [
        pytest.param(1, 2, id="one-row"),
        pytest.param(32, 2, id="sst2"),
        pytest.param(300, 3, id="mnli-more-rows-than-a-tile"),
        pytest.param(5, 77, id="odd-classes"),
        pytest.param(3, 4097, id="one-class-past-a-tile"),
        pytest.param(2, 30522, id="vocabulary"),
        pytest.param(4, 1, id="one-class"),
    ],
    [pytest.param(2500, 30522, id="vocabulary-full"), pytest.param(1000, 150, id="banking")],
)


def make(rows, classes, device, scale=3.0, seed=0):
    """Logits in float64, and labels with some ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64) * scale
    labels = torch.randint(classes, (rows,), generator=generator)
    labels[1::4] = -100
    return logits.to(device), labels.to(device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "classes"), SHAPES)
def test_loss_and_gradient(device, rows, classes, dtype):
    logits, labels = make(rows, classes, device)
    assert_op(lambda x: cross_entropy(x, labels), [logits], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-4, 300.0, 6e4], ids=["tiny", "sure", "float16-near-overflow"])
def test_awkward_values(device, dtype, scale):
    logits, labels = make(6, 50, device)
    assert_op(lambda x: cross_entropy(x, labels), [logits / logits.abs().max() * scale], dtype)


@pytest.mark.parametrize("shape", [(4, 4), (5, 337)], ids=["few-classes", "many-classes"])
def test_large_logits_keep_the_last_digits_of_small_probabilities(device, shape):
    logits, labels = make(*shape, device, scale=100.0)
    assert_op(lambda x: cross_entropy(x, labels), [logits], torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("margin", [5.0, 12.0, 25.0, 80.0])
def test_a_row_that_is_all_but_certain(device, margin, dtype):
    """1 - p of the label is as small as exp(-margin), and is right to all of its digits all the same: torch's own has none left from 17 on."""
    logits = torch.tensor([[0.0, margin, 0.5]], device=device, dtype=dtype)
    leaf = logits.clone().requires_grad_()
    loss = cross_entropy(leaf, torch.tensor([1], device=device))
    (gradient,) = torch.autograd.grad(loss, leaf)
    x = logits[0].double().cpu().numpy()
    odds = np.exp(x[[0, 2]] - x[1])
    digits = 2e-6 + margin * 2.0**-24  # NVIDIA's exp(x) is 2^(x log2 e), and the product is rounded: 2.6e-6 at x = -79.5
    assert loss.item() == pytest.approx(np.log1p(odds.sum()), rel=digits, abs=0.0)
    truth = np.array([odds[0], -odds.sum(), odds[1]]) / (1 + odds.sum())
    tiny = 0.0 if dtype != torch.float16 else 1e-7  # of which float16 has no digits
    np.testing.assert_allclose(gradient[0].double().cpu(), truth, rtol=8e-3 if dtype != torch.float32 else digits, atol=tiny)


@pytest.mark.parametrize("label_dtype", [torch.int32, torch.int64])
def test_labels_of_both_widths_and_another_filler(device, label_dtype):
    logits, labels = make(9, 5, device)
    labels = torch.where(labels < 0, -1, labels).to(label_dtype)
    assert_op(lambda x: cross_entropy(x, labels, -1), [logits], torch.float32)


def test_rows_that_count_nothing_are_not_read(device):
    logits = torch.full((3, 10), float("nan"), device=device)
    logits[1] = 1.0
    logits.requires_grad_()
    loss = cross_entropy(logits, torch.tensor([-100, 4, -100], device=device))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(torch.log(torch.tensor(10.0)).item(), rel=1e-6)
    assert (gradient[0] == 0).all() and (gradient[2] == 0).all() and gradient[1, 4] < 0


def test_classes_ruled_out(device):
    """Logits of -infinity, a whole tile of them first."""
    logits = torch.randn(2, 5000, device=device)
    logits[:, :4500] = float("-inf")
    logits.requires_grad_()
    labels = torch.tensor([4600, 4999], device=device)
    loss = cross_entropy(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    truth = torch.nn.functional.cross_entropy(logits[:, 4500:], labels - 4500, reduction="sum")
    torch.testing.assert_close(loss, truth)
    assert (gradient[:, :4500] == 0).all() and torch.isfinite(gradient).all()


def test_a_label_that_names_no_class_is_seen(device):
    logits = torch.zeros(2, 3, device=device)
    assert cross_entropy(logits, torch.tensor([0, 3], device=device)).isnan()
    assert cross_entropy(logits, torch.tensor([-7, 1], device=device)).isnan()


def test_the_loss_scale_is_folded_in_before_rounding(device):
    """A probability of 1e-9 underflows float16; times a loss scale of 2^16 it does not."""
    logits = torch.tensor([[20.0, 0.0]], dtype=torch.float16, device=device, requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([0], device=device)) * 2.0**16
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0, 1].item() == pytest.approx(2.0**16 * 2.0611537e-9, rel=1e-2)


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 300),
    classes=st.integers(1, 600),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    scale=st.floats(-3, 2),
)
def test_any_shape(device, rows, classes, dtype, scale):
    logits, labels = make(rows, classes, device, 10.0**scale, seed=rows)
    assert_op(lambda x: cross_entropy(x, labels), [logits], dtype, least=1e-8)


def test_the_same_bits_every_time(device):
    logits, labels = make(300, 20, device)
    assert_same_bits_twice(lambda x: cross_entropy(x, labels), [logits.float()])


def test_opcheck(device):
    logits, labels = make(4, 6, device)
    torch.library.opcheck(torch.ops.bertfast.cross_entropy.default, (logits.float().requires_grad_(), labels, -100))
