"""How a checkpoint's weights come into a model, whichever of ours it is."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bertfast.errors import CheckpointError
from bertfast.weights import LoadReport, from_transformers_names, head_of_another, read_weights, without_decoder

if TYPE_CHECKING:
    from transformers import BertConfig


def read_checkpoint(
    folder_or_name: str, overrides: dict[str, Any] | None = None, config: BertConfig | None = None
) -> tuple[BertConfig, dict[str, torch.Tensor]]:
    """The config of a checkpoint, with values replaced (None keeps the checkpoint's), and its tensors by transformers' names.

    Raises:
        CheckpointError: naming the folder or file, and what it lacks.
    """
    config, state = read_weights(folder_or_name, config)
    config.update({key: value for key, value in (overrides or {}).items() if value is not None})
    return config, state


def load_state(
    model: nn.Module, state: dict[str, torch.Tensor], source: str, strict: bool, pretraining: bool = False, leave_out: Collection[str] = ()
) -> LoadReport:
    """Copy tensors under transformers' names into a model, as far as they fit.

    Args:
        strict: False passes over missing and misshapen tensors of the encoder, which stay as initialised.
        pretraining: take the MLM and NSP heads too.
        leave_out: beginnings of our names, and of transformers', that the model has no use for: not a line of the report.

    Raises:
        CheckpointError: naming the tensors that do not fit.
    """
    if pretraining:
        state = without_decoder(state, source)
    ours, unexpected = from_transformers_names(state, pretraining)
    ours = {name: tensor for name, tensor in ours.items() if not name.startswith(tuple(leave_out))}
    unexpected = [name for name in unexpected if not name.startswith(tuple(leave_out))]
    report = LoadReport.compare(source, ours, model.state_dict(), unexpected)
    report.check(strict)
    model.load_state_dict({name: ours[name] for name in report.loaded}, strict=False)
    return report


def check_trained(report: LoadReport, config: BertConfig) -> None:
    """Raise CheckpointError where a classifier that is to answer has a tensor that is not its checkpoint's: its answers would be random."""
    random = report.missing + [line.partition(":")[0] for line in report.misshapen]
    if not random:
        return
    if (architecture := head_of_another(config)) is not None:
        what = f"has no classification head (its config.json says {architecture})"
    elif random[0] in report.made_anew:
        what = f"has no classification head ({random[0]} is missing)"
    else:
        what = f"has not all weights ({random[0]} is missing, or of another shape)"
    raise CheckpointError(f"{report.source}: {what}; train it first")
