"""Files that are whole or not there: written beside their place, then renamed into it."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from bertfast.errors import BertfastError

_OS_ERROR = re.compile(r"\(os error \d+\)")  # how Rust writes one


@contextmanager
def replacing(path: str | Path) -> Iterator[TextIO]:
    """A UTF-8 text file to write; it takes the place of `path` once the block has ended well, and vanishes where it has not.

    Missing folders are made. What is not a plain file (a pipe, /dev/stdout) is written to as it is, and never replaced.

    Raises:
        BertfastError: naming the path that cannot be written.
    """
    path = Path(os.path.realpath(path))
    try:
        if path.exists() and not path.is_file():
            with open(path, "w", encoding="utf-8", newline="\n") as file:
                yield file
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(handle, "w", encoding="utf-8", newline="\n") as file:
                yield file
                file.flush()
                os.fsync(handle)
            give_usual_mode(beside)  # mkstemp lets nobody else read
            os.replace(beside, path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
    except BrokenPipeError:
        raise
    except OSError as error:
        raise BertfastError(f"{path}: cannot be written: {error.strerror}; give another place") from None


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON; see `replacing`."""
    with replacing(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def overwritten(output: str | Path, inputs: Iterable[str | Path]) -> Path | None:
    """Which of these inputs, files or folders, a file written to `output` would destroy: the same file by any spelling, link or hard link, or a file in a
    folder. None: no one, as where `output` is not there yet, or is no plain file."""
    place = Path(os.path.realpath(output))
    if not place.is_file():
        return None
    for given in map(Path, inputs):
        if Path(os.path.realpath(given)) in place.parents or (given.is_file() and given.samefile(place)):
            return given
    return None


def lies_in(path: str | Path, folder: str | Path) -> bool:
    """Whether `path`, by any spelling or link, is `folder` or something in it: it would be lost where the folder is replaced."""
    place = Path(os.path.realpath(path))
    return Path(os.path.realpath(folder)) in (place, *place.parents)


def named(path: str | Path) -> Path:
    """The path, spelled so that it ends in a name, from which that of a file beside it can be made: `.` and `..` do not."""
    path = Path(path)
    return path if path.name not in ("", "..") else Path(os.path.abspath(path))


def give_usual_mode(path: str | Path) -> None:
    """Let a file be read and written by whom the umask says, as if it had been opened plainly: not so of mkstemp's files and of safetensors'."""
    mask = os.umask(0)  # the only way to read it is to set it
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


def write_fault(error: BaseException) -> str | None:
    """Why the system would not write, where that is what `error` tells of; else None.

    The libraries in Rust wrap the system's own errors: safetensors in a SafetensorError, tokenizers in a plain Exception.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) if _OS_ERROR.search(str(error)) else None
