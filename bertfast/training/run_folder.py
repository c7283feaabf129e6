"""What a run keeps on disk while it trains: the best model, and checkpoints to go on from."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bertfast.config import RunConfig
from bertfast.engine import Ranks, load_training_state, save_training_state, saved_facts, schedule_follows_config, whole_state
from bertfast.errors import CheckpointError, ConfigError
from bertfast.reporting import LOG_FILE, RESULTS_FILE, write_results
from bertfast.storage import folders
from bertfast.training.identity import FIXED, JUDGED_BY, differences, is_of, shown, untold
from bertfast.training.objectives.objective import Objective
from bertfast.training.state import RunState
from bertfast.wording import listed


class RunFolder:
    """Writes and restores one run's state. All ranks must call; the first one writes.

    identity: what must be equal for a resumed run to be the same run; plain data. results: what results.json would say of a state, for the model
    card. `notes` are lines on what `restore` found and moved.
    """

    def __init__(self, settings: RunConfig, objective: Objective, engine: Any, tokenizer: Any, identity: dict[str, Any], ranks: Ranks):
        self._settings, self._objective, self._engine, self._tokenizer = settings, objective, engine, tokenizer
        self._identity = json.loads(json.dumps(identity))  # as it comes back from a checkpoint
        self._ranks = ranks
        model_dir = Path(settings.model_dir)
        self.model_folder, self.checkpoints = model_dir / "model", model_dir / "checkpoints"
        self.notes: list[str] = []

    def write_model(self, state: RunState, results: dict[str, Any]) -> None:
        """Replace run.model_dir/model by the weights of now, as transformers loads them, with tokenizer and card."""
        weights = whole_state(self._engine)
        if self._ranks.is_first:
            folders.write_folder(self.model_folder, lambda folder: self._fill(folder, weights, results), state.step)
        self._ranks.barrier()

    def save(self, state: RunState, results: dict[str, Any]) -> None:
        """Write a checkpoint to resume from, and remove the oldest beyond run.keep_checkpoints.

        Raises:
            CheckpointError: it cannot be written; the ones before it are kept.
        """
        weights = whole_state(self._engine)
        client_state = {"progress": state._asdict(), "identity": self._identity}
        save_training_state(
            self._engine, self.checkpoints, state.step, client_state, lambda folder: self._fill(folder, weights, results), self._ranks
        )
        if self._ranks.is_first:
            folders.prune(self.checkpoints, self._settings.keep_checkpoints)

    def restore(self, resume: bool, path: str | None, with_changes: bool = False) -> RunState:
        """The state to start from: with `resume` that of `path`, or of the newest whole checkpoint; else, and where there is none, a fresh one.

        The folder then holds what led to that state, and the best model on the way to it: what came after it, or is of another run, is set aside.

        Raises:
            ConfigError: an earlier run's checkpoints are there, and `resume` is False.
            CheckpointError: `path` is not there or torn; or a checkpoint is of a run with other settings or data, and `with_changes` is False.
        """
        if self._ranks.is_first:
            folders.recover(self.model_folder)
            folders.recover_steps(self.checkpoints)
        self._ranks.barrier()
        if not resume:
            self._refuse_to_overwrite()
            return RunState()
        folder = Path(path) if path else folders.newest_whole(self.checkpoints)
        if folder is None:
            self.notes.append(f"there is no checkpoint in {self.checkpoints} to resume from: this run begins at step 0")
            return RunState()
        if path:
            _check_is_whole(folder)
        facts = saved_facts(folder)
        if facts is not None:  # before the load: what does not fit fails there with an error of DeepSpeed's own
            changes = self._changes(folder, facts["identity"], with_changes)
        client_state = load_training_state(self._engine, folder)
        if facts is None:
            changes = self._changes(folder, client_state["identity"], with_changes)
        self._ranks.barrier()  # all have read what is moved now
        state = self._settle(folder, RunState(**client_state["progress"]))
        lines = [f"{shown(name)} = {_said(was)} -> {_said(now)}" for name, (was, now) in changes.items()]
        self.notes += [f"resumed with a change: {line}" for line in lines]
        state = state._replace(changes=[*state.changes, *(f"after step {state.step}: {line}" for line in lines)])
        return _without_best(state) if any(is_of(name, JUDGED_BY) for name in changes) else state

    def finish(self, results: dict[str, Any]) -> None:
        """Write results.json, and the card of the model with all that is now known of the run."""
        if self._ranks.is_first:
            write_results(self.model_folder.parent, results)
            self._objective.write_cards(self.model_folder, results)
            folders.seal(self.model_folder, folders.sealed_step(self.model_folder))
        self._ranks.barrier()

    def _changes(self, folder: Path, written: dict[str, Any], allowed: bool) -> dict[str, tuple[Any, Any]]:
        """What differs between the run that wrote a checkpoint and this one (see `differences`).

        Raises:
            CheckpointError: something does, and is not allowed to, or cannot be.
        """
        if silent := untold(written, self._identity):
            self.notes.append(
                f"{folder} is of an earlier bertfast, which did not write down {listed(map(shown, silent))}: that these are what they were is not checked"
            )
        found = differences(written, self._identity)
        cannot = FIXED if schedule_follows_config(self._engine) else (*FIXED, "optimizer.params", "deepspeed.scheduler")
        refused = [name for name in found if not allowed or is_of(name, cannot)]
        if not refused:
            return found
        was, now = found[refused[0]]
        others = f" (other too: {listed(map(shown, refused[1:]))})" if refused[1:] else ""
        allow = "" if is_of(refused[0], cannot) else " allow the change with --resume_with_changes,"
        raise CheckpointError(
            f"{folder}: was written with {shown(refused[0])} = {_said(was)}, this run has {_said(now)}{others}; resume with the settings and data "
            f"that wrote it,{allow} or start anew from its weights with --load_checkpoint_states model"
        )

    def _settle(self, folder: Path, state: RunState) -> RunState:
        """Make run.model_dir agree with `state`, which was loaded from the checkpoint `folder`."""
        is_lost = self._ranks.is_first and self._settle_files(folder, state)
        if not self._ranks.any(is_lost):
            return state
        return _without_best(state)

    def _settle_files(self, folder: Path, state: RunState) -> bool:
        """Set aside what does not belong to the state's past, and have its best model in place; whether that one's weights are gone."""
        is_ours = folder.resolve().parent == self.checkpoints.resolve()
        strays = [path for path in folders.steps_in(self.checkpoints) if not is_ours or folders.step_of(path) > state.step]
        held = folders.sealed_step(self.model_folder)
        if is_ours and held == state.best_step and held is not None:
            fits = True
        else:  # an earlier bertfast did not write down of which step the model is
            fits = not strays and (state.best_step is None or (held is None and self.model_folder.is_dir()))
        source = None if fits or state.best_step is None else next(self._weights_of(folder, state), None)
        is_lost = not fits and state.best_step is not None and source is None
        if strays or is_lost:
            self._set_aside(folder, [*reversed(strays), *([] if fits else [self.model_folder])])
        if source is not None:
            write = functools.partial(shutil.copytree, source, dirs_exist_ok=True)
            folders.write_folder(self.model_folder, write, state.best_step)
        if is_lost:
            self.notes.append(f"the best model so far, of step {state.best_step}, is no longer there: the best is looked for from here on")
        return is_lost

    def _weights_of(self, folder: Path, state: RunState) -> Iterator[Path]:
        """Folders with the model of the state's best step, as far as they are whole: checkpoints beside `folder`, and the model of its run."""
        if state.best_step == state.step:
            yield folder / "model"
        for path in folders.steps_in(folder.parent):
            if folders.step_of(path) == state.best_step and folders.fault_of(path) is None:
                yield path / "model"
        model = folder.parent.parent / "model"
        if folders.sealed_step(model) == state.best_step and folders.fault_of(model) is None:
            yield model

    def _set_aside(self, folder: Path, strays: list[Path]) -> None:
        """Move `strays` in their order, with the log and results, into a folder that can be resumed from like any run's."""
        run, number = self.model_folder.parent, 1
        while (aside := run / f"set-aside-{number}").exists():
            number += 1
        try:
            aside.mkdir()
            if (run / LOG_FILE).is_file():
                shutil.copy2(run / LOG_FILE, aside)
            if self.model_folder not in strays and self.model_folder.is_dir():  # the best until now of both
                shutil.copytree(self.model_folder, aside / self.model_folder.name)
            names = [path.relative_to(run) for path in (*strays, run / RESULTS_FILE) if path.exists()]
            for name in names:
                (aside / name).parent.mkdir(exist_ok=True)
                (run / name).rename(aside / name)
            self.notes.append(f"this run goes on from {folder}; set aside in {aside}: {', '.join(map(str, names))}")
        except OSError as error:
            raise CheckpointError(f"{aside}: {self.checkpoints} cannot be set aside there: {error.strerror or error}") from None

    def _fill(self, folder: Path, weights: dict[str, torch.Tensor], results: dict[str, Any]) -> None:
        self._objective.write_model(folder, self._engine.module, weights, self._tokenizer, results)

    def _refuse_to_overwrite(self) -> None:
        existing = folders.steps_in(self.checkpoints)
        self._ranks.barrier()
        if existing:
            raise ConfigError(
                f"{self.checkpoints}: an earlier run's checkpoints are there (newest: {existing[-1].name}); go on from them with --resume, "
                "or give another --model_dir, or delete them"
            )


def _check_is_whole(folder: Path) -> None:
    """Raise CheckpointError where a folder that a person has named is no whole checkpoint."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: cannot be resumed from: there is no such folder")
    if inner := folders.steps_in(folder) or folders.steps_in(folder / "checkpoints"):
        raise CheckpointError(f"{folder}: cannot be resumed from: it is no checkpoint, but holds some; name one of them, {inner[-1]} say")
    if fault := folders.fault_of(folder):
        raise CheckpointError(f"{folder}: cannot be resumed from: {fault}")


def _without_best(state: RunState) -> RunState:
    """The state as if nothing had been evaluated, which is made good at once."""
    return state._replace(best=None, best_step=None, stale_evaluations=0, metrics=None, owes_evaluation=True)


def _said(value: Any) -> Any:
    """A value for a person: None is what is not set."""
    return "nothing set" if value is None else value
