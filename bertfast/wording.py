"""Words that many messages need: counts, lists, the nearest known name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection


def unknown_key(source: Callable[[str], str], key: str, place: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(key, known, 1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {listed(known)}"
    where = f"in {place}" if place else "at the top level"
    return f"{source(f'{place}.{key}' if place else key)}: unknown key {key!r} {where}; {hint}"


def listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names))


def counted(number: int, what: str) -> str:
    """ "1 rank", "2 ranks" """
    return f"{number:,} {what}{'' if number == 1 else 's'}"
