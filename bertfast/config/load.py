"""A config file read, overridden, checked and frozen; and what is wrong with it, in our words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from bertfast.config.blocks import Block
from bertfast.config.deepspeed_keys import check_deepspeed
from bertfast.config.files import find_config, parse_value, read_json_or_yaml, without_nulls
from bertfast.config.schema import BertfastConfig, Config
from bertfast.config.unknown import unknown_key
from bertfast.errors import ConfigError
from bertfast.wording import listed

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_KINDS_OF_VALUES = ("int_type", "float_type", "bool_type", "string_type", "literal_error")  # pydantic's errors where no block can stand


def load_config(path: str | Path | dict, overrides: list[str] | None = None, flag: str = "--set") -> Config:
    """Read a config file (JSON or YAML) or dictionary, apply `key.path=value` overrides, and check every key.

    null in the place of one of DeepSpeed's blocks or values means that it is left out. flag: where the overrides come from, for the errors.

    Raises:
        ConfigError: naming the file, the key and the value, and the nearest known key for an unknown one.
    """
    if isinstance(path, dict):
        raw, name, file = json.loads(json.dumps(path)), "config", None
    else:
        file = find_config(path)
        raw, name = read_json_or_yaml(file), str(file)
    if not isinstance(raw, dict):
        raise ConfigError(f"{name}: the top level must be an object with DeepSpeed's keys and a 'bertfast' block, not {type(raw).__name__}")
    if "bertfast" not in raw and {"architectures", "model_type"} & {*raw}:
        raise ConfigError(
            f"{name}: is the config.json of a model, and no config of bertfast; name the model's folder with --checkpoint_path"
        )
    overrides = overrides or []
    for override in overrides:
        _override(raw, override, flag)

    def source(dotted: str) -> str:
        """Where the value at this key came from: the last override that set it, or else the file."""
        keys = [override.partition("=")[0].strip() for override in overrides]
        setting = [text for key, text in zip(keys, overrides, strict=True) if f"{dotted}.".startswith(f"{key}.")]
        return f"{flag} {setting[-1]}" if setting else name

    block = raw.pop("bertfast", None)
    check_deepspeed(source, raw)
    if not isinstance(block, dict):
        raise ConfigError(f"{name}: there is no 'bertfast' block; it names the task, the model and the data (see configs/ for examples)")
    try:
        return Config(without_nulls(raw), BertfastConfig.model_validate(block), file)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(source, item) for item in _relevant(error, block))) from None


def _override(raw: dict[str, Any], override: str, flag: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{flag} {override}: write it as key.path=value, for example bertfast.train_input.batch_size=64")
    *parents, last = key.strip().split(".")
    node = raw
    for depth, parent in enumerate(parents):
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise ConfigError(f"{flag} {override}: {'.'.join(parents[: depth + 1])} is a value, not a block")
    node[last] = parse_value(text)


def _relevant(error: ValidationError, block: dict) -> list[ErrorDetails]:
    """Pydantic reports every branch of `task: str | TaskConfig`; keep the branch that the user meant."""

    def is_meant(place: tuple) -> bool:
        branch = next((depth for depth, part in enumerate(place) if depth and part in ("TaskConfig", "str")), None)
        if branch is None:
            return True
        value: Any = block
        for part in place[:branch]:
            value = value[part]
        return place[branch] == ("TaskConfig" if isinstance(value, dict) else "str")

    return [item for item in error.errors() if is_meant(item["loc"])]


def _explain(source: Callable[[str], str], item: ErrorDetails) -> str:
    """One of pydantic's errors in our words: source, key, value, and what to do."""
    path = [str(part) for part in item["loc"] if part not in ("TaskConfig", "str")]
    dotted, value, kind = ".".join(["bertfast", *path]), item.get("input"), item["type"]
    if kind == "extra_forbidden":
        return unknown_key(source, path[-1], ".".join(["bertfast", *path[:-1]]), _fields_at(path[:-1]))
    if kind == "missing":
        return f"{source(dotted)}: {dotted} is missing; it is required"
    message = item["msg"].removeprefix("Value error, ")
    if kind == "model_type":
        message = f"it must be an object; its keys: {listed(_fields_at(path))}"
    elif kind == "tuple_type":
        message = 'it must be a list, for example ["sentence"]'
    elif kind == "string_type" and value is not None:
        message = "it must be a string; put it in quotation marks"
    if isinstance(value, dict) and value and kind in _KINDS_OF_VALUES:  # an override below a key makes a block of it
        return f"{source(f'{dotted}.{next(iter(value))}')}: {dotted} is a value, not a block: {message}"
    shown = "" if isinstance(value, dict) else f" = {json.dumps(value, default=str)}"
    return f"{source(dotted)}: {dotted}{shown}: {message}"


def _fields_at(path: list[str]) -> list[str]:
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
