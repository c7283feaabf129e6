"""What a run leaves behind for programs: results.json, and bertfast.json, which lets a model folder stand alone."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bertfast import __version__
from bertfast.config import Block, Config, TaskConfig
from bertfast.storage import write_json
from bertfast.tasks import Task

RESULTS_FILE = "results.json"
MODEL_CONFIG_FILE = "bertfast.json"
RECIPE_BLOCKS: tuple[str, ...] = ("head", "truncation", "loss", "optimization", "pretrain")
_PACKAGES = ("torch", "transformers", "deepspeed", "datasets", "tokenizers")


def run_facts(config: Config, started: datetime, finished: datetime | None = None) -> dict[str, Any]:
    """Where numbers come from: dates (UTC), seed, command, config file, machine, versions, and the commit of bertfast's own repository."""
    finished = finished or datetime.now(UTC)
    return {
        "started": started.astimezone(UTC).isoformat(timespec="seconds"),
        "finished": finished.astimezone(UTC).isoformat(timespec="seconds"),
        "seed": config.bertfast.run.seed,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "config": None if config.path is None else str(config.path),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), "bertfast": __version__, **{name: _version(name) for name in _PACKAGES}},
        "commit": _commit(),
    }


def changed(block: Block | None) -> dict[str, Any] | None:
    """The keys of a config block that are not as they are by default, as plain data; None where there is none."""
    return None if block is None else block.model_dump(mode="json", exclude_defaults=True) or None


def write_results(model_dir: str | Path, results: dict[str, Any]) -> Path:
    """Write results.json into `model_dir`, whole or not at all; returns its path."""
    path = Path(model_dir) / RESULTS_FILE
    write_json(path, results)
    return path


def write_model_config(folder: str | Path, config: Config, task: Task) -> None:
    """Write bertfast.json into a model folder: the bertfast block, with the labels that `task` found in the training data.

    `bertfast eval` and `predict --checkpoint_path FOLDER` read it, so that the folder needs no other config. A model that is pre-trained
    further gets none: there is nothing yet that it predicts.
    """
    block = config.bertfast
    if block.pretrain is not None:
        return
    if isinstance(block.task, TaskConfig):
        found: dict[str, Any] = {"label_names": task.label_names, "metric": task.main_metric}
        if task.is_multilabel:
            found |= {"labels": task.labels, "label_separator": task.label_separator}
        block = block.model_copy(update={"task": block.task.model_copy(update=found)})
    write_json(Path(folder) / MODEL_CONFIG_FILE, {"bertfast": block.model_dump(mode="json", exclude_none=True)})


def _version(package: str) -> str | None:
    """What an imported package says of itself: torch names its build, CPU or CUDA, there, and PyPI's metadata do not. Else the metadata."""
    if said := getattr(sys.modules.get(package), "__version__", None):
        return str(said)  # torch's is a subclass of str
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that holds this file, with "-dirty" where files differ; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}-dirty" if changed else head
