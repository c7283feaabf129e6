"""Triton, or stand-ins for it: a machine without Triton imports every kernel module, and never comes to run one.

Kernel modules start with `from __future__ import annotations`, so that the `tl.constexpr` of a kernel's signature is a string that only Triton reads.
"""

from __future__ import annotations

import types

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


__all__ = ["HAS_TRITON", "is_interpreting", "jit", "tl", "triton"]
