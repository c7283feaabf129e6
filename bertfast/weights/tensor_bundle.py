"""TensorFlow's tensor bundle, read and written without TensorFlow: `PREFIX.index` and `PREFIX.data-00000-of-00001`.

The index is an SSTable of LevelDB's kind (tensorflow/core/lib/io/table_format.txt): blocks of sorted keys that share prefixes, a block that says
where each lies, and a footer. Its key is a tensor's name, its value a BundleEntryProto (tensorflow/core/protobuf/tensor_bundle.proto); the key ""
holds the header. The data files hold the tensors' bytes, one after another. Blocks and tensors carry masked CRC-32Cs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertfast.errors import CheckpointError

_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_FOOTER_BYTES = 48
_BLOCK_TRAILER = 5  # a byte for the compression, four for the CRC
_BLOCK_BYTES = 1 << 18  # as TensorFlow's
_RESTART_EVERY = 16  # keys between two that are written whole
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?", 19: "<f2"}
_BFLOAT16 = 14


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: its place in one of the data files, in bytes."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    is_sliced: bool


class TensorBundle:
    """The tensors of a checkpoint by name, read one at a time. `names` are in the order of the index.

    prefix: the path without `.index`.

    Raises:
        CheckpointError: the index is missing, torn, or not of a tensor bundle.
    """

    def __init__(self, prefix: str | Path):
        self.prefix = Path(prefix)
        index = Path(f"{prefix}.index")
        try:
            table = dict(_read_table(index.read_bytes(), index))
        except OSError as error:
            raise CheckpointError(f"{index}: cannot be read: {error.strerror}") from None
        except (IndexError, struct.error, ValueError) as error:
            raise CheckpointError(f"{index}: is torn, or no index of a TensorFlow checkpoint ({error})") from None
        if b"" not in table:
            raise CheckpointError(f"{index}: has no header; it is no index of a TensorFlow checkpoint")
        header = _fields(table.pop(b""))
        self._shards = int(header.get(1, [0])[-1])
        if header.get(2, [0])[-1]:
            raise CheckpointError(f"{index}: its tensors are big-endian, which bertfast does not read")
        self._entries = {name.decode(): _entry(value) for name, value in table.items()}

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def tensor(self, name: str) -> np.ndarray:
        """The tensor's values; bfloat16 as float32.

        Raises:
            CheckpointError: its bytes are missing or have changed, or it is of a kind that no weight is (a string, a partitioned variable).
        """
        entry, file = self._entries[name], self._data_file(self._entries[name].shard)
        if entry.is_sliced or entry.dtype not in (*_DTYPES, _BFLOAT16):
            kind = "a partitioned variable" if entry.is_sliced else f"of TensorFlow's dtype {entry.dtype}"
            raise CheckpointError(f"{self.prefix}.index: {name} is {kind}, which bertfast does not read")
        try:
            raw = np.fromfile(file, dtype=np.uint8, count=entry.size, offset=entry.offset)
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
        dtype = np.dtype("<u2" if entry.dtype == _BFLOAT16 else _DTYPES[entry.dtype])
        if len(raw) != entry.size or entry.size != dtype.itemsize * int(np.prod(entry.shape, dtype=np.int64)):
            raise CheckpointError(f"{file}: holds {len(raw)} of the {entry.size} bytes of {name}; it is cut short")
        if _masked_crc32c(raw) != entry.crc:
            raise CheckpointError(f"{file}: the bytes of {name} have changed since they were written (their CRC-32C differs)")
        values = raw.view(dtype).reshape(entry.shape)
        return (values.astype(np.uint32) << 16).view(np.float32) if entry.dtype == _BFLOAT16 else values

    def _data_file(self, shard: int) -> Path:
        return Path(f"{self.prefix}.data-{shard:05d}-of-{self._shards:05d}")


def write_bundle(prefix: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors as a bundle of one data file, as TensorFlow's tf.train.Saver does: sorted by name, with no gaps."""
    codes = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}
    entries = [(b"", _field(1, 1) + _field(3, _field(1, 1)))]  # one shard, little-endian, version 1
    offset = 0
    with open(f"{prefix}.data-00000-of-00001", "wb") as file:
        for name in sorted(tensors, key=str.encode):
            values = np.ascontiguousarray(tensors[name])
            shape = b"".join(_field(2, _field(1, size)) for size in tensors[name].shape)
            body = _field(1, codes[values.dtype]) + _field(2, shape) + _field(4, offset) + _field(5, values.nbytes)
            entries.append((name.encode(), body + bytes([6 << 3 | _FIXED32]) + struct.pack("<I", _masked_crc32c(values))))
            values.tofile(file)
            offset += values.nbytes
    Path(f"{prefix}.index").write_bytes(_table(entries))


# ---------------------------------------------------------------------------------------------------------------------- the table


