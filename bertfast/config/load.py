"""A config file read, overridden, checked and frozen; and what is wrong with it, in our words."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bertfast.config.deepspeed.keys import check_deepspeed
from bertfast.config.faults import explained
from bertfast.config.files import find_config, listed_overrides, parse_value, plain, read_json_or_yaml, without_nulls
from bertfast.config.schema import BertfastConfig, Config
from bertfast.errors import ConfigError


def load_config(
    path: str | Path | Mapping[str, Any] | Config, overrides: Sequence[str] | Mapping[str, Any] | str | None = None, flag: str = "--set"
) -> Config:
    """Read a config file (JSON or YAML) or dictionary, apply `key.path=value` overrides, and check every key. A config that is loaded already is taken as
    it is.

    null in the place of one of DeepSpeed's blocks or values means that it is left out. overrides: a list of them, one alone, or a dictionary of dotted
    keys. flag: where they come from, for the errors.

    Raises:
        ConfigError: naming the file, the key and the value, and the nearest known key for an unknown one.
    """
    overrides = listed_overrides(overrides, flag)
    file: Path | None = None
    if isinstance(path, Config):
        if not overrides:
            return path
        raw, name, file = path.to_dict(defaults=False), str(path.path or "config"), path.path
    elif isinstance(path, Mapping):
        raw, name = plain(path), "config"
    elif isinstance(path, str | os.PathLike):
        file = find_config(path)
        raw, name = read_json_or_yaml(file), str(file)
    else:
        raise ConfigError(f"config: is of type {type(path).__name__}; give the path of a config file, or a dictionary")
    if not isinstance(raw, dict):
        raise ConfigError(f"{name}: the top level must be an object with DeepSpeed's keys and a 'bertfast' block, not {type(raw).__name__}")
    if "bertfast" not in raw and {"architectures", "model_type"} & {*raw}:
        raise ConfigError(
            f"{name}: is the config.json of a model, and no config of bertfast; name the model's folder with --checkpoint_path"
        )
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
        raise ConfigError("\n".join(explained(source, error, block))) from None


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
