"""What `bertfast sweep` tries: a space of config keys with their values, and the settings that a grid or a random search takes from it.

A space is a small YAML or JSON file: dotted config keys, each with a list of values, or with a range to draw from.

    optimizer.params.lr: {low: 1.0e-5, high: 1.0e-4, log: true}
    bertfast.run.epochs: [2, 3, 4]
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertfast.config import Config, load_config, read_json_or_yaml
from bertfast.errors import BertfastError, ConfigError
from bertfast.wording import did_you_mean

Setting = dict[str, Any]  # the value of each key of a space

# Devlin et al. 2019, appendix A.3
BERT_GRID: dict[str, list[Any]] = {
    "bertfast.train_input.batch_size": [16, 32],
    "optimizer.params.lr": [5e-5, 3e-5, 2e-5],
    "bertfast.run.epochs": [2, 3, 4],
}
_NOT_SEARCHED = {
    "bertfast.run.seed": "seeds are for --seeds",
    "bertfast.run.model_dir": "each trial has its own folder",
    "bertfast.task": "scores of two tasks cannot be compared",
    "bertfast.pretrain": "trials are fine-tuned; pre-train first, and start from that model",
}
_RANGE_KEYS = ("low", "high", "log")


@dataclass(frozen=True)
class Range:
    """Values from low to high; whole numbers where both are; log: equally likely in every octave."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Space:
    """The keys that are searched, each with its values or its range, and what the space is called in errors."""

    name: str
    keys: Mapping[str, list[Any] | Range]

    @property
    def size(self) -> int | None:
        """How many settings the grid has; None with a range, which has no end of them."""
        sizes = [len(values) for values in self.keys.values() if not isinstance(values, Range)]
        return math.prod(sizes) if len(sizes) == len(self.keys) else None

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a file."""
        return {key: vars(values) if isinstance(values, Range) else values for key, values in self.keys.items()}


def need_optuna():
    """The library that keeps the trials and draws from ranges.

    Raises:
        BertfastError: naming the command that installs it.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise BertfastError("bertfast sweep needs optuna, which is not installed: pip install 'bertfast[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def read_space(path: str | None, config: Config) -> Space:
    """The space in a file, or the BERT paper's grid (without batch sizes where the planner goes by tokens).

    Raises:
        ConfigError: naming the file, the key and what is wrong with its values.
    """
    if path is None:
        source = config.bertfast.train_input
        by_tokens = source is not None and source.planner == "tokens"
        return Space(
            "the default grid", {key: values for key, values in BERT_GRID.items() if not (by_tokens and key.endswith("batch_size"))}
        )
    if not Path(path).is_file():
        raise ConfigError(f"--space {path}: no such file; leave --space out to search the BERT paper's grid")
    raw = read_json_or_yaml(Path(path))
    if not isinstance(raw, dict) or not raw:
        raise ConfigError(f"{path}: must hold config keys with lists of values, for example bertfast.run.epochs: [2, 3, 4]")
    for key in raw:
        for refused, reason in _NOT_SEARCHED.items():
            if f"{key}.".startswith(f"{refused}."):
                raise ConfigError(f"{path}: {key} cannot be searched: {reason}; take it out")
    return Space(str(path), {str(key): _values(path, str(key), values) for key, values in raw.items()})


def _values(path: str, key: str, values: Any) -> list[Any] | Range:
    where = f"{path}: {key} = {json.dumps(values, default=str)}"
    if isinstance(values, dict):
        return _range(where, values)
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{where}: give a list of values, or a range such as {{low: 1.0e-5, high: 1.0e-4, log: true}}")
    labels = [label_of(value) for value in values]
    if len(set(labels)) < len(labels):
        raise ConfigError(f"{where}: a value stands there twice; each would be tried as often")
    return values


def _range(where: str, values: dict[str, Any]) -> Range:
    for name in values:
        if name not in _RANGE_KEYS:
            raise ConfigError(f"{where}: a range has no {name!r}; {did_you_mean(str(name), _RANGE_KEYS, 'its keys: low, high, log')}")
    low, high, log = _number(values.get("low")), _number(values.get("high")), values.get("log")
    if low is None or high is None or not low < high:
        raise ConfigError(f"{where}: a range needs numbers low and high, low being less than high")
    if log not in (None, True, False) or (log and low <= 0):
        raise ConfigError(f"{where}: log is true or false, and true only where low is above 0")
    return Range(low, high, bool(log))


def _number(value: Any) -> float | None:
    """A value that is a number, whole or not; None for any other."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def label_of(value: Any) -> Any:
    """A value as Optuna stores one: as it is, or where it is a list or a block, or a boolean, as JSON."""
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else json.dumps(value)


def distributions(space: Space) -> dict[str, Any]:
    """The space in Optuna's words."""
    kinds = need_optuna().distributions
    found = {}
    for key, values in space.keys.items():
        if isinstance(values, list):
            found[key] = kinds.CategoricalDistribution([label_of(value) for value in values])
        else:
            is_whole = isinstance(values.low, int) and isinstance(values.high, int)
            kind = kinds.IntDistribution if is_whole else kinds.FloatDistribution
            found[key] = kind(values.low, values.high, log=values.log)
    return found


def setting_of(space: Space, labels: Mapping[str, Any]) -> Setting:
    """The values that Optuna's labels stand for."""
    return {
        key: labels[key] if isinstance(values, Range) else next(value for value in values if label_of(value) == labels[key])
        for key, values in space.keys.items()
    }


def draw_settings(space: Space, count: int | None, seed: int) -> list[Setting]:
    """The first `count` settings of a search: the points of a grid in random order, each once (None: all of them), or draws from the ranges.

    More of them begin with the same ones.

    Raises:
        ConfigError: a range and no count, or a count larger than the grid.
    """
    wanted = count or space.size
    if wanted is None:
        raise ConfigError(f"{space.name}: there is a range in it, so there is no end of settings; say how many to try with --trials")
    if space.size is not None and wanted > space.size:
        raise ConfigError(f"--trials {count}: {space.name} has no more than {space.size} settings; leave --trials out to try them all")
    optuna = need_optuna()
    kinds = distributions(space)
    if space.size is None:
        sampler = optuna.samplers.RandomSampler(seed)
    else:
        sampler = optuna.samplers.GridSampler({key: list(kind.choices) for key, kind in kinds.items()}, seed)
    study = optuna.create_study(sampler=sampler)
    return [setting_of(space, study.ask(kinds).params) for _ in range(wanted)]


def base_of(config: Config) -> dict[str, Any]:
    """What was given of a config. An eval_input that has train_input's length, given or not, is left to follow it."""
    base = config.to_dict(defaults=False)
    block, key = base["bertfast"], "max_sequence_length"
    if key in block["train_input"] and block["eval_input"].get(key) == block["train_input"][key]:
        del block["eval_input"][key]
    if config.bertfast.multitask is not None and not block["eval_input"]:
        del block["eval_input"]
    return base


def config_of(base: dict[str, Any], space: Space, setting: Setting) -> Config:
    """The base config with a setting in it.

    Raises:
        ConfigError: naming the space, and the key that is unknown or whose value cannot be.
    """
    return load_config(base, [f"{key}={json.dumps(value)}" for key, value in setting.items()], flag=f"{space.name}:")
