"""Fit, evaluate and predict on packed batches with DeepSpeed.

One optimizer step: the planner picks the examples of a global batch; each rank packs its micro-batches; the loss is summed, and divided by the
number of examples in the global batch, so the gradient does not depend on how they were packed.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bertfast import checkpoint, report
from bertfast.config import Config, InputConfig
from bertfast.data import EncodedDataset, load_dataset_for
from bertfast.engine import (
    build_engine,
    join_ranks,
    load_training_state,
    model_folder,
    save_training_state,
    start_ranks,
    whole_state,
)
from bertfast.errors import CheckpointError, ConfigError, Terminated
from bertfast.metrics import compute_metrics, is_better
from bertfast.model import BertClassifier, RandomBits, loss_sum
from bertfast.packing import PackedBatch
from bertfast.planning import Plan, plan_examples, plan_sequential, plan_tokens
from bertfast.pretrained import load_tokenizer, task_of_model
from bertfast.progress import Progress, StartupClock
from bertfast.resolve import resolve_batch_sizes, resolve_precision, resolve_total_steps
from bertfast.steps import LossWatch, RunState, Termination, Window, ahead
from bertfast.tasks import Task, get_task
from bertfast.weights import read_config, resolve_folder


class Trainer:
    """Fine-tune, evaluate and use a classifier as a config says.

    Args:
        config: from `load_config`.
        device: "cpu", "gpu", or None for a GPU where there is one.
        resume: go on from the newest whole checkpoint of run.model_dir, or from `checkpoint_path`.
        checkpoint_path: a training checkpoint to resume from; for `evaluate` and `predict`, the model's folder, or a run's.
        profile_startup: print where the time before the first step went.
    """

    def __init__(
        self,
        config: Config,
        device: str | None = None,
        resume: bool = False,
        checkpoint_path: str | None = None,
        profile_startup: bool = False,
    ):
        self.config = config
        self.settings = config.bertfast
        self.run = config.bertfast.run
        self.model_dir = Path(self.run.model_dir)
        self.resume = resume
        self.checkpoint_path = checkpoint_path
        self.clock = StartupClock() if profile_startup else None
        self.ranks = start_ranks(device, self.run.threads)
        self.precision = resolve_precision(config.deepspeed, self.ranks.device.type)
        self.task: Task = get_task(self.settings.task)
        self._mark("torch and the process's own imports")

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
        state = self._restore()
        progress = Progress(self.model_dir, self.total_steps, state.step, self.ranks.is_first)
        try:
            with Termination(self.ranks) as self.termination:
                for line in self._opening_lines(state):
                    progress.say(line)
                state = self._fit(state, progress)
        finally:
            progress.close()
        return self._finish(state, started)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Metrics by split of eval_input, by the model in `checkpoint_path` (else the one that training left in run.model_dir)."""
        model, tokenizer = self._load_for_inference()
        datasets = self._load_eval_sets(tokenizer)
        for dataset in datasets.values():
            self._check_fit(dataset, model)
        return {split: self._metrics(model, dataset) for split, dataset in datasets.items()}

    def predict(self, dataset: EncodedDataset | None = None, split: str = "test") -> np.ndarray | None:
        """Logits [n, C], float32, of every example of `dataset` (else of a split of eval_input), in its order; None on ranks but the first."""
        model, tokenizer = self._load_for_inference()
        if dataset is None:
            dataset = self._load(self.settings.eval_input or self.settings.train_input, split, tokenizer)
        self._check_fit(dataset, model)
        logits = self._logits(model, dataset, self.settings.eval_input or InputConfig())
        return logits if self.ranks.is_first else None

    # ---------------------------------------------------------------------------------------------------------------- one step

    def _fit(self, state: RunState, progress: Progress) -> RunState:
        window = Window(self.ranks)
        self.watch = LossWatch(self.train_set, self.ranks.device)
        for step, batches in self._prefetched(state.step):
            if self._stops_early(state):
                progress.say(f"stopping early after step {step}: {state.stale_evaluations} evaluations without a better metric")
                break
            share, done = self._step(step, batches), step + 1
            window.add(share, batches, self._examples_in(step))
            progress.step(done)
            logs, evaluates, saves = (self._is_due(done, every) for every in (self.run.logging_steps, self.eval_every, self.save_every))
            if self.clock is not None:
                self._first_step_done(progress)
            if logs:
                self._log(progress, done, window)
            stops = (logs or self.ranks.device.type == "cpu") and self.termination.agreed()
            if evaluates or saves or stops:
                self.watch.check()
                state = window.take_into(state._replace(step=done))
                if evaluates and not stops:
                    state = self._evaluate_and_keep_best(state, progress)
                self._save(state)
                window.restart_clocks()
            if stops:
                raise Terminated(f"stopped by SIGTERM after step {done}; the state is saved in {self.checkpoints}: go on with --resume")
        return state

    def _step(self, step: int, batches: list[PackedBatch]) -> torch.Tensor:
        """One optimizer step; returns this rank's share of the mean loss, on the device."""
        n_examples = self._examples_in(step)
        share = torch.zeros((), device=self.ranks.device)
        self.engine.train()
        for micro_step, batch in enumerate(batches):
            logits_BC = self.engine(batch, self._random_bits(step, micro_step))
            loss = loss_sum(logits_BC, batch.labels) / n_examples
            self.watch.add(step, loss, logits_BC, batch.example_ids)
            self.engine.backward(loss * self.ranks.world_size, scale_wrt_gas=False)  # DeepSpeed averages over ranks
            self.engine.step()
            share += loss.detach()
        return share

    def _random_bits(self, step: int, micro_step: int) -> RandomBits:
        """Dropout's bits, from seed and step alone, so that a resumed run meets the same."""
        if self.invariant_dropout:
            return RandomBits(key=torch.tensor([self.run.seed, step], device=self.ranks.device))
        entropy = np.random.SeedSequence([self.run.seed, step, micro_step, self.ranks.rank])
        return RandomBits(stream=np.random.Generator(np.random.SFC64(entropy)))

    # ----------------------------------------------------------------------------------------------------------- preparation

    def _prepare(self) -> None:
        if self.settings.train_input is None:
            raise ConfigError("bertfast.train_input is missing; it names the training data")
        sizes = resolve_batch_sizes(self.config, self.ranks.world_size)
        join_ranks(self.ranks)
        self._mark("DeepSpeed and the process group")
        source = self.settings.model
        tokenizer = self._tokenizer(source.tokenizer or source.checkpoint, source.checkpoint)
        self._mark("tokenizer")
        self.train_set = self._load(self.settings.train_input, "train", tokenizer)
        if self.train_set.labels is None:
            raise ConfigError(f"{self.train_set.source}: has no labels to train on")
        if len(self.train_set) == 0:
            raise ConfigError(f"{self.train_set.source}: holds no examples to train on")
        self.task = self.train_set.task
        self.eval_sets = self._load_eval_sets(tokenizer)
        self._mark("data")
        self.tokenizer = tokenizer
        torch.manual_seed(self.run.seed)
        model = self._load_model(self.settings.model.checkpoint, new_head=True)
        for dataset in (self.train_set, *self.eval_sets.values()):
            self._check_fit(dataset, model)
        self._mark("model")
        self.sizes = sizes
        self.plan = self._plan(epoch=0)
        self._planned_epoch = 0
        self.steps_per_epoch = len(self.plan)
        self.total_steps = resolve_total_steps(self.settings, self.steps_per_epoch)
        self.eval_every = (self.run.eval_steps or self.steps_per_epoch) if self.eval_sets else None
        self.save_every = self.run.save_steps or self.eval_every or self.steps_per_epoch
        self.invariant_dropout = self.run.packing_invariant_dropout
        if self.invariant_dropout is None:
            self.invariant_dropout = self.ranks.device.type != "cpu"
        self.checkpoints = self.model_dir / "checkpoints"
        self.load_report = model.load_report
        self.engine = build_engine(model, self.config, sizes, self.total_steps, self.ranks)
        self._mark("engine")

    def _plan(self, epoch: int) -> Plan:
        source, lengths = self.settings.train_input, self.train_set.lengths
        parts = {"world_size": self.sizes.world_size, "micro_steps": self.sizes.micro_steps}
        common = {**parts, "seed": self.run.seed, "epoch": epoch, "shuffle": source.shuffle}
        if source.planner == "tokens":
            return plan_tokens(lengths, source.tokens_per_batch, **common)
        return plan_examples(lengths, self.sizes.global_batch, **common)

    def _load(self, source: InputConfig, split: str, tokenizer) -> EncodedDataset:
        """A split, encoded: the first rank builds the cache, the others then find it there."""
        if not self.ranks.is_first:
            self.ranks.barrier()
        try:
            return load_dataset_for(self.task, source, split, tokenizer, self.run.seed)
        finally:
            if self.ranks.is_first:
                self.ranks.barrier()

    def _load_eval_sets(self, tokenizer) -> dict[str, EncodedDataset]:
        source = self.settings.eval_input
        if source is None:
            return {}
        return {split: self._load(source, split, tokenizer) for split in self.task.eval_splits}

    def _tokenizer(self, folder_or_name: str, checkpoint_folder: str):
        """The tokenizer of one folder, held against the model of another (mostly the same)."""
        bert = read_config(resolve_folder(model_folder(checkpoint_folder)))
        return load_tokenizer(resolve_folder(model_folder(folder_or_name)), bert)

    def _load_model(self, folder_or_name: str, new_head: bool) -> BertClassifier:
        settings = self.settings.model
        return BertClassifier.from_pretrained(
            model_folder(folder_or_name),
            self.task.num_labels,
            self.task.label_names,
            strict=settings.strict,
            new_head=new_head and (settings.is_pretrained_checkpoint or settings.load_checkpoint_states is None),
            overrides={
                "hidden_dropout_prob": settings.hidden_dropout_prob,
                "attention_probs_dropout_prob": settings.attention_probs_dropout_prob,
                "classifier_dropout": self.settings.head.dropout,
            },
        )

    def _load_for_inference(self) -> tuple[BertClassifier, Any]:
        folder = self.checkpoint_path or str(self.model_dir)
        checkpoint.recover(Path(folder) / "model")
        if self.ranks.world_size > 1:
            join_ranks(self.ranks)
        tokenizer = self._tokenizer(folder, folder)
        self.task = task_of_model(self.task, resolve_folder(model_folder(folder)))
        model = self._load_model(folder, new_head=False)
        missing = [name for name in model.load_report.missing if name.startswith("classifier.")]
        if missing:
            raise CheckpointError(f"{folder}: has no classification head ({missing[0]} is missing); train it first")
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[self.precision]
        return model.to(self.ranks.device, dtype).eval(), tokenizer

    def _check_fit(self, dataset: EncodedDataset, model: BertClassifier) -> None:
        """The data against the model: ids within its vocabulary, lengths within its positions."""
        positions = model.config.max_position_embeddings
        if dataset.max_sequence_length > positions:
            raise ConfigError(
                f"max_sequence_length = {dataset.max_sequence_length}, but the checkpoint has {positions} position embeddings; set it to {positions} or less"
            )
        dataset.check_vocabulary(model.config.vocab_size, model.config.type_vocab_size)

    def _opening_lines(self, state: RunState) -> list[str]:
        shape = f"{self.sizes.world_size} ranks x {self.sizes.micro_steps} micro-steps on {self.ranks.device.type}, {self.precision}"
        lines = [
            self.load_report.summary(),
            f"{len(self.train_set):,} examples of {self.task.name}, {self.total_steps} steps of "
            f"{self.plan.examples / self.steps_per_epoch:,.0f} examples ({shape}), share of real tokens {self.plan.fill:.1%}",
        ]
        asked = self.config.deepspeed.get("zero_optimization", {}).get("stage", 0)
        if asked != self.engine.zero_optimization_stage():
            lines.append(f"ZeRO stage {asked} has nothing to divide on one rank: it runs as stage 0")
        if state.step:
            lines.append(f"resuming after step {state.step}")
        return lines

    # ------------------------------------------------------------------------------------------------------------- batches

    def _prefetched(self, first_step: int) -> Iterator[tuple[int, list[PackedBatch]]]:
        """(step, this rank's micro-batches), packed ahead of need on a thread of their own."""

        def pack(step: int) -> tuple[int, Plan, list[PackedBatch]]:
            epoch, index = divmod(step, self.steps_per_epoch)
            if epoch != self._planned_epoch:
                self._packing_plan, self._planned_epoch = self._plan(epoch), epoch
            batches = [self.train_set.batch(part) for part in self._packing_plan.micro_batches(index, self.ranks.rank)]
            return step, self._packing_plan, self._on_device(batches)

        self._packing_plan = self.plan
        for step, plan, batches in ahead(pack, range(first_step, self.total_steps)):
            self.plan = plan
            yield step, batches

    def _on_device(self, batches: list[PackedBatch]) -> list[PackedBatch]:
        if self.ranks.device.type == "cpu":
            return batches
        return [batch.pin_memory().to(self.ranks.device, non_blocking=True) for batch in batches]

    # -------------------------------------------------------------------------------------------------- evaluation, saving

    def _logits(self, model, dataset: EncodedDataset, source: InputConfig) -> np.ndarray:
        """Logits [n, C] of all examples in their order, on every rank: each rank takes its share, and every example counts once."""
        plan = plan_sequential(
            dataset.lengths, source.batch_size, tokens_per_batch=source.tokens_per_batch, world_size=self.ranks.world_size
        )
        model.eval()

        def pack(step: int) -> list[PackedBatch]:
            return self._on_device([dataset.batch(part) for part in plan.micro_batches(step, self.ranks.rank)])

        ids, rows = [], []
        with torch.inference_mode():
            for batches in ahead(pack, range(len(plan))):
                for batch in batches:
                    rows.append(model(batch).float())
                    ids.append(batch.example_ids)
        mine = (
            (torch.cat(ids).cpu().numpy(), torch.cat(rows).cpu().numpy())
            if rows
            else (np.zeros(0, int), np.zeros((0, self.task.num_labels)))
        )
        logits = np.full((len(dataset), self.task.num_labels), np.nan, dtype=np.float32)
        for ids_B, logits_BC in self.ranks.gather(mine):
            logits[ids_B[ids_B >= 0]] = logits_BC[ids_B >= 0]
        return logits

    def _metrics(self, model, dataset: EncodedDataset) -> dict[str, float]:
        if dataset.labels is None:
            raise ConfigError(f"{dataset.source}: has no labels to evaluate against; use predict")
        return compute_metrics(dataset.task, self._logits(model, dataset, self.settings.eval_input), dataset.labels)

    def _evaluate_and_keep_best(self, state: RunState, progress: Progress) -> RunState:
        metrics = {split: self._metrics(self.engine, dataset) for split, dataset in self.eval_sets.items()}
        progress.evaluation(state.step, metrics)
        self._write_monitor(
            {f"Eval/{split}/{name}": value for split, values in metrics.items() for name, value in values.items()}, state.step
        )
        value = next(iter(metrics.values()))[self.task.main_metric]
        if not is_better(self.task, value, state.best):
            return state._replace(stale_evaluations=state.stale_evaluations + 1)
        state = state._replace(best=value, best_step=state.step, stale_evaluations=0, metrics=metrics)
        self._write_model(state)
        return state

    def _write_model(self, state: RunState) -> None:
        """Replace run.model_dir/model by the weights of now."""
        weights = whole_state(self.engine)
        if self.ranks.is_first:
            checkpoint.write_folder(self.model_dir / "model", lambda folder: self._fill_model_folder(folder, weights, state))
        self.ranks.barrier()

    def _fill_model_folder(self, folder: Path, weights: dict[str, torch.Tensor], state: RunState) -> None:
        self.engine.module.save_pretrained(folder, weights)
        self.tokenizer.save_pretrained(folder)
        report.write_model_config(folder, self.config, self.task)
        report.write_model_card(folder, self._results(state), self.config, self.task)

    def _save(self, state: RunState) -> None:
        weights = whole_state(self.engine)
        client_state = {"progress": state._asdict(), "identity": self._identity()}
        fill = lambda folder: self._fill_model_folder(folder, weights, state)  # noqa: E731
        save_training_state(self.engine, self.checkpoints, state.step, client_state, fill, self.ranks)
        if self.ranks.is_first:
            checkpoint.prune(self.checkpoints, self.run.keep_checkpoints)

    def _restore(self) -> RunState:
        if self.ranks.is_first:
            checkpoint.recover(self.model_dir / "model")
        if not self.resume:
            self._refuse_to_overwrite()
            return RunState()
        path = Path(self.checkpoint_path) if self.checkpoint_path else checkpoint.newest_whole(self.checkpoints)
        if path is None:
            return RunState()
        if self.checkpoint_path and (fault := checkpoint.fault_of(path)):
            raise CheckpointError(f"{path}: cannot be resumed from: {fault}")
        client_state = load_training_state(self.engine, path)
        for name, value in self._identity().items():
            if client_state["identity"].get(name) != value:
                raise CheckpointError(
                    f"{path}: was written with {name} = {client_state['identity'].get(name)}, this run has {value}; "
                    "resume with the settings that wrote it, or start anew from its weights with --load_checkpoint_states model"
                )
        return RunState(**client_state["progress"])

    def _refuse_to_overwrite(self) -> None:
        existing = checkpoint.steps_in(self.checkpoints)
        self.ranks.barrier()
        if existing:
            raise ConfigError(
                f"{self.checkpoints}: an earlier run's checkpoints are there (newest: {existing[-1].name}); go on from them with --resume, "
                "or give another --model_dir, or delete them"
            )

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a resumed run to be the same run."""
        return {
            "seed": self.run.seed,
            "world_size": self.ranks.world_size,
            "batch size": self.sizes.global_batch,
            "micro-steps": self.sizes.micro_steps,
            "planner": self.plan.planner,
            "steps per epoch": self.steps_per_epoch,
            "training examples": len(self.train_set),
            "training tokens": int(self.train_set.lengths.sum(dtype=np.int64)),
        }

    # ------------------------------------------------------------------------------------------------------------- the rest

    def _finish(self, state: RunState, started: datetime) -> dict[str, Any]:
        if not self.eval_sets:
            self._write_model(state)
        results = {**self._results(state), "run": report.run_facts(self.config, started)}
        if self.ranks.is_first:
            report.write_results(self.model_dir, results)
            report.write_model_card(self.model_dir / "model", results, self.config, self.task)
            checkpoint.seal(self.model_dir / "model")
        self.ranks.barrier()
        return results

    def _results(self, state: RunState) -> dict[str, Any]:
        seconds = max(state.seconds, 1e-9)
        return {
            "task": self.task.name,
            "metrics": state.metrics or {},
            "training": {
                "steps": state.step,
                "best_step": state.best_step,
                "epochs": round(state.step / self.steps_per_epoch, 4),
                "examples": state.examples,
                "train_seconds": round(state.seconds, 3),
                "samples_per_second": round(state.examples / seconds, 2),
                "tokens_per_second": round(state.tokens / seconds, 1),
                "real_token_share": round(self.plan.fill, 5),
                "real_token_share_if_padded": round(state.tokens / max(state.padded_tokens, 1), 5),
                "batch_size": self.sizes.global_batch,
                "world_size": self.ranks.world_size,
                "device": self.ranks.device.type,
                "precision": self.precision,
                "zero_stage": self.engine.zero_optimization_stage(),
            },
        }

    def _log(self, progress: Progress, step: int, window: Window) -> None:
        self.watch.check()
        rates = window.rates()
        record = {
            "step": step,
            "epoch": step / self.steps_per_epoch,
            "loss": rates.pop("loss"),
            "learning_rate": self.engine.get_lr()[0],
            **rates,
            "real_token_share": self.plan.fill,
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

    def _examples_in(self, step: int) -> int:
        return self.plan.num_examples(step % self.steps_per_epoch)
