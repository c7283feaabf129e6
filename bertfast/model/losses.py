"""What is minimised: cross entropy, of several labels a text that of each, or squared error; with label smoothing, class weights, focal loss and R-Drop where the config asks for them.

Every loss is a sum over examples, a float32 scalar; the trainer divides it by the examples of the global batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from bertfast.config import LossConfig
from bertfast.errors import ConfigError
from bertfast.model.label_losses import binary_cross_entropy, binary_disagreement
from bertfast.packing import IGNORE_LABEL, PackedBatch, doubled
from bertfast.wording import did_you_mean
from bertfast_kernels import cross_entropy

# B examples, C classes


class Loss:
    """The loss of a run. `prepared(batch)` is what the model is to be given, and `loss(logits, labels)` takes what comes back.

    labels: of the training data: class ids or scores [n], or of several labels a text [n, C]. names: what the classes are called, where the config names
    them. chance: the loss of an example of which nothing is known, where that is a plain number.

    Raises:
        ConfigError: weights that do not fit the classes, or an option for classes where the task is a regression.
    """

    def __init__(
        self,
        config: LossConfig,
        num_labels: int,
        labels: np.ndarray,
        device: torch.device | str = "cpu",
        names: Sequence[str] | None = None,
    ):
        self._config = config
        self.is_multilabel = labels.ndim > 1
        options = bool(config.label_smoothing or config.class_weights or config.focal_gamma)
        if num_labels == 1 and options:
            raise ConfigError(
                "bertfast.loss: label_smoothing, class_weights and focal_gamma are for classes, and this task is a regression"
            )
        weights, pos_weights = class_weights(config, num_labels, labels, names), positive_weights(config, num_labels, labels, names)
        self._weight_C, self._pos_weight_C = (
            None if values is None else torch.tensor(values, dtype=torch.float32, device=device) for values in (weights, pos_weights)
        )
        self._of_labels = not options and not self.is_multilabel
        is_plain = not options and pos_weights is None and not config.r_drop
        self.chance = math.log(2 if self.is_multilabel else num_labels) if is_plain and num_labels > 1 else None

    def prepared(self, batch: PackedBatch) -> PackedBatch:
        """The batch itself, or for R-Drop the batch twice, to be met by two draws of dropout."""
        return doubled(batch) if self._config.r_drop else batch

    def __call__(self, logits_BC: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        config = self._config
        if self.is_multilabel:
            weights = (self._weight_C, self._pos_weight_C)
            loss = binary_cross_entropy(logits_BC, labels_B, *weights, config.label_smoothing, config.focal_gamma)
        else:
            loss = loss_sum(logits_BC, labels_B) if self._of_labels else self._of_classes(logits_BC.float(), labels_B.long())
        if not config.r_drop:
            return loss
        disagreement = binary_disagreement if self.is_multilabel else _disagreement
        return loss / 2 + config.r_drop * disagreement(logits_BC.float(), labels_B)

    def _of_classes(self, logits_BC: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        config = self._config
        if not config.focal_gamma:
            return F.cross_entropy(
                logits_BC, labels_B, self._weight_C, reduction="sum", ignore_index=IGNORE_LABEL, label_smoothing=config.label_smoothing
            )
        losses_B = F.cross_entropy(logits_BC, labels_B, reduction="none", ignore_index=IGNORE_LABEL)  # 0 for fillers
        focused_B = (1 - torch.exp(-losses_B)).clamp(min=1e-7) ** config.focal_gamma * losses_B
        if self._weight_C is not None:
            focused_B = focused_B * self._weight_C[labels_B.clamp(min=0)]
        return focused_B.sum()


def among_others(config: LossConfig, is_regression: bool) -> LossConfig:
    """The loss of one of several tasks: what is for classes alone passes a regression by."""
    return LossConfig(r_drop=config.r_drop) if is_regression else config


def class_weights(config: LossConfig, num_labels: int, labels: np.ndarray, names: Sequence[str] | None = None) -> list[float] | None:
    """The weight of each class; "balanced" is n / (C * examples of the class), as in scikit-learn.

    Raises:
        ConfigError: another number of weights than of classes, a name that is no class, or a class without examples to balance.
    """
    if config.class_weights is None or config.class_weights != "balanced":
        return _weights_of("class_weights", config.class_weights, num_labels, names)
    if labels.ndim > 1:
        raise ConfigError(
            "bertfast.loss.class_weights = 'balanced' is for one label a text; of several, pos_weight = 'balanced' evens out how often each holds"
        )
    counts = np.bincount(labels, minlength=num_labels)
    if not counts.all():
        raise ConfigError(
            f"bertfast.loss.class_weights = 'balanced': class {int(counts.argmin())} has no training example; give the weights"
        )
    return (len(labels) / (num_labels * counts)).tolist()


def positive_weights(config: LossConfig, num_labels: int, labels: np.ndarray, names: Sequence[str] | None = None) -> list[float] | None:
    """Of several labels a text, the weight of each where it holds; "balanced" is the texts without it over those with it.

    Raises:
        ConfigError: one label a text; else as `class_weights`.
    """
    if config.pos_weight is None:
        return None
    if labels.ndim == 1:
        raise ConfigError("bertfast.loss.pos_weight is for several labels a text, and this task has one; class_weights weighs its classes")
    if config.pos_weight != "balanced":
        return (
            [config.pos_weight] * num_labels
            if isinstance(config.pos_weight, float)
            else _weights_of("pos_weight", config.pos_weight, num_labels, names)
        )
    counts = labels.sum(axis=0, dtype=np.int64)
    for label, count in enumerate(counts.tolist()):
        if count in (0, len(labels)):
            name, how = names[label] if names else label, "no" if not count else "every"
            raise ConfigError(f"bertfast.loss.pos_weight = 'balanced': label {name} holds of {how} training example; give the weights")
    return ((len(labels) - counts) / counts).tolist()


def _weights_of(
    key: str, given: Sequence[float] | Mapping[str, float] | None, num_labels: int, names: Sequence[str] | None
) -> list[float] | None:
    """The weight of each class: as given in order, or by name, where those that are not named have 1."""
    if given is None:
        return None
    if isinstance(given, Mapping):
        if names is None:
            raise ConfigError(f"bertfast.loss.{key} names classes, and this task is a regression, which has none; take it out")
        for name in given:
            if name not in names:
                hint = did_you_mean(name, names, f"the classes are {', '.join(map(repr, names[:20]))}")
                raise ConfigError(f"bertfast.loss.{key}: there is no class {name!r}; {hint}")
        return [given.get(name, 1.0) for name in names]
    if len(given) != num_labels:
        raise ConfigError(f"bertfast.loss.{key} holds {len(given)} weights, but the task has {num_labels} classes")
    return list(given)


def _disagreement(logits_BC: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """R-Drop's term of two passes: half of KL(p||q) + KL(q||p) (Liang et al. 2021, equation 2); the squared difference for a regression."""
    first, second = logits_BC.chunk(2)
    labels_B = labels_B.chunk(2)[0]
    if logits_BC.shape[1] == 1:
        return torch.where(labels_B.isnan(), 0.0, (first - second)[:, 0]).square().sum()
    log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
    divergence_B = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1) / 2
    return torch.where(labels_B == IGNORE_LABEL, 0.0, divergence_B).sum()


def loss_sum(logits_BC: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """The loss summed over examples, a float32 scalar: cross entropy, or squared error where C is 1 (as in transformers, but not averaged).

    labels: int [B] with IGNORE_LABEL for fillers, or float [B] with NaN for fillers.
    """
    if logits_BC.shape[1] > 1:
        return cross_entropy(logits_BC, labels_B, IGNORE_LABEL)
    target_B = labels_B.float()
    error_B = torch.where(target_B.isnan(), 0.0, logits_BC[:, 0].float() - target_B.nan_to_num())
    return error_B.square().sum()
