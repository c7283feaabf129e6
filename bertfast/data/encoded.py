"""EncodedDataset: the token ids of a split in an Arrow file, memory-mapped, and the cache that holds such files.

Shapes: n examples in the data set, B in a batch, T tokens. Only lengths and labels, 4 bytes each an example, are held in memory; the rest
is the page cache's. A file is written under a name of its own and renamed when it is whole, so that two processes that build the same one
at the same time do not meet; one that is torn, or was made by something else, is seen when it is opened and built again.
"""

from __future__ import annotations

import json
import logging
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from bertfast.data.cache import CACHE_FORMAT, COLUMNS, FACTS, KEY
from bertfast.data.truncation import num_pieces, piece_lengths
from bertfast.errors import DataError
from bertfast.packing import IGNORE_LABEL, PackedBatch
from bertfast.readers import numbers, place
from bertfast.tasks import Task

logger = logging.getLogger(__name__)


def open_cached(path: Path, fingerprint: str, task: Task, source: str) -> EncodedDataset | None:
    """The data set in this cache file, or None where there is none that can be used."""
    if not path.is_file():
        return None
    try:
        dataset = EncodedDataset(path, task, source)
    except (OSError, ValueError, KeyError) as error:  # Arrow's errors are all of these kinds
        logger.warning("%s: torn or foreign cache file (%s); it is built again", path, error)
        return None
    if dataset.fingerprint != fingerprint:
        logger.warning("%s: the cache file is of other data; it is built again", path)
        return None
    return dataset


def _sum_of(name: str, metadata: list[pa.KeyValueMetadata | None]) -> int | None:
    if any(facts is None or name.encode() not in facts for facts in metadata):
        return None
    return sum(int(facts[name.encode()]) for facts in metadata if facts is not None)


def _labels_of(column: pa.Array) -> np.ndarray:
    if not pa.types.is_fixed_size_list(column.type):
        return numbers(column)
    return numbers(column.flatten()).reshape(len(column), column.type.list_size)


