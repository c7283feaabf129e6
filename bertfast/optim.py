"""Parameter groups, AdamW, and the schedule of BERT's recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

ADAMW_KEYS = {"lr", "betas", "eps", "weight_decay"}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices with weight decay; biases and LayerNorm weights, the vectors, without (Devlin et al. 2019, appendix A.2)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def adamw(groups: Iterable[dict[str, Any]], params: dict[str, Any]) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), torch's fused one; params as in DeepSpeed's optimizer block, keys it does not share left out."""
    known = {key: tuple(value) if key == "betas" else value for key, value in params.items() if key in ADAMW_KEYS}
    return torch.optim.AdamW(list(groups), fused=True, **known)


def linear_schedule(warmup_steps: int, total_steps: int) -> Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LambdaLR]:
    """A schedule that rises linearly from 0 over warmup_steps and falls linearly to 0 at total_steps, as in BERT and in transformers."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
