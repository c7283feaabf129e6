"""The memory that a process takes."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_bytes() -> int:
    """Bytes of this process in memory now."""
    if _STATUS.is_file():
        return _of_status("VmRSS")
    import psutil

    return psutil.Process().memory_info().rss


def peak_resident_bytes() -> int:
    """Bytes of this process in memory at most so far, or since `forget_peak`.

    Linux lets a child's ru_maxrss begin at what its parent had when it was started, so the process's own high-water mark is read there.
    """
    if _STATUS.is_file():
        return _of_status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Let the peak begin anew at what is in memory now, where Linux lets a process ask for that."""
    with contextlib.suppress(OSError):
        _FORGET.write_text("5", encoding="ascii")


def _of_status(name: str) -> int:
    lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