def _masked_crc32c(data: bytes | np.ndarray) -> int:
    """The CRC-32C (Castagnoli) of bytes, or of an array's, turned and shifted as TensorFlow keeps it (tensorflow/core/lib/hash/crc32c.h)."""
    import google_crc32c

    crc = google_crc32c.value(data if isinstance(data, bytes) else data.tobytes())
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _read_table(data: bytes, file: Path) -> Iterator[tuple[bytes, bytes]]:
    """Every key and value of an SSTable, in order."""
    if len(data) < _FOOTER_BYTES or data[-8:] != _MAGIC:
        raise CheckpointError(f"{file}: is torn, or no index of a TensorFlow checkpoint (its last bytes are not such a file's)")
    _, place = _handle(data, len(data) - _FOOTER_BYTES)  # of the metaindex, which is empty
    index, _ = _handle(data, place)
    for _, value in _read_block(data, index, file):
        yield from _read_block(data, _handle(value, 0)[0], file)


def _handle(data: bytes, place: int) -> tuple[tuple[int, int], int]:
    """A block's (offset, size), and the place after it."""
    offset, place = _varint(data, place)
    size, place = _varint(data, place)
    return (offset, size), place


def _read_block(data: bytes, handle: tuple[int, int], file: Path) -> Iterator[tuple[bytes, bytes]]:
    offset, size = handle
    block, kind = data[offset : offset + size], data[offset + size]
    (crc,) = struct.unpack_from("<I", data, offset + size + 1)
    if _masked_crc32c(data[offset : offset + size + 1]) != crc:
        raise CheckpointError(f"{file}: has changed since it was written (the CRC-32C of a block differs)")
    if kind:
        raise CheckpointError(
            f"{file}: its blocks are compressed (kind {kind}), as TensorFlow's checkpoints are not; bertfast does not read it"
        )
    (restarts,) = struct.unpack_from("<I", block, size - 4)
    place, end, key = 0, size - 4 - 4 * restarts, b""
    while place < end:
        shared, place = _varint(block, place)
        unshared, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + unshared]
        place += unshared
        yield key, block[place : place + length]
        place += length


def _table(entries: list[tuple[bytes, bytes]]) -> bytes:
    """An SSTable of sorted keys and values."""
    out, handles, waiting, size = bytearray(), [], [], 0
    for key, value in entries:
        waiting.append((key, value))
        size += len(key) + len(value)
        if size >= _BLOCK_BYTES:
            handles.append((key, _append_block(out, waiting)))
            waiting, size = [], 0
    if waiting:
        handles.append((waiting[-1][0], _append_block(out, waiting)))
    metaindex = _append_block(out, [])
    index = _append_block(out, handles)
    return bytes(out) + (metaindex + index).ljust(_FOOTER_BYTES - 8, b"\0") + _MAGIC


def _append_block(out: bytearray, entries: list[tuple[bytes, bytes]]) -> bytes:
    """Add a block to `out`; returns its handle."""
    block, restarts, before = bytearray(), [], b""
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % _RESTART_EVERY == 0:
            restarts.append(len(block))
        else:
            longest = min(len(key), len(before))
            shared = next((place for place in range(longest) if key[place] != before[place]), longest)
        block += _encoded(shared) + _encoded(len(key) - shared) + _encoded(len(value)) + key[shared:] + value
        before = key
    block += struct.pack(f"<{len(restarts or [0])}I", *(restarts or [0])) + struct.pack("<I", len(restarts or [0]))
    handle = _encoded(len(out)) + _encoded(len(block))
    out += block + b"\0" + struct.pack("<I", _masked_crc32c(bytes(block) + b"\0"))
    return handle


# ------------------------------------------------------------------------------------------------------------------ its messages


def _entry(message: bytes) -> Entry:
    fields = _fields(message)
    dims = [_fields(dim).get(1, [0])[-1] for dim in _fields(fields.get(2, [b""])[-1]).get(2, [])]
    number = {field: int(fields.get(field, [0])[-1]) for field in (1, 3, 4, 5, 6)}
    return Entry(number[1], tuple(dims), number[3], number[4], number[5], number[6], 7 in fields)


def _fields(message: bytes) -> dict[int, list]:
    """The fields of a protocol buffer: their values, ints or bytes, by number."""
    fields: dict[int, list] = {}
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        value: int | bytes
        if kind == _VARINT:
            value, place = _varint(message, place)
        elif kind == _BYTES:
            size, place = _varint(message, place)
            value, place = message[place : place + size], place + size
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
            value, place = int.from_bytes(message[place : place + size], "little"), place + size
        else:
            raise ValueError(f"a field of wire type {kind}")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _field(number: int, value: int | bytes) -> bytes:
    """A varint field, or one of bytes; a varint of 0 is left out, as protocol buffers do."""
    if isinstance(value, bytes):
        return _encoded(number << 3 | _BYTES) + _encoded(len(value)) + value
    return _encoded(number << 3 | _VARINT) + _encoded(value) if value else b""


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
