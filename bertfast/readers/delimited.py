"""Readers of TSV and CSV: each streams `Rows`, a block of rows at a time, and names file and line of whatever is wrong.

Lines are counted from 1 and end at "\\n" (or "\\r\\n") alone: texts hold characters such as U+0085 and U+2028, at which str.splitlines
would break them. All text is UTF-8, with or without a byte order mark, save TREC's own files, which are Latin-1.

CSV is read by Python's csv module rather than pyarrow's: it tells the physical line of each row, quoted line breaks and all. The 393,000
rows of MNLI's 12 official columns, 223 MB, take 2.7 s as TSV and 6.7 s as CSV.
"""

from __future__ import annotations

import csv
import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from bertfast.errors import DataError
from bertfast.readers.lines import BLOCK_ROWS, line_blocks
from bertfast.readers.rows import Fields, Locate, Rows, some_rows

logger = logging.getLogger(__name__)


def read_tsv(path: Path, locate: Locate, short_rows: str = "error", long_rows: str = "error", quoted: str = "error") -> Iterator[Rows]:
    """A file of tab-separated fields with no quoting at all: a quote is a character like any other.

    short_rows: what becomes of a row with too few fields: "error", "skip", or "fill" (its missing fields are empty). long_rows: of one with
    more fields than the header: "error", or "keep", for files that are known to have some. quoted: of a text that is quoted as in a CSV: "error",
    or "keep", for files that everyone takes so.

    Raises:
        DataError: see `line_blocks`; a missing column; a row with too few or too many fields, quoted as in a CSV, or the header again; no row
            after the header.
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
        if long_rows == "error":
            _check_rows(fields, rows, numbers, path, "a .tsv is read without quoting: a text that holds a tab belongs in a .csv")
        if quoted == "error":
            _check_unquoted(fields, rows, numbers, path)
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
        lines, rows = [line for line, _ in block], [record for _, record in block]
        _check_rows(fields, rows, lines, path, "put quotes around a text that holds a comma")
        yield from _extracted(fields, rows, lines, path, "error")
        count += len(block)
    some_rows(count, path)


def _check_rows(fields: Fields, rows: list[list[str]], lines: Sequence[int], path: Path, hint: str) -> None:
    """Refuse a row with more fields than the first: no field of it is sure to be what the header says. Refuse the header among the rows, which
    two files that were put together hold."""
    width, header = len(fields.names), list(fields.names)
    if any(len(row) > width for row in rows):
        line, row = next((line, row) for line, row in zip(lines, rows, strict=True) if len(row) > width)
        if line == 2 and all(len(row) == width + 1 for row in rows):
            hint += ", and a column of row names needs a name in the header"
        raise DataError(f"{path}, line {line}: the row has {len(row)} fields, more than the {width} of the first row; {hint}")
    if fields.has_header and width > 1 and header in rows:
        raise DataError(f"{path}, line {lines[rows.index(header)]}: the row is the header again; remove it")


def _check_unquoted(fields: Fields, rows: list[list[str]], lines: Sequence[int], path: Path) -> None:
    """Refuse a text that a writer of CSV has quoted, as pandas does with to_csv(sep="\t"): all its quotes are doubled, save the outer ones."""
    for position in {position for positions in fields.texts for position in positions}:
        for line, row in zip(lines, rows, strict=True):
            text = row[position] if position < len(row) else ""
            if text.startswith('"') and len(text) > 1 and text.endswith('"') and _is_doubled(text[1:-1]):
                raise DataError(
                    f"{path}, line {line}: the text is quoted as in a CSV, with every quote in it doubled, and a .tsv is read without quoting; "
                    "save it as a .csv"
                )


def _is_doubled(inner: str) -> bool:
    return '""' in inner and '"' not in inner.replace('""', "")


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
