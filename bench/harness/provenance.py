"""Where a number comes from: the device and what it ran at, versions, commit and command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import ROOT

_INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
_NVIDIA_SMI = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "temperature.gpu")


def provenance(module: str, packages: Sequence[str]) -> dict[str, Any]:
    """Where numbers come from: device, its instructions for 16 and 8 bits, clocks, versions, commit and command. A package that is not installed has no version."""
    return {
        "device": _device(),
        "instructions": _instructions(),
        "clocks": clocks(),
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in packages}},
        "commit": _commit(),
        "command": shlex.join(["python", "-m", module, *(Path(word).name for word in sys.argv[1:])]),  # folders by name alone
    }


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device() -> str:
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        return f"{gpu.name}, {gpu.multi_processor_count} multiprocessors, {gpu.total_memory / 2**30:.0f} GiB"
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = names[0] if names else model
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def _instructions() -> list[str]:
    """Of those that decide how fast 16 and 8 bits are on a CPU, the ones that this one has."""
    if not Path("/proc/cpuinfo").is_file():
        return []
    there = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0]))
    return [name for name in _INSTRUCTIONS if name in there]


def _commit() -> str:
    """The commit of the code; BERTFAST_COMMIT where a copy without its .git runs."""
    if named := os.environ.get("BERTFAST_COMMIT"):
        return named
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:  # no git here
        return "unknown"
    return f"{commit}-dirty" if changed else commit or "unknown"


def clocks() -> dict[str, Any]:
    """What the device runs at: of a GPU as in `gpu_state`; of a CPU the mean MHz of its cores, and what else ran here in the last minute."""
    if torch.cuda.is_available():
        return gpu_state()
    found: dict[str, Any] = {"load": round(os.getloadavg()[0], 2)}
    if Path("/proc/cpuinfo").is_file():
        rates = re.findall(r"^cpu MHz\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        found |= {"mhz": round(float(np.mean([float(rate) for rate in rates])))} if rates else {}
    return found


def gpu_state() -> dict[str, str]:
    """Clocks, power and temperature of the GPU, as nvidia-smi tells them; empty without it."""
    try:
        query = ["nvidia-smi", f"--query-gpu={','.join(_NVIDIA_SMI)}", "--format=csv,noheader", "--id=0"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return {}
    return dict(zip(_NVIDIA_SMI, done.stdout.strip().split(", "), strict=False)) if done.returncode == 0 else {}
