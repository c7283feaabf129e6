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
from bertfast.machine import local_rank, physical_cores, rank, threads, world_size


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


_threads_set: int | None = None  # what `start_ranks` gave torch last


def start_ranks(device: str | None, threads_asked: int | None) -> Ranks:
    """Choose the device and, where a launcher started several processes, join them; without a launcher this is the only rank.

    device: "cpu", "gpu" or None for a GPU where there is one. threads_asked: of a rank on a CPU; left out, what the machine has for it, or fewer
    where the caller has told torch so.

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
    _set_threads(threads_asked)
    _keep_freed_memory()
    return Ranks(rank(), world_size(), torch.device("cpu"))


def _set_threads(asked: int | None) -> None:
    """Give torch so many threads; left out, as many as this process has, unless somebody before us has plainly asked torch for fewer.

    torch does not tell whether its number is its own choice. By itself it takes every core that it may run on, or one thread a core where a core
    runs several; another number that is neither of these nor ours is somebody's.
    """
    global _threads_set
    number, now = threads(), torch.get_num_threads()
    is_somebodys = now < number and now not in (_threads_set, physical_cores())
    _threads_set = asked or (now if is_somebodys else number)
    torch.set_num_threads(_threads_set)


def _keep_freed_memory() -> None:
    """Have glibc keep freed blocks rather than hand them back and fault them in again at every step (5 to 10 % of a step on a CPU)."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library has no mallopt, and needs none
        libc = ctypes.CDLL("libc.so.6")
        mmap_threshold, trim_threshold = -3, -1
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)
