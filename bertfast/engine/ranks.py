"""This process among all: its number, theirs, and its device."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from bertfast.errors import ConfigError
from bertfast.machine import cores, local_rank, local_world_size, rank, world_size


@dataclass(frozen=True)
class Ranks:
    """This process among all: its number, theirs, and its device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.world_size > 1:
            torch.distributed.barrier()

    @contextlib.contextmanager
    def first_then_others(self) -> Iterator[None]:
        """The first rank goes through the block, and then the others: what it builds (a cache, say), they find. All ranks must enter."""
        if not self.is_first:
            self.barrier()
        try:
            yield
        finally:
            if self.is_first:
                self.barrier()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether any rank says so; the same answer on every rank."""
        if self.world_size == 1:
            return flag
        return bool(self.sum(torch.tensor(int(flag), device=self.device)).item())

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in order of rank, on every rank."""
        if self.world_size == 1:
            return [value]
        gathered = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, value)
        return gathered


def start_ranks(device: str | None, threads: int | None) -> Ranks:
    """Choose the device and, where a launcher started several processes, join them; without a launcher this is the only rank.

    device: "cpu", "gpu" or None for a GPU where there is one.

    Raises:
        ConfigError: "gpu" where there is none.
    """
    has_gpu = torch.cuda.is_available()
    if device == "gpu" and not has_gpu:
        raise ConfigError("GPU was asked for, but torch sees none; leave GPU out, or install a torch built for your GPU")
    on_gpu = has_gpu and device != "cpu"
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    if on_gpu:
        torch.cuda.set_device(local_rank())
        return Ranks(rank(), world_size(), torch.device("cuda", local_rank()))
    torch.set_num_threads(threads or max(1, cores() // local_world_size()))
    _keep_freed_memory()
    return Ranks(rank(), world_size(), torch.device("cpu"))


def _keep_freed_memory() -> None:
    """Have glibc keep freed blocks rather than hand them back and fault them in again at every step (5 to 10 % of a step on a CPU)."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library has no mallopt, and needs none
        libc = ctypes.CDLL("libc.so.6")
        mmap_threshold, trim_threshold = -3, -1
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)
