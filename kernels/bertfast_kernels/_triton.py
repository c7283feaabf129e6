"""Triton, or stand-ins for it: a machine without Triton imports every kernel module, and never comes to run one.

Kernel modules start with `from __future__ import annotations`, so that the `tl.constexpr` of a kernel's signature is a string that only Triton reads.
"""

from __future__ import annotations

import functools
import types
from typing import NamedTuple

import torch

try:
    import triton
    import triton.language as tl
    from triton import jit

    HAS_TRITON = True
    _INTERPRETING = bool(triton.knobs.runtime.interpret)
except ImportError:  # Triton has no wheels for this platform
    HAS_TRITON = False
    _INTERPRETING = False
    triton = None
    tl = types.SimpleNamespace(constexpr=lambda value: value)

    def jit(function=None, **options):
        """The function as it is: what `triton.jit` decorates cannot run without Triton."""
        return function if function is not None else jit


def is_interpreting() -> bool:
    """True where TRITON_INTERPRET=1 was set when Triton was imported: kernels then run on CPU tensors, slowly."""
    return _INTERPRETING


class Launch(NamedTuple):
    """One launch that was recorded and not made: a kernel, its arguments in order, and its constexprs and options by name."""

    kernel: object
    args: tuple
    options: dict


_records: list[Launch] | None = None


def launch(kernel, grid: tuple[int, ...], *args, **options) -> None:
    """`kernel[grid](*args, **options)`; inside `record_launches`, a note of it. Every kernel of this package is launched through here."""
    if _records is None:
        kernel[grid](*args, **options)
    else:
        _records.append(Launch(kernel, args, options))


class record_launches:
    """`with record_launches() as launches:` notes what would be launched. With tensors on the device "meta", compile.py learns what to compile."""

    def __enter__(self) -> list[Launch]:
        global _records
        self._before, _records = _records, []
        return _records

    def __exit__(self, *exception) -> None:
        global _records
        _records = self._before


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors a GPU has; 2 for the interpreter, which runs programs one after the other."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


__all__ = ["HAS_TRITON", "Launch", "is_interpreting", "jit", "launch", "multiprocessors", "record_launches", "tl", "triton"]
