"""What of this machine a process may use."""

from __future__ import annotations

import os


def cores() -> int:
    """How many CPU cores this process may run on: those of its affinity (taskset, a container's cpuset) where the system tells, else all."""
    if hasattr(os, "sched_getaffinity"):  # Linux alone
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
