"""What a spelling is: a number, a whole number, a class's name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}")  # Python's int takes 4,300 digits
_WHOLE_FLOAT = re.compile(r"([+-]?[0-9]{1,4000})\.0*")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")

Place = Callable[[int], str]  # the code of a spelling -> the first row that has it, for messages


def class_name(spelling: str) -> str:
    """A class as it is written, save that a whole number has no decimal point."""
    match = _WHOLE_FLOAT.fullmatch(spelling)
    return match.group(1) if match else spelling


def whole_number(spelling: str) -> int | None:
    name = class_name(spelling)
    return int(name) if _INTEGER.fullmatch(name) else None


def is_number(spelling: str) -> bool:
    return _NUMBER.fullmatch(spelling) is not None


def is_integer(spelling: str) -> bool:
    """Whether a whole number is written without a decimal point."""
    return _INTEGER.fullmatch(spelling) is not None


def sorted_names(spellings: Iterable[str]) -> list[str]:
    """The classes that these labels name, each once: numbers by their value, names as Python sorts them."""
    names = {class_name(spelling) for spelling in spellings}
    return sorted(names, key=lambda name: (int(name), name)) if None not in map(whole_number, names) else sorted(names)
