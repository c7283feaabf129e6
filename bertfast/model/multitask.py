"""One encoder with a head for each of several tasks, over a packed stream (Liu et al. 2019, MT-DNN)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from bertfast.config import HeadConfig
from bertfast.model.bert import Reader, initialise, write_classifier
from bertfast.model.heads import set_head
from bertfast.model.layers import RandomBits
from bertfast.model.loading import load_state, read_checkpoint
from bertfast.model.losses import Loss
from bertfast.packing import MixedBatch
from bertfast.tasks import Task
from bertfast.weights import without_layers

if TYPE_CHECKING:
    from transformers import BertConfig

# B examples of a batch, b of them of one task, F features, C classes


class TaskHead(nn.Module):
    """The layers that one task has to itself."""

    def __init__(self, reader: Reader, num_labels: int):
        super().__init__()
        self.hidden = reader.hidden_layers()
        self.classifier = reader.classifier_of(num_labels)


class MultitaskClassifier(Reader):
    """`model(batch)` takes a MixedBatch and gives each task's logits [b, C] of its own examples, in the order of `batch.task_order`.

    The tasks share the encoder, the NSP pooler and an attention over tokens where the head has one; hidden layers and the classifier are a
    task's own. A task without an example in the batch has logits [0, C]: its head takes part all the same, with a gradient of 0.
    """

    def __init__(self, config: BertConfig, tasks: Sequence[Task], filled: bool = True):
        super().__init__(config)
        self.tasks = tuple(tasks)
        self.heads = nn.ModuleList(TaskHead(self, task.num_labels) for task in tasks)
        if filled:
            initialise(self, config.initializer_range)

    def forward(self, batch: MixedBatch, bits: RandomBits | None = None) -> list[torch.Tensor]:
        x_BF, rows = self.read(batch, bits)
        assert batch.task_order is not None  # see MixedBatch.of
        logits = []
        for place, head in zip(batch.task_order.split(batch.task_counts), self.heads, strict=True):
            assert isinstance(head, TaskHead)
            logits.append(self.logits(x_BF[place], rows.rows(place), head.hidden, head.classifier))
        return logits

    @classmethod
    def from_pretrained(
        cls, folder_or_name: str, tasks: Sequence[Task], head: HeadConfig | None = None, strict: bool = True, overrides: dict | None = None
    ) -> MultitaskClassifier:
        """Load an encoder in float32, with a new head for each task, whatever head the checkpoint has.

        Raises:
            CheckpointError, ConfigError: as BertClassifier's does.
        """
        config, state = read_checkpoint(folder_or_name, overrides)
        n_layers = config.num_hidden_layers
        set_head(config, head or HeadConfig())
        model = cls(config, tasks, filled=False)
        state = {name: tensor for name, tensor in state.items() if not name.startswith(("classifier.", "head."))}
        state = without_layers(state, range(config.num_hidden_layers, n_layers), pooler=model.pooler is not None)
        model.load_report = load_state(model, state, str(folder_or_name), strict)
        model.initialise_rest()
        return model

    def save_task(self, folder: str | Path, number: int, state: dict[str, torch.Tensor] | None = None) -> None:
        """Write one task's classifier, as BertClassifier.save_pretrained would write it had it been trained alone."""
        state, task = self.state_dict() if state is None else state, self.tasks[number]
        own, config = f"heads.{number}.", copy.deepcopy(self.config)
        config.num_labels, config.problem_type = task.num_labels, None
        if not task.is_regression:
            assert task.label_names is not None  # without them it would have had no head
            config.id2label = dict(enumerate(task.label_names))
            config.label2id = {name: index for index, name in enumerate(task.label_names)}
        shared = {name: tensor for name, tensor in state.items() if not name.startswith("heads.")}
        write_classifier(
            str(folder), config, shared | {name.removeprefix(own): tensor for name, tensor in state.items() if name.startswith(own)}
        )


def mixed_loss(logits: Sequence[torch.Tensor], batch: MixedBatch, losses: Sequence[Loss], weights: Sequence[float]) -> torch.Tensor:
    """The weighted sum of the tasks' losses over their examples, a float32 scalar. logits: of each task, [b, C]."""
    assert batch.labels is not None
    loss = torch.zeros((), device=batch.labels.device)
    for logits_bC, labels_b, loss_of, weight in zip(logits, batch.by_task(batch.labels), losses, weights, strict=True):
        if len(labels_b):
            labels_b = labels_b if logits_bC.shape[1] == 1 else labels_b.to(torch.int32)
            loss = loss + weight * loss_of(logits_bC, labels_b)
        else:
            loss = loss + logits_bC.float().sum()  # of nothing: 0, so that the head's gradient is 0 and not missing
    return loss


class OneTask:
    """A MultitaskClassifier (or the engine around one) as a classifier of one task, for evaluation."""

    def __init__(self, model, number: int, n_tasks: int):
        self._model, self._number, self._n_tasks = model, number, n_tasks

    def eval(self) -> OneTask:
        self._model.eval()
        return self

    def __call__(self, batch) -> torch.Tensor:
        return self._model(MixedBatch.of_one(batch, self._number, self._n_tasks))[self._number]
