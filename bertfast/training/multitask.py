"""Training on several tasks with one encoder and a head each, on packed batches that mix them (Liu et al. 2019; see `mixture`)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from bertfast.config import Config, InputConfig, refuse_several, task_configs
from bertfast.data import EncodedDataset, MixtureSet, quotas
from bertfast.engine import Ranks
from bertfast.errors import CheckpointError, ConfigError
from bertfast.model import Loss, MultitaskClassifier, OneTask, among_others, mixed_loss
from bertfast.packing import MixedBatch
from bertfast.reporting import write_model_card, write_model_config
from bertfast.storage import folders
from bertfast.tasks import Task, compute_metrics
from bertfast.training.batches import compute_logits
from bertfast.training.loader import Loader
from bertfast.training.run_folder import Keeper
from bertfast.training.state import RunState
from bertfast.training.trainer import Trainer
from bertfast.weights import model_folder
from bertfast.wording import counted

MULTITASK = Task("multitask", ("text",), "label", None)  # its main metric is the mean of the tasks' own
_LEAST_EXAMPLES = 1.0  # of a task in a step, on average; with less it is said


class _MultitaskLoader(Loader):
    """A loader for each task, and a model with a head for each."""

    def __init__(self, config: Config, ranks: Ranks):
        super().__init__(config, ranks)
        self.task = MULTITASK
        self.parts = {name: Loader(part, ranks) for name, part in task_configs(config).items()}

    @property
    def tasks(self) -> list[Task]:
        """The tasks in order, completed once their data are loaded."""
        return [part.task for part in self.parts.values()]

    def training_set(self, tokenizer: Any) -> MixtureSet:
        sets = [part.training_set(tokenizer) for part in self.parts.values()]
        return MixtureSet(sets, self.settings.multitask.sampling, self.settings.run.seed, self.settings.train_input.shuffle)

    def evaluation_sets(self, tokenizer: Any) -> dict[str, EncodedDataset]:
        """Every task's splits, as "task/split"."""
        return {
            f"{name}/{split}": dataset for name, part in self.parts.items() for split, dataset in part.evaluation_sets(tokenizer).items()
        }

    def model(self, folder_or_name: str, new_head: bool) -> MultitaskClassifier:
        settings = self.settings.model
        dropout = {name: getattr(settings, name) for name in ("hidden_dropout_prob", "attention_probs_dropout_prob")}
        overrides = {**dropout, "classifier_dropout": self.settings.head.dropout}
        return MultitaskClassifier.from_pretrained(model_folder(folder_or_name), self.tasks, self.settings.head, settings.strict, overrides)


class _MultitaskKeeper(Keeper):
    """Writes a folder for each task into the model's folder, each a classifier that stands alone."""

    def _fill(self, folder: Path, weights: dict[str, torch.Tensor], state: RunState) -> None:
        model, results = self._engine.module, self._results(state)
        for number, (task, (name, config)) in enumerate(zip(model.tasks, task_configs(self._config).items(), strict=True)):
            inner = folder / name
            inner.mkdir()
            model.save_task(inner, number, weights)
            self._tokenizer.save_pretrained(inner)
            write_model_config(inner, config, task)
            write_model_card(inner, _results_of(name, results), config, task)

    def _write_card(self, folder: Path, results: dict[str, Any]) -> None:
        for task, (name, config) in zip(self._engine.module.tasks, task_configs(self._config).items(), strict=True):
            write_model_card(folder / name, _results_of(name, results), config, task)


