"""What the encoder and the heads share: a linear layer, the random bits of a forward pass, and what a batch's layout tells the layers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from bertfast_kernels import Dropout, dropped, linear

# T tokens, P sequences (pieces), B examples, D columns


class RandomBits(NamedTuple):
    """Where the dropout of one forward pass comes from: a key, int64 [2] of (seed, step), or a numpy stream (see bertfast_kernels.primitives.masks)."""

    key: torch.Tensor | None = None
    stream: np.random.Generator | None = None

    @classmethod
    def of_step(cls, seed: int, step: int, device: torch.device, place: tuple[int, int] | None = None) -> RandomBits:
        """Those of an optimizer step: a key on `device`, or a stream of its own for each place (micro-step, rank)."""
        if place is not None:
            return cls(stream=np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, step, *place]))))
        key = torch.full((2,), step, dtype=torch.int64, device=device)  # filled in there: a copy from the host would wait for the GPU
        key[:1].fill_(seed)
        return cls(key=key)

    @classmethod
    def from_torch(cls, device: torch.device) -> RandomBits:
        """A stream on a CPU, a key elsewhere, seeded by torch's own generator, so that torch.manual_seed decides it."""
        if device.type != "cpu":
            return cls(key=torch.randint(2**32, (2,)).to(device))
        return cls(stream=np.random.Generator(np.random.SFC64(int(torch.randint(2**62, ())))))


class Pack(NamedTuple):
    """What the layers need to know of a batch: its layout, and whose token each row is."""

    cu_seqlens: torch.Tensor
    max_seqlen: int
    example_ids_T: torch.Tensor | None
    position_ids_T: torch.Tensor
    bits: RandomBits | None  # None: no dropout

    def dropout(self, p: float, site: int) -> Dropout | None:
        if self.bits is None or p == 0.0:
            return None
        return Dropout(p, site, self.bits.key, self.example_ids_T, self.position_ids_T, self.bits.stream)

    def rows(self, which: torch.Tensor) -> Pack:
        """The same for a tensor that holds only these rows, int64 [n]."""
        ids = None if self.example_ids_T is None else self.example_ids_T[which]
        return self._replace(example_ids_T=ids, position_ids_T=self.position_ids_T[which])

    def first_rows(self) -> torch.Tensor:
        """Each sequence's first row, int64 [P]. That of an empty sequence is some row: what comes of it counts nothing."""
        return self.cu_seqlens[:-1].long().clamp(max=len(self.position_ids_T) - 1)

    def cls_rows(self) -> Pack:
        """The same for a tensor that holds only each sequence's first row."""
        return self.rows(self.first_rows())

    def drop(self, x_XD: torch.Tensor, p: float, site: int) -> torch.Tensor:
        """dropout(x), for rows that this pack describes; x itself where there is no dropout."""
        return dropped(x_XD, self.dropout(p, site))


class Linear(nn.Linear):
    """x weight^T + bias, in the dtype of x. Nothing is in it until `initialise` or a checkpoint fills it."""

    def reset_parameters(self) -> None:
        """torch's own filling is left out: no value of it would be kept, and of BERT-base's matrices it takes 0.4 s."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)
