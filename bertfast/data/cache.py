"""Token ids in Arrow files, written under a name of their own and put in place when whole."""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bertfast.data.tokenizing import TokenBlock
from bertfast.errors import DataError
from bertfast.readers import number_array, text_array
from bertfast.tasks import Task

CACHE_FORMAT = 2  # raise it when a reader, the tokenising or this file changes what comes out of the same input

BATCH_EXAMPLES = 1 << 13  # examples in a record batch

STALE_SECONDS = 24 * 3600  # a part-written file of this age belongs to a process that was killed

KEY = b"bertfast"

FACTS = ("cut", "empty")  # counts of a record batch's examples, in its metadata: see TokenBlock

COLUMNS = {"input_ids": pa.list_(pa.int32()), "token_type_ids": pa.list_(pa.uint8()), "line": pa.int32()}


def cache_folder(cache_dir: str | os.PathLike | None) -> Path:
    """The folder of cached data: cache_dir, else $BERTFAST_CACHE, else ~/.cache/bertfast."""
    return Path(cache_dir or os.environ.get("BERTFAST_CACHE") or Path.home() / ".cache" / "bertfast")


class CacheWriter:
    """Writes one Arrow file, block by block; as a context manager it puts the file in place at the end, or removes it after an error.

    header: JSON data that `EncodedDataset` needs (see `header_of`). label_type: see `label_type_of`; None without labels. With path None the file
    stays under its temporary name, `beside`.
    """

    def __init__(self, folder: Path, path: Path | None, header: dict[str, Any], label_type: pa.DataType | None, has_parts: bool):
        fields = list(COLUMNS.items())
        if label_type is not None:
            fields.append(("label", label_type))
        if has_parts:
            fields.append(("part", pa.large_string()))
        self._schema = pa.schema(fields, metadata={KEY: json.dumps(header)})
        self._path, self._rows = path, 0
        self._blocks: list[tuple[TokenBlock, np.ndarray | None, np.ndarray, list[str] | None]] = []
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
            values = np.concatenate(labels)
            flat = number_array(values.reshape(-1))
            columns.append(flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1]))
        if parts[0] is not None:
            columns.append(text_array([part for block in parts for part in block]))
        facts = {name: [getattr(block, name) for block in tokens] for name in FACTS}
        known = {name: str(sum(counts)) for name, counts in facts.items() if None not in counts}
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema), custom_metadata=known)

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


def label_type_of(labels: np.ndarray | None) -> pa.DataType | None:
    """How labels lie in the file: numbers of their own type [n], or a list of C for each example [n, C]."""
    if labels is None:
        return None
    kind = pa.from_numpy_dtype(labels.dtype)
    return kind if labels.ndim == 1 else pa.list_(kind, labels.shape[1])


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
        "is_multilabel": task.is_multilabel,
        "label_separator": task.label_separator,
        "max_sequence_length": max_sequence_length,
        "unit": unit,
        "filler": filler,
        "has_pieces": has_pieces,
    }
