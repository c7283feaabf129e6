"""What of this machine a process may use, and its place among the processes that a launcher started."""

from __future__ import annotations

import os


def cores() -> int:
    """How many CPU cores this process may run on: those of its affinity (taskset, a container's cpuset) where the system tells, else all."""
    if hasattr(os, "sched_getaffinity"):  # Linux alone
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def rank() -> int:
    """This process's number among all that the launcher started; 0 without a launcher."""
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0)


def local_rank() -> int:
    """This process's number among those that the launcher started on this machine; 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK") or 0)


def local_world_size() -> int:
    """How many processes the launcher started on this machine; all of them where it does not tell."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size())


def world_size() -> int:
    """How many processes the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1)
