"""CUDA graphs as torch records them: what a function launches is recorded once, and launched anew as a whole, by one call of the driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Outputs = TypeVar("Outputs", bound=tuple[Tensor | None, ...])


class Capture(Protocol):
    """What cuda_graphs.py needs of a recorder. Functions are recorded on static tensors; a replay reads and writes the same memory."""

    def warm_up(self, run: Callable[[], object]) -> None:
        """Call `run` in the place where it will be recorded, so that nothing is loaded or compiled while recording."""

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """(what replays `run`, the outputs that every replay writes again)."""

    def unowned(self, tensor: Tensor) -> Tensor:
        """The same memory, which recordings that follow may use for themselves: to be read after a replay and before the next, of any recording."""


class CudaCapture:
    """Records CUDA graphs, which share one pool of memory: the most that one of them needs, not their sum."""

    def __init__(self, device: torch.device):
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, run: Callable[[], object]) -> None:
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            run()
        current.wait_stream(self._stream)

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        graph = torch.cuda.CUDAGraph()
        # "thread_local": the thread that makes batches ahead may go on pinning memory and copying meanwhile, which the default mode forbids.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            outputs = run()
        return graph.replay, outputs

    def unowned(self, tensor: Tensor) -> Tensor:
        """A view of the address alone: once `tensor` itself is dropped, the pool may hand its memory to the next recording."""
        return torch.as_tensor(_Address(tensor), device=tensor.device).view(tensor.dtype)


class _Address:
    """The CUDA array interface (version 3) of a tensor that this object does not keep alive; elements as integers, as numpy knows no bfloat16."""

    def __init__(self, tensor: Tensor):
        self.__cuda_array_interface__ = {
            "shape": tuple(tensor.shape),
            "strides": tuple(stride * tensor.element_size() for stride in tensor.stride()),
            "typestr": f"<i{tensor.element_size()}",
            "data": (tensor.data_ptr(), False),
            "version": 3,
        }
