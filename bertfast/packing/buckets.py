"""Micro-batches padded up to few sizes, so that what is made once for a size (a CUDA graph, say) serves many steps.

A padded batch gives the same logits, loss and gradients. Its padding tokens lie behind the last sequence and belong to none: no sequence attends to
them, and their gradients are zeros. Its filler sequences have no tokens and the label that the loss ignores.
"""

from __future__ import annotations

import dataclasses

import torch

from bertfast.packing.batch import IGNORE_LABEL, AnyBatch, Extent

# T tokens, B sequences

TOKENS, SEQLENS, SEQUENCES = 64, 128, 8  # the finest steps of T, max_seqlen and B


def bucket_of(extent: Extent) -> Extent:
    """The bucket of a micro-batch: the smallest that holds it.

    T goes up in steps of 64 tokens (tensor cores take 64 or 128 rows at once), from 4,096 on in steps of 1/32 to 1/64 of T: padding is below 64
    tokens, or from 1,088 on below 6 % and in the mean 2 %. max_seqlen goes by 128, because the attention kernels treat all lengths up to 128 alike,
    and beyond skip the blocks that a sequence does not reach. B goes by 8, from 64 on in steps of 1/4 to 1/8: a filler costs its rows of the [CLS]-only parts alone.
    """
    return Extent(rounded_up(extent.tokens, TOKENS, 32), rounded_up(extent.max_seqlen, SEQLENS), rounded_up(extent.sequences, SEQUENCES, 4))


def rounded_up(n: int, multiple: int, parts: int | None = None) -> int:
    """n >= 0 rounded up to a multiple, at least one; with `parts`, to so many steps within each doubling where these are coarser."""
    step = multiple if parts is None else max(multiple, (1 << max(n, 1).bit_length() - 1) // parts)
    return max(-(-n // step), 1) * step


def padded(batch: AnyBatch, bucket: Extent) -> AnyBatch:
    """`batch` padded up to `bucket`, on its device: padding tokens are id 0 at position 0 of segment 0, fillers have example id -1.

    Raises:
        ValueError: the batch is larger than the bucket, or is to have more sequences and they are pieces of documents, which cannot be empty.
    """
    if batch.cu_pieces is not None and bucket.sequences > batch.num_sequences:
        raise ValueError("a batch of documents in pieces cannot be padded: each document needs at least one piece")
    extent = batch.unpadded or batch.extent
    if any(mine > room for mine, room in zip(batch.extent, bucket, strict=True)):
        raise ValueError(f"a batch of {batch.extent} does not fit in a bucket of {bucket}")
    tokens, sequences = bucket.tokens - batch.num_tokens, bucket.sequences - batch.num_sequences
    changes: dict = {name: _extended(getattr(batch, name), tokens, 0) for name in ("input_ids", "token_type_ids", "position_ids")}
    changes["example_ids"] = _extended(batch.example_ids, sequences, -1)
    if batch.piece_ids is not None:
        changes["piece_ids"] = _extended(batch.piece_ids, sequences, -1)
    if batch.labels is not None:
        ignored = float("nan") if batch.labels.is_floating_point() else IGNORE_LABEL
        changes["labels"] = _extended(batch.labels, sequences, ignored)
    changes["cu_seqlens"] = torch.cat((batch.cu_seqlens, batch.cu_seqlens[-1:].expand(sequences)))
    return dataclasses.replace(batch, max_seqlen=bucket.max_seqlen, unpadded=extent, **changes)


def in_common_rows(batch: AnyBatch) -> AnyBatch:
    """`batch` with padding tokens up to a number that other batches have too: below 8 of them, or 1/16 of T, and in the mean 1/32."""
    return padded(batch, batch.extent._replace(tokens=rounded_up(batch.num_tokens, 8, 16)))


def _extended(values: torch.Tensor, count: int, value: float) -> torch.Tensor:
    return torch.cat((values, values.new_full((count, *values.shape[1:]), value)))
