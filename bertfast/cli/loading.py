"""What commands share: the config, the model, the trainer and the exporter that the arguments mean."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from bertfast.cli.parser import overrides, starts_from_checkpoint
from bertfast.config import Config, configs_of, load_config
from bertfast.errors import CheckpointError
from bertfast.machine import rank
from bertfast.storage import folders
from bertfast.tasks import get_task

if TYPE_CHECKING:
    from bertfast.training import Trainer

_CLASSIFYING = ("train", "train_and_eval", "eval", "predict", "sweep")


def exporter():
    """What the commands ask of bertfast_export: its module `commands`."""
    from bertfast_export import commands

    return commands


def config_of(arguments: Namespace) -> Config:
    """The config of --config, or the one that a fine-tuned model's folder carries; its task is known to exist."""
    from bertfast.reporting import MODEL_CONFIG_FILE

    if arguments.config is not None:
        config = load_config(arguments.config, overrides(arguments))
    else:
        folder = Path(arguments.checkpoint_path)
        files = (folder / MODEL_CONFIG_FILE, folders.standing(folder / "model") / MODEL_CONFIG_FILE)
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise CheckpointError(f"--checkpoint_path {folder}: no {MODEL_CONFIG_FILE} there; name the config with --config")
        config = load_config(file, overrides(arguments))
    given = vars(arguments)
    validates_training = given.get("validate_only") and given.get("mode") != "pretrain"
    if arguments.command in _CLASSIFYING or validates_training:
        config = config.without_pretraining()
    for part in configs_of(config):
        get_task(part.bertfast.task)
    return config


def model_folder_of(arguments: Namespace, config: Config) -> str:
    """The model that eval and predict use: its folder, or that of the run or checkpoint which holds it.

    Raises:
        CheckpointError: where there is none yet.
    """
    if arguments.checkpoint_path is not None:
        return arguments.checkpoint_path
    model = Path(config.bertfast.run.model_dir) / "model"
    if rank() == 0 and not folders.standing(model).is_dir():
        kind, command = ("pre-trained", "pretrain") if arguments.evaluate_only else ("fine-tuned", "train")
        raise CheckpointError(
            f"{model}: there is no {kind} model yet; train first (bertfast {command} --config ...), or name a model with --checkpoint_path"
        )
    return config.bertfast.run.model_dir


def trainer_of(arguments: Namespace, config: Config) -> Trainer:
    checkpoint_path: str | None
    if arguments.command in ("eval", "predict") or arguments.evaluate_only:
        checkpoint_path = model_folder_of(arguments, config)
    else:
        checkpoint_path = None if starts_from_checkpoint(arguments) else arguments.checkpoint_path
    from bertfast.training import Trainer

    return Trainer(
        config,
        device=arguments.device,
        resume=bool(arguments.resume),
        checkpoint_path=checkpoint_path,
        profile_startup=arguments.profile_startup,
        **({"profile": True} if arguments.profile else {}),
        **({"pretrains": True} if arguments.command == "pretrain" else {}),
    )


def print_metrics(metrics: dict[str, dict[str, float]]) -> None:
    from rich.console import Console
    from rich.table import Table

    if not metrics:
        return
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    table = Table("split", *names)
    for split, values in metrics.items():
        table.add_row(split, *(f"{values[name]:.4f}" if name in values else "" for name in names))
    Console().print(table)


def tell_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def name_of(config: Config) -> str:
    return str(config.path or "config")
