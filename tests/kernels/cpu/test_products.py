"""Linear layers of bfloat16 rows and float32 parameters: their gradients, and the copies of weights."""

import io
import pickle

import pytest
import torch

from bertfast_kernels import CpuAdamW, linear, query_and_keys
from bertfast_kernels.cpu.products import half_of, transposed
from tests.support.cpp_cases import draw, needs_cpp

ROWS = torch.tensor([0, 5, 5])


def both(x, weight, bias):
    query, keys = query_and_keys(x, ROWS, weight, bias, 16)
    return [query, keys, linear(x, weight, bias), linear(x, weight)]


def test_outputs_and_gradients_are_those_of_float64():
    inputs = draw((20, 32), (48, 32), (48,))
    found, truth = [], []
    for dtype, results in ((torch.float64, truth), (torch.float32, found)):
        x, weight, bias = (value.to(torch.bfloat16).to(dtype).requires_grad_() for value in inputs)
        outputs = both(x if dtype == torch.float64 else x.to(torch.bfloat16), weight, bias)
        sum((output.double() * draw(tuple(output.shape), seed=3)[0]).sum() for output in outputs).backward()
        results += [*outputs, x.grad, weight.grad, bias.grad]
    assert [value.dtype for value in found[4:]] == [torch.float32] * 3
    for ours, true in zip(found, truth, strict=True):
        assert (ours.double() - true).norm() <= 4e-3 * true.norm()


@needs_cpp
@pytest.mark.parametrize("shape", [(1, 1), (17, 3), (33, 100), (0, 4), (16, 32)])
def test_transposed(shape):
    x = draw(shape)[0].bfloat16()
    assert torch.equal(transposed(x), x.t()) and transposed(x).is_contiguous()


@needs_cpp
def test_a_copy_serves_until_its_weight_or_its_optimizer_is_another():
    weight = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = CpuAdamW([weight], lr=0.5)
    assert half_of(weight) is not half_of(weight)

    def step(own):
        weight.grad = torch.ones(4, 4)
        own.step()
        assert torch.equal(half_of(weight), weight.bfloat16())

    step(optimizer)
    first = half_of(weight)
    step(optimizer)
    assert half_of(weight) is first
    with torch.no_grad():
        weight.mul_(2)
    assert half_of(weight) is not first and torch.equal(half_of(weight), weight.bfloat16())
    step(optimizer)
    weight.data = torch.zeros(4, 4)
    assert not half_of(weight).any()
    step(optimizer)
    assert half_of(weight) is first
    del optimizer
    torch.optim.AdamW([weight], lr=0.5, fused=True).step()  # which leaves the version as it was
    assert torch.equal(half_of(weight), weight.bfloat16())


@needs_cpp
def test_a_parameter_is_saved_without_its_copy():
    weight = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = CpuAdamW([weight], lr=0.5)
    half_of(weight)
    weight.grad = torch.ones(4, 4)
    optimizer.step()
    assert half_of(weight) is half_of(weight)
    torch.save(weight, saved := io.BytesIO())
    saved.seek(0)
    for other in (pickle.loads(pickle.dumps(weight)), torch.load(saved)):
        assert torch.equal(other, weight) and torch.equal(half_of(other), weight.bfloat16())
        assert half_of(other) is not half_of(weight)
