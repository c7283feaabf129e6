"""Whether a kernel is right: its output and gradients against float64, each with its budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

_FLOORS = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 8e-3}  # two roundings; bfloat16's as cut by Triton's interpreter


def errors_of(op: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """Output and gradients of op(*inputs) on the Triton backend against float64: each error over the largest value, and its budget.

    The budget is twice the error of torch in the same dtype and the dtype's floor, as in the tests. inputs: floating tensors of `dtype`.
    """
    from bertfast_kernels import use_backend

    with use_backend("torch"):
        truth = _output_and_gradients(op, [x.double() for x in inputs], dtype)
        torch_same = _output_and_gradients(op, inputs, dtype)
    with use_backend("triton"):
        ours = _output_and_gradients(op, inputs, dtype)
    found = {}
    for index, (a, b, c) in enumerate(zip(ours, torch_same, truth, strict=True)):
        size = c.abs().max().clamp_min(1e-30)
        error, torch_error = ((x.double() - c).abs().max() / size for x in (a, b))
        budget = 2 * torch_error.nan_to_num(0.0, 0.0, 0.0) + _FLOORS[a.dtype]
        found[f"gradient {index - 1}" if index else "output"] = {"error": error.item(), "budget": budget.item()}
    return found


def _output_and_gradients(op: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = op(*leaves)
    generator = torch.Generator(out.device).manual_seed(5)
    upstream = torch.randn(out.shape, generator=generator, device=out.device).to(dtype).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]
