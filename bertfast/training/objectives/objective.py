"""What the loop asks of everything that can be learned: data and a model, the loss of a micro-batch, how good it is, and what is told and written.

`Trainer` knows no form by name: what differs from form to form stands behind these methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch

from bertfast.config import BertfastConfig, Config, InputConfig
from bertfast.data import EncodedDataset, TrainingSet
from bertfast.engine import Ranks
from bertfast.errors import ConfigError
from bertfast.model import BertEncoder
from bertfast.reporting import write_model_card, write_model_config
from bertfast.tasks import Task
from bertfast.training.loader import Loader, check_fit

# B examples of a micro-batch, C numbers for each

Forward = Callable[[Any], Any]  # the model, with this micro-batch's dropout
Examples = TypeVar("Examples", bound=TrainingSet)  # what a form trains on


class Totals(NamedTuple):
    """What the losses of a global batch are divided by: the same on every rank."""

    examples: int
    masked_words: torch.Tensor | None = None  # float32 scalar on the device, so that a GPU is not waited for


class MicroLoss(NamedTuple):
    """The loss of a micro-batch: its share of the step's mean loss, a float32 scalar to go backward from; and, for the watch on the loss, numbers
    [B, C] that are finite where the example of that row is sound, with the examples' ids [B]."""

    share: torch.Tensor
    rows_BC: torch.Tensor
    example_ids: torch.Tensor


class Objective(ABC, Generic[Examples]):
    """One form of learning, for one config on one rank."""

    def __init__(self, config: Config, ranks: Ranks):
        self.config, self.settings, self.ranks = config, config.bertfast, ranks

    @classmethod
    @abstractmethod
    def fits(cls, settings: BertfastConfig) -> bool:
        """Whether a config asks for this form."""

    # ------------------------------------------------------------------------------------------------------------------ what is loaded

    @property
    @abstractmethod
    def task(self) -> Task:
        """What is asked of a text; completed by the data or the model once they are loaded."""

    def tokenizer(self) -> Any:
        """The tokenizer that the config names, held against its checkpoint."""
        return Loader(self.config, self.ranks).tokenizer()

    @abstractmethod
    def training_set(self, tokenizer: Any) -> Examples:
        """The examples to train on. Raises ConfigError where there are none."""

    @abstractmethod
    def evaluation_sets(self, tokenizer: Any) -> dict[str, Any]:
        """What to evaluate on, by name; none without an eval_input."""

    @abstractmethod
    def model(self, checkpoint: str | None = None) -> BertEncoder:
        """The model to train, from the config's checkpoint or from that one; what it lacks is made anew, from torch's seed."""

    @abstractmethod
    def trained(self, folder: str, precision: str) -> tuple[BertEncoder, Any]:
        """A model that training left in a folder, ready for inference on this rank's device, and its tokenizer. Raises CheckpointError."""

    # ----------------------------------------------------------------------------------------------------------------- what is learned

    @abstractmethod
    def begin(self, train_set: Examples, steps_per_epoch: int, total_steps: int) -> None:
        """Called once, when data and plan are known, before the first loss."""

    def totals(self, batches: list[Any], examples: int) -> Totals:
        """What the losses of this step are divided by, given this rank's micro-batches and the examples of the global batch. All ranks call."""
        return Totals(examples)

    @abstractmethod
    def loss(self, forward: Forward, batch: Any, totals: Totals) -> MicroLoss:
        """The forward pass of one micro-batch, and its loss."""

    # ---------------------------------------------------------------------------------------------------------------- how good it is

    @abstractmethod
    def metrics(self, model: Any, dataset: Any) -> dict[str, float]:
        """The metrics of a model on one data set, the same on every rank."""

    def score(self, metrics: dict[str, dict[str, float]]) -> float:
        """What the best model is chosen by, of the metrics by data set: the main metric on the first."""
        return next(iter(metrics.values()))[self.task.main_metric]

    def evaluate(self, folder: str, precision: str) -> dict[str, dict[str, float]]:
        """Metrics by data set of eval_input, by the model in a folder."""
        model, tokenizer = self.trained(folder, precision)
        datasets = self.evaluation_sets(tokenizer)
        for dataset in datasets.values():
            check_fit(dataset, model)
        return {name: self.metrics(model, dataset) for name, dataset in datasets.items()}

    def predict(self, folder: str, precision: str, dataset: EncodedDataset | None, split: str) -> np.ndarray | None:
        """Logits [n, C], float32, of every example by the model in a folder; None on ranks but the first.

        Raises:
            ConfigError: what is learned answers no question about a text.
        """
        raise ConfigError(f"a model of {self.task.name} has no answers to predict: fine-tune it on a task first")

    # ------------------------------------------------------------------------------------------------------ what is told and written

    def identity(self) -> dict[str, Any]:
        """What more must be equal for a resumed run to be the same run; plain data. Asked once the data are loaded."""
        kind = {"labels": self.task.labels} if self.task.is_multilabel else {}
        return {"classes": self.task.label_names, "metric": self.task.main_metric, **kind}

    def data_lines(self, train_set: Examples, eval_sets: dict[str, Any]) -> list[str]:
        """What a person is told of the data at the start of a run: what validate says of them."""
        return []

    def lines(self) -> list[str]:
        """What a person is told at the start of a run."""
        return []

    def results(self, best: float | None) -> dict[str, Any]:
        """What more results.json says. best: the score of the best model so far."""
        return {}

    def write_model(self, folder: Path, model: Any, weights: dict[str, torch.Tensor], tokenizer: Any, results: dict[str, Any]) -> None:
        """Fill an empty folder with the model as transformers loads it: weights, tokenizer, bertfast.json and card."""
        model.save_pretrained(folder, weights)
        tokenizer.save_pretrained(folder)
        write_model_config(folder, self.config, self.task)
        self.write_cards(folder, results)

    def write_cards(self, folder: Path, results: dict[str, Any]) -> None:
        """Write the model's card (or cards) anew, with all that is now known of the run."""
        write_model_card(folder, results, self.config, self.task)

    # ------------------------------------------------------------------------------------------------------------------------ helpers

    @property
    def training_source(self) -> InputConfig:
        """The block that says how training is cut into batches.

        Raises:
            ConfigError: there is none.
        """
        if self.settings.train_input is None:
            raise ConfigError("there is no bertfast.train_input; it says how long the examples are, and how they are packed")
        return self.settings.train_input

    @property
    def evaluation_source(self) -> InputConfig:
        """The block that says how evaluation is cut into batches."""
        return self.settings.eval_input or self.settings.train_input or InputConfig()
