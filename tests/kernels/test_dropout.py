"""The dropout of rows by its kernel: the mask bit for bit that of keyed_mask, gradients against float64."""

import numpy as np
import pytest
import torch

from bertfast_kernels import Dropout, dropped, use_backend
from bertfast_kernels.primitives.masks import keyed_mask
from tests.support.triton_cases import DTYPES, assert_op, assert_same_bits_twice, needs_triton, row_dropout, shapes

pytestmark = needs_triton

SHAPES = shapes(
    [
        pytest.param(1, 128, id="one-row"),
        pytest.param(9, 312, id="tinybert"),
        pytest.param(5, 768, id="base"),
        pytest.param(3, 313, id="odd-columns"),
        pytest.param(7, 1, id="one-column"),
        pytest.param(0, 64, id="no-rows"),
    ],
    [pytest.param(256, 1024, id="large-full"), pytest.param(999, 3333, id="odd-full")],
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_the_mask_is_that_of_keyed_mask(device, rows, columns, p, dtype):
    dropout = row_dropout(p, rows, device)
    x = torch.full((rows, columns), 2.0, device=device, dtype=dtype, requires_grad=True)
    y = dropped(x, dropout)
    (gradient,) = torch.autograd.grad(y, x, torch.full_like(y, 0.5))
    truth = keyed_mask(dropout, dropout.example_ids, dropout.position_ids, columns)
    assert torch.equal(y, (truth * 2.0 * dropout.scale).to(dtype)) and torch.equal(gradient, (truth * 0.5 * dropout.scale).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_output_and_gradient(device, rows, columns, dtype):
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(device)
    dropout = row_dropout(0.3, rows, device)
    assert_op(lambda x: dropped(x, dropout), [x], dtype)


def test_ids_of_both_widths_and_rows_that_do_not_lie_together(device):
    x, dropout = torch.randn(32, 12, device=device).t(), row_dropout(0.3, 12, device)
    whole = dropped(x.contiguous(), dropout)
    half = dropout._replace(example_ids=dropout.example_ids.long()[::2], position_ids=dropout.position_ids[::2])
    assert torch.equal(dropped(x[::2], half), whole[::2])


def test_a_nan_stays_one(device):
    assert dropped(torch.full((4, 40), float("nan"), device=device), row_dropout(0.5, 4, device)).isnan().all()


def test_nothing_is_dropped_without_dropout(device):
    x = torch.randn(3, 8, device=device)
    assert dropped(x, None) is x and dropped(x, Dropout(0.0)) is x


def test_a_stream_is_for_the_twin_alone(device):
    stream = Dropout(0.5, stream=np.random.default_rng(0))
    with pytest.raises(ValueError, match="by key"):
        dropped(torch.ones(3, 8, device=device), stream)
    with use_backend("torch"):
        assert dropped(torch.ones(3, 8), stream).shape == (3, 8)


def test_the_same_bits_every_time(device):
    dropout = row_dropout(0.1, 33, device)
    assert_same_bits_twice(lambda x: dropped(x, dropout), [torch.randn(33, 128, device=device)])


def test_opcheck(device):
    dropout = row_dropout(0.25, 5, device)
    x = torch.randn(5, 32, device=device, requires_grad=True)
    args = (x, dropout.p, dropout.site, dropout.key, dropout.example_ids, dropout.position_ids)
    torch.library.opcheck(torch.ops.bertfast.row_dropout.default, args)
