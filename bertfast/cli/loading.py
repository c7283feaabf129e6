"""What commands share: the config, the model, the trainer and the exporter that the arguments mean."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertfast.cli.parser import overrides, starts_from_checkpoint
from bertfast.config import Config, InputConfig, configs_of, load_config
from bertfast.errors import CheckpointError
from bertfast.machine import rank
from bertfast.storage import folders
from bertfast.tasks import get_task
from bertfast.wording import counted

if TYPE_CHECKING:
    from bertfast.training import Trainer

_CLASSIFYING = ("train", "train_and_eval", "eval", "predict", "sweep")


def exporter():
    """What the commands ask of bertfast_export: its module `commands`."""
    from bertfast_export import commands

    return commands


def config_of(arguments: Namespace) -> Config:
    """The config of --config, or the one that a fine-tuned model's folder carries (for `predict`, one made from what the folder is); its task is known to
    exist.

    Raises:
        ConfigError, CheckpointError: there is none, or --checkpoint_path is not the folder of a model.
    """
    from bertfast.reporting import MODEL_CONFIG_FILE

    if arguments.checkpoint_path is not None:
        _refuse_other_places(arguments)
    if arguments.config is not None:
        config = load_config(arguments.config, overrides(arguments))
    else:
        folder = Path(arguments.checkpoint_path)
        files = (folder / MODEL_CONFIG_FILE, folders.standing(folder / "model") / MODEL_CONFIG_FILE)
        file = next((file for file in files if file.is_file()), None)
        if file is None and arguments.command != "predict":
            none = f"no {MODEL_CONFIG_FILE} there" if folder.is_dir() else f"there is no such folder, so no {MODEL_CONFIG_FILE}"
            raise CheckpointError(f"--checkpoint_path {folder}: {none}; name the config with --config")
        config = load_config(_plain_config(arguments) if file is None else file, overrides(arguments))
        if file is None and rank() == 0:
            columns, length = get_task(config.bertfast.task).text_columns, (config.bertfast.eval_input or InputConfig()).max_sequence_length
            tell_progress(f"{folder}: no {MODEL_CONFIG_FILE} there; texts are those of {' and '.join(columns)}, cut to {length} tokens")
    given = vars(arguments)
    validates_training = given.get("validate_only") and given.get("mode") != "pretrain"
    if arguments.command in _CLASSIFYING or validates_training:
        config = config.without_pretraining()
    for part in configs_of(config):
        get_task(part.bertfast.task)
    return config


def _refuse_other_places(arguments: Namespace) -> None:
    """Raise CheckpointError where --checkpoint_path is a file, a bundle, in which there are no weights to train, or a folder of training checkpoints."""
    given = arguments.checkpoint_path
    path = Path(given).expanduser()
    if path.is_file():
        is_config = path.suffix in (".yaml", ".yml", ".json") and not (path.parent / "config.json").is_file()
        what = f"a config is named with --config {given}" if is_config else f"give the folder that it lies in: {path.parent}"
        raise CheckpointError(f"--checkpoint_path {given}: is a file; {what}")
    if exporter().is_bundle(path):
        instead = {"predict": f"name it with --onnx {given}", "eval": f"bertfast verify {given} judges it"}
        what = instead.get(arguments.command, "name the model that it was exported from")
        raise CheckpointError(f"--checkpoint_path {given}: is an exported bundle, which holds no weights that can be trained; {what}")
    if (steps := folders.steps_in(path)) and not (path / "config.json").is_file():
        raise CheckpointError(
            f"--checkpoint_path {given}: holds {counted(len(steps), 'training checkpoint')}; give one of them: {steps[-1]}"
        )


def _plain_config(arguments: Namespace) -> dict[str, Any]:
    """A config for `predict` with a classifier that bertfast did not train: its classes are those of its config.json, its texts are in the columns that
    the input has, and are cut to as many tokens as the model has positions.

    Raises:
        CheckpointError: there is no such model.
        DataError: the input has no columns of a usual name.
    """
    from bertfast.readers import text_columns_of
    from bertfast.weights import model_folder, read_config, resolve_folder

    folder, asked = arguments.checkpoint_path, [text.partition("=")[0].strip() for text in overrides(arguments)]
    positions = read_config(resolve_folder(model_folder(folder))).max_position_embeddings
    columns = ["text"] if {"bertfast.task", "bertfast.task.text_columns"} & {*asked} else text_columns_of(arguments.input)
    task = {"name": "text-classification", "text_columns": columns}
    return {"bertfast": {"task": task, "model": {"checkpoint": folder}, "eval_input": {"max_sequence_length": positions}}}


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
        **({"with_changes": True} if arguments.resume_with_changes else {}),
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
