"""Which ops take the C++ kernels, and what every call of one needs."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from bertfast_kernels.cpu.build import library
from bertfast_kernels.dispatch import current_backend
from bertfast_kernels.primitives.profiling import marked

CPP_DTYPES = (torch.float32, torch.bfloat16)


def takes_cpp(x: Tensor, *others: Tensor) -> bool:
    """Whether an op on these tensors runs its C++ kernels: on a CPU, in a dtype that they compute, where no backend was chosen and they could be compiled."""
    if x.device.type != "cpu" or current_backend() is not None or any(tensor.dtype not in CPP_DTYPES for tensor in (x, *others)):
        return False
    return not torch.onnx.is_in_onnx_export() and not isinstance(x, torch._subclasses.FakeTensor) and library() is not None


def pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def is_half(x: Tensor) -> int:
    return int(x.dtype == torch.bfloat16)


def plain(tensor: Tensor) -> Tensor:
    """A parameter as the kernels read it: float32, with no gap between its elements."""
    return tensor.detach().to(torch.float32).contiguous()


def kernels() -> ctypes.CDLL:
    """The C++ kernels, by whoever has asked `takes_cpp`."""
    found = library()
    assert found is not None, "there are no C++ kernels here"
    return found


def run(name: str, *arguments: Any) -> Any:
    """Call a C++ kernel by its name, without `bertfast_` before it; a profiler sees it as `bertfast::name`."""
    kernel = getattr(kernels(), f"bertfast_{name}")
    with marked(name):
        return kernel(*arguments)


def blocks(rows: int) -> int:
    """How many blocks of rows are summed apart."""
    size = kernels().bertfast_block()
    return (rows + size - 1) // size
