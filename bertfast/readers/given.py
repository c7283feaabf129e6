"""Texts that a caller holds in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bertfast.errors import DataError


def texts_and_pairs(texts: Iterable[str], text_pairs: Iterable[str] | None) -> tuple[list[str], list[str] | None]:
    """The texts of a call, and those that make them pairs, where there are some.

    Raises:
        DataError: one is no list of strings, or they are not of one length.
    """
    first, second = text_list("texts", texts), None if text_pairs is None else text_list("text_pairs", text_pairs)
    if second is not None and len(second) != len(first):
        raise DataError(f"there are {len(first)} texts and {len(second)} text_pairs; give one for each")
    return first, second


def text_list(name: str, column: Iterable[str]) -> list[str]:
    """A column of texts, be it a tuple, a pandas Series or a numpy array, as a list.

    Raises:
        DataError: it is one string, a table or a dictionary, or holds what is no string.
    """
    if isinstance(column, str | bytes):
        raise DataError(f"{name} is one string; give a list of strings")
    if isinstance(column, Mapping) or hasattr(column, "columns") or not isinstance(column, Iterable):
        raise DataError(f"{name} is of type {type(column).__name__}; give a list of strings, of a table one column")
    texts = list(column)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            is_pair = isinstance(text, list | tuple) and len(text) == 2
            hint = (
                "; give the second texts of pairs as text_pairs"
                if is_pair
                else "; an empty text is ''"
                if text is None or text != text
                else ""
            )
            raise DataError(f"{name}[{index}] is {text!r}, where a string should be{hint}")
    return texts
