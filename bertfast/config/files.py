"""Config files: where a name is looked for, and JSON and YAML read strictly, so that nothing in them is passed over; and what Python gives in their place."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from bertfast.errors import ConfigError
from bertfast.wording import nearest

CONFIG_FOLDER = "configs"


def find_config(name: str | Path) -> Path:
    """The file that `name` means: a path as it stands, else a file of that name in `configs/` here, else a shipped config of that name.

    Raises:
        ConfigError: there is none, or it is a folder.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise ConfigError(f"--config {name}: is a folder; give a config file, and a model's folder as --checkpoint_path")
    package = Path(__file__).resolve().parents[1]
    installed, beside_launch = package / CONFIG_FOLDER, package.parent / CONFIG_FOLDER
    folders = (Path(CONFIG_FOLDER), installed if installed.is_dir() else beside_launch)
    for folder in folders:
        if path.parent == Path(".") and (folder / path).is_file():
            return folder / path
    shipped = sorted({file.name for folder in folders if folder.is_dir() for file in folder.iterdir()})
    near = nearest(path.name, shipped)
    hint = f"; did you mean {near}?" if near else f"; looked here and in {CONFIG_FOLDER}/"
    raise ConfigError(f"--config {name}: no such file{hint}")


def read_json_or_yaml(file: Path) -> Any:
    """What a .yaml, .yml or .json file holds.

    Raises:
        ConfigError: it cannot be read, naming file, line and column.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not valid UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    try:
        if file.suffix.lower() in {".yaml", ".yml"}:
            return yaml.load(text, Loader=_Loader)
        return json.loads(text, object_pairs_hook=lambda pairs: _unique(file, pairs), parse_constant=lambda name: _no_constant(file, name))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file}, line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{file}{place}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {error}") from None


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with the mends of YAML 1.2: 3e-5 is a number, `no` and a date are strings; and a repeated key is an error."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key_node.value!r} stands twice in one mapping", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


def _unique(file: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{file}: the key {key!r} stands twice in one object; keep one of them")
    return dict(pairs)


def _no_constant(file: Path, name: str) -> Any:
    raise ConfigError(f"{file}: {name} is not a value that JSON knows; write a finite number")


def parse_value(text: str) -> Any:
    """What the text after `key=` of an override means: YAML, and where that cannot be read, the text itself."""
    try:
        return yaml.load(text, Loader=_Loader) if text else ""
    except yaml.YAMLError:
        return text


def without_nulls(block: dict[str, Any]) -> dict[str, Any]:
    """A block of a config without the keys that are null, in the blocks within it too."""
    return {key: without_nulls(value) if isinstance(value, dict) else value for key, value in block.items() if value is not None}


def plain(value: Any, place: str = "") -> Any:
    """A copy of a dictionary as JSON would hold it: paths become strings, tuples lists, and numpy's numbers Python's.

    Raises:
        ConfigError: naming the key that holds something else, such as a table.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(part, f"{place}.{key}" if place else str(key)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part, f"{place}.{index}") for index, part in enumerate(value)]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    remedy = (
        "write it to a file, and give its path"
        if hasattr(value, "shape")
        else "give a string, a number, true or false, a list or a dictionary"
    )
    raise ConfigError(f"config: {place} is of type {type(value).__name__}, which a config cannot hold; {remedy}")


def listed_overrides(overrides: Any, flag: str) -> list[str]:
    """Overrides as a list of `key.path=value`.

    Raises:
        ConfigError: one that is no string.
    """
    if isinstance(overrides, Mapping):
        return [f"{key}={json.dumps(plain(value, str(key)))}" for key, value in overrides.items()]
    given = [overrides] if isinstance(overrides, str) else overrides or []
    found = list(given) if isinstance(given, Iterable) else [given]
    for one in found:
        if not isinstance(one, str):
            raise ConfigError(f"{flag} {one!r}: write it as a string, key.path=value, for example 'bertfast.train_input.batch_size=64'")
    return found
