"""Lines, TSV and CSV."""

from __future__ import annotations

import csv
import gzip
import io
import logging

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast.errors import DataError
from bertfast.readers import delimited
from bertfast.readers import lines as lines_module
from bertfast.readers.delimited import read_csv, read_tsv
from bertfast.readers.lines import line_blocks
from bertfast.readers.rows import Columns, Fields

COLUMNS = Columns((("text",),), ("label",))
PAIR = Columns((("sentence1", "premise"), ("sentence2",)), ("gold_label", "label"))


def written(tmp_path, content: str | bytes, name: str = "x.tsv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def gathered(blocks) -> tuple[list[list[str]], list[str] | None, list[int]]:
    """All blocks of a reader as one: texts, labels, lines."""
    blocks = list(blocks)
    texts = [sum(columns, []) for columns in zip(*(block.texts for block in blocks), strict=True)]
    labels = None if blocks[0].labels is None else sum((block.labels for block in blocks), [])
    return texts, labels, [line for block in blocks for line in block.lines]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        pytest.param("a\nb\n", ["a", "b"], id="unix"),
        pytest.param("a\nb", ["a", "b"], id="no-line-end-at-the-end"),
        pytest.param("a\r\nb\r\n", ["a", "b"], id="windows"),
        pytest.param("\ufeffa\nb\n", ["a", "b"], id="byte-order-mark"),
        pytest.param("a\n\nb\n", ["a", "", "b"], id="blank-line"),
        pytest.param("a\x85b\u2028c\x0bd\x1ce\n", ["a\x85b\u2028c\x0bd\x1ce"], id="other-line-separators-of-unicode"),
        pytest.param("a\rb\n", ["a\rb"], id="lone-carriage-return"),
        pytest.param("a\ufeffb\n\ufeffc\n", ["a\ufeffb", "\ufeffc"], id="byte-order-mark-within"),
        pytest.param("a\0b\n", ["a\0b"], id="nul"),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 3, 1 << 20])
def test_lines(tmp_path, monkeypatch, content, lines, block_bytes):
    monkeypatch.setattr(lines_module, "BLOCK_BYTES", block_bytes)
    blocks = list(line_blocks(written(tmp_path, content)))
    assert [line for _, block in blocks for line in block] == lines
    assert [first for first, _ in blocks] == [1 + sum(len(block) for _, block in blocks[:index]) for index in range(len(blocks))]


@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_invalid_utf8_names_line_and_byte(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(lines_module, "BLOCK_BYTES", block_bytes)
    path = written(tmp_path, b"text\tlabel\ngood\t1\nna\xefve\t0\n")
    with pytest.raises(DataError, match=rf"{path}, line 3: byte 3 of the line \(0xef\) is not valid UTF-8"):
        list(read_tsv(path, COLUMNS.find))


@pytest.mark.parametrize("content", [b"", "\ufeff".encode()], ids=["no-byte", "byte-order-mark-alone"])
@pytest.mark.parametrize("read", [read_tsv, read_csv])
def test_empty_file(tmp_path, content, read):
    path = written(tmp_path, content)
    with pytest.raises(DataError, match=f"{path}: the file is empty"):
        list(read(path, COLUMNS.find))


@pytest.mark.parametrize(("read", "header"), [(read_tsv, "text\tlabel\n"), (read_csv, "text,label\n"), (read_csv, "text,label\n\n\n")])
def test_header_and_no_rows(tmp_path, read, header):
    path = written(tmp_path, header)
    with pytest.raises(DataError, match=f"{path}: the file has a header and no rows"):
        list(read(path, COLUMNS.find))


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path}: cannot be read: Is a directory"):
        list(read_tsv(tmp_path, COLUMNS.find))


def test_tsv_has_no_quoting(tmp_path):
    path = written(tmp_path, 'text\tlabel\n"open\t1\nsay ""hi""\t0\n"a"\t1\n')
    texts, labels, lines = gathered(read_tsv(path, COLUMNS.find))
    assert texts == [['"open', 'say ""hi""', '"a"']]
    assert labels == ["1", "0", "1"] and lines == [2, 3, 4]


def test_tsv_columns_are_found_by_name_in_rows_longer_than_the_header(tmp_path):
    path = written(tmp_path, "index\tgold_label\tgenre\tpremise\tsentence2\n0\tneutral\tg\tone\ttwo\textra\tmore\n")
    assert gathered(read_tsv(path, PAIR.find, long_rows="keep")) == ([["one"], ["two"]], ["neutral"], [2])


