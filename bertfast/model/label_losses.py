"""The loss of several labels a text: cross entropy of each label by itself, with weights, label smoothing, focal form and R-Drop.

An example's loss is the mean over its labels, as in transformers (BCEWithLogitsLoss); the sum over examples is a float32 scalar (float64 for float64).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

# B examples, C labels


def binary_cross_entropy(
    logits_BC: torch.Tensor,
    labels_BC: torch.Tensor,
    weight_C: torch.Tensor | None = None,
    pos_weight_C: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
) -> torch.Tensor:
    """The sum over B of the mean over C of -w (v y log p + (1 - y) log(1 - p)), where p is the sigmoid of the logit.

    labels: 0 and 1, or NaN in the rows of fillers, which count nothing. weight: w of each label; pos_weight: v, of each label where it holds.
    label_smoothing: y goes that share of the way to one half. focal_gamma: each term counts (1 - p_t)^gamma, p_t being what was said of the truth (Lin et al. 2017).
    """
    logits_BC = logits_BC.to(torch.promote_types(logits_BC.dtype, torch.float32))
    is_filler_B1 = labels_BC[:, :1].isnan()
    truth_BC = torch.where(is_filler_B1, 0.0, labels_BC).to(logits_BC.dtype)
    wanted_BC = truth_BC * (1 - label_smoothing) + label_smoothing / 2
    losses_BC = F.binary_cross_entropy_with_logits(logits_BC, wanted_BC, weight_C, reduction="none", pos_weight=pos_weight_C)
    if focal_gamma:
        missed_BC = torch.sigmoid(logits_BC * (1 - 2 * truth_BC))  # 1 - p_t
        losses_BC = losses_BC * missed_BC.clamp(min=1e-7) ** focal_gamma
    return torch.where(is_filler_B1, 0.0, losses_BC).mean(dim=1).sum()


def binary_disagreement(logits_BC: torch.Tensor, labels_BC: torch.Tensor) -> torch.Tensor:
    """R-Drop's term of two passes, [2B, C]: half of KL(p||q) + KL(q||p) of each label (Liang et al. 2021, equation 2), the mean over labels, summed over B."""
    first, second = logits_BC.chunk(2)
    is_filler_B1 = labels_BC.chunk(2)[0][:, :1].isnan()
    divergence_BC = (first.sigmoid() - second.sigmoid()) * (first - second) / 2
    return torch.where(is_filler_B1, 0.0, divergence_BC).mean(dim=1).sum()
