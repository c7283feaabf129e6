"""The kernels' keep mask against masks.keyed_mask, bit for bit."""

import pytest
import torch

from bertfast_kernels import Dropout
from bertfast_kernels.primitives.lazy_triton import jit, tl
from bertfast_kernels.primitives.masks import keyed_mask
from bertfast_kernels.primitives.philox import dropout_numbers, keep_tile, load_key, signed32
from tests.support.triton_cases import needs_triton

pytestmark = needs_triton


@jit
def mask_kernel(key_ptr, example_ptr, position_ptr, out_ptr, sheet, threshold, first_block, R: tl.constexpr, C: tl.constexpr):
    seed, step = load_key(key_ptr)
    row = tl.arange(0, R)
    sheet = sheet + tl.zeros([1, 1], tl.int32)
    keep = keep_tile(seed, step, tl.load(position_ptr + row), tl.load(example_ptr + row), sheet, threshold, first_block, C)
    tl.store(out_ptr + row[:, None] * C + tl.arange(0, C)[None, :], keep.to(tl.int8))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1e-9])
@pytest.mark.parametrize("head", [0, 11])
def test_the_mask_equals_the_twin(device, p, head):
    rows, columns, first = 4, 32, 3
    dropout = Dropout(p, 65535, torch.tensor([42, 2**32 - 1], device=device))
    example = torch.tensor([0, 7, -1, 2**31 - 1], dtype=torch.int32, device=device)
    position = torch.tensor([0, 511, 3, 70000], dtype=torch.int32, device=device)
    out = torch.empty(rows, columns, dtype=torch.int8, device=device)
    _, threshold, _ = dropout_numbers(dropout)
    sheet = signed32(dropout.site + (head << 16))
    mask_kernel[(1,)](dropout.key, example, position, out, sheet, threshold, first, rows, columns)
    truth = keyed_mask(dropout, example, position, 4 * first + columns, plane=head)[:, 4 * first :]
    assert torch.equal(out.bool(), truth)


def test_the_numbers_of_no_dropout():
    assert dropout_numbers(None) == dropout_numbers(Dropout(0.0)) == (0.0, 0, 1.0)


def test_a_threshold_keeps_its_bits():
    assert [signed32(word) for word in (0, 2**31 - 1, 2**31, 2**32 - 1)] == [0, 2**31 - 1, -(2**31), -1]
