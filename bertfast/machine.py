"""What of this machine a process may use, and its place among the processes that a launcher started."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")  # the kernel's Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst describe the files below it
_CPUS = Path("/sys/devices/system/cpu")
_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is ARM's (FEAT_BF16), which stands among "Features" where x86 has "flags"
_NO_MEMORY = re.compile("(?:can't|cannot|Cannot|Failed to) allocate memory|out of memory|std::bad_alloc|_ALLOC_FAILED")
_ASKED = re.compile(r"(?:allocate|buffer of size) ([\d.]+) ?(bytes|[KMGTPE]i?B)?")


def has_triton() -> bool:
    """Whether Triton is installed; nothing is imported to find out."""
    return importlib.util.find_spec("triton") is not None


def cores() -> int:
    """How many CPU cores' worth of time this process may use: those of its affinity (taskset, a container's cpuset), or fewer where a cgroup
    gives it less time than that (a container's --cpus). A part of a core counts as one."""
    # Linux alone has it
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([own, *(max(1, math.ceil(quota)) for quota in _quotas())])


def physical_cores() -> int:
    """How many cores of silicon those of this process's affinity lie on, where a core may run several threads; as many where the system does not
    tell."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    own = os.sched_getaffinity(0)
    return len({_text(_CPUS / f"cpu{number}" / "topology" / "thread_siblings_list") or str(number) for number in own})


def threads() -> int:
    """How many threads this process is to compute with: OMP_NUM_THREADS where it is set, which is meant for each process, and else its part of the
    cores where a launcher started several processes. Never more than `cores`: more would wait for each other."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list has one number for each level of nesting
    if asked.isdecimal() and int(asked) > 0:
        return min(int(asked), cores())
    return max(1, cores() // local_world_size())


def has_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16: AVX512-BF16 or AMX-BF16, or ARM's FEAT_BF16. False where the system does not tell."""
    lines = (line.partition(":") for line in _text(_PROC / "cpuinfo").splitlines())
    found = next((words.split() for name, _, words in lines if name.strip() in ("flags", "Features")), [])
    return not _BF16.isdisjoint(found)


def memory_available() -> int | None:
    """The bytes that can still be had without swapping, in this machine and within each cgroup of this process; None where the system does not tell."""
    return min(_memory("MemAvailable", unused=True), default=None)


def memory_total() -> int | None:
    """The bytes that there would be if nobody else had any; None where the system does not tell."""
    return min(_memory("MemTotal", unused=False), default=None)


def out_of_memory(error: BaseException) -> str | None:
    """What an error says of memory that has run out; None where it speaks of something else. numpy and pyarrow raise MemoryErrors; torch a
    RuntimeError, for a GPU one of a class of its own; ONNX Runtime and the system others. Their words tell, so none of them need be imported."""
    text = str(error)
    if not isinstance(error, MemoryError) and not _NO_MEMORY.search(text):
        return None
    what = "the GPU's memory ran out" if "CUDA" in text or "HIP" in text else "memory ran out"
    if (asked := _ASKED.search(text)) is None:
        return what
    amount, unit = asked.groups()
    return f"{what} ({f'{amount} {unit}' if unit not in (None, 'bytes') else f'{float(amount) / 1e9:,.1f} GB'} more were asked for)"


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


def _quotas() -> Iterator[float]:
    """The cores' worth of time that each cgroup of this process may use, where it is limited."""
    for folder in _cgroups("cpu"):
        if words := _text(folder / "cpu.max").split():  # version 2: quota and period in microseconds, or "max" and the period
            quota, period = words[0], words[1]
        else:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")  # version 1: -1 is no limit
        if quota.isdecimal() and period.isdecimal() and int(period):
            yield int(quota) / int(period)


def _memory(name: str, unused: bool) -> Iterator[int]:
    """Bytes: that line of /proc/meminfo, and the limit of each cgroup, less what its processes hold where only the unused counts."""
    facts = dict(line.split(":", 1) for line in _text(_PROC / "meminfo").splitlines() if ":" in line)
    if name in facts:
        yield int(facts[name].split()[0]) * 1024
    for folder in _cgroups("memory"):
        # Version 2 and version 1; files that were read and can be forgotten count as held, but make room when they must.
        for limit, held, forgettable in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, now = _text(folder / limit), _text(folder / held)
            if not most.isdecimal():
                continue
            if not unused or not now.isdecimal():
                yield int(most)
                continue
            statistics = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
            yield max(0, int(most) - int(now) + int(statistics.get(forgettable, 0)))


def _cgroups(controller: str) -> Iterator[Path]:
    """The folders of this process's cgroups that rule a controller, from its own up to the root: a limit of any of them holds. A container may see
    its own cgroup as the root, and yet be told the host's path; then the folders below the root are not there."""
    for line in _text(_PROC / "self" / "cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        mounts = (_CGROUPS / names, _CGROUPS / controller) if names else (_CGROUPS, _CGROUPS / "unified")
        mount = next((mount for mount in mounts if mount.is_dir()), None)
        if mount is not None:
            own = mount / path.strip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(mount))


def _text(file: Path) -> str:
    """A small file's text; empty where there is none, or none for us."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