class Multitasker(Trainer):
    """Train on several tasks as a config's `multitask` block says; see Trainer. Leaves in run.model_dir what training leaves, save that `model`
    holds a folder for each task. The best model is that with the highest mean of the tasks' main metrics, each on its first split."""

    loader_class = _MultitaskLoader
    keeper_class = _MultitaskKeeper

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Metrics by "task/split", by each task's own classifier in the model's folder."""
        folder, found = Path(self.checkpoint_path or self.model_dir), {}
        inner = folders.standing(folder / "model")
        folder = inner if inner.is_dir() else folder
        for name, config in task_configs(self.config).items():
            if not (folder / name / "config.json").is_file():
                raise CheckpointError(f"{folder}: holds no model of task {name}; give the folder of a run on these tasks")
            if config.bertfast.eval_input is not None:
                alone = Trainer(config, self.ranks.device.type.replace("cuda", "gpu"), checkpoint_path=str(folder / name))
                found |= {f"{name}/{split}": metrics for split, metrics in alone.evaluate().items()}
        return found

    def predict(self, dataset: EncodedDataset | None = None, split: str = "test") -> None:
        """A model of several tasks does not predict; each task's own does."""
        refuse_several(self.config, "predict")

    def _prepare(self) -> None:
        super()._prepare()
        self.train_set.epochs = self._epochs

    def _loss(self) -> list[Loss]:
        """One for each task."""
        losses = []
        for part in self.train_set.parts:
            config = among_others(self.settings.loss, part.task.is_regression)
            losses.append(Loss(config, part.task.num_labels, part.labels, self.ranks.device))
        return losses

    def _micro_step(self, step: int, micro_step: int, batch: MixedBatch, n_examples: int) -> torch.Tensor:
        batch = batch.twice() if self.settings.loss.r_drop else batch
        logits = self.engine(batch, self._random_bits(step, micro_step))
        loss = mixed_loss(logits, batch, self.loss, [task.weight for task in self.settings.multitask.tasks]) / n_examples
        sums_B1 = torch.cat([logits_bC.detach().float().sum(dim=1, keepdim=True) for logits_bC in logits])
        self.watch.add(step, loss, sums_B1, batch.example_ids[batch.task_order])
        return loss

    def _identity(self) -> dict[str, Any]:
        tasks = self.settings.multitask.tasks
        mixture = [[task.name, task.weight, size] for task, size in zip(tasks, self.train_set.sizes, strict=True)]
        facts = {**super()._identity(), "tasks": mixture, "sampling": self.train_set.sampling}
        return {**facts, "epochs": self._epochs} if self.train_set.sampling == "annealed" else facts

    @property
    def _epochs(self) -> int:
        return math.ceil(self.total_steps / self.steps_per_epoch)

    def _results(self, state: RunState) -> dict[str, Any]:
        results = super()._results(state)
        drawn = quotas(self.train_set.sizes, self.train_set.sampling).tolist()
        facts = zip(self.loader.parts, self.train_set.sizes, drawn, strict=True)
        tasks = {name: {"examples": size, "drawn_in_first_epoch": draws} for name, size, draws in facts}
        best = {} if state.best is None else {"mean_of_main_metrics": state.best}
        return {**results, **best, "tasks": tasks}

    def _opening_lines(self, state: RunState) -> list[str]:
        lines, drawn = super()._opening_lines(state), quotas(self.train_set.sizes, self.train_set.sampling)
        for name, size, draws in zip(self.loader.parts, self.train_set.sizes, drawn.tolist(), strict=True):
            a_step = draws / self.steps_per_epoch
            rare = "; in steps without any, its head has a gradient of 0, and decays" if a_step < _LEAST_EXAMPLES else ""
            lines.append(f"  {name}: {counted(size, 'example')}, {draws:,} drawn in the first epoch, {a_step:.2f} a step{rare}")
        return lines

    def _metrics(self, model: Any, dataset: EncodedDataset) -> dict[str, float]:
        names = list(self.loader.parts)
        name = dataset.task.name
        source = self.loader.parts[name].settings.eval_input or InputConfig()
        one = OneTask(model, names.index(name), len(names))
        if dataset.labels is None:
            raise ConfigError(f"{dataset.source}: has no labels to evaluate against")
        logits = compute_logits(one, dataset, source, dataset.task.num_labels, self.ranks)
        return compute_metrics(dataset.task, logits, dataset.labels)

    def _score(self, metrics: dict[str, dict[str, float]]) -> float:
        """The mean, over the tasks that are evaluated, of the main metric on the task's first split."""
        firsts: dict[str, float] = {}
        for name, part in self.loader.parts.items():
            for key, values in metrics.items():
                if key.startswith(f"{name}/"):
                    firsts.setdefault(name, values[part.task.main_metric])
        return sum(firsts.values()) / len(firsts)


def _results_of(name: str, results: dict[str, Any]) -> dict[str, Any]:
    """The results of a run, with the metrics of one task alone."""
    own = {key.removeprefix(f"{name}/"): values for key, values in results["metrics"].items() if key.startswith(f"{name}/")}
    training = {**results.get("training", {}), "trained together with": ", ".join(other for other in results["tasks"] if other != name)}
    return {**results, "task": name, "metrics": own, "training": training}
