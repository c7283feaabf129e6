"""PackedBatch: many examples as one stream of tokens, with no padding between them.

Shapes: T tokens in the stream, B examples, S max_sequence_length of the padded form. Example b owns tokens cu_seqlens[b] : cu_seqlens[b + 1],
the layout of FlashAttention's variable-length kernels (Dao et al. 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch

from bertfast.errors import DataError

IGNORE_LABEL = -100  # an example with this label (NaN where labels are floats) counts for nothing: it fills a rank that ran out of examples


_SECOND_PASS = 2**30  # added to the ids by which dropout is keyed; no data set has as many examples


class Extent(NamedTuple):
    """How large a batch is: its tokens, its longest sequence in tokens, and its sequences."""

    tokens: int
    max_seqlen: int
    sequences: int


@dataclass
class PackedBatch:
    """One micro-batch of B examples and T tokens; every tensor is int32 (labels are float32 for regression, and for several labels a text).

    input_ids, token_type_ids, position_ids: [T]. cu_seqlens: [B + 1], from 0 to T. labels: [B], of several labels a text [B, C] of 0 and 1, or None. example_ids: [B], the row of each
    example in its data set, or -1 for a filler. max_seqlen: the longest sequence in tokens, a Python int.

    Where examples are documents in pieces, a sequence is a piece: cu_seqlens is [P + 1], cu_pieces [B + 1] says which pieces are whose, and
    piece_ids [P] are the numbers of the pieces in the data set. Otherwise a sequence is an example, and both are None.

    A padded batch (see buckets.py) knows in `unpadded` how large it was. Its cu_seqlens end before T: the tokens beyond belong to no sequence.
    """

    input_ids: torch.Tensor
    token_type_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    labels: torch.Tensor | None
    example_ids: torch.Tensor
    cu_pieces: torch.Tensor | None = None
    piece_ids: torch.Tensor | None = None
    unpadded: Extent | None = None

    @property
    def extent(self) -> Extent:
        return Extent(self.num_tokens, self.max_seqlen, self.num_sequences)

    @property
    def num_tokens(self) -> int:
        return self.input_ids.numel()

    @property
    def num_sequences(self) -> int:
        return self.cu_seqlens.numel() - 1

    @classmethod
    def from_ragged(cls, input_ids, token_type_ids, lengths, labels=None, example_ids=None) -> PackedBatch:
        """Pack examples that already lie end to end: numpy input_ids [T] and token_type_ids [T], lengths [B] in tokens."""
        lengths = np.asarray(lengths, dtype=np.int64)
        cu_seqlens = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=cu_seqlens[1:])
        position_ids = np.arange(cu_seqlens[-1], dtype=np.int32) - np.repeat(cu_seqlens[:-1], lengths)
        if example_ids is None:
            example_ids = np.arange(len(lengths))
        if labels is not None:
            labels = np.asarray(labels)
            labels = torch.from_numpy(labels.astype(np.float32 if labels.dtype.kind == "f" or labels.ndim > 1 else np.int32))
        return cls(
            input_ids=torch.from_numpy(np.ascontiguousarray(input_ids, dtype=np.int32)),
            token_type_ids=torch.from_numpy(np.ascontiguousarray(token_type_ids, dtype=np.int32)),
            position_ids=torch.from_numpy(position_ids),
            cu_seqlens=torch.from_numpy(cu_seqlens),
            max_seqlen=int(lengths.max(initial=0)),
            labels=labels,
            example_ids=torch.from_numpy(np.asarray(example_ids, dtype=np.int32)),
        )

    def with_pieces(self, cu_pieces, piece_ids) -> Self:
        """The same sequences as pieces of documents; arrays of integers [B + 1] and [P]."""
        pieces, ids = (torch.from_numpy(np.asarray(array, dtype=np.int32)) for array in (cu_pieces, piece_ids))
        return replace(self, cu_pieces=pieces, piece_ids=ids)

    @classmethod
    def from_features(cls, features: Mapping) -> PackedBatch:
        """Pack the padded features that every BERT tokenizer gives: input_ids, attention_mask and token_type_ids [B, S], labels [B] (or [B, C], floats, where an example has several).

        token_type_ids may be left out (all 0), and labels too. Tensors, arrays and nested lists are taken. The attention_mask must be 1 for
        the tokens of an example and 0 for the padding after (or before) them.

        Raises:
            DataError: naming the feature and the row that cannot be packed.
        """
        if "input_ids" not in features or "attention_mask" not in features:
            raise DataError(f"the features need input_ids and attention_mask; these were given: {', '.join(sorted(features))}")
        input_ids, mask = np.asarray(features["input_ids"]), np.asarray(features["attention_mask"])
        segments = np.asarray(features["token_type_ids"]) if features.get("token_type_ids") is not None else np.zeros_like(input_ids)
        if input_ids.ndim != 2:
            raise DataError(f"input_ids has shape {list(input_ids.shape)}; it must be [batch, max_sequence_length]")
        for name, array in (("attention_mask", mask), ("token_type_ids", segments)):
            if array.shape != input_ids.shape:
                raise DataError(f"{name} has shape {list(array.shape)} and input_ids {list(input_ids.shape)}; they must be equal")
        keep = mask.astype(bool)
        lengths = keep.sum(axis=1)
        holes = (np.diff(keep.astype(np.int8), axis=1) == 1).sum(axis=1) + keep[:, 0]
        for row in np.flatnonzero((holes > 1) | (lengths == 0)):
            fault = "no token at all" if lengths[row] == 0 else "padding between its tokens"
            raise DataError(f"attention_mask: row {row} has {fault}; the tokens of an example must stand together, [CLS] first")
        labels = features.get("labels")
        if labels is not None and (np.asarray(labels).shape[:1] != (len(input_ids),) or np.asarray(labels).ndim > 2):
            raise DataError(
                f"labels has shape {list(np.asarray(labels).shape)}; it must be [{len(input_ids)}], one label an example, or of several [{len(input_ids)}, C]"
            )
        return cls.from_ragged(input_ids[keep], segments[keep], lengths, labels)

    def to_features(self, max_sequence_length: int | None = None) -> dict[str, torch.Tensor]:
        """The padded features again, int32: padding 0 in segment 0, on the right, to max_sequence_length or the longest sequence. A row is a
        sequence; labels are the examples'."""
        width = self.max_seqlen if max_sequence_length is None else max_sequence_length
        if width < self.max_seqlen:
            raise DataError(f"max_sequence_length is {width}, but the batch holds an example of {self.max_seqlen} tokens")
        lengths = self.cu_seqlens.diff()
        mask = torch.arange(width, device=lengths.device) < lengths[:, None]
        features = {}
        for name in ("input_ids", "token_type_ids"):
            padded = torch.zeros(mask.shape, dtype=torch.int32, device=lengths.device)
            padded[mask] = getattr(self, name).to(torch.int32)
            features[name] = padded
        features["attention_mask"] = mask.to(torch.int32)
        if self.labels is not None:
            features["labels"] = self.labels
        return features

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same batch on another device."""
        return self.with_tensors({name: value.to(device, non_blocking=non_blocking) for name, value in self._tensors()})

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> Self:
        """The same batch with these tensors in the fields of their names."""
        changed: dict[str, Any] = {**tensors}  # replace() takes each for the type of its field, and not all fields are tensors
        return replace(self, **changed)

    def _tensors(self) -> list[tuple[str, torch.Tensor]]:
        pairs = ((own.name, getattr(self, own.name)) for own in fields(self))
        return [(name, value) for name, value in pairs if isinstance(value, torch.Tensor)]


AnyBatch = TypeVar("AnyBatch", bound=PackedBatch)


def doubled(batch: AnyBatch) -> AnyBatch:
    """A batch twice over, [2B] examples; dropout by key meets the second half as other examples."""
    ids = batch.example_ids if batch.piece_ids is None else batch.piece_ids
    twice = {
        name: torch.cat((value, value))
        for name in ("input_ids", "token_type_ids", "position_ids", "example_ids")
        if (value := getattr(batch, name)) is not None
    }
    twice["cu_seqlens"] = torch.cat((batch.cu_seqlens, batch.cu_seqlens[1:] + batch.num_tokens))
    twice["piece_ids"] = torch.cat((ids, ids + _SECOND_PASS))
    if batch.cu_pieces is not None:
        twice["cu_pieces"] = torch.cat((batch.cu_pieces, batch.cu_pieces[1:] + batch.num_sequences))
    if batch.labels is not None:
        twice["labels"] = torch.cat((batch.labels, batch.labels))
    return batch.with_tensors(twice)


@dataclass
class MixedBatch(PackedBatch):
    """A PackedBatch of several tasks. Labels are float32: class ids or scores, as the example's task has it.

    task_order: int64 [B], the examples sorted by task; task_counts: how many each task has there, for `split`, known without asking a GPU.
    """

    task_order: torch.Tensor = field(kw_only=True)
    task_counts: tuple[int, ...] = field(kw_only=True)

    @classmethod
    def of(cls, batch: PackedBatch, tasks_B: np.ndarray, n_tasks: int) -> MixedBatch:
        """A batch whose examples belong to these tasks, by number."""
        order, counts = np.argsort(tasks_B, kind="stable"), np.bincount(tasks_B, minlength=n_tasks)
        return cls(**vars(replace(batch)), task_order=torch.from_numpy(order), task_counts=tuple(counts.tolist()))

    @classmethod
    def of_one(cls, batch: PackedBatch, task: int, n_tasks: int) -> MixedBatch:
        """A batch of a single task."""
        n = len(batch.example_ids)
        order = torch.arange(n, device=batch.input_ids.device)
        return cls(**vars(replace(batch)), task_order=order, task_counts=tuple(n if index == task else 0 for index in range(n_tasks)))

    def by_task(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Rows [B, ...] of the examples, parted by task."""
        return rows[self.task_order].split(self.task_counts)

    def twice(self) -> MixedBatch:
        """The batch twice over; within each task the second half is the first one again."""
        halves = [torch.cat((part, part + len(self.task_order))) for part in self.task_order.split(self.task_counts)]
        return replace(doubled(self), task_order=torch.cat(halves), task_counts=tuple(2 * count for count in self.task_counts))
