"""What a run keeps on disk while it trains: the best model, and checkpoints to go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bertfast import checkpoint, report
from bertfast.config import Config
from bertfast.engine import Ranks, load_training_state, save_training_state, whole_state
from bertfast.errors import CheckpointError, ConfigError
from bertfast.steps import RunState
from bertfast.tasks import Task


class Keeper:
    """Writes and restores one run's state. All ranks must call; the first one writes.

    identity: what must be equal for a resumed run to be the same run. results: what results.json would say of a state, for the model card.
    """

    def __init__(self, config: Config, task: Task, engine, tokenizer, identity: dict[str, Any], results, ranks: Ranks):
        self._config, self._task, self._engine, self._tokenizer = config, task, engine, tokenizer
        self._identity, self._results, self._ranks = identity, results, ranks
        model_dir = Path(config.bertfast.run.model_dir)
        self.model_folder, self.checkpoints = model_dir / "model", model_dir / "checkpoints"

    def write_model(self, state: RunState) -> None:
        """Replace run.model_dir/model by the weights of now, as transformers loads them, with tokenizer and card."""
        weights = whole_state(self._engine)
        if self._ranks.is_first:
            checkpoint.write_folder(self.model_folder, lambda folder: self._fill(folder, weights, state))
        self._ranks.barrier()

    def save(self, state: RunState) -> None:
        """Write a checkpoint to resume from, and remove the oldest beyond run.keep_checkpoints.

        Raises:
            CheckpointError: it cannot be written; the ones before it are kept.
        """
        weights = whole_state(self._engine)
        client_state = {"progress": state._asdict(), "identity": self._identity}
        save_training_state(
            self._engine, self.checkpoints, state.step, client_state, lambda folder: self._fill(folder, weights, state), self._ranks
        )
        if self._ranks.is_first:
            checkpoint.prune(self.checkpoints, self._config.bertfast.run.keep_checkpoints)

    def restore(self, resume: bool, path: str | None) -> RunState:
        """The state to start from: with `resume` that of `path`, or of the newest whole checkpoint; else a fresh one.

        Raises:
            ConfigError: an earlier run's checkpoints are there, and `resume` is False.
            CheckpointError: `path` is torn, or is of a run with other settings.
        """
        if self._ranks.is_first:
            checkpoint.recover(self.model_folder)
        if not resume:
            self._refuse_to_overwrite()
            return RunState()
        folder = Path(path) if path else checkpoint.newest_whole(self.checkpoints)
        if folder is None:
            return RunState()
        if path and (fault := checkpoint.fault_of(folder)):
            raise CheckpointError(f"{folder}: cannot be resumed from: {fault}")
        client_state = load_training_state(self._engine, folder)
        for name, value in self._identity.items():
            if client_state["identity"].get(name) != value:
                raise CheckpointError(
                    f"{folder}: was written with {name} = {client_state['identity'].get(name)}, this run has {value}; "
                    "resume with the settings that wrote it, or start anew from its weights with --load_checkpoint_states model"
                )
        return RunState(**client_state["progress"])

    def finish(self, results: dict[str, Any]) -> None:
        """Write results.json, and the card of the model with all that is now known of the run."""
        if self._ranks.is_first:
            report.write_results(self.model_folder.parent, results)
            self._write_card(self.model_folder, results)
            checkpoint.seal(self.model_folder)
        self._ranks.barrier()

    def _fill(self, folder: Path, weights: dict[str, torch.Tensor], state: RunState) -> None:
        self._engine.module.save_pretrained(folder, weights)
        self._tokenizer.save_pretrained(folder)
        report.write_model_config(folder, self._config, self._task)
        self._write_card(folder, self._results(state))

    def _write_card(self, folder: Path, results: dict[str, Any]) -> None:
        report.write_model_card(folder, results, self._config, self._task)

    def _refuse_to_overwrite(self) -> None:
        existing = checkpoint.steps_in(self.checkpoints)
        self._ranks.barrier()
        if existing:
            raise ConfigError(
                f"{self.checkpoints}: an earlier run's checkpoints are there (newest: {existing[-1].name}); go on from them with --resume, "
                "or give another --model_dir, or delete them"
            )
