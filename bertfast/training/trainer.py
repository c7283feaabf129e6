"""The training loop: fit, evaluate and predict on packed batches with DeepSpeed, whatever is learned.

One optimizer step: the planner picks the examples of a global batch; each rank packs its micro-batches; the loss is summed, and divided by the
number of examples in the global batch, so the gradient does not depend on how they were packed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch

from bertfast.config import Config, load_config, resolve_batch_sizes, resolve_precision
from bertfast.data import EncodedDataset
from bertfast.engine import Capture, rates_by_part, start_ranks
from bertfast.errors import ConfigError, DataError
from bertfast.packing import PackedBatch
from bertfast.reporting import Progress, RunProfiler, StartupClock, run_facts
from bertfast.storage import alone_in
from bertfast.tasks import Task, is_better
from bertfast.training.footprint import memory_named, smaller_evaluation, smaller_training
from bertfast.training.guards import LossWatch, Termination
from bertfast.training.objectives.choice import objective_of
from bertfast.training.preparation import Run, prepare
from bertfast.training.state import RunState, Window


class Stepped(NamedTuple):
    """One optimizer step that was taken: this rank's share of the mean loss, on the device, and the rates of the step."""

    share: torch.Tensor
    learning_rate: float
    part_rates: dict[str, float] | None


