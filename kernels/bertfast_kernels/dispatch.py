"""Which backend an op takes: its Triton kernels, or its torch twin."""

from __future__ import annotations

import torch

from bertfast_kernels.primitives.lazy_triton import HAS_TRITON, is_interpreting
from bertfast_kernels.primitives.masks import Dropout

BACKENDS = ("torch", "triton")
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_backend: str | None = None


class use_backend:
    """Choose the backend of every op: `use_backend("torch")` for good, `with use_backend("torch"):` for a block.

    "torch": the twins. "triton": the kernels. None, as at the start: by the tensor, that is Triton for a tensor on a GPU where Triton is
    installed; torch elsewhere, for float64, and in an ONNX export, which knows no Triton kernel.

    Raises:
        ValueError: another name.
    """

    def __init__(self, backend: str | None):
        global _backend
        if backend is not None and backend not in BACKENDS:
            raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(BACKENDS)}, or None to go by the tensor")
        self._before, _backend = _backend, backend

    def __enter__(self) -> use_backend:
        return self

    def __exit__(self, *exception: object) -> None:
        global _backend
        _backend = self._before


def current_backend() -> str | None:
    """What `use_backend` last chose."""
    return _backend


def takes_triton(x: torch.Tensor, dropout: Dropout | None = None) -> bool:
    """Whether an op on x runs its Triton kernels.

    Raises:
        RuntimeError: "triton" was chosen and cannot be: no Triton, or a tensor on the CPU without Triton's interpreter.
        TypeError: "triton" was chosen for a dtype that the kernels do not compute.
        ValueError: the kernels are to draw their dropout from a numpy stream.
    """
    if _backend == "torch":
        return False
    if _backend is None:
        if not (HAS_TRITON and x.is_cuda and x.dtype in TRITON_DTYPES) or torch.onnx.is_in_onnx_export():
            return False
    else:
        _check_triton(x)
    if dropout is not None and dropout.p > 0 and dropout.key is None:
        raise ValueError("a Triton kernel draws its dropout by key: give Dropout a key and ids, or use_backend('torch') for a stream")
    return True


def _check_triton(x: torch.Tensor) -> None:
    if not HAS_TRITON:
        raise RuntimeError("the backend 'triton' was asked for, and Triton is not installed; use_backend('torch')")
    if not x.is_cuda and not is_interpreting():
        raise RuntimeError(
            f"the backend 'triton' was asked for with a tensor on {x.device}; set TRITON_INTERPRET=1 before Python starts to run kernels there"
        )
    if x.dtype not in TRITON_DTYPES:
        raise TypeError(f"the Triton kernels compute float32, float16 and bfloat16, not {x.dtype}; use_backend('torch')")