class EncodedDataset:
    """The examples of one split as token ids, memory-mapped.

    lengths: int32 [n], tokens of each example, over all its pieces. labels: [n], int32 class ids or float32 scores; of several labels a text uint8
    [n, C], 0 and 1; or None. task: with its classes known, where
    the data told. source: what file (or hub set, or function). fingerprint: of data, tokenizer and length. num_cut, num_empty: how many examples lost
    tokens to the length, and how many have a text without any; None where it is not known.
    """

    def __init__(self, path: Path, task: Task, source: str):
        """Open an Arrow file that `CacheWriter` wrote.

        Raises:
            ValueError, KeyError, OSError: where it is torn, or not such a file.
        """
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            header = json.loads(reader.schema.metadata[KEY]) if reader.schema.metadata else {}
            if header["format"] != CACHE_FORMAT or not reader.num_record_batches:
                raise ValueError(f"format {header['format']} with {reader.num_record_batches} record batches")
            if reader.schema.names[:3] != list(COLUMNS) or any(reader.schema.field(name).type != type for name, type in COLUMNS.items()):
                raise ValueError(f"its columns are {', '.join(reader.schema.names)}")
            found = [reader.get_batch_with_custom_metadata(index) for index in range(reader.num_record_batches)]
        if header.get("is_multilabel"):  # what stood between the labels is known from the rows too
            task = replace(task.of_several(), label_separator=task.label_separator or header.get("label_separator"))
        if not task.is_complete and (header["is_regression"] or header["label_names"]):
            task = task.with_labels(None if header["is_regression"] else tuple(header["label_names"]))
        self.task, self.source = task, source
        self.fingerprint: str = header["fingerprint"]
        self.max_sequence_length: int = header["max_sequence_length"]
        self.has_pieces: bool = header.get("has_pieces", False)
        self._unit: str = header["unit"]
        self._filler = np.array(header["filler"], dtype=np.int32)
        self.num_cut, self.num_empty = (_sum_of(name, [metadata for _, metadata in found]) for name in FACTS)
        self._take([batch for batch, _ in found])
        if header["rows"] not in (None, len(self)):
            raise ValueError(f"it holds {len(self)} examples of {header['rows']}")

    def _take(self, batches: list[pa.RecordBatch]) -> None:
        """Keep views of the mapped buffers, and copy the lengths and labels."""
        names = batches[0].schema.names
        self._ids = [numbers(batch.column("input_ids").values) for batch in batches]
        self._types = [numbers(batch.column("token_type_ids").values) for batch in batches]
        self._offsets = [numbers(batch.column("input_ids").offsets) for batch in batches]
        self._lines = [numbers(batch.column("line")) for batch in batches]
        self._parts = [batch.column("part") for batch in batches] if "part" in names else None
        self._starts = np.concatenate([[0], np.cumsum([len(batch) for batch in batches])])
        self.lengths = np.concatenate([np.diff(offsets) for offsets in self._offsets]).astype(np.int32)
        self.labels = np.concatenate([_labels_of(batch.column("label")) for batch in batches]) if "label" in names else None
        whole = all(
            offsets[0] == 0 and offsets[-1] == len(ids) == len(types)
            for offsets, ids, types in zip(self._offsets, self._ids, self._types, strict=True)
        )
        if not whole or self.lengths.min() < 1 or (self.lengths.max() > self.max_sequence_length and not self.has_pieces):
            raise ValueError("its offsets do not fit its tokens")
        counts = num_pieces(self.lengths, self.max_sequence_length) if self.has_pieces else None
        self._first_piece = None if counts is None else (np.cumsum(counts) - counts).astype(np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def where(self, index: int) -> str:
        """The place of an example in its source, for messages: file and line."""
        chunk = int(np.searchsorted(self._starts, index, side="right")) - 1
        row = index - int(self._starts[chunk])
        part = self._parts[chunk][row].as_py() if self._parts is not None else None
        return place(self.source, self._unit, int(self._lines[chunk][row]), part)

    def checksums(self) -> dict[str, str]:
        """A CRC-32 of the tokens of all examples in their order, and one of their labels: those of the rows, whatever file they came from."""
        crc = zlib.crc32(self.lengths.data)
        for values in (*self._ids, *self._types):
            crc = zlib.crc32(np.ascontiguousarray(values).data, crc)
        found = {"tokens": f"crc32 {crc:08x}"}
        if self.labels is not None:
            found["labels"] = f"crc32 {zlib.crc32(np.ascontiguousarray(self.labels).data):08x}"
        return found

    def batch(self, indices: np.ndarray) -> PackedBatch:
        """Pack these examples (int [B]), in this order. Index -1 is a filler: [CLS] [SEP] with a label that counts for nothing
        (IGNORE_LABEL, or NaN where labels are floats) and example id -1. Where an example is a document in pieces, each piece is a sequence.

        Raises:
            IndexError: an index that is under -1 or past the end.
        """
        indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(indices) and (indices.min() < -1 or indices.max() >= len(self)):
            raise IndexError(f"example {indices.min() if indices.min() < -1 else indices.max()} of a data set of {len(self)}")
        is_filler = indices < 0
        chunks = np.searchsorted(self._starts, indices, side="right") - 1
        rows = indices - self._starts[chunks]
        ids, types = [self._filler[:0]], [np.zeros(0, dtype=np.uint8)]
        filler_types = np.zeros(len(self._filler), dtype=np.uint8)
        for chunk, row in zip(chunks.tolist(), rows.tolist(), strict=True):
            if chunk < 0:
                ids.append(self._filler)
                types.append(filler_types)
                continue
            offsets = self._offsets[chunk]
            begin, end = offsets[row], offsets[row + 1]
            ids.append(self._ids[chunk][begin:end])
            types.append(self._types[chunk][begin:end])
        labels = None
        if self.labels is not None:
            are_classes = self.labels.dtype.kind == "i"
            filler_label, of_example = (
                (IGNORE_LABEL, is_filler) if are_classes else (np.nan, is_filler.reshape(-1, *[1] * (self.labels.ndim - 1)))
            )
            labels = np.where(of_example, filler_label, self.labels[indices]).astype(np.int32 if are_classes else np.float32)
        lengths = np.where(is_filler, len(self._filler), self.lengths[indices])
        batch = PackedBatch.from_ragged(np.concatenate(ids), np.concatenate(types), self._sequence_lengths(lengths), labels, indices)
        if self._first_piece is None:
            return batch
        counts = num_pieces(lengths, self.max_sequence_length)
        cu_pieces = np.concatenate([[0], np.cumsum(counts)])
        first = np.where(is_filler, -1, self._first_piece[indices])
        piece_ids = np.repeat(first - cu_pieces[:-1], counts) + np.arange(cu_pieces[-1])
        return batch.with_pieces(cu_pieces, piece_ids)

    @property
    def training_labels(self) -> np.ndarray:
        """The labels of examples to train on, none of which is without."""
        assert self.labels is not None
        return self.labels

    def training_lengths(self, epoch: int) -> np.ndarray:
        """Tokens of each example of an epoch, in the order in which `training_batch` numbers them: the same in each."""
        return self.lengths

    def training_batch(self, indices: np.ndarray, epoch: int) -> PackedBatch:
        """The batch of these examples in an epoch: the same in each."""
        return self.batch(indices)

    def _sequence_lengths(self, lengths: np.ndarray) -> np.ndarray:
        return piece_lengths(lengths, self.max_sequence_length) if self.has_pieces else lengths

    def check_vocabulary(self, vocab_size: int, type_vocab_size: int | None = None) -> None:
        """Check that every token id is below vocab_size, and every token type id below type_vocab_size.

        Raises:
            DataError: naming the first example that fails, its file and line, and the id.
        """
        for name, chunks, size in (("token id", self._ids, vocab_size), ("token type id", self._types, type_vocab_size)):
            for chunk, values in enumerate(chunks):
                if size is not None and len(values) and not 0 <= values.min() <= values.max() < size:
                    token = int(np.argmax((values < 0) | (values >= size)))
                    row = int(np.searchsorted(self._offsets[chunk], token, side="right")) - 1
                    raise DataError(
                        f"{self.where(int(self._starts[chunk]) + row)}: {name} {values[token]} is outside the model's {size}; "
                        "the tokenizer does not belong to this checkpoint"
                    )
