"""Triton, imported when the first kernel is needed and not before: it takes 0.2 s, which a run on a CPU need not spend. Where Triton is missing,
every kernel module imports all the same, and never comes to run a kernel.

Kernel modules take `jit` and `tl` from here. Until Triton is loaded both are stand-ins, and `load_triton` puts the real things in their places, in the
modules themselves. These start with `from __future__ import annotations`, so that the `tl.constexpr` of a signature is a string that only Triton reads.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import threading
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
_INTERPRETING = HAS_TRITON and os.environ.get("TRITON_INTERPRET", "").lower() in (
    "1",
    "true",
    "on",
    "yes",
    "y",
)  # as Triton itself reads it


class _Constant(NamedTuple):
    """A `tl.constexpr` at the top of a kernel module."""

    value: Any


class _Language:
    """`tl`: of it a module may use constexpr when it is imported, and the rest inside kernels."""

    constexpr = _Constant


class _Kernel:
    """A function that `triton.jit` gets once Triton is loaded."""

    def __init__(self, function: FunctionType, options: dict[str, Any]):
        self.function, self.options, self.__name__ = function, options, function.__name__
        self.jitted: Any = None

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return jitted(self)[grid]


if TYPE_CHECKING:
    import triton.language as tl  # what stands there once Triton is loaded: kernels are read as Triton's language
else:
    tl = _Language()
_kernels: list[_Kernel] = []
_loaded = False
_loading = threading.Lock()


def jit(function: Any = None, **options: Any) -> Any:
    """`triton.jit`, as soon as Triton is loaded."""
    if function is None:
        return lambda function: jit(function, **options)
    kernel = _Kernel(function, options)
    _kernels.append(kernel)
    return jitted(kernel) if _loaded else kernel


def load_triton() -> ModuleType:
    """The module `triton`. Loaded for the first time, it makes a kernel of every function that was given to `jit`.

    Raises:
        ImportError: Triton is missing or does not work here.
    """
    with _loading:
        return _load()


def _load() -> ModuleType:
    global tl, _loaded
    import triton
    import triton.language

    if _loaded:
        return triton
    for kernel in _kernels:
        kernel.jitted = triton.jit(**kernel.options)(kernel.function)
    for namespace in {id(kernel.function.__globals__): kernel.function.__globals__ for kernel in _kernels}.values():
        for name, value in list(namespace.items()):
            if isinstance(value, _Kernel):
                namespace[name] = value.jitted
            elif isinstance(value, _Constant):
                namespace[name] = triton.language.constexpr(value.value)
            elif isinstance(value, _Language):
                namespace[name] = triton.language
    tl, _loaded = triton.language, True
    for kernel in _kernels:
        _settle_key(kernel.jitted)
    return triton


def _settle_key(kernel: Any) -> None:
    """Have Triton work out the kernel's key in its cache now, after the keys of the functions that it calls.

    The key counts a constant at the top of a module that a called function uses, but only where that function's own key is known already: left to
    itself it depends on what the process compiled before (`DependenciesFinder._update_hash`, Triton 3.6 and 3.7), and another process compiles again.
    """
    if is_interpreting() or kernel.hash is not None:
        return
    for name in kernel.fn.__code__.co_names:
        called = kernel.fn.__globals__.get(name)
        if called is not kernel and type(called) is type(kernel):
            _settle_key(called)
    kernel.cache_key  # noqa: B018  (a property that keeps what it finds)


def jitted(kernel: Any) -> Any:
    """The kernel as Triton knows it."""
    if not isinstance(kernel, _Kernel):
        return kernel
    triton = load_triton()
    if kernel.jitted is None:  # decorated after Triton was loaded
        kernel.jitted = triton.jit(**kernel.options)(kernel.function)
        _settle_key(kernel.jitted)
    return kernel.jitted


def is_interpreting() -> bool:
    """True where TRITON_INTERPRET=1 was set when bertfast_kernels was imported: kernels then run on CPU tensors, slowly."""
    return _INTERPRETING


class Launch(NamedTuple):
    """One launch that was recorded and not made: a kernel, its arguments in order, its constexprs and options by name, and its grid."""

    kernel: Any  # what `jit` made of a function: ours until Triton is loaded, then Triton's
    args: tuple[Any, ...]
    options: dict[str, Any]
    grid: tuple[int, ...]


_records: list[Launch] | None = None


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """`kernel[grid](*args, **options)`; inside `record_launches`, a note of it. Every kernel of this package is launched through here."""
    if _records is None:
        jitted(kernel)[grid](*args, **options)
    else:
        _records.append(Launch(kernel, args, options, grid))


class record_launches:
    """`with record_launches() as launches:` notes what would be launched. With tensors on the device "meta", compile.py learns what to compile."""

    def __enter__(self) -> list[Launch]:
        global _records
        self._before, _records = _records, []
        return _records

    def __exit__(self, *exception: object) -> None:
        global _records
        _records = self._before


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors a GPU has; 2 for the interpreter, which runs programs one after the other."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


__all__ = ["HAS_TRITON", "Launch", "is_interpreting", "jit", "jitted", "launch", "load_triton", "multiprocessors", "record_launches", "tl"]
