"""Candidates compiled ahead, by as many processes as there are cores: one after the other they would take minutes."""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import torch

from bertfast_kernels import Target
from bertfast_kernels.compile import _compile, _identity
from bertfast_kernels.primitives.lazy_triton import Launch


class _Shipped(NamedTuple):
    """A launch that another process can be given: the kernel by name, tensors by dtype."""

    module: str
    kernel: str
    args: tuple[Any, ...]
    options: dict[str, Any]


def compile_ahead(launches: Iterable[Launch], target: Target) -> int:
    """Put what these launches need into Triton's cache; how many compilations that were. One that fails will fail again where it is timed."""
    distinct = {_identity(launch): _shipped(launch) for launch in launches}
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_compile_one, distinct.values(), [target] * len(distinct), chunksize=1))
    return len(distinct)


def _shipped(launch: Launch) -> _Shipped:
    function = getattr(launch.kernel, "fn", None) or launch.kernel.function  # Triton's kernel, or ours until Triton is loaded
    args = tuple(arg.dtype if isinstance(arg, torch.Tensor) else arg for arg in launch.args)
    return _Shipped(function.__module__, launch.kernel.__name__, args, launch.options)


def _compile_one(shipped: _Shipped, target: Target) -> None:
    kernel = getattr(importlib.import_module(shipped.module), shipped.kernel)
    try:
        _compile(Launch(kernel, tuple(_on_meta(shipped.args)), shipped.options, (1,)), target)
    except Exception:  # as Triton or the assembler says where the candidate is timed
        return


def _on_meta(args: tuple[Any, ...]) -> Iterator[Any]:
    for arg in args:
        yield torch.empty(1, dtype=arg, device="meta") if isinstance(arg, torch.dtype) else arg
