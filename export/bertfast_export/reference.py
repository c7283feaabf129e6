"""The model that every export is held against: transformers' own, with eager attention, in float32 and float64.

It shares no code with the graphs: neither our model, nor our weight loading, nor the fused operators.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from bertfast.errors import CheckpointError
from bertfast.weights import resolve_folder
from bertfast_export.cases import Case

_WEIGHTS = ("config.json", "*.safetensors", "pytorch_model*.bin")


class Eager:
    """transformers' BertForSequenceClassification of a folder, in one dtype."""

    def __init__(self, folder: str | Path, dtype: torch.dtype = torch.float32):
        from transformers import BertForSequenceClassification
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        try:
            self.model = BertForSequenceClassification.from_pretrained(folder, attn_implementation="eager", dtype=dtype).eval()
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(f"{folder}: transformers cannot load it as a classifier ({error})") from None

    def logits(self, features: dict[str, np.ndarray]) -> np.ndarray:
        """Logits [B, C] in the model's dtype, of int features [B, S]."""
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(values.astype(np.int64)) for name, values in features.items()}
            return self.model(**tensors).logits.numpy()


class Answers:
    """What the eager model answers to the grid: logits [B, C] of each case, float64 and float32."""

    def __init__(self, exact: list[np.ndarray], rounded: list[np.ndarray]):
        self.exact, self.rounded = exact, rounded

    @classmethod
    def of(cls, folder: str | Path, cases: list[Case]) -> Answers:
        """Ask the model of a folder, one dtype after the other: both at once would be three times the model's size."""
        exact, rounded = (_ask(Eager(folder, dtype), cases) for dtype in (torch.float64, torch.float32))
        return cls(exact, rounded)

    @property
    def noise(self) -> float:
        """The mean difference of float32 from float64: what rounding alone does to a logit."""
        return float(np.mean(np.concatenate([np.abs(a - b).ravel() for a, b in zip(self.exact, self.rounded, strict=True)])))

    @property
    def spread(self) -> float:
        """The standard deviation of the logits, over cases and classes."""
        return max(float(np.concatenate([array.ravel() for array in self.exact]).std()), 1e-6)


def _ask(model: Eager, cases: list[Case]) -> list[np.ndarray]:
    return [model.logits(case.features) for case in cases]


def checkpoint_hashes(folder_or_name: str | Path) -> dict[str, str]:
    """The SHA-256 of a checkpoint's config and weights, by file."""
    folder = resolve_folder(str(folder_or_name))
    files = sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern)})
    return {file.name: sha256_of(file) for file in files}


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(file, "rb") as handle:
        while block := handle.read(2**22):
            digest.update(block)
    return digest.hexdigest()
