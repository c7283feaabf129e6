"""Readers of lines, TSV and CSV: each streams `Rows`, a block of rows at a time, and names file and line of whatever is wrong.

Lines are counted from 1 and end at "\\n" (or "\\r\\n") alone: texts hold characters such as U+0085 and U+2028, at which str.splitlines
would break them. All text is UTF-8, with or without a byte order mark, save TREC's own files, which are Latin-1.

CSV is read by Python's csv module rather than pyarrow's: it tells the physical line of each row, quoted line breaks and all. The 393,000
rows of MNLI's 12 official columns, 223 MB, take 2.7 s as TSV and 6.7 s as CSV.
"""

from __future__ import annotations

import csv
import difflib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bertfast.errors import DataError

logger = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 22
BLOCK_ROWS = 1 << 14


@dataclass
class Rows:
    """A block of rows. texts: one list for each text column. labels: as text, or None where the file has none. lines: the physical line on
    which each row begins, from 1 (for Parquet the row, from 0). parts: for a folder of files, the file of each row."""

    texts: list[list[str]]
    labels: list[str] | None
    lines: Sequence[int]
    parts: list[str] | None = None


@dataclass(frozen=True)
class Fields:
    """Where in a row the texts and the label stand. A text may be the join of several fields."""

    texts: tuple[tuple[int, ...], ...]
    label: int | None
    names: tuple[str, ...]  # of all fields
    has_header: bool = True

    def extract(self, rows: list[list[str]]) -> tuple[list[list[str]], list[str] | None]:
        """The texts and the labels of these rows; IndexError where a row is too short."""
        texts = []
        for positions in self.texts:
            if len(positions) == 1:
                texts.append([row[positions[0]] for row in rows])
            else:
                texts.append([" ".join([row[position] for position in positions]) for row in rows])
        return texts, None if self.label is None else [row[self.label] for row in rows]

    @property
    def last(self) -> int:
        used = [position for positions in self.texts for position in positions]
        return max(used if self.label is None else [*used, self.label])


@dataclass(frozen=True)
class Columns:
    """The columns to look for in a header: for each text and for the label, every name that will do, the usual one first."""

    texts: tuple[tuple[str, ...], ...]
    label: tuple[str, ...]
    needs_label: bool = True

    def find(self, header: Sequence[str], where: str) -> Fields:
        """Where the columns stand in this header.

        Raises:
            DataError: naming the missing column, those present, and the nearest; or a column that stands twice.
        """
        texts = tuple((self._position(names, header, where),) for names in self.texts)
        has_label = self.needs_label or any(name in header for name in self.label)
        label = self._position(self.label, header, where) if has_label else None
        return Fields(texts, label, tuple(header))

    @staticmethod
    def _position(names: tuple[str, ...], header: Sequence[str], where: str) -> int:
        for name in names:
            if list(header).count(name) > 1:
                raise DataError(f"{where}: the column {name!r} stands twice; rename one of them")
            if name in header:
                return list(header).index(name)
        raise DataError(missing_column(names, header, where))


Locate = Callable[[Sequence[str], str], Fields]  # a header and its place -> where the columns stand


def missing_column(names: Sequence[str], present: Sequence[str], where: str) -> str:
    """The message for a column that is not there."""
    others = f" (nor {' nor '.join(map(repr, dict.fromkeys(names[1:])))})" if len(names) > 1 else ""
    lower = {name.lower(): name for name in present}
    near = difflib.get_close_matches(names[0].lower(), lower, 1)
    hint = f"; did you mean {lower[near[0]]!r}?" if near else ""
    if len(present) == 1 and any(mark in present[0] for mark in ",;\t"):
        hint = "; its fields are not separated as the file's suffix says (.tsv by tabs, .csv by commas)"
    shown = ", ".join(map(repr, present)) or "nothing"
    return f"{where}: there is no column {names[0]!r}{others}; the columns are {shown}{hint}"


def line_blocks(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, list[str]]]:
    """The lines of a text file, without their ends, in blocks: the number of the block's first line (from 1) and the lines.

    Raises:
        DataError: a file that cannot be read or is empty, bytes that are not UTF-8 (naming line and byte).
    """
    first = 1
    try:
        with open(path, "rb") as stream:
            while block := stream.read(BLOCK_BYTES):
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


