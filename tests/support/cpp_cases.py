"""C++ kernels against float64, and against the torch twin in the same precision."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from bertfast_kernels import Dropout, cpu_kernels_fault, use_backend
from tests.support.tolerances import TRITON_FLOORS

needs_cpp = pytest.mark.skipif(cpu_kernels_fault() is not None, reason=f"needs the C++ kernels: {cpu_kernels_fault()}")
DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]


def by_stream(p: float) -> Dropout | None:
    return Dropout(p, 1, stream=np.random.Generator(np.random.SFC64(7))) if p else None


def draw(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def outcome(op: Callable, inputs: Sequence[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """The output and the inputs' gradients, in float64."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
    y = op(*leaves)
    y.backward(draw(tuple(y.shape), seed=9)[0].to(dtype))
    return [y.detach().double(), *(leaf.grad.to_dense().double() for leaf in leaves)]


def assert_op(op: Callable, inputs: Sequence[torch.Tensor], dtype: torch.dtype) -> None:
    """err(ours, float64) <= 2 * err(twin, float64) + a rounding of the dtype, as for the Triton kernels."""
    rounded = [x.to(dtype).double() for x in inputs]
    found = outcome(op, rounded, dtype)
    with use_backend("torch"):
        truth, twin = outcome(op, rounded, torch.float64), outcome(op, rounded, dtype)
    for number, (ours, theirs, true) in enumerate(zip(found, twin, truth, strict=True)):
        largest = true.abs().max().item() if true.numel() else 0.0
        budget = 2 * (theirs - true).abs().max().item() + TRITON_FLOORS[dtype] * largest if true.numel() else 0.0
        assert ours.shape == true.shape and ours.isfinite().all()
        assert true.numel() == 0 or (ours - true).abs().max().item() <= budget, ("output", *range(len(inputs)))[number]
