"""Fit, evaluate and predict on packed batches with DeepSpeed.

One optimizer step: the planner picks the examples of a global batch; each rank packs its micro-batches; the loss is summed, and divided by the
number of examples in the global batch, so the gradient does not depend on how they were packed.
"""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bertfast.config import (
    Config,
    InputConfig,
    check_monitors,
    resolve_batch_sizes,
    resolve_deepspeed,
    resolve_precision,
    resolve_total_steps,
)
from bertfast.data import EncodedDataset
from bertfast.engine import Capture, build_engine, graphs_for, join_ranks, rates_by_part, start_ranks
from bertfast.errors import ConfigError, Terminated
from bertfast.model import Loss, RandomBits
from bertfast.packing import PackedBatch
from bertfast.reporting import RECIPE_BLOCKS, Progress, RunProfiler, StartupClock, changed, run_facts
from bertfast.storage import alone_in
from bertfast.tasks import Task, compute_metrics, is_better
from bertfast.training.batches import TrainingBatches, compute_logits
from bertfast.training.guards import LossWatch, Termination
from bertfast.training.loader import Loader, check_fit
from bertfast.training.run_folder import Keeper
from bertfast.training.state import RunState, Window
from bertfast.wording import counted


class Trainer:
    """Fine-tune, evaluate and use a classifier as a config says.

    Args:
        config: from `load_config`.
        device: "cpu", "gpu", or None for a GPU where there is one.
        resume: go on from the newest whole checkpoint of run.model_dir, or from `checkpoint_path`.
        checkpoint_path: a training checkpoint to resume from; for `evaluate` and `predict`, the model's folder, or a run's.
        profile_startup: print where the time before the first step went.
        profile: leave a torch profiler trace of a few steps, and a page on it, in run.model_dir/profile.
    """

    pretrains = False  # whether a config's `pretrain` block is heeded
    loader_class: type[Loader] = Loader
    keeper_class: type[Keeper] = Keeper
    capture: type[Capture] | None = None  # what records CUDA graphs, where it is not torch

    def __init__(
        self,
        config: Config,
        device: str | None = None,
        resume: bool = False,
        checkpoint_path: str | None = None,
        profile_startup: bool = False,
        profile: bool = False,
    ):
        self.config = config = config if self.pretrains else config.without_pretraining()
        self.settings = config.bertfast
        self.run = config.bertfast.run
        self.model_dir = Path(self.run.model_dir)
        self.resume = resume
        self.checkpoint_path = checkpoint_path
        self.clock = StartupClock() if profile_startup else None
        self.profile = profile
        self.ranks = start_ranks(device, self.run.threads)
        self.precision = resolve_precision(config.deepspeed, self.ranks.device.type)
        self.loader = self.loader_class(config, self.ranks)

    @property
    def task(self) -> Task:
        """The config's task, completed by the data or the model once they are loaded."""
        return self.loader.task

    def fit(self) -> dict[str, Any]:
        """Train to the end, evaluating and saving on the way; returns what is written to results.json.

        Leaves in run.model_dir: `model` (the best by the task's metric, as transformers loads it, with a card), `checkpoints`, `log.jsonl` and
        `results.json`.

        Raises:
            BertfastError: the config, data or checkpoint cannot be used (see bertfast.errors).
            NonFiniteLossError: naming the step and the examples; the last checkpoint is kept.
            Terminated: SIGTERM came; the state was saved.
        """
        started = datetime.now(UTC)
        self._prepare()
        with alone_in(self.model_dir) if self.ranks.is_first else nullcontext():
            state = self.keeper.restore(self.resume, self.checkpoint_path)
            if not self.eval_sets:  # then the last model counts, whatever was evaluated before a resume
                state = state._replace(best=None, best_step=None, metrics=None, owes_evaluation=False)
            progress = Progress(self.model_dir, self.total_steps, state.step, self.ranks.is_first, state.owes_evaluation)
            try:
                with Termination(self.ranks) as self.termination:
                    for line in self._opening_lines(state):
                        progress.say(line)
                    state = self._fit(state, progress)
            finally:
                progress.close()
            if state.best_step is None:  # nothing was evaluated, or it never gave a number
                self.keeper.write_model(state)
            results = {**self._results(state), "run": run_facts(self.config, started)}
            self.keeper.finish(results)
            return results

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Metrics by split of eval_input, by the model in `checkpoint_path` (else the one that training left in run.model_dir)."""
        model, tokenizer = self._trained_model()
        datasets = self.loader.evaluation_sets(tokenizer)
        for dataset in datasets.values():
            check_fit(dataset, model)
        return {split: self._metrics(model, dataset) for split, dataset in datasets.items()}

    def predict(self, dataset: EncodedDataset | None = None, split: str = "test") -> np.ndarray | None:
        """Logits [n, C], float32, of every example of `dataset` (else of a split of eval_input), in its order; None on ranks but the first."""
        model, tokenizer = self._trained_model()
        source = self.settings.eval_input or self.settings.train_input or InputConfig()
        if dataset is None:
            dataset = self.loader.dataset(source, split, tokenizer)
        check_fit(dataset, model)
        logits = compute_logits(model, dataset, source, self.task.num_labels, self.ranks)
        return logits if self.ranks.is_first else None

    # ---------------------------------------------------------------------------------------------------------------- one step

    def _fit(self, state: RunState, progress: Progress) -> RunState:
        if state.owes_evaluation:
            state = self._keep(state, progress, evaluates=True)
        window = Window(self.ranks)
        self.watch = LossWatch(self.train_set, self.ranks)
        steps = self.batches.steps(state.step, self.total_steps, in_buckets=self.graphs is not None)
        if self.profile and self.ranks.is_first:
            steps = RunProfiler(self.model_dir / "profile", self.engine, self.ranks.device.type == "cuda", progress.say).steps(steps)
        for step, batches in steps:
            if self._stops_early(state):
                progress.say(f"stopping early after step {step}: {state.stale_evaluations} evaluations without a better metric")
                break
            share, done = self._step(step, batches), step + 1
            window.add(share, batches, self.batches.examples_in(step))
            progress.step(done)
            logs, evaluates, saves = (self._is_due(done, every) for every in (self.run.logging_steps, self.eval_every, self.save_every))
            if self.clock is not None:
                self._first_step_done(progress)
            looks = logs or evaluates or saves or self.ranks.device.type == "cpu"  # on a GPU, a look waits for it
            if looks:
                self.watch.check()
            stops = looks and self.termination.agreed()
            if logs:
                self._log(progress, done, window)
            if evaluates or saves or stops:
                state = window.take_into(state._replace(step=done))
                with window.paused():
                    # Whoever sends SIGTERM will not wait for an evaluation: the resumed run begins with it.
                    state = self._keep(state._replace(owes_evaluation=evaluates and stops), progress, evaluates and not stops)
            if stops:
                raise Terminated(
                    f"stopped by SIGTERM after step {done}; the state is saved in {self.keeper.checkpoints}: go on with --resume"
                )
        return state

    def _keep(self, state: RunState, progress: Progress, evaluates: bool) -> RunState:
        """Evaluate where asked, and write a checkpoint; then, where the weights are the best so far, the model. In this order: a kill in between
        leaves a checkpoint that holds the model, and never a model that no checkpoint knows of."""
        if evaluates:
            state = self._evaluate(state, progress)
        self.keeper.save(state)
        if evaluates and state.best_step == state.step:
            self.keeper.write_model(state)
        return state

    def _step(self, step: int, batches: list[PackedBatch]) -> torch.Tensor:
        """One optimizer step; returns this rank's share of the mean loss, on the device."""
        n_examples = self.batches.examples_in(step)
        share = torch.zeros((), device=self.ranks.device)
        self.engine.train()
        for micro_step, batch in enumerate(batches):
            loss = self._micro_step(step, micro_step, batch, n_examples)
            self.engine.backward(loss * self.ranks.world_size, scale_wrt_gas=False)  # DeepSpeed averages over ranks
            share += loss.detach()
            if micro_step == len(batches) - 1:
                self.learning_rate, self.part_rates = (
                    self.engine.get_lr()[0],
                    rates_by_part(self.engine),
                )  # engine.step() sets the next ones
                if self.ranks.device.type == "cpu":
                    self.watch.check()  # before a weight is touched
            self.engine.step()
        return share

    def _micro_step(self, step: int, micro_step: int, batch: PackedBatch, n_examples: int) -> torch.Tensor:
        """The forward pass of one micro-batch; returns its share of the step's mean loss."""
        batch = self.loss.prepared(batch)
        logits_BC = self.engine(batch, self._random_bits(step, micro_step))
        loss = self.loss(logits_BC, batch.labels) / n_examples
        self.watch.add(step, loss, logits_BC, batch.example_ids)
        return loss

    def _random_bits(self, step: int, micro_step: int) -> RandomBits:
        """Dropout's bits, from seed and step alone, so that a resumed run meets the same."""
        return RandomBits.of_step(self.run.seed, step, self.ranks.device, None if self.invariant_dropout else (micro_step, self.ranks.rank))

    # ----------------------------------------------------------------------------------------------------------- preparation

    def _prepare(self) -> None:
        check_monitors(self.config.deepspeed)
        sizes = self.sizes = resolve_batch_sizes(self.config, self.ranks.world_size)
        join_ranks(self.ranks)
        self._mark("DeepSpeed and the process group")
        tokenizer = self.loader.tokenizer()
        self._mark("tokenizer")
        self.train_set = self.loader.training_set(tokenizer)
        self.eval_sets = self.loader.evaluation_sets(tokenizer)
        self._mark("data")
        torch.manual_seed(self.run.seed)
        model = self.loader.model(self.settings.model.checkpoint, new_head=True)
        for dataset in (self.train_set, *self.eval_sets.values()):
            check_fit(dataset, model)
        self._mark("model")
        self.batches = TrainingBatches(self.train_set, self.settings.train_input, sizes, self.run.seed, self.ranks)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.total_steps = resolve_total_steps(self.settings, self.steps_per_epoch)
        self.eval_every = (self.run.eval_steps or self.steps_per_epoch) if self.eval_sets else None
        self.save_every = self.run.save_steps or self.eval_every or self.steps_per_epoch
        asked = self.run.packing_invariant_dropout
        self.invariant_dropout = self.ranks.device.type != "cpu" if asked is None else asked
        self.load_report = model.load_report
        self.loss = self._loss()
        self.engine = build_engine(model, self.config, sizes, self.total_steps, self.ranks, self.steps_per_epoch)
        self.graphs, self.graphs_line = graphs_for(model, self.config, sizes, self.ranks.device, self.invariant_dropout, self.capture)
        self.keeper = self.keeper_class(self.config, self.task, self.engine, tokenizer, self._identity(), self._results, self.ranks)
        self._mark("engine")

    def _loss(self) -> Any:
        return Loss(self.settings.loss, self.task.num_labels, self.train_set.labels, self.ranks.device)

    def _trained_model(self):
        return self.loader.trained(self.checkpoint_path or str(self.model_dir), self.precision)

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a resumed run to be the same run."""
        return {
            "seed": self.run.seed,
            "world_size": self.ranks.world_size,
            "batch size": self.sizes.global_batch,
            "micro-steps": self.sizes.micro_steps,
            "planner": self.batches.plan.planner,
            "steps per epoch": self.steps_per_epoch,
            "training examples": len(self.train_set),
            "training tokens": int(self.train_set.lengths.sum(dtype=np.int64)),
            "optimizer": self._optimizer(),
            **{name: changed(getattr(self.settings, name)) for name in RECIPE_BLOCKS},
        }

    def _optimizer(self) -> dict[str, Any]:
        """The optimizer's settings, no "auto" among them: its state, which a checkpoint holds, has them too, and would overrule a config's."""
        hidden_size, kind = self.engine.module.config.hidden_size, self.ranks.device.type
        block = resolve_deepspeed(self.config, self.sizes, self.total_steps, kind, hidden_size)["optimizer"]
        return {"type": str(block["type"]).lower(), "params": {**block["params"]}}

    def _opening_lines(self, state: RunState) -> list[str]:
        shape = f"{counted(self.sizes.world_size, 'rank')} x {counted(self.sizes.micro_steps, 'micro-step')} on {self.ranks.device.type}, {self.precision}"
        lines = [
            self.load_report.summary(),
            f"{len(self.train_set):,} examples of {self.task.name}, {self.total_steps} steps of "
            f"{self.batches.plan.examples / self.steps_per_epoch:,.0f} examples ({shape}), share of real tokens {self.batches.plan.fill:.1%}",
        ]
        asked = self.config.deepspeed.get("zero_optimization", {}).get("stage", 0)
        if asked != self.engine.zero_optimization_stage():
            lines.append(f"ZeRO stage {asked} has nothing to divide on one rank: it runs as stage 0")
        resuming = f"resuming after step {state.step}" if state.step else None
        return lines + [line for line in (self.graphs_line, *self.keeper.notes, resuming) if line]

    # -------------------------------------------------------------------------------------------------- evaluation, records

    def _metrics(self, model, dataset: EncodedDataset) -> dict[str, float]:
        if dataset.labels is None:
            raise ConfigError(f"{dataset.source}: has no labels to evaluate against; use predict")
        logits = compute_logits(model, dataset, self.settings.eval_input, self.task.num_labels, self.ranks)
        return compute_metrics(dataset.task, logits, dataset.labels)

    def _evaluate(self, state: RunState, progress: Progress) -> RunState:
        metrics = {split: self._metrics(self.engine, dataset) for split, dataset in self.eval_sets.items()}
        progress.evaluation(state.step, metrics)
        self._write_monitor(
            {f"Eval/{split}/{name}": value for split, values in metrics.items() for name, value in values.items()}, state.step
        )
        value = self._score(metrics)
        if not is_better(self.task, value, state.best):
            return state._replace(stale_evaluations=state.stale_evaluations + 1, owes_evaluation=False)
        return state._replace(best=value, best_step=state.step, stale_evaluations=0, metrics=metrics, owes_evaluation=False)

    def _score(self, metrics: dict[str, dict[str, float]]) -> float:
        """What the best model is chosen by: the main metric on the first split."""
        return next(iter(metrics.values()))[self.task.main_metric]

    def _results(self, state: RunState) -> dict[str, Any]:
        seconds = max(state.seconds, 1e-9)
        return {
            "task": self.task.name,
            "main_metric": self.task.main_metric,
            "metrics": state.metrics or {},
            "training": {
                "steps": state.step,
                "best_step": state.best_step,
                "epochs": round(state.step / self.steps_per_epoch, 4),
                "examples": state.examples,
                "train_seconds": round(state.seconds, 3),
                "samples_per_second": round(state.examples / seconds, 2),
                "tokens_per_second": round(state.tokens / seconds, 1),
                "real_token_share": round(self.batches.plan.fill, 5),
                "real_token_share_if_padded": round(state.tokens / max(state.padded_tokens, 1), 5),
                "batch_size": self.sizes.global_batch,
                "world_size": self.ranks.world_size,
                "device": self.ranks.device.type,
                "precision": self.precision,
                "zero_stage": self.engine.zero_optimization_stage(),
                **({} if self.graphs is None else {"cuda_graphs": dict(self.graphs.counts)}),
            },
        }

    def _log(self, progress: Progress, step: int, window: Window) -> None:
        rates = window.rates()
        record = {
            "step": step,
            "epoch": step / self.steps_per_epoch,
            "loss": rates.pop("loss"),
            "learning_rate": self.learning_rate,
            **({} if self.part_rates is None else {"learning_rates": self.part_rates}),
            **rates,
            "real_token_share": self.batches.plan.fill,
            "seconds_left": (self.total_steps - step) * rates["seconds_per_step"],
        }
        progress.record(record)
        self._write_monitor({f"Train/{name}": record[name] for name in ("loss", "learning_rate", "samples_per_second")}, step)

    def _write_monitor(self, values: dict[str, float], step: int) -> None:
        """To TensorBoard, W&B, CSV: whatever DeepSpeed's monitor blocks turn on."""
        if self.ranks.is_first and self.engine.monitor.enabled:
            self.engine.monitor.write_events([(name, value, step) for name, value in values.items()])

    def _first_step_done(self, progress: Progress) -> None:
        self._mark("first step")
        progress.say(self.clock.table())
        self.clock = None

    def _mark(self, stage: str) -> None:
        if self.clock is not None:
            self.clock.mark(stage)

    def _is_due(self, step: int, every: int | None) -> bool:
        """Whether something that happens every so many steps, and after the last one, happens after `step` of them."""
        return every is not None and (step % every == 0 or step == self.total_steps)

    def _stops_early(self, state: RunState) -> bool:
        patience = self.run.early_stopping_patience
        return patience is not None and state.stale_evaluations >= patience
