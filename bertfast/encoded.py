"""EncodedDataset: the token ids of a split in an Arrow file, memory-mapped, and the cache that holds such files.

Shapes: n examples in the data set, B in a batch, T tokens. Only lengths and labels, 4 bytes each an example, are held in memory; the rest
is the page cache's. A file is written under a name of its own and renamed when it is whole, so that two processes that build the same one
at the same time do not meet; one that is torn, or was made by something else, is seen when it is opened and built again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bertfast.arrow import number_array, numbers, text_array
from bertfast.errors import DataError
from bertfast.packing import IGNORE_LABEL, PackedBatch
from bertfast.sources import place
from bertfast.tasks import Task
from bertfast.tokenizing import TokenBlock
from bertfast.truncation import num_pieces, piece_lengths

logger = logging.getLogger(__name__)

CACHE_FORMAT = 1  # raise it when a reader, the tokenising or this file changes what comes out of the same input
BATCH_EXAMPLES = 1 << 13  # examples in a record batch
STALE_SECONDS = 24 * 3600  # a part-written file of this age belongs to a process that was killed
_KEY = b"bertfast"
_COLUMNS = {"input_ids": pa.list_(pa.int32()), "token_type_ids": pa.list_(pa.uint8()), "line": pa.int32()}


def cache_folder(cache_dir: str | os.PathLike | None) -> Path:
    """The folder of cached data: cache_dir, else $BERTFAST_CACHE, else ~/.cache/bertfast."""
    return Path(cache_dir or os.environ.get("BERTFAST_CACHE") or Path.home() / ".cache" / "bertfast")


class CacheWriter:
    """Writes one Arrow file, block by block; as a context manager it puts the file in place at the end, or removes it after an error.

    header: JSON data that `EncodedDataset` needs (see `header_of`). label_type: np.int32, np.float32, or None. With path None the file
    stays under its temporary name, `beside`.
    """

    def __init__(self, folder: Path, path: Path | None, header: dict[str, Any], label_type: type | None, has_parts: bool):
        fields = list(_COLUMNS.items())
        if label_type is not None:
            fields.append(("label", pa.from_numpy_dtype(label_type)))
        if has_parts:
            fields.append(("part", pa.large_string()))
        self._schema = pa.schema(fields, metadata={_KEY: json.dumps(header)})
        self._path, self._blocks, self._rows = path, [], 0
        self.beside = folder / f"building-{uuid.uuid4().hex}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_stale(folder)
            self._sink = pa.OSFile(str(self.beside), "wb")
        except OSError as error:
            hint = "set cache_dir or $BERTFAST_CACHE to a folder that can be written"
            raise DataError(f"cache folder {folder}: cannot be written ({error}); {hint}") from error
        self._writer = pa.ipc.new_file(self._sink, self._schema)

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, kind, error, trace) -> None:
        settled = False
        try:
            if kind is None:
                self._flush()
                self._writer.close()
                self._sink.close()
                self._settle()
                settled = True
            elif issubclass(kind, OSError):
                raise error
        except OSError as fault:
            hint = "make room, or set cache_dir or $BERTFAST_CACHE to another disk"
            raise DataError(f"cache file {self.beside}: cannot be written ({fault}); {hint}") from fault
        finally:
            if not settled:
                self.beside.unlink(missing_ok=True)
                self._sink.close()

    def write(self, tokens: TokenBlock, labels: np.ndarray | None, lines: np.ndarray, parts: list[str] | None = None) -> None:
        """Add a block of examples."""
        self._blocks.append((tokens, labels, lines, parts))
        self._rows += len(tokens.lengths)
        if self._rows >= BATCH_EXAMPLES:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        tokens, labels, lines, parts = zip(*self._blocks, strict=True)
        self._blocks, self._rows = [], 0
        offsets = number_array(np.concatenate([[0], np.cumsum(np.concatenate([block.lengths for block in tokens]))]).astype(np.int32))
        columns = [
            pa.ListArray.from_arrays(offsets, number_array(np.concatenate([block.input_ids for block in tokens]))),
            pa.ListArray.from_arrays(offsets, number_array(np.concatenate([block.token_type_ids for block in tokens]))),
            number_array(np.concatenate(lines)),
        ]
        if labels[0] is not None:
            columns.append(number_array(np.concatenate(labels)))
        if parts[0] is not None:
            columns.append(text_array([part for block in parts for part in block]))
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))

    def _settle(self) -> None:
        with open(self.beside, "rb") as file:
            os.fsync(file.fileno())  # without it, a crash of the machine could leave the name on a file of zeros
        if self._path is not None:
            os.replace(self.beside, self._path)


def _remove_stale(folder: Path) -> None:
    for path in folder.glob("building-*.tmp"):
        with contextlib.suppress(OSError):  # another process was faster, or it is another user's
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


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


class EncodedDataset:
    """The examples of one split as token ids, memory-mapped.

    lengths: int32 [n], tokens of each example, over all its pieces. labels: [n], int32 class ids or float32 scores, or None. task: with its classes known, where
    the data told. source: what file (or hub set, or function). fingerprint: of data, tokenizer and length.
    """

    def __init__(self, path: Path, task: Task, source: str):
        """Open an Arrow file that `CacheWriter` wrote.

        Raises:
            ValueError, KeyError, OSError: where it is torn, or not such a file.
        """
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            header = json.loads(reader.schema.metadata[_KEY]) if reader.schema.metadata else {}
            if header["format"] != CACHE_FORMAT or not reader.num_record_batches:
                raise ValueError(f"format {header['format']} with {reader.num_record_batches} record batches")
            if reader.schema.names[:3] != list(_COLUMNS) or any(reader.schema.field(name).type != type for name, type in _COLUMNS.items()):
                raise ValueError(f"its columns are {', '.join(reader.schema.names)}")
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        if not task.is_complete and (header["is_regression"] or header["label_names"]):
            task = task.with_labels(None if header["is_regression"] else tuple(header["label_names"]))
        self.task, self.source = task, source
        self.fingerprint: str = header["fingerprint"]
        self.max_sequence_length: int = header["max_sequence_length"]
        self.has_pieces: bool = header.get("has_pieces", False)
        self._unit: str = header["unit"]
        self._filler = np.array(header["filler"], dtype=np.int32)
        self._take(batches)
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
        self.labels = np.concatenate([numbers(batch.column("label")) for batch in batches]) if "label" in names else None
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

    def batch(self, indices: np.ndarray) -> PackedBatch:
        """Pack these examples (int [B]), in this order. Index -1 is a filler: [CLS] [SEP] with a label that counts for nothing
        (IGNORE_LABEL, or NaN for regression) and example id -1. Where an example is a document in pieces, each piece is a sequence.

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
            filler_label = np.nan if self.labels.dtype.kind == "f" else IGNORE_LABEL
            labels = np.where(is_filler, filler_label, self.labels[indices]).astype(self.labels.dtype)
        lengths = np.where(is_filler, len(self._filler), self.lengths[indices])
        batch = PackedBatch.from_ragged(np.concatenate(ids), np.concatenate(types), self._sequence_lengths(lengths), labels, indices)
        if not self.has_pieces:
            return batch
        counts = num_pieces(lengths, self.max_sequence_length)
        cu_pieces = np.concatenate([[0], np.cumsum(counts)])
        first = np.where(is_filler, -1, self._first_piece[indices])
        piece_ids = np.repeat(first - cu_pieces[:-1], counts) + np.arange(cu_pieces[-1])
        return batch.with_pieces(cu_pieces, piece_ids)

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


def header_of(
    task: Task,
    fingerprint: str,
    max_sequence_length: int,
    unit: str,
    filler: tuple[int, int],
    rows: int | None = None,
    has_pieces: bool = False,
) -> dict:
    """The JSON header of a cache file. rows: None where they are not counted before they are written. has_pieces: an example is a document
    in pieces of max_sequence_length tokens, the last of what remains."""
    return {
        "format": CACHE_FORMAT,
        "fingerprint": fingerprint,
        "rows": rows,
        "task": task.name,
        "label_names": task.label_names,
        "is_regression": task.is_regression,
        "max_sequence_length": max_sequence_length,
        "unit": unit,
        "filler": filler,
        "has_pieces": has_pieces,
    }
