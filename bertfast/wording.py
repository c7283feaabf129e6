"""Words that many messages need: counts, lists, the nearest known name, and what an error says in a line."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable


def counted(number: int, what: str) -> str:
    """ "1 rank", "2 ranks" """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def listed(names: Iterable[str]) -> str:
    """The names in their order of the alphabet: "a, b, c"."""
    return ", ".join(sorted(names))


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most like this one, in capitals or not; None where none is like it."""
    lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), lower, 1, cutoff)
    return lower[near[0]] if near else None


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", cutoff: float = 0.6) -> str:
    """ "did you mean 'epochs'?", or what to say instead where no known name is like this one."""
    near = nearest(name, known, cutoff)
    return otherwise if near is None else f"did you mean {near!r}?"


def unknown_key(source: Callable[[str], str], key: str, place: str, known: Collection[str]) -> str:
    """The message for a key of a config that nobody knows. source: where the value at a dotted key came from; place: the dotted block."""
    hint = did_you_mean(key, known, f"known keys: {listed(known)}", cutoff=0.5)
    where = f"in {place}" if place else "at the top level"
    return f"{source(f'{place}.{key}' if place else key)}: unknown key {key!r} {where}; {hint}"


def reason(error: BaseException) -> str:
    """What an error of someone else's says, in its first line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
