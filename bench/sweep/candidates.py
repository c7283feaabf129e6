"""What a sweep tries: for a kernel at a size, launches by name, the first of which is the one that training takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from bertfast_kernels.primitives.lazy_triton import Launch, jitted


class Change(NamedTuple):
    """How a candidate differs from the default launch.

    arguments: of the op's launcher, as a tile. options: constexprs and options of the launch that is timed, None where one is left out. grid: what
    the launch's grid becomes.
    """

    arguments: Mapping[str, Any] = MappingProxyType({})
    options: Mapping[str, Any] = MappingProxyType({})
    grid: Callable[[Launch], tuple[int, ...]] | None = None

    def of(self, launch: Launch) -> Launch:
        options = {name: value for name, value in {**launch.options, **self.options}.items() if value is not None}
        changed = launch._replace(options=options)
        return changed if self.grid is None else changed._replace(grid=self.grid(changed))


class Recorded(NamedTuple):
    """Launches on one set of inputs. before: what must have run once. timed: what is timed. outputs: what these write."""

    before: Sequence[Launch]
    timed: Sequence[Launch]
    outputs: Sequence[Tensor]


@dataclass
class Case:
    """One kernel at one size. record(change, index): a candidate on the index-th set of inputs, of which one takes set_bytes."""

    kernel: str
    size: str
    dropout: float
    record: Callable[[Change, int], Recorded]
    set_bytes: int
    candidates: dict[str, Change] = field(default_factory=lambda: {"default": Change()})

    @property
    def name(self) -> str:
        return f"{self.kernel}, {self.size}, {self.dropout:g}"


def make(launches: Sequence[Launch]) -> list[Any]:
    """Launch them; what Triton compiled of each."""
    return [jitted(launch.kernel)[launch.grid](*launch.args, **launch.options) for launch in launches]