@final
class Trainer:
    """Fine-tune (or pre-train further), evaluate and use a model as a config says.

    What is learned is the config's own: one task, several with a `multitask` block, or masked words (see `bertfast.training.objectives`).

    Args:
        config: from `load_config`, or what that takes: a config file, or a dictionary.
        device: "cpu", "gpu", or None for a GPU where there is one.
        resume: go on from the newest whole checkpoint of run.model_dir, or from `checkpoint_path`; where there is none yet, begin.
        checkpoint_path: a training checkpoint to resume from; for `evaluate` and `predict`, the model's folder, or a run's.
        profile_startup: print where the time before the first step went.
        profile: leave a torch profiler trace of a few steps, and a page on it, in run.model_dir/profile.
        pretrains: heed the config's `pretrain` block, which training passes by.
        with_changes: resume even where data or settings are not those that wrote the checkpoint; each change is told.

    Raises:
        ConfigError: the device is not there, or the config is none, or asks for what cannot be.
    """

    capture: type[Capture] | None = None  # what records CUDA graphs, where it is not torch

    def __init__(
        self,
        config: Config | str | Path | Mapping[str, Any],
        device: str | None = None,
        resume: bool = False,
        checkpoint_path: str | None = None,
        profile_startup: bool = False,
        profile: bool = False,
        pretrains: bool = False,
        with_changes: bool = False,
    ):
        config = load_config(config)
        if device not in (None, "cpu", "gpu"):
            raise ConfigError(f"device = {device!r}: give 'cpu', 'gpu', or None for a GPU where there is one")
        self._settings = config.bertfast.run
        self._model_dir = Path(self._settings.model_dir)
        self._resume, self._with_changes = resume or with_changes, with_changes
        self._checkpoint_path, self._profile = checkpoint_path, profile
        self._clock = StartupClock() if profile_startup else None
        self._ranks = start_ranks(device, self._settings.threads)
        self._objective = objective_of(config, self._ranks, pretrains)
        self._config = self._objective.config
        self._precision = resolve_precision(config.deepspeed, self._ranks.device.type)

    @property
    def task(self) -> Task:
        """The config's task, completed by the data or the model once they are loaded."""
        return self._objective.task

    def fit(self) -> dict[str, Any]:
        """Train to the end, evaluating and saving on the way; returns what is written to results.json.

        Leaves in run.model_dir: `model` (the best by the task's metric, as transformers loads it, with a card), `checkpoints`, `log.jsonl` and
        `results.json`.

        Raises:
            BertfastError: the config, data or checkpoint cannot be used (see bertfast.errors).
            NonFiniteLossError: naming the step and the examples; the last checkpoint is kept.
            OutOfMemoryError: naming the keys that make the run need less.
            Terminated, Interrupted: SIGTERM or SIGINT (Ctrl-C) came; the state was saved.
        """
        started = datetime.now(UTC)
        with memory_named(smaller_training(self._config, resolve_batch_sizes(self._config, self._ranks.world_size))):
            return self._fit_in(started)

    def _fit_in(self, started: datetime) -> dict[str, Any]:
        run = self._prepare()
        with alone_in(self._model_dir) if run.ranks.is_first else nullcontext():
            state = run.folder.restore(self._resume, self._checkpoint_path, self._with_changes)
            if not run.eval_sets:  # then the last model counts, whatever was evaluated before a resume
                state = state._replace(best=None, best_step=None, metrics=None, owes_evaluation=False)
            progress = Progress(self._model_dir, run.total_steps, state.step, run.ranks.is_first, state.owes_evaluation)
            try:
                with Termination(run.ranks) as termination:
                    for line in run.opening_lines(state):
                        progress.say(line)
                    state = self._fit(run, state, progress, termination)
            finally:
                progress.close()
            if state.best_step is None:  # nothing was evaluated, or it never gave a number
                run.folder.write_model(state, run.results(state))
            results = {**run.results(state), "run": run_facts(self._config, started)}
            run.folder.finish(results)
            return results

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Metrics by split of eval_input, by the model in `checkpoint_path` (else the one that training left in run.model_dir)."""
        with memory_named(smaller_evaluation(self._config)):
            return self._objective.evaluate(self._trained_folder, self._precision)

    def predict(self, dataset: EncodedDataset | None = None, split: str = "test") -> np.ndarray | None:
        """Logits [n, C], float32, of every example of `dataset` (else of a split of eval_input), in its order; None on ranks but the first.

        Raises:
            DataError: `dataset` is something else, such as a list of texts.
        """
        if dataset is not None and not isinstance(dataset, EncodedDataset):
            raise DataError(
                f"dataset is of type {type(dataset).__name__}, and not an EncodedDataset, as bertfast.data.encode gives it; for a file of texts, name it as data_file "
                "of eval_input and leave dataset out, or use bertfast predict --input FILE"
            )
        with memory_named(smaller_evaluation(self._config)):
            return self._objective.predict(self._trained_folder, self._precision, dataset, split)

    # ---------------------------------------------------------------------------------------------------------------- one step

    def _fit(self, run: Run, state: RunState, progress: Progress, termination: Termination) -> RunState:
        if state.owes_evaluation:
            state = self._keep(run, state, progress, evaluates=True)
        window, watch = Window(run.ranks), LossWatch(run.train_set, run.ranks)
        steps = run.batches.steps(state.step, run.total_steps, in_buckets=run.in_buckets)
        if self._profile and run.ranks.is_first:
            steps = RunProfiler(self._model_dir / "profile", run.engine, run.ranks.device.type == "cuda", progress.say).steps(steps)
        for step, batches, n_examples in steps:
            if self._stops_early(state):
                progress.say(f"stopping early after step {step}: {state.stale_evaluations} evaluations without a better metric")
                break
            stepped, done = self._step(run, watch, step, batches, n_examples), step + 1
            window.add(stepped.share, batches, n_examples)
            progress.step(done)
            logs, evaluates, saves = (run.is_due(done, every) for every in (self._settings.logging_steps, run.eval_every, run.save_every))
            if self._clock is not None:
                self._first_step_done(self._clock, progress)
            looks = logs or evaluates or saves or run.ranks.device.type == "cpu"  # on a GPU, a look waits for it
            if looks:
                watch.check()
            stops = looks and termination.agreed()
            if logs:
                self._log(run, progress, done, window, stepped)
            if evaluates or saves or stops:
                state = window.take_into(state._replace(step=done))
                with window.paused():
                    # Whoever sends a signal will not wait for an evaluation: the resumed run begins with it.
                    state = self._keep(run, state._replace(owes_evaluation=evaluates and stops), progress, evaluates and not stops)
            if stops:
                raise termination.fault(f"after step {done}; the state is saved in {run.folder.checkpoints}")
        return state

    def _step(self, run: Run, watch: LossWatch, step: int, batches: list[PackedBatch], n_examples: int) -> Stepped:
        """One optimizer step, of so many examples in the global batch."""
        rates = run.engine.get_lr()[0], rates_by_part(run.engine)  # the last engine.step() sets the next ones
        share, totals = torch.zeros((), device=run.ranks.device), run.objective.totals(batches, n_examples)
        run.engine.train()
        if run.whole_step is not None:
            bits = [run.bits(step, micro_step) for micro_step in range(len(batches))]
            for loss in run.whole_step.take(batches, bits, lambda forward, batch: run.objective.loss(forward, batch, totals), n_examples):
                watch.add(step, loss.share, loss.rows_BC, loss.example_ids)
                share += loss.share
            return Stepped(share, *rates)
        for micro_step, batch in enumerate(batches):
            loss = run.objective.loss(run.forward(step, micro_step), batch, totals)
            watch.add(step, loss.share, loss.rows_BC, loss.example_ids)
            run.engine.backward(loss.share * run.ranks.world_size, scale_wrt_gas=False)  # DeepSpeed averages over ranks
            share += loss.share.detach()
            if micro_step == len(batches) - 1 and run.ranks.device.type == "cpu":
                watch.check()  # before a weight is touched
            run.engine.step()
        return Stepped(share, *rates)

    def _keep(self, run: Run, state: RunState, progress: Progress, evaluates: bool) -> RunState:
        """Evaluate where asked, and write a checkpoint; then, where the weights are the best so far, the model. In this order: a kill in between
        leaves a checkpoint that holds the model, and never a model that no checkpoint knows of."""
        if evaluates:
            state = self._evaluate(run, state, progress)
        run.folder.save(state, run.results(state))
        if evaluates and state.best_step == state.step:
            run.folder.write_model(state, run.results(state))
        return state

    def _evaluate(self, run: Run, state: RunState, progress: Progress) -> RunState:
        with memory_named(smaller_evaluation(self._config)):
            metrics = {name: run.objective.metrics(run.engine, dataset) for name, dataset in run.eval_sets.items()}
        progress.evaluation(state.step, metrics)
        values = {f"Eval/{name}/{metric}": value for name, found in metrics.items() for metric, value in found.items()}
        self._write_monitor(run, values, state.step)
        score = run.objective.score(metrics)
        if not is_better(self.task, score, state.best):
            return state._replace(stale_evaluations=state.stale_evaluations + 1, owes_evaluation=False)
        return state._replace(best=score, best_step=state.step, stale_evaluations=0, metrics=metrics, owes_evaluation=False)

    # ----------------------------------------------------------------------------------------------------- preparation, records

    def _prepare(self) -> Run:
        return prepare(self._config, self._objective, self._ranks, self._precision, self._mark, self.capture)

    @property
    def _trained_folder(self) -> str:
        return self._checkpoint_path or str(self._model_dir)

    def _stops_early(self, state: RunState) -> bool:
        patience = self._settings.early_stopping_patience
        return patience is not None and state.stale_evaluations >= patience

    def _log(self, run: Run, progress: Progress, step: int, window: Window, stepped: Stepped) -> None:
        rates = window.rates()
        record = {
            "step": step,
            "epoch": step / run.steps_per_epoch,
            "loss": rates.pop("loss"),
            "learning_rate": stepped.learning_rate,
            **({} if stepped.part_rates is None else {"learning_rates": stepped.part_rates}),
            **rates,
            "real_token_share": run.batches.plan.fill,
            "seconds_left": (run.total_steps - step) * rates["seconds_per_step"],
        }
        progress.record(record)
        self._write_monitor(run, {f"Train/{name}": record[name] for name in ("loss", "learning_rate", "samples_per_second")}, step)

    def _write_monitor(self, run: Run, values: dict[str, float], step: int) -> None:
        """To TensorBoard, W&B, CSV: whatever DeepSpeed's monitor blocks turn on."""
        if run.ranks.is_first and run.engine.monitor.enabled:
            run.engine.monitor.write_events([(name, value, step) for name, value in values.items()])

    def _first_step_done(self, clock: StartupClock, progress: Progress) -> None:
        clock.mark("first step")
        progress.say(clock.table())
        self._clock = None

    def _mark(self, stage: str) -> None:
        if self._clock is not None:
            self._clock.mark(stage)
