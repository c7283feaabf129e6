"""One answer for each text or pair of texts: a class, or a number."""

from __future__ import annotations

from typing import Any

import numpy as np

from bertfast.config import BertfastConfig, Config
from bertfast.data import EncodedDataset
from bertfast.engine import Ranks
from bertfast.errors import ConfigError
from bertfast.model import BertClassifier, Loss
from bertfast.packing import PackedBatch
from bertfast.tasks import Task, compute_metrics
from bertfast.training.batches import compute_logits
from bertfast.training.loader import Loader, check_fit
from bertfast.training.objectives.objective import Forward, MicroLoss, Objective, Totals


class Classification(Objective[EncodedDataset]):
    """A config's task, by a classifier that transformers loads."""

    def __init__(self, config: Config, ranks: Ranks):
        super().__init__(config, ranks)
        self.loader = Loader(config, ranks)

    @classmethod
    def fits(cls, settings: BertfastConfig) -> bool:
        return settings.pretrain is None and settings.multitask is None

    @property
    def task(self) -> Task:
        return self.loader.task

    def training_set(self, tokenizer: Any) -> EncodedDataset:
        return self.loader.training_set(tokenizer)

    def evaluation_sets(self, tokenizer: Any) -> dict[str, EncodedDataset]:
        return self.loader.evaluation_sets(tokenizer)

    def model(self, checkpoint: str | None = None) -> BertClassifier:
        return self.loader.model(checkpoint or self.settings.model.checkpoint, new_head=True)

    def trained(self, folder: str, precision: str) -> tuple[BertClassifier, Any]:
        return self.loader.trained(folder, precision)

    def begin(self, train_set: EncodedDataset, steps_per_epoch: int, total_steps: int) -> None:
        names = None if self.task.is_regression else self.task.class_names
        self._loss = Loss(self.settings.loss, self.task.num_labels, train_set.training_labels, self.ranks.device, names)

    def loss(self, forward: Forward, batch: PackedBatch, totals: Totals) -> MicroLoss:
        batch = self._loss.prepared(batch)
        assert batch.labels is not None
        logits_BC = forward(batch)
        return MicroLoss(self._loss(logits_BC, batch.labels) / totals.examples, logits_BC, batch.example_ids)

    def data_lines(self, train_set: EncodedDataset, eval_sets: dict[str, EncodedDataset]) -> list[str]:
        return self.loader.data_lines(train_set, eval_sets)

    def metrics(self, model: Any, dataset: EncodedDataset) -> dict[str, float]:
        if dataset.labels is None:
            raise ConfigError(f"{dataset.source}: has no labels to evaluate against; use predict")
        logits = compute_logits(model, dataset, self.evaluation_source, self.task.num_labels, self.ranks)
        return compute_metrics(dataset.task, logits, dataset.labels)

    def predict(self, folder: str, precision: str, dataset: EncodedDataset | None, split: str) -> np.ndarray | None:
        model, tokenizer = self.trained(folder, precision)
        if dataset is None:
            dataset = self.loader.dataset(self.evaluation_source, split, tokenizer)
        check_fit(dataset, model)
        logits = compute_logits(model, dataset, self.evaluation_source, self.task.num_labels, self.ranks)
        return logits if self.ranks.is_first else None
