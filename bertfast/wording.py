"""Words that many messages need: counts, lists, the nearest known name, and what an error says in a line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_NEAR = 0.75  # of difflib's ratio: a slip in a word of four letters has 0.75; precision and pearson, which are two words, have 0.71


def counted(number: int, what: str) -> str:
    """ "1 rank", "2 ranks" """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def listed(names: Iterable[str]) -> str:
    """The names in their order of the alphabet: "a, b, c"."""
    return ", ".join(sorted(names))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name of which this one is a misspelling, in capitals or not; None where none is that near."""
    lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), lower, 1, _NEAR)
    return lower[near[0]] if near else None


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """ "did you mean 'epochs'?", or what to say instead where no known name is near this one."""
    near = nearest(name, known)
    return otherwise if near is None else f"did you mean {near!r}?"


def reason(error: BaseException) -> str:
    """What an error of someone else's says, in its first line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
