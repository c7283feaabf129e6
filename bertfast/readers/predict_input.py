"""What predict reads: the task's test files, a file of the user's own, plain lines of text, or standard input."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from bertfast.config import BertfastConfig, InputConfig
from bertfast.errors import ConfigError, DataError
from bertfast.machine import world_size
from bertfast.readers.splits import RawSplit, load_split
from bertfast.tasks import Task

STANDARD_INPUT = "standard input"


def read_inputs(
    block: BertfastConfig | None, task: Task, given: str | None, single: bool, with_labels: bool = True
) -> list[tuple[str, RawSplit]]:
    """The texts to classify, as (split, rows); the split names the output file.

    block: the config's, where there is one. given: a file, a folder of the task, "-" for standard input, or None: standard input where something is piped in and there is one
    output, else the test files of eval_input (or train_input). single: there is one output, so one split alone will do.
    with_labels: False passes over labels, whatever the column holds.

    Raises:
        ConfigError: nothing to read, or two test splits for one output.
        DataError: naming the file or line that cannot be read.
    """
    if given is None and reads_standard_input(single):
        given = "-"
    if given == "-":
        return [("test", read_lines(task, _standard_input(), STANDARD_INPUT))]
    path = None if given is None else Path(given)
    if path is not None and not path.exists():
        raise DataError(f"--input {given}: there is no such file or folder")
    if path is not None and not path.is_dir():
        split = path.stem if path.stem in task.splits else "test"
        if path.suffix == ".txt" and not path.name.startswith("msr_paraphrase"):
            return [(split, read_lines(task, _bytes_of(path), str(path)))]
        source = InputConfig(data_file=str(path))
        return [(split, load_split(task, source, split if split in task.test_splits else "test", with_labels))]
    source = InputConfig(data_dir=str(path)) if path is not None else _configured(block)
    if single and len(task.test_splits) > 1:
        raise ConfigError(
            f"task {task.name} has {len(task.test_splits)} test sets ({', '.join(task.test_splits)}) and there is one output: "
            "give a folder as --output, or the file of one set as --input"
        )
    return [(split, load_split(task, source, split, with_labels)) for split in task.test_splits]


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"--input {path}: cannot be read: {error.strerror or error}") from None


def read_lines(task: Task, content: bytes, source: str) -> RawSplit:
    """Texts from UTF-8 lines: one text a line, or `text_a<TAB>text_b` for a pair; or, where the first line is a JSON object, one object a
    line with the task's columns as keys. An empty line is an empty text.

    Raises:
        DataError: naming the line that is not UTF-8, not a pair, no object, or lacks a text; or no line at all.
    """
    lines = _decode(content, source)
    if not lines:
        raise DataError(f"{source}: there is no text in it; give one text a line")
    if _is_object(lines[0]):
        rows = [_texts_of_object(task, line, f"{source}, line {number}") for number, line in enumerate(lines, 1)]
    elif task.is_pair:
        rows = [line.split("\t") for line in lines]
        for number, row in enumerate(rows, 1):
            if len(row) != 2:
                raise DataError(
                    f"{source}, line {number}: {len(row)} fields; task {task.name} takes pairs, so a line is two texts with one tab between"
                )
    else:
        rows = [[line] for line in lines]
    columns = [list(column) for column in zip(*rows, strict=True)]
    return RawSplit.from_texts(task, columns[0], columns[1] if task.is_pair else None, source=source)


def _decode(content: bytes, source: str) -> list[str]:
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1]:
        lines.pop()
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            texts.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{source}, line {number}: not valid UTF-8 at byte {error.start} of the line; convert it to UTF-8") from None
    return texts


def _is_object(line: str) -> bool:
    if not line.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _texts_of_object(task: Task, line: str, where: str) -> list[str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error}); the first line is a JSON object, so each line must be one") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON {type(row).__name__}; the first line is a JSON object, so each line must be one")
    texts = []
    for column in task.text_columns:
        names: Sequence[str] = (column, *task.layout.aliases.get(column, ()))
        name = next((name for name in names if name in row), None)
        if name is None:
            raise DataError(f"{where}: there is no key {column!r}; the keys are {', '.join(map(repr, row)) or 'none'}")
        if not isinstance(row[name], str):
            raise DataError(f"{where}: {name!r} is {json.dumps(row[name])}, where a text should be")
        texts.append(row[name])
    return texts


def _configured(block: BertfastConfig | None) -> InputConfig:
    """The folder (or the hub) of eval_input or train_input, whole."""
    for source in () if block is None else (block.eval_input, block.train_input):
        if source is not None and source.data_file is None and source.input_fn is None:
            return source
    raise ConfigError("there is nothing to predict: name a file with --input, or pipe texts into standard input")


def _standard_input() -> bytes:
    if world_size() > 1:
        raise ConfigError("--input -: standard input cannot be shared by several ranks; write the texts to a file and name it with --input")
    return sys.stdin.buffer.read()


def reads_standard_input(single: bool) -> bool:
    """Whether texts are piped in and can be read: by one rank, for one output."""
    return single and world_size() == 1 and _is_piped()


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file: not a terminal, and not /dev/null, which is what services and schedulers give."""
    try:
        return not stat.S_ISCHR(os.fstat(sys.stdin.fileno()).st_mode)
    except (OSError, ValueError, AttributeError):  # closed, or replaced by something that is no file
        return False
