"""The sets that have a format of their own: TREC, IMDb, MRPC as Microsoft gave it, and the marks of Zhang et al."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from bertfast.errors import DataError
from bertfast.readers.delimited import read_tsv
from bertfast.readers.lines import BLOCK_ROWS, decode, line_blocks
from bertfast.readers.rows import Columns, Fields, Rows
from bertfast.tasks import Task


def read_trec(path: Path) -> Iterator[Rows]:
    """TREC's own files, Latin-1: each line is `COARSE:fine question`; the label is the coarse class.

    Raises:
        DataError: see `line_blocks`; a line that does not begin with `COARSE:fine` and a blank.
    """
    for first, lines in line_blocks(path, "latin-1"):
        texts, labels, numbers = [], [], []
        for number, line in enumerate(lines, first):
            if not line.strip():
                continue
            label, blank, text = line.partition(" ")
            coarse, colon, _ = label.partition(":")
            if not colon or not blank:
                raise DataError(f"{path}, line {number}: {line[:40]!r} does not begin with a class such as 'DESC:manner' and a blank")
            texts.append(text)
            labels.append(coarse)
            numbers.append(number)
        yield Rows([texts], labels, numbers)


def review_files(folder: Path) -> list[Path]:
    """The review files of one split of aclImdb: `neg/*.txt`, then `pos/*.txt`, each by name.

    Raises:
        DataError: where one of the two folders is missing or empty.
    """
    files = []
    for name in ("neg", "pos"):
        found = sorted((folder / name).glob("*.txt"))
        if not found:
            raise DataError(f"{folder / name}: there is no such folder of .txt files; aclImdb has neg and pos in each of train and test")
        files += found
    return files


def read_reviews(folder: Path) -> Iterator[Rows]:
    """One split of the aclImdb folder: a file is a review, and the folder it lies in (neg or pos) its label."""
    files = review_files(folder)
    for begin in range(0, len(files), BLOCK_ROWS):
        block = files[begin : begin + BLOCK_ROWS]
        texts = [_whole_text(file) for file in block]
        parts = [f"{file.parent.name}/{file.name}" for file in block]
        yield Rows([texts], [file.parent.name for file in block], [1] * len(block), parts)


def _whole_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    return decode(data, path, 1, "utf-8").removeprefix("\ufeff")


def unescaped(rows: Callable[[], Iterator[Rows]], escape: str) -> Iterator[Rows]:
    for block in rows():
        block.texts = [[text.replace(escape, "\n") for text in column] for column in block.texts]
        yield block


def check_classes(task: Task, path: Path) -> None:
    names = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if len(names) != task.num_labels:
        raise DataError(f"{path}: {len(names)} classes, but task {task.name} has {task.num_labels}; is this the folder of another task?")


def read_msr(path: Path, dev_ids: Path | None, columns: Columns, split: str) -> Iterator[Rows]:
    """The raw files of MRPC. Its dev set is the pairs of dev_ids.tsv (id<TAB>id), which GLUE's download script fetches; where that is not
    at hand, every tenth row of msr_paraphrase_train.txt."""
    with_ids = Columns((*columns.texts, ("#1 ID",), ("#2 ID",)), columns.label, columns.needs_label)
    wanted = None
    if dev_ids is not None:
        pairs = read_tsv(
            dev_ids,
            lambda first_row, where: Fields(((0,), (1,)), None, tuple(first_row), has_header=False),
            long_rows="keep",
            quoted="keep",
        )
        wanted = {pair for block in pairs for pair in zip(*block.texts, strict=True)}
    count = 0
    for block in read_tsv(path, with_ids.find, long_rows="keep", quoted="keep"):
        ids = list(zip(block.texts[2], block.texts[3], strict=True))
        is_dev = [pair in wanted if wanted is not None else row % 10 == 9 for row, pair in enumerate(ids, count)]
        count += len(ids)
        kept = [row for row, dev in enumerate(is_dev) if split == "test" or dev == (split == "dev")]
        if kept:
            texts = [[column[row] for row in kept] for column in block.texts[:2]]
            labels = None if block.labels is None else [block.labels[row] for row in kept]
            yield Rows(texts, labels, [block.lines[row] for row in kept])
