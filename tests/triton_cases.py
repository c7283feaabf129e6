"""What the tests of the Triton kernels share: where they run, how large, and how an error is judged."""

from __future__ import annotations

import pytest
import torch
from tolerances import TRITON_FLOORS

from bertfast_kernels._triton import HAS_TRITON

ON_GPU = torch.cuda.is_available()
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")


def shapes(small: list, full: list) -> list:
    """The cases to run: `small` under the interpreter, `small` and `full` on a GPU."""
    return small + full if ON_GPU else small


def assert_within_budget(name: str, ours: torch.Tensor, torch_same: torch.Tensor, truth: torch.Tensor) -> None:
    """err(ours, float64) <= 2 * err(torch in the same precision, float64) + floor; errors are the largest difference over the largest truth."""
    assert ours.dtype == torch_same.dtype, name
    assert ours.shape == truth.shape, name
    assert torch.isfinite(ours).all() or not torch.isfinite(truth.to(ours.dtype)).all(), f"{name}: not finite"
    size = truth.abs().max().clamp_min(1e-30) if truth.numel() else torch.tensor(1.0)
    error = _largest(ours.double() - truth) / size
    budget = 2 * _largest(torch_same.double() - truth) / size + TRITON_FLOORS[ours.dtype]
    assert error <= budget, f"{name}: error {error:.3g} of the largest value, budget {budget:.3g}"


def _largest(x: torch.Tensor) -> torch.Tensor:
    return x.abs().max() if x.numel() else x.new_zeros(())
