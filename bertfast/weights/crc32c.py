"""CRC-32C (Castagnoli), in numpy: the checksum of TensorFlow's files (RFC 3720, section 12.1).

A CRC is linear over bits, so a long buffer is cut into lanes, all lanes take 8 bytes at a step through tables, and two neighbours are then joined
by shifting the left one past as many zeros as the right one is long. A loop over bytes would take some seconds for every ten megabytes.
"""

from __future__ import annotations

import functools

import numpy as np

_POLYNOMIAL = 0x82F63B78  # reflected
_WORD = 8  # bytes that a lane takes at a step
_SHORT = 64  # bytes; a lane is at least as long, and what is shorter goes byte by byte
_MOST_LANES = 1 << 14  # 64 KiB of registers stay in the cache
_MASK_DELTA = 0xA282EAD8


def crc32c(data: bytes | np.ndarray) -> int:
    """The CRC-32C of bytes, or of the bytes of a contiguous array: an int below 2**32."""
    given = data.reshape(-1).view(np.uint8) if isinstance(data, np.ndarray) else np.frombuffer(data, dtype=np.uint8)
    return _update(0xFFFFFFFF, given) ^ 0xFFFFFFFF


def masked_crc32c(data: bytes | np.ndarray) -> int:
    """The CRC as TensorFlow stores it: turned by 15 bits and moved on, so that the CRC of data that hold CRCs stays a good one."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def _update(register: int, data: np.ndarray) -> int:
    """The register after uint8 [n] more."""
    if len(data) < _SHORT:
        table = _tables()[0]
        for byte in data.tolist():
            register = int(table[(register ^ byte) & 0xFF]) ^ register >> 8
        return register
    lanes = min(_MOST_LANES, 1 << (len(data) // _SHORT).bit_length() - 1)
    lane_bytes = len(data) // lanes // _WORD * _WORD
    body = data[: lanes * lane_bytes].reshape(lanes, lane_bytes // _WORD, _WORD)
    registers = np.zeros(lanes, dtype=np.uint32)
    registers[0] = register
    for step in range(body.shape[1]):
        registers = _step(registers, body[:, step])
    return _update(_joined(registers, lane_bytes), data[lanes * lane_bytes :])


def _step(registers: np.ndarray, words: np.ndarray) -> np.ndarray:
    """uint32 [lanes] after uint8 [lanes, 8] more, a table for each of the 8 places."""
    tables = _tables()
    out = np.zeros_like(registers)
    for place in range(_WORD):
        byte = words[:, place]
        if place < 4:
            byte = byte ^ (registers >> np.uint32(8 * place)).astype(np.uint8)
        out ^= tables[_WORD - 1 - place][byte]
    return out


def _joined(registers: np.ndarray, lane_bytes: int) -> int:
    """The register of all lanes one after another, each lane_bytes long."""
    while len(registers) > 1:
        registers = _shifted(registers[0::2], lane_bytes) ^ registers[1::2]
        lane_bytes *= 2
    return int(registers[0])


def _shifted(registers: np.ndarray, zeros: int) -> np.ndarray:
    """Registers after as many zero bytes, a power of the linear map of one byte; the map is its 32 columns."""
    columns = _columns(zeros)
    out = np.zeros_like(registers)
    for bit in range(32):
        out ^= (registers >> np.uint32(bit) & np.uint32(1)) * columns[bit]
    return out


@functools.lru_cache(maxsize=256)
def _columns(zeros: int) -> np.ndarray:
    """The registers 1 << 0 ... 1 << 31 after as many zero bytes: uint32 [32]."""
    units = np.uint32(1) << np.arange(32, dtype=np.uint32)
    if zeros == 0:
        return units
    if zeros % 2:
        shorter = _columns(zeros - 1)
        return _tables()[0][shorter & 0xFF] ^ shorter >> np.uint32(8)
    return _shifted(_columns(zeros // 2), zeros // 2)


@functools.cache
def _tables() -> np.ndarray:
    """uint32 [8, 256]: the register of a byte, and of a byte with 1 to 7 zero bytes after it."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    tables = [table]
    for _ in range(_WORD - 1):
        tables.append(table[tables[-1] & 0xFF] ^ tables[-1] >> np.uint32(8))
    return np.stack(tables)