def read_tsv(path: Path, locate: Locate, short_rows: str = "error") -> Iterator[Rows]:
    """A file of tab-separated fields with no quoting at all: a quote is a character like any other. Rows may be longer than the header.

    short_rows: what becomes of a row with too few fields: "error", "skip", or "fill" (its missing fields are empty).

    Raises:
        DataError: see `line_blocks`; a missing column; a row with too few fields; no row after the header.
    """
    fields = None
    count = 0
    for first, lines in line_blocks(path):
        skipped = 0
        if fields is None:
            fields = locate(lines[0].split("\t"), f"{path}, line 1")
            skipped = int(fields.has_header)
        numbers: Sequence[int] = range(first + skipped, first + len(lines))
        rows = [line.split("\t") for line in lines[skipped:]]
        if len(fields.names) > 1 and [""] in rows:
            numbers = [number for number, row in zip(numbers, rows, strict=True) if row != [""]]
            rows = [row for row in rows if row != [""]]
        yield from _extracted(fields, rows, numbers, path, short_rows)
        count += len(rows)
    some_rows(count, path)


def read_csv(path: Path, locate: Locate) -> Iterator[Rows]:
    """A comma-separated file, quoted as RFC 4180 says: a field may hold line breaks, and a quote in it is written twice.

    Raises:
        DataError: as `read_tsv`; a quote that is never closed; a row longer than the header.
    """
    records = _csv_records(path)
    begins, header = next(((line, record) for line, record in records if record), (1, []))
    fields = locate(header, f"{path}, line {begins}")
    if not fields.has_header:
        records = itertools.chain([(begins, header)], records)
    width, count = len(fields.names), 0
    while block := list(itertools.islice(records, BLOCK_ROWS)):
        block = [(line, record or [""]) for line, record in block if record or width == 1]
        for line, record in block:
            if len(record) > width:
                hint = "put quotes around a text that holds a comma"
                raise DataError(f"{path}, line {line}: the row has {len(record)} fields, more than the {width} of the first row; {hint}")
        yield from _extracted(fields, [record for _, record in block], [line for line, _ in block], path, "error")
        count += len(block)
    some_rows(count, path)


def _csv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(2**31 - 1)  # the module's own limit is 128 KiB, less than a long document
    reader = csv.reader((line + "\n" for _, lines in line_blocks(path) for line in lines), strict=True)
    while True:
        begins = reader.line_num + 1
        try:
            yield begins, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}, line {begins}: {_csv_fault(error)}") from None


def _csv_fault(error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return "a quote in the row that begins here is never closed"
    if "new-line character" in str(error):
        return "a lone carriage return outside quotes; save the file with the line ends of Unix or Windows"
    return f"not valid CSV ({error}); a quote inside a quoted text is written twice"


def _extracted(fields: Fields, rows: list[list[str]], lines: Sequence[int], path: Path, short_rows: str) -> Iterator[Rows]:
    try:
        texts, labels = fields.extract(rows)
    except IndexError:
        rows, lines = _without_short_rows(fields, rows, lines, path, short_rows)
        texts, labels = fields.extract(rows)
    if rows:
        yield Rows(texts, labels, lines)


def _without_short_rows(fields: Fields, rows: list[list[str]], lines: Sequence[int], path: Path, short_rows: str) -> tuple[list, list[int]]:
    kept_rows, kept_lines = [], []
    for line, row in zip(lines, rows, strict=True):
        missing = fields.last + 1 - len(row)
        if missing > 0 and short_rows == "error":
            name = fields.names[fields.last] if fields.has_header else fields.last + 1
            raise DataError(
                f"{path}, line {line}: the row has too few fields, {len(row)} of {len(fields.names)}; field {name!r} is not there. "
                "Mend or remove the row (a .tsv is read without quoting: texts with tabs or line breaks belong in a .csv)"
            )
        if missing > 0 and short_rows == "skip":
            logger.warning("%s, line %d: torn row with %d of %d fields, left out", path, line, len(row), len(fields.names))
            continue
        kept_rows.append(row + [""] * max(missing, 0))
        kept_lines.append(line)
    return kept_rows, kept_lines


def some_rows(count: int, path: Path) -> None:
    if not count:
        raise DataError(f"{path}: the file has a header and no rows")
