"""What the tests of the Triton kernels share: where they run, how large, and how an error is judged."""

from __future__ import annotations

import pytest
import torch

from bertfast_kernels import Dropout, use_backend
from bertfast_kernels.primitives.lazy_triton import HAS_TRITON
from tests.support.tolerances import INTERPRETED_BFLOAT16_FLOOR, TRITON_FLOORS

ON_GPU = torch.cuda.is_available()
DTYPES = [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in (torch.float32, torch.float16, torch.bfloat16)]
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")


def shapes(small: list, full: list) -> list:
    """The cases to run: `small` under the interpreter, `small` and `full` on a GPU."""
    return small + full if ON_GPU else small


def row_dropout(p: float, rows: int, device, step: int = 11) -> Dropout:
    """Dropout by key with rows that belong to a few examples."""
    row = torch.arange(rows, dtype=torch.int32, device=device)
    return Dropout(p, 3, torch.tensor([2**32 - 5, step], device=device), row // 7 + 1000, row % 7)


def assert_op(op, inputs: list[torch.Tensor], dtype: torch.dtype, least: float = 1e-30) -> None:
    """Output and every gradient of op(*inputs) on the Triton backend, in `dtype`, against float64 and torch in `dtype` (see tolerances.py).

    inputs: float64 tensors, rounded to `dtype` before all three. least: see assert_within_budget. A gradient is that of the sum of the output times fixed random weights.
    """
    inputs = [x.to(dtype) for x in inputs]
    with use_backend("torch"):
        truth = _output_and_gradients(op, [x.double() for x in inputs], dtype)
        torch_same = _output_and_gradients(op, inputs, dtype)
    with use_backend("triton"):
        ours = _output_and_gradients(op, inputs, dtype)
    for index, (a, b, c) in enumerate(zip(ours, torch_same, truth, strict=True)):
        assert_within_budget(f"gradient {index - 1}" if index else "output", a, b, c, least)


def _output_and_gradients(op, inputs: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    before = [x.clone() for x in inputs]
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = op(*leaves)
    generator = torch.Generator().manual_seed(5)
    upstream = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(dtype).to(out.device, out.dtype)
    gradients = torch.autograd.grad(out, leaves, upstream)
    assert all(torch.equal(x, y) for x, y in zip(before, leaves, strict=True)), "an input was overwritten"
    return [out.detach(), *gradients]


def assert_within_budget(name: str, ours: torch.Tensor, torch_same: torch.Tensor, truth: torch.Tensor, least: float = 1e-30) -> None:
    """err(ours, float64) <= 2 * err(torch in the same precision, float64) + floor; errors are the largest difference over the largest truth.

    least: what counts as the largest truth where it is smaller still, for an op whose float64 form itself cancels.
    """
    assert ours.dtype == torch_same.dtype, name
    assert ours.shape == truth.shape, name
    if not truth.numel():
        return
    size = truth.abs().max().clamp_min(least)
    torch_error = (torch_same.double() - truth).abs().max() / size
    if not torch_error.isfinite():  # torch overflowed: the floor alone is ours
        torch_error = torch_error.new_zeros(())
    error = (ours.double() - truth).abs().max() / size
    floor = INTERPRETED_BFLOAT16_FLOOR if ours.dtype == torch.bfloat16 and not ON_GPU else TRITON_FLOORS[ours.dtype]
    budget = 2 * torch_error + floor
    assert error <= budget, f"{name}: error {error:.3g} of the largest value, budget {budget:.3g}"


def assert_same_bits_twice(op, inputs: list[torch.Tensor]) -> None:
    """Output and gradients have the same bits in a second run."""
    with use_backend("triton"):
        first, second = (_output_and_gradients(op, inputs, inputs[0].dtype) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