@pytest.mark.parametrize(
    ("content", "line", "hint"),
    [
        pytest.param("text\tlabel\nbad\t0\nrated\t1\tbut bad\t0\n", 3, "a text that holds a tab belongs in a .csv$", id="a-raw-tab"),
        pytest.param("text\tlabel\n1\tgood\t1\n2\tbad\t0\n", 2, "a column of row names needs a name in the header$", id="r"),
        pytest.param("text\nbad\n7\tgood\n", 3, "a text that holds a tab belongs in a .csv$", id="one-column"),
    ],
)
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_tsv_rows_longer_than_the_header(tmp_path, monkeypatch, content, line, hint, block):
    monkeypatch.setattr(lines_module, "BLOCK_BYTES", block)
    path = written(tmp_path, content)
    with pytest.raises(DataError, match=f"{path}, line {line}: the row has [234] fields, more than the [12] of the first row; .*{hint}"):
        list(read_tsv(path, Columns((("text",),), ("label",), needs_label=False).find))


@pytest.mark.parametrize("text", ["tab\tin it", 'he said "hi"', "two\nlines", "plain", '"', "a, b"])
@pytest.mark.parametrize(("separator", "read", "name"), [("\t", read_tsv, "x.tsv"), (",", read_csv, "x.csv")])
def test_what_pandas_writes_is_read_as_pandas_reads_it_or_refused(tmp_path, text, separator, read, name):
    path = tmp_path / name
    pandas.DataFrame({"text": ["first", text], "label": [0, 1]}).to_csv(path, sep=separator, index=False)
    truth = pandas.read_csv(path, sep=separator)
    assert truth["text"].tolist() == ["first", text]
    if read is read_tsv and text not in ("plain", "a, b"):
        with pytest.raises(DataError, match=f"{path}, line 3: .*belongs? in a .csv|{path}, line 3: .*save it as a .csv"):
            list(read(path, COLUMNS.find))
    else:
        assert gathered(read(path, COLUMNS.find))[:2] == ([truth["text"].tolist()], truth["label"].astype(str).tolist())


@pytest.mark.parametrize(("read", "separator"), [(read_tsv, "\t"), (read_csv, ",")])
def test_the_header_among_the_rows(tmp_path, read, separator):
    path = written(tmp_path, "text,label\na,1\ntext,label\nb,0\n".replace(",", separator), "x")
    with pytest.raises(DataError, match=f"{path}, line 3: the row is the header again; remove it"):
        list(read(path, COLUMNS.find))


def test_a_header_in_quotes(tmp_path):
    path = written(tmp_path, '"text"\t"label"\n"a"\t"0"\n')
    with pytest.raises(DataError, match="no column 'text'; .*a .tsv is read without quoting"):
        list(read_tsv(path, COLUMNS.find))


def test_a_compressed_file_by_another_name(tmp_path):
    path = written(tmp_path, gzip.compress(b"text,label\na,1\n"), "x.csv")
    with pytest.raises(DataError, match=f"{path}: the file is compressed; unpack it first"):
        list(read_csv(path, COLUMNS.find))


def test_tsv_rows_shorter_than_the_header_will_do_where_nothing_needed_is_missing(tmp_path):
    path = written(tmp_path, "sentence1\tsentence2\tlabel\tlabel1\tlabel2\na\tb\tneutral\n")
    assert gathered(read_tsv(path, PAIR.find)) == ([["a"], ["b"]], ["neutral"], [2])


def test_tsv_blank_lines_are_no_rows_but_an_empty_text_is(tmp_path):
    path = written(tmp_path, "text\tlabel\na\t0\n\n\t1\n   \t0\n\n")
    assert gathered(read_tsv(path, COLUMNS.find)) == ([["a", "", "   "]], ["0", "1", "0"], [2, 4, 5])


@pytest.mark.parametrize(("read", "name"), [(read_tsv, "x.tsv"), (read_csv, "x.csv")])
def test_a_blank_line_of_a_single_column_is_an_empty_text(tmp_path, read, name):
    path = written(tmp_path, "text\na\n\nb\n", name)
    assert gathered(read(path, Columns((("text",),), ("label",), needs_label=False).find)) == ([["a", "", "b"]], None, [2, 3, 4])


@pytest.mark.parametrize(
    ("read", "content", "line"),
    [
        pytest.param(read_tsv, "text\tlabel\na\t0\nb\nc\t1\n", 3, id="tsv"),
        pytest.param(read_csv, 'text,label\n"a\nlong\none",0\nb\nc,1\n', 5, id="csv-after-quoted-line-breaks"),
        pytest.param(read_tsv, "text\tlabel\r\na\t0\r\n\r\nb\r\n", 4, id="windows-after-a-blank-line"),
    ],
)
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_too_few_fields(tmp_path, monkeypatch, read, content, line, block):
    monkeypatch.setattr(lines_module, "BLOCK_BYTES", block)
    monkeypatch.setattr(delimited, "BLOCK_ROWS", block)
    path = written(tmp_path, content)
    with pytest.raises(DataError, match=rf"{path}, line {line}: the row has too few fields, 1 of 2; field 'label' is not there"):
        list(read(path, COLUMNS.find))


