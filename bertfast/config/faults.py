"""What pydantic finds wrong with the `bertfast` block, in our words: source, key, value, and what it must be."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, get_args

from bertfast.config.blocks import Block
from bertfast.config.schema import BertfastConfig
from bertfast.config.unknown import unknown_key
from bertfast.wording import listed

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

# pydantic-core's types of error, as far as the blocks can raise them -> what the value must be, with what the error tells of its limits.
WORDS = {
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list, such as [a, b],"),
    "dict_type": "numbers by name, such as {{a: 1}},",
    "finite_number": "a finite number",
    "string_type": "a string; put it in quotation marks",
    "string_too_short": "a string of at least {min_length}",
    "literal_error": "{expected}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}
_BRANCHES = ("TaskConfig", "str", "bool", "int", "float")  # what pydantic calls the types of a key that takes several; no key is called so


def explained(source: Callable[[str], str], error: ValidationError, block: dict) -> list[str]:
    """A line for each key at fault. source: where the value at a dotted key came from; block: what was checked."""
    faults: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for item in _meant(error.errors(), block):
        faults.setdefault(_path_of(item), []).append(item)
    whole = {path for path, items in faults.items() if not _is_echo(items, path, faults)}
    return [_line(source, path, items) for path, items in faults.items() if path in whole]


def _is_echo(items: list[ErrorDetails], path: tuple[str, ...], faults: dict[tuple[str, ...], list[ErrorDetails]]) -> bool:
    """Whether a list is called too short for the entries alone that are at fault themselves."""
    within = any(len(other) > len(path) and other[: len(path)] == path for other in faults)
    return within and all(item["type"] == "too_short" for item in items)


def _meant(items: list[ErrorDetails], block: dict) -> list[ErrorDetails]:
    """Of a key that takes one of several types, pydantic reports each: those that the user can have meant, by what was given; or all."""
    by_key: dict[tuple[int | str, ...], list[tuple[str, ErrorDetails]]] = {}
    for item in items:
        depth = next((depth for depth, part in enumerate(item["loc"]) if _is_branch(part)), len(item["loc"]))
        branch = str(item["loc"][depth]) if depth < len(item["loc"]) else ""
        by_key.setdefault(item["loc"][:depth], []).append((branch, item))
    found = []
    for key, branches in by_key.items():
        value: Any = block
        if branches[0][0]:
            for part in key:
                value = value[part]
        kinds = ("TaskConfig", "dict[") if isinstance(value, dict) else ("tuple[",) if isinstance(value, list) else ()
        fitting = [item for branch, item in branches if branch.startswith(kinds)]
        scalar = [item for branch, item in branches if branch != "TaskConfig"]
        found += fitting or scalar
    return found


def _is_branch(part: int | str) -> bool:
    """Whether this part of a place names a type, and no key."""
    return isinstance(part, str) and (part in _BRANCHES or part.startswith(("tuple[", "dict[", "literal[", "constrained-")))


def _path_of(item: ErrorDetails) -> tuple[str, ...]:
    return tuple(str(part) for part in item["loc"] if not _is_branch(part))


def _line(source: Callable[[str], str], path: tuple[str, ...], items: list[ErrorDetails]) -> str:
    item = items[0]
    dotted, value, kind = ".".join(["bertfast", *path]), item.get("input"), item["type"]
    if kind == "extra_forbidden":
        return unknown_key(source, path[-1], ".".join(["bertfast", *path[:-1]]), _fields_at(path[:-1]))
    if kind == "missing":
        return f"{source(dotted)}: {dotted} is missing; it is required"
    if kind == "value_error":
        message = item["msg"].removeprefix("Value error, ")
    elif kind == "model_type":
        message = f"it must be an object; its keys: {listed(_fields_at(path))}"
    else:
        words = dict.fromkeys(_words(one) for one in items)
        if kind == "tuple_type" and isinstance(value, str | int | float) and len(words) == 1:
            words = {f"a list: {json.dumps([value])}": None}
        message = f"it must be {' or '.join(words)}".removesuffix(",") + ("; leave the key out for what is usual" if value is None else "")
    if isinstance(value, dict) and value and kind in WORDS:  # an override below a key makes a block of it
        return f"{source(f'{dotted}.{next(iter(value))}')}: {dotted} is a value, not a block: {message}"
    shown = "" if isinstance(value, dict) else f" = {json.dumps(value, default=str)}"
    return f"{source(dotted)}: {dotted}{shown}: {message}"


def _words(item: ErrorDetails) -> str:
    limits = {name: str(limit).removesuffix(".0") for name, limit in item.get("ctx", {}).items()}
    said = WORDS[item["type"]].format_map(limits)
    return said.replace("False", "false").replace("True", "true") if item["type"] == "literal_error" else said


def _fields_at(path: tuple[str, ...]) -> list[str]:
    """The keys of the block at this place of the `bertfast` block. In a list of blocks, a number names one of them."""
    block: type[Block] = BertfastConfig
    for part in path:
        if not part.isdigit():
            block = next(_blocks_in(block.model_fields[part].annotation))
    return list(block.model_fields)


def _blocks_in(annotation: Any) -> Iterator[type[Block]]:
    """The blocks that a type is made of: of `tuple[Block, ...] | None` that one."""
    if isinstance(annotation, type) and issubclass(annotation, Block):
        yield annotation
    for part in get_args(annotation):
        yield from _blocks_in(part)
