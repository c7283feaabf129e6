"""What a device does at best: how fast it copies, and how fast it multiplies matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from bench.harness.replays import prepare, time_in_turn


class Roofline(NamedTuple):
    """What the device was measured to do at best."""

    bytes_per_second: float
    flops_per_second: float

    def seconds(self, bytes_moved: int, flops: int) -> tuple[float, str]:
        """The least time for so much work, and what sets it."""
        return max((bytes_moved / self.bytes_per_second, "bytes"), (flops / self.flops_per_second, "flops"))


def measure_roofline(device: torch.device, rounds: int) -> Roofline:
    """Copy bandwidth (bytes read and written; 1 GiB at a time) and the rate of a bfloat16 matrix product (8192 x 8192 x 8192, random numbers)."""
    on_gpu = device.type == "cuda"
    elements, size = (2**29, 8192) if on_gpu else (2**20, 128)
    source, target = (torch.empty(elements, dtype=torch.bfloat16, device=device) for _ in range(2))
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    product = torch.empty_like(a)
    replays = {
        "copy": prepare(lambda: [lambda: target.copy_(source)] * 3),
        "product": prepare(lambda: [lambda: torch.mm(a, b, out=product)] * 3),
    }
    seconds = {name: float(np.median(taken)) for name, taken in time_in_turn(replays, rounds).items()}
    return Roofline(4 * elements / seconds["copy"], 2 * size**3 / seconds["product"])


def machine_rates(device: torch.device, precisions: Sequence[str], rounds: int = 5) -> dict[str, float]:
    """Operations a second of a large matrix product, by precision ("fp32", "bf16", "fp16"); NaN where the device has none."""
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    size, rates = 8192 if device.type == "cuda" else 1024, {}
    for name in precisions:
        if name == "fp16" and device.type == "cpu":
            rates[name] = float("nan")
            continue
        a, b = (torch.randn(size, size, device=device).to(dtypes[name]) for _ in range(2))
        product = torch.empty_like(a)
        replay = prepare(lambda a=a, b=b, product=product: [lambda: torch.mm(a, b, out=product)] * 3)
        rates[name] = 2 * size**3 / float(np.median(time_in_turn({name: replay}, rounds)[name]))
    return rates