def test_short_rows_skipped_are_named_in_the_log(tmp_path, caplog):
    path = written(tmp_path, "text\tlabel\na\t0\nb\nc\t1\n")
    with caplog.at_level(logging.WARNING):
        assert gathered(read_tsv(path, COLUMNS.find, "skip")) == ([["a", "c"]], ["0", "1"], [2, 4])
    assert f"{path}, line 3: torn row with 1 of 2 fields" in caplog.text


def test_short_rows_filled(tmp_path):
    path = written(tmp_path, "id\tsentence1\tsentence2\n0\ta\n1\tb\tc\n")
    columns = Columns(PAIR.texts, PAIR.label, needs_label=False)
    assert gathered(read_tsv(path, columns.find, "fill")) == ([["a", "b"], ["", "c"]], None, [2, 3])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        pytest.param("txt\tlabel", "there is no column 'text'; the columns are 'txt', 'label'; did you mean 'txt'?", id="near"),
        pytest.param("TEXT\tlabel", "did you mean 'TEXT'?", id="other-case"),
        pytest.param("text\tclass", "there is no column 'label'; the columns are 'text', 'class'", id="label"),
        pytest.param("text,label", "not separated as the file's suffix says (.tsv by tabs, .csv by commas)", id="wrong-separator"),
        pytest.param("text\tlabel\ttext", "the column 'text' stands twice", id="twice"),
    ],
)
def test_missing_column(tmp_path, header, message):
    path = written(tmp_path, f"{header}\na\tb\tc\n")
    with pytest.raises(DataError) as caught:
        list(read_tsv(path, COLUMNS.find))
    assert str(caught.value).startswith(f"{path}, line 1: ") and message in str(caught.value)


def test_missing_column_names_every_name_that_would_do(tmp_path):
    with pytest.raises(DataError, match=r"no column 'sentence1' \(nor 'premise'\)"):
        list(read_tsv(written(tmp_path, "a\tsentence2\tlabel\nx\ty\tz\n"), PAIR.find))


def test_csv_is_quoted(tmp_path):
    path = written(tmp_path, '\ufefftext,label\n"a, b",1\n"he said ""hi""",0\n"two\nlines\r\nthree",1\n,0\n"",1\n', "x.csv")
    texts, labels, lines = gathered(read_csv(path, COLUMNS.find))
    assert texts == [["a, b", 'he said "hi"', "two\nlines\nthree", "", ""]]
    assert labels == ["1", "0", "1", "0", "1"] and lines == [2, 3, 4, 7, 8]


def test_csv_with_a_text_of_a_million_characters(tmp_path):
    text = "word " * 200_000
    assert gathered(read_csv(written(tmp_path, f'text,label\n"{text}",1\n'), COLUMNS.find))[0] == [[text]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param('text,label\na,1\n"open,0\nmore,1\n', "line 3: a quote in the row that begins here is never closed", id="open-quote"),
        pytest.param("text,label\na,1\nb, c,0\n", "line 3: the row has 3 fields, more than the 2 of the first row; put quotes", id="comma"),
        pytest.param('text,label\n"a"b,1\n', "line 2: not valid CSV", id="text-after-a-quote"),
        pytest.param("text,label\na\rb,1\n", "line 2: a lone carriage return outside quotes", id="old-mac"),
    ],
)
def test_csv_faults(tmp_path, content, message):
    path = written(tmp_path, content, "x.csv")
    with pytest.raises(DataError) as caught:
        list(read_csv(path, COLUMNS.find))
    assert f"{path}, {message}" in str(caught.value)


def test_without_a_header_and_with_joined_fields(tmp_path):
    def locate(first_row, where):
        return Fields(((1, 2),), 0, tuple(first_row), has_header=False)

    path = written(tmp_path, '"3","Title","Body, more"\n"4","Other",""\n', "x.csv")
    assert gathered(read_csv(path, locate)) == ([["Title Body, more", "Other "]], ["3", "4"], [1, 2])


# "\r" is left out: a reader of lines cannot tell a carriage return before a line break from a Windows line end.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=20)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=20))
def test_csv_round_trip_with_lines(tmp_path_factory, rows):
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(["text", "label"])
    lines = []
    for row in rows:
        lines.append(buffer.getvalue().count("\n") + 1)
        writer.writerow(row)
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    path.write_bytes(buffer.getvalue().encode())
    assert gathered(read_csv(path, COLUMNS.find)) == ([[text for text, _ in rows]], [label for _, label in rows], lines)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(TEXTS, TEXTS).map(lambda row: [text.translate({9: "", 10: ""}) for text in row]), min_size=1, max_size=20))
def test_tsv_round_trip(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("tsv") / "x.tsv"
    path.write_bytes("".join(f"{text}\t{label}\n" for text, label in [["text", "label"], *rows]).encode())
    assert gathered(read_tsv(path, COLUMNS.find)) == ([[row[0] for row in rows]], [row[1] for row in rows], list(range(2, len(rows) + 2)))
