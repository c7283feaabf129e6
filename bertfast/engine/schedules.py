"""Schedules of the learning rate, as factors of the highest one by optimizer step, and when each layer begins to be trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Factor = Callable[[int], float]  # optimizer step, from 0 -> factor
SLANTED_RATIO = 32  # the highest rate over the lowest, in slanted triangles (Howard and Ruder 2018, section 3.2)


def schedule(name: str, warmup_steps: int, total_steps: int) -> Factor:
    """A schedule by its name in the config.

    linear: up from 0 over warmup_steps, down to 0 at total_steps (Devlin et al. 2019). cosine: up likewise, down along half a cosine
    (Loshchilov and Hutter 2017). constant: up likewise, and then 1. slanted_triangular: up over warmup_steps from 1/32, down to 1/32 at
    total_steps, both linear (Howard and Ruder 2018, equation 3, where warmup_steps is `cut`).
    """
    fall = max(1, total_steps - warmup_steps)

    def left(step: int) -> float:
        return max(0.0, (total_steps - step) / fall)

    def slanted(step: int) -> float:
        p = step / warmup_steps if step < warmup_steps else left(step)
        return (1 + p * (SLANTED_RATIO - 1)) / SLANTED_RATIO

    if name == "slanted_triangular":
        return slanted
    after = {
        "linear": left,
        "cosine": lambda step: 0.5 * (1 - math.cos(math.pi * left(step))),
        "constant": lambda step: 1.0,
    }[name]
    return lambda step: step / warmup_steps if step < warmup_steps else after(step)


def thawing(factor: Factor, thaw_steps: Sequence[int]) -> list[Factor]:
    """The factor of each parameter group: 0 before its thaw step (gradual unfreezing; Howard and Ruder 2018, section 3.3)."""

    def thawed(thaws: int) -> Factor:
        return lambda step: factor(step) if step >= thaws else 0.0

    return [thawed(thaws) for thaws in thaw_steps]
