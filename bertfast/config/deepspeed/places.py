"""Dotted places of a config as it was read, and the messages for what stands there."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

from bertfast.config.unknown import unknown_key
from bertfast.errors import ConfigError
from bertfast.wording import listed

Source = Callable[[str], str]  # a dotted place -> where the value there came from: the file, or a flag


def keys(names: str) -> frozenset[str]:
    """The names of a text, one from the other by white space."""
    return frozenset(names.split())


def at(raw: dict[str, Any], place: str) -> Any:
    """The value at a dotted place, or None where there is none."""
    node: Any = raw
    for part in place.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def shown(value: Any) -> str:
    """A value as one would write it in a config."""
    return json.dumps(value, default=str)


def check_keys(source: Source, raw: dict[str, Any], place: str, known: Collection[str]) -> None:
    """Check that a block, where there is one, has no key but the known ones.

    Raises:
        ConfigError: naming the key, or the value that stands where a block should.
    """
    node = at(raw, place)
    if node is None:
        return
    if not isinstance(node, dict):
        raise ConfigError(f"{source(place)}: {place} = {shown(node)}: it must be an object; its keys: {listed(known)}")
    for key in node:
        if key not in known:
            raise ConfigError(unknown_key(source, str(key), place, known))
