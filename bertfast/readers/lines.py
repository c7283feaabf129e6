"""The lines of a text file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bertfast.errors import DataError

BLOCK_BYTES = 1 << 22

BLOCK_ROWS = 1 << 14

_GZIP = b"\x1f\x8b"


def line_blocks(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, list[str]]]:
    """The lines of a text file, without their ends, in blocks: the number of the block's first line (from 1) and the lines.

    Raises:
        DataError: a file that cannot be read or is empty or compressed, bytes that are not UTF-8 (naming line and byte).
    """
    first = 1
    try:
        with open(path, "rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                if first == 1 and block.startswith(_GZIP):
                    raise DataError(f"{path}: the file is compressed; unpack it first, with gunzip")
                block += stream.readline()
                text = decode(block, path, first, encoding)
                if first == 1:
                    text = text.removeprefix("\ufeff")
                lines = text.split("\n")
                if not lines[-1]:
                    lines.pop()
                if "\r" in text:
                    lines = [line.removesuffix("\r") for line in lines]
                if lines:
                    yield first, lines
                first += len(lines)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if first == 1:
        raise DataError(f"{path}: the file is empty")


def decode(block: bytes, path: Path, first: int, encoding: str) -> str:
    try:
        return block.decode(encoding)
    except UnicodeDecodeError as error:
        line = first + block.count(b"\n", 0, error.start)
        byte = error.start - (block.rfind(b"\n", 0, error.start) + 1) + 1
        raise DataError(
            f"{path}, line {line}: byte {byte} of the line (0x{block[error.start]:02x}) is not valid UTF-8; "
            "save the file as UTF-8, for example with iconv"
        ) from None
