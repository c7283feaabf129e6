"""What is minimised: cross entropy or squared error, with label smoothing, class weights, focal loss and R-Drop where the config asks for them.

Every loss is a sum over examples, a float32 scalar; the trainer divides it by the examples of the global batch.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from bertfast.config import LossConfig
from bertfast.errors import ConfigError
from bertfast.packing import IGNORE_LABEL, PackedBatch, doubled
from bertfast_kernels import cross_entropy

# B examples, C classes


class Loss:
    """The loss of a run. `prepared(batch)` is what the model is to be given, and `loss(logits, labels)` takes what comes back.

    Raises:
        ConfigError: class weights that do not fit the classes, or an option for classes where the task is a regression.
    """

    def __init__(self, config: LossConfig, num_labels: int, labels: np.ndarray, device: torch.device | str = "cpu"):
        self._config = config
        if num_labels == 1 and (config.label_smoothing or config.class_weights or config.focal_gamma):
            raise ConfigError(
                "bertfast.loss: label_smoothing, class_weights and focal_gamma are for classes, and this task is a regression"
            )
        weights = class_weights(config, num_labels, labels)
        self._weight_C = None if weights is None else torch.tensor(weights, dtype=torch.float32, device=device)
        self._of_labels = not (config.label_smoothing or config.class_weights or config.focal_gamma)
        self.is_plain = self._of_labels and not config.r_drop

    def prepared(self, batch: PackedBatch) -> PackedBatch:
        """The batch itself, or for R-Drop the batch twice, to be met by two draws of dropout."""
        return doubled(batch) if self._config.r_drop else batch

    def __call__(self, logits_BC: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        loss = loss_sum(logits_BC, labels_B) if self._of_labels else self._of_classes(logits_BC.float(), labels_B.long())
        if not self._config.r_drop:
            return loss
        return loss / 2 + self._config.r_drop * _disagreement(logits_BC.float(), labels_B)

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


def class_weights(config: LossConfig, num_labels: int, labels: np.ndarray) -> list[float] | None:
    """The weight of each class; "balanced" is n / (C * examples of the class), as in scikit-learn.

    Raises:
        ConfigError: another number of weights than of classes, or a class without examples to balance.
    """
    if config.class_weights is None:
        return None
    if config.class_weights != "balanced":
        if len(config.class_weights) != num_labels:
            raise ConfigError(
                f"bertfast.loss.class_weights holds {len(config.class_weights)} weights, but the task has {num_labels} classes"
            )
        return list(config.class_weights)
    counts = np.bincount(labels, minlength=num_labels)
    if not counts.all():
        raise ConfigError(
            f"bertfast.loss.class_weights = 'balanced': class {int(counts.argmin())} has no training example; give the weights"
        )
    return (len(labels) / (num_labels * counts)).tolist()


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
