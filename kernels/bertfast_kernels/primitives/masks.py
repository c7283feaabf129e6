"""Dropout: where its random bits come from.

By key (the default on a GPU): Philox4x32-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3") maps a 64-bit key and a 128-bit
counter to four 32-bit numbers. The key is (seed, step) and the counter (column // 4, position, example, site), so an example meets the same mask
however it is packed. By stream (the default on a CPU): 16 bits an element from numpy's SFC64, which on two cores is some ten times as fast as
torch's bernoulli_ (0.4 ns against 7 ns an element); a mask then depends on an element's place in the batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from bertfast_kernels.primitives.profiling import marked

# T tokens, B sequences, D columns

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


class Dropout(NamedTuple):
    """How one call of an op drops. Give `key` with the ids, or `stream`.

    p: the chance of a zero. site: which dropout of the network this is, below 2**16. key: int64 [2], (seed, step), each below 2**32, on the
    device of the op. example_ids, position_ids: int [T], whose token each row is. stream: a numpy Generator for an op on the CPU.
    """

    p: float
    site: int = 0
    key: torch.Tensor | None = None
    example_ids: torch.Tensor | None = None
    position_ids: torch.Tensor | None = None
    stream: np.random.Generator | None = None

    @property
    def scale(self) -> float:
        """What a kept element is multiplied by: 1 over the chance to be kept, exact for the bits that decide it."""
        steps = 2**16 if self.key is None else 2**32
        return steps / (steps - round(self.p * steps))


def philox(key: torch.Tensor, counter: tuple[torch.Tensor | int, ...]) -> torch.Tensor:
    """Philox4x32-10: key int64 [2] and four counters (int64 tensors that broadcast, or ints), all below 2**32 -> int64 [..., 4] below 2**32."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*(_words(c, key.device) for c in counter))
    k0, k1 = key[0], key[1]
    for _ in range(10):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (product1 >> 32) & _LOW ^ c1 ^ k0, product1 & _LOW
        c2, c3 = (product0 >> 32) & _LOW ^ c3 ^ k1, product0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return torch.stack((c0, c1, c2, c3), dim=-1)


def _words(counter: torch.Tensor | int, device: torch.device) -> torch.Tensor:
    """A counter as int64. A number is filled in on the device: a copy from the host would not let itself be recorded as a CUDA graph."""
    return counter.long() if isinstance(counter, torch.Tensor) else torch.full((), counter, dtype=torch.int64, device=device)


def keyed_mask(
    dropout: Dropout, example: torch.Tensor, position: torch.Tensor, columns: int, plane: torch.Tensor | int = 0
) -> torch.Tensor:
    """The mask by key, bool [..., columns], True where an element is kept.

    example, position: int tensors that broadcast to [...], the example and position of each row. plane: int or int tensor that broadcasts to
    [...], a sheet within the site (the head, in attention); it shares the site's counter word, above its 16 bits.
    """
    assert dropout.key is not None, "a mask by key"
    block = torch.arange((columns + 3) // 4, device=example.device)
    sheet = (plane.unsqueeze(-1) if isinstance(plane, torch.Tensor) else plane) * 2**16 + dropout.site
    counter = (block, position.long().unsqueeze(-1), example.long().unsqueeze(-1) & _LOW, sheet)
    return philox(dropout.key, counter).flatten(-2)[..., :columns] >= round(dropout.p * 2**32)


def stream_mask(p: float, stream: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype = torch.bool) -> torch.Tensor:
    """The mask by stream, of `shape` on the CPU, 1 where an element is kept: the next 16 bits of the stream for each element."""
    elements = math.prod(shape)
    with marked("dropout_bits"):
        words = stream.bit_generator.random_raw((elements + 3) // 4)
    bits = torch.from_numpy(words.view(np.int16))[:elements].view(shape)
    # Compared straight into `dtype`: by way of bool it takes seven times as long.
    return torch.ge(bits, round(p * 2**16) - 2**15, out=torch.empty(shape, dtype=dtype))


def add_dropped(residual_TD: torch.Tensor, x_TD: torch.Tensor, dropout: Dropout | None) -> torch.Tensor:
    """residual + dropout(x); without dropout, their sum."""
    if dropout is None or dropout.p == 0.0:
        return residual_TD + x_TD
    return torch.addcmul(residual_TD, x_TD, row_mask(x_TD, dropout, x_TD.dtype), value=dropout.scale)


def dropped(x_TD: torch.Tensor, dropout: Dropout | None) -> torch.Tensor:
    """dropout(x)."""
    if dropout is None or dropout.p == 0.0:
        return x_TD
    return x_TD * row_mask(x_TD, dropout, x_TD.dtype).mul_(dropout.scale)


def row_mask(x_TD: torch.Tensor, dropout: Dropout, dtype: torch.dtype) -> torch.Tensor:
    """The mask of a tensor of rows: 1 where an element is kept, in `dtype`."""
    if dropout.key is None:
        assert dropout.stream is not None, "a Dropout without a key has a stream"
        return stream_mask(dropout.p, dropout.stream, tuple(x_TD.shape), dtype)
    assert dropout.example_ids is not None and dropout.position_ids is not None, "a Dropout with a key has ids"
    return keyed_mask(dropout, dropout.example_ids, dropout.position_ids, x_TD.shape[-1]).to(dtype)
