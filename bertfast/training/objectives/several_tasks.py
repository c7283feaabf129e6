"""Several tasks with one encoder and a head each, on packed batches that mix them (Liu et al. 2019; see `bertfast.data.mixture`).

The model's folder holds a folder for each task, each a classifier that stands alone. The best model is that with the highest mean of the tasks'
main metrics, each on its first split.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bertfast.config import BertfastConfig, Config, InputConfig, refuse_several, task_configs
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
from bertfast.training.objectives.classification import Classification
from bertfast.training.objectives.objective import Forward, MicroLoss, Objective, Totals
from bertfast.weights import model_folder
from bertfast.wording import counted

MULTITASK = Task("multitask", ("text",), "label", None)  # its main metric is the mean of the tasks' own
_LEAST_EXAMPLES = 1.0  # of a task in a step, on average; with less it is said

# b examples of one task in a micro-batch, C its classes


class SeveralTasks(Objective[MixtureSet]):
    """What a config's `multitask` block says."""

    def __init__(self, config: Config, ranks: Ranks):
        super().__init__(config, ranks)
        assert self.settings.multitask is not None  # what this form is chosen by
        self._multitask = self.settings.multitask
        self._configs = task_configs(config)
        self.loaders = {name: Loader(part, ranks) for name, part in self._configs.items()}

    @classmethod
    def fits(cls, settings: BertfastConfig) -> bool:
        return settings.multitask is not None

    @property
    def task(self) -> Task:
        return MULTITASK

    def training_set(self, tokenizer: Any) -> MixtureSet:
        sets = [loader.training_set(tokenizer) for loader in self.loaders.values()]
        for part in sets:
            if part.task.is_multilabel:
                raise ConfigError(
                    f"{part.source}: its texts have several labels each; multitask trains tasks of one label a text, or one score"
                )
        return MixtureSet(sets, self._multitask.sampling, self.settings.run.seed, self.training_source.shuffle)

    def evaluation_sets(self, tokenizer: Any) -> dict[str, EncodedDataset]:
        """Every task's splits, as "task/split"."""
        return {
            f"{name}/{split}": dataset
            for name, loader in self.loaders.items()
            for split, dataset in loader.evaluation_sets(tokenizer).items()
        }

    def model(self, checkpoint: str | None = None) -> MultitaskClassifier:
        settings, tasks = self.settings.model, [loader.task for loader in self.loaders.values()]
        overrides = {**settings.dropout, "classifier_dropout": self.settings.head.dropout}
        folder = model_folder(checkpoint or settings.checkpoint)
        return MultitaskClassifier.from_pretrained(folder, tasks, self.settings.head, settings.strict, overrides)

    def trained(self, folder: str, precision: str) -> tuple[Any, Any]:
        raise ConfigError(f"{folder}: holds a model of several tasks, each in a folder of its own; name one of them")

    def begin(self, train_set: MixtureSet, steps_per_epoch: int, total_steps: int) -> None:
        self._epochs, self._steps_per_epoch = math.ceil(total_steps / steps_per_epoch), steps_per_epoch
        self._sizes, self._sampling = train_set.sizes, train_set.sampling
        train_set.epochs = self._epochs
        self._losses = [
            Loss(among_others(self.settings.loss, part.task.is_regression), part.task.num_labels, part.training_labels, self.ranks.device)
            for part in train_set.parts
        ]

    def loss(self, forward: Forward, batch: MixedBatch, totals: Totals) -> MicroLoss:
        batch = batch.twice() if self.settings.loss.r_drop else batch
        logits = forward(batch)
        weights = [task.weight for task in self._multitask.tasks]
        share = mixed_loss(logits, batch, self._losses, weights) / totals.examples
        sums_B1 = torch.cat([logits_bC.detach().float().sum(dim=1, keepdim=True) for logits_bC in logits])
        return MicroLoss(share, sums_B1, batch.example_ids[batch.task_order])

    def metrics(self, model: Any, dataset: EncodedDataset) -> dict[str, float]:
        names, name = list(self.loaders), dataset.task.name
        source = self.loaders[name].settings.eval_input or InputConfig()
        if dataset.labels is None:
            raise ConfigError(f"{dataset.source}: has no labels to evaluate against")
        one = OneTask(model, names.index(name), len(names))
        logits = compute_logits(one, dataset, source, dataset.task.num_labels, self.ranks)
        return compute_metrics(dataset.task, logits, dataset.labels)

    def score(self, metrics: dict[str, dict[str, float]]) -> float:
        """The mean, over the tasks that are evaluated, of the main metric on the task's first split."""
        firsts: dict[str, float] = {}
        for name, loader in self.loaders.items():
            for key, values in metrics.items():
                if key.startswith(f"{name}/"):
                    firsts.setdefault(name, values[loader.task.main_metric])
        return sum(firsts.values()) / len(firsts)

    def evaluate(self, folder: str, precision: str) -> dict[str, dict[str, float]]:
        """Metrics by "task/split", by each task's own classifier in the model's folder."""
        place, found = Path(folder), dict[str, dict[str, float]]()
        inner = folders.standing(place / "model")
        place = inner if inner.is_dir() else place
        for name, config in self._configs.items():
            if not (place / name / "config.json").is_file():
                raise CheckpointError(f"{place}: holds no model of task {name}; give the folder of a run on these tasks")
            if config.bertfast.eval_input is not None:
                alone = Classification(config, self.ranks).evaluate(str(place / name), precision)
                found |= {f"{name}/{split}": metrics for split, metrics in alone.items()}
        return found

    def predict(self, folder: str, precision: str, dataset: EncodedDataset | None, split: str) -> None:
        """A model of several tasks does not predict; each task's own does."""
        refuse_several(self.config, "predict")

    def identity(self) -> dict[str, Any]:
        mixture = [[task.name, task.weight, size] for task, size in zip(self._multitask.tasks, self._sizes, strict=True)]
        tasks = {name: loader.task for name, loader in self.loaders.items()}
        facts = {
            "tasks": mixture,
            "sampling": self._sampling,
            "classes": {name: task.label_names for name, task in tasks.items()},
            "metric": {name: task.main_metric for name, task in tasks.items()},
        }
        return {**facts, "epochs": self._epochs} if self._sampling == "annealed" else facts

    def data_lines(self, train_set: MixtureSet, eval_sets: dict[str, EncodedDataset]) -> list[str]:
        lines = []
        for part, (name, loader) in zip(train_set.parts, self.loaders.items(), strict=True):
            own = {key.removeprefix(f"{name}/"): dataset for key, dataset in eval_sets.items() if key.startswith(f"{name}/")}
            lines += [f"{name}: {line}" for line in loader.data_lines(part, own)]
        return lines

    def lines(self) -> list[str]:
        lines = []
        for name, size, draws in self._drawn():
            a_step = draws / self._steps_per_epoch
            rare = "; in steps without any, its head has a gradient of 0, and decays" if a_step < _LEAST_EXAMPLES else ""
            lines.append(f"  {name}: {counted(size, 'example')}, {draws:,} drawn in the first epoch, {a_step:.2f} a step{rare}")
        return lines

    def results(self, best: float | None) -> dict[str, Any]:
        tasks = {name: {"examples": size, "drawn_in_first_epoch": draws} for name, size, draws in self._drawn()}
        return {**({} if best is None else {"mean_of_main_metrics": best}), "tasks": tasks}

    def write_model(self, folder: Path, model: Any, weights: dict[str, torch.Tensor], tokenizer: Any, results: dict[str, Any]) -> None:
        """A folder for each task."""
        for number, (name, config) in enumerate(self._configs.items()):
            inner = folder / name
            inner.mkdir()
            model.save_task(inner, number, weights)
            tokenizer.save_pretrained(inner)
            write_model_config(inner, config, model.tasks[number])
        self.write_cards(folder, results)

    def write_cards(self, folder: Path, results: dict[str, Any]) -> None:
        for loader, (name, config) in zip(self.loaders.values(), self._configs.items(), strict=True):
            write_model_card(folder / name, _results_of(name, results), config, loader.task)

    def _drawn(self) -> Iterator[tuple[str, int, int]]:
        """Of each task its name, its examples, and how many are drawn in the first epoch."""
        return zip(self.loaders, self._sizes, quotas(self._sizes, self._sampling).tolist(), strict=True)


def _results_of(name: str, results: dict[str, Any]) -> dict[str, Any]:
    """The results of a run, with the metrics of one task alone."""
    own = {key.removeprefix(f"{name}/"): values for key, values in results["metrics"].items() if key.startswith(f"{name}/")}
    training = {**results.get("training", {}), "trained together with": ", ".join(other for other in results["tasks"] if other != name)}
    return {**results, "task": name, "metrics": own, "training": training}
