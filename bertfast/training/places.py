"""Whether a run would write where it reads: asked before it writes anything."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from bertfast.config import BertfastConfig, Config
from bertfast.errors import ConfigError
from bertfast.reporting import LOG_FILE, RESULTS_FILE
from bertfast.storage import folders, lies_in, overwritten
from bertfast.weights import holds_model, model_folder


def check_places(config: Config) -> None:
    """Raise ConfigError where run.model_dir is the folder of a model or of data, or a run in it would replace its weights, its data or its config.

    A folder that holds training checkpoints is a run's already: to go on there is asked of `--resume`.
    """
    block, folder = config.bertfast, Path(config.bertfast.run.model_dir)
    if folders.steps_in(folder / "checkpoints"):
        return
    where = f"bertfast.run.model_dir = {json.dumps(str(folder))}"
    if holds_model(folder):
        raise ConfigError(
            f"{where}: is the folder of a model (its config.json is there), which would be taken for what the run leaves; give another"
        )
    read = [*inputs_of(config)]
    for key, place in read:
        if key.endswith("data_dir") and folder.resolve() == Path(place).resolve():
            raise ConfigError(f"{where}: is the folder of the data ({key}); give another")
    export = [] if block.export is None else [Path(block.export.output or folder / "onnx")]
    refuse_replacing(where, read, [folder / "model", *export], [folder / LOG_FILE, folder / RESULTS_FILE])


def refuse_replacing(where: str, read: Iterable[tuple[str, str]], whole: Iterable[Path], files: Iterable[Path]) -> None:
    """Raise ConfigError where one of the inputs, (what it is, path), lies in a folder that is replaced whole, or is one of the files that are written.
    where: begins the message."""
    whole, files = [folder for folder in whole if folder.is_dir()], list(files)
    for what, place in read:
        lost = next((folder for folder in whole if Path(place).exists() and lies_in(place, folder)), None)
        lost = lost or next((file for file in files if overwritten(file, [place] if Path(place).is_file() else [])), None)
        if lost is not None:
            raise ConfigError(f"{where}: {lost} is written there, and {what} is read from {place}; give another place")


def inputs_of(config: Config) -> Iterator[tuple[str, str]]:
    """What a config reads, by key: the config itself, weights, tokenizer, data and texts."""
    block = config.bertfast
    if config.path is not None:
        yield "the config", str(config.path)
    yield "bertfast.model.checkpoint", model_folder(block.model.checkpoint)
    if block.model.tokenizer is not None:
        yield "bertfast.model.tokenizer", block.model.tokenizer
    yield from _data_of(block)


def _data_of(block: BertfastConfig) -> Iterator[tuple[str, str]]:
    parts: list[tuple[str, object]] = [("bertfast.train_input", block.train_input), ("bertfast.eval_input", block.eval_input)]
    for task in () if block.multitask is None else block.multitask.tasks:
        parts += [(f"train_input of task {task.name}", task.train_input), (f"eval_input of task {task.name}", task.eval_input)]
    if block.pretrain is not None:
        parts += [("bertfast.pretrain.inputs", part) for part in block.pretrain.inputs]
        for key in ("text_files", "eval_text_files"):
            yield from ((f"bertfast.pretrain.{key}", file) for file in getattr(block.pretrain, key))
    for name, part in parts:
        for key in ("data_dir", "data_file"):
            if (place := getattr(part, key, None)) is not None:
                yield f"{name}.{key}", place
