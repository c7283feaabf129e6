"""Batches made ahead of need on a thread of their own, and on a GPU copied there beside its work.

The work of a step (planning, gathering, packing, padding) is done a few steps ahead. On a GPU the batches of a step are put into one page-locked
buffer and go to the device in one copy, on a stream of their own; the stream that trains waits for that copy alone, and the host waits for nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from bertfast.packing.batch import PackedBatch
from bertfast.packing.futures import ahead

Item = TypeVar("Item")

_ALIGNMENT = 512  # bytes, as torch's allocator gives: kernels that are compiled for aligned memory find it


def prefetched(make: Callable[[Item], list[PackedBatch]], items: Iterable[Item], device: torch.device) -> Iterator[list[PackedBatch]]:
    """`make` of each item, in order, on `device`, made and copied ahead of need; raises and ends as `ahead` does."""
    if device.type == "cpu":
        yield from ahead(make, items)
        return
    stream = torch.cuda.Stream(device)
    for arriving in ahead(lambda item: Arriving.send(make(item), device, stream), items):
        yield arriving.batches()


class Arriving(NamedTuple):
    """Batches on their way to a GPU."""

    buffer: Tensor
    empty: list[PackedBatch]
    places: list[Place]
    copied: torch.cuda.Event

    @classmethod
    def send(cls, batches: list[PackedBatch], device: torch.device, stream: torch.cuda.Stream) -> Arriving:
        """Start the copy; on the thread that makes the batches."""
        places, size = layout_of(batches)
        with torch.cuda.stream(stream):  # and its device: a thread begins with the first GPU, whichever the rank's is
            pinned = write_into(torch.empty(size, dtype=torch.uint8, pin_memory=True), batches, places)
            buffer = pinned.to(device, non_blocking=True)  # the pinned memory is used again only when this copy is done
            return cls(buffer, batches, places, stream.record_event())

    def batches(self) -> list[PackedBatch]:
        """The batches on the device, for the current stream, which waits for the copy; the host does not."""
        current = torch.cuda.current_stream(self.buffer.device)
        current.wait_event(self.copied)
        self.buffer.record_stream(current)  # so that the memory is not given away while this stream may still read it
        return read_from(self.buffer, self.empty, self.places)


class Place(NamedTuple):
    """Where a tensor lies in a buffer: of which batch, under which name, from which byte on."""

    batch: int
    name: str
    start: int
    dtype: torch.dtype
    shape: torch.Size


def layout_of(batches: list[PackedBatch]) -> tuple[list[Place], int]:
    """A place for every tensor of the batches in one buffer, and the buffer's bytes."""
    places, size = [], 0
    for index, batch in enumerate(batches):
        for field in dataclasses.fields(batch):
            value = getattr(batch, field.name)
            if isinstance(value, Tensor):
                places.append(Place(index, field.name, size, value.dtype, value.shape))
                size += math.ceil(value.nbytes / _ALIGNMENT) * _ALIGNMENT
    return places, size


def write_into(buffer: Tensor, batches: list[PackedBatch], places: list[Place]) -> Tensor:
    """Copy every tensor to its place in `buffer`, uint8; returns the buffer."""
    for place in places:
        _view(buffer, place).copy_(getattr(batches[place.batch], place.name))
    return buffer


def read_from(buffer: Tensor, batches: list[PackedBatch], places: list[Place]) -> list[PackedBatch]:
    """The batches with views of `buffer` for tensors."""
    views: list[dict[str, Tensor]] = [{} for _ in batches]
    for place in places:
        views[place.batch][place.name] = _view(buffer, place)
    return [batch.with_tensors(mine) for batch, mine in zip(batches, views, strict=True)]


def _view(buffer: Tensor, place: Place) -> Tensor:
    size = math.prod(place.shape) * place.dtype.itemsize
    return buffer[place.start : place.start + size].view(place.dtype).view(place.shape)
