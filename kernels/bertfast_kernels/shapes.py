"""The shape of an encoder: what of it decides which kernels are launched. The ops below and `compile` above share it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bertfast_kernels.primitives.masks import Dropout


@dataclass(frozen=True)
class EncoderShape:
    """What of an encoder and its training decides which kernels it launches."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    heads: int = 12
    head_size: int = 64
    vocab: int = 30522
    dtype: torch.dtype = torch.bfloat16
    dropout: float = 0.1
    trains_without_dropout: bool = False  # in some of its ops, where `dropout` is that of the others
    max_seqlen: int = 512
    positions: int = 512
    segments: int = 2
    num_labels: int | None = 2  # classes of the cross entropy; None where there is none, as for a regression
    gelu: str = "none"
    hopper: bool = True  # registers are limited as was timed on an H100
    wgmma: bool = True  # attention's tiles are those of a GPU whose tensor cores read from shared memory
    warp_size: int = 32  # and has warps of so many threads

    def tensor(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor of that shape, of the encoder's dtype unless told, that takes no memory."""
        return torch.empty(shape, dtype=dtype or self.dtype, device="meta")

    def dropouts(self, rows: int = 64) -> list[Dropout]:
        """The dropouts of its runs: none, as in evaluation, and that of training, with int32 ids of `rows` rows."""
        ids = self.tensor(rows, dtype=torch.int32)
        training = Dropout(self.dropout, 1, self.tensor(2, dtype=torch.int64), ids, ids)
        return [Dropout(0.0), training] if self.dropout > 0 else [Dropout(0.0)]
