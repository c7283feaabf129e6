"""Marks for torch's profiler, which sees torch's own operators and the kernels of a GPU, but no call of ctypes and nothing of numpy."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.profiler import record_function

_UNSEEN: AbstractContextManager[Any] = nullcontext()


def marked(name: str) -> AbstractContextManager[Any]:
    """Around work on a CPU: where a profiler is at work, it sees an operator `bertfast::name`."""
    return record_function(f"bertfast::{name}") if torch.autograd._profiler_enabled() else _UNSEEN
