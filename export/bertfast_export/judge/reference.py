"""The model that every export is held against: transformers' own, with eager attention, in float32 and float64. A head that transformers has not
is read once more here, from its hidden states.

It shares no code with the graphs: neither our model, nor our weight loading, nor the fused operators.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bertfast.config import HEAD_KEY
from bertfast.errors import CheckpointError
from bertfast.weights import MULTILABEL, resolve_folder
from bertfast_export.judge.cases import Case
from bertfast_export.runtime import sha256_of

# How it computes, whatever config.json says: in chunks the sums are the same, but lengths that no chunk divides are an error of transformers'.
_AS_USUAL: dict[str, Any] = {"attn_implementation": "eager", "chunk_size_feed_forward": 0}
_WEIGHTS = ("config.json", "*.safetensors", "pytorch_model*.bin")


class Eager:
    """transformers' BertForSequenceClassification of a folder, in one dtype."""

    def __init__(self, folder: str | Path, dtype: torch.dtype = torch.float32):
        from transformers import BertForSequenceClassification
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        try:
            self.model = BertForSequenceClassification.from_pretrained(folder, dtype=dtype, **_AS_USUAL).eval()
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(f"{folder}: transformers cannot load it as a classifier ({error})") from None

        self.config = self.model.config

    def state(self) -> dict[str, np.ndarray]:
        """Every tensor by transformers' name, float32."""
        return {name: tensor.float().numpy() for name, tensor in self.model.state_dict().items()}

    def logits(self, features: dict[str, np.ndarray]) -> np.ndarray:
        """Logits [B, C] in the model's dtype, of int features [B, S]."""
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(values.astype(np.int64)) for name, values in features.items()}
            return self.model(**tensors, return_dict=True).logits.numpy()


class EagerHead(Eager):
    """transformers' BertModel of a folder, and on its hidden states the head that config.json describes, read one row at a time."""

    def __init__(self, folder: str | Path, dtype: torch.dtype = torch.float32):
        from safetensors.torch import load_file
        from transformers import BertConfig, BertModel

        try:
            self.config = BertConfig.from_pretrained(folder, **_AS_USUAL)
            self._head = getattr(self.config, HEAD_KEY)
            encoder = BertModel(self.config, add_pooling_layer=self._head["pooler"])
            self.model = encoder.to(dtype).eval()  # type: ignore[arg-type]  # transformers wraps `to`, and its type then lacks self
            tensors = {name: tensor.to(dtype) for name, tensor in load_file(Path(folder) / "model.safetensors").items()}
            self.model.load_state_dict({name.removeprefix("bert."): tensor for name, tensor in tensors.items() if name.startswith("bert.")})
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(f"{folder}: transformers cannot load its encoder, or its head cannot be read ({error})") from None
        self._tensors = {name.removeprefix("head."): tensor for name, tensor in tensors.items() if name.startswith("head.")}

    def state(self) -> dict[str, np.ndarray]:
        encoder = {f"bert.{name}": tensor.float().numpy() for name, tensor in self.model.state_dict().items()}
        return encoder | {f"head.{name}": tensor.float().numpy() for name, tensor in self._tensors.items()}

    def logits(self, features: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(values.astype(np.int64)) for name, values in features.items()}
            states = self.model(**tensors, output_hidden_states=True, return_dict=True).hidden_states[1:]
            return torch.stack([self._row(states, row, mask.bool()) for row, mask in enumerate(tensors["attention_mask"])]).numpy()

    def _row(self, states: tuple[torch.Tensor, ...], row: int, is_token: torch.Tensor) -> torch.Tensor:
        """The logits [C] of one row."""
        vectors = []
        for layer in self._head["layers"]:
            state = states[layer][row]
            parts = [self._pooled(state, is_token, how) for how in self._head["pooling"].split("_")]
            if self._head["pooler"]:
                parts = [torch.tanh(self.model.pooler.dense(part)) for part in parts]
            vectors.append(torch.cat(parts))
        stacked = torch.stack(vectors)
        x = {"concat": stacked.flatten(), "mean": stacked.mean(dim=0), "max": stacked.amax(dim=0)}[self._head["layer_pooling"]]
        activation = {"tanh": torch.tanh, "relu": torch.relu, "gelu": torch.nn.functional.gelu}[self._head["activation"]]
        for number in range(len(self._head["hidden_sizes"])):
            x = activation(self._linear(x, f"hidden.{number}"))
        return self._linear(x, "classifier")

    def _pooled(self, state_SD: torch.Tensor, is_token: torch.Tensor, how: str) -> torch.Tensor:
        """A layer's tokens as one vector [D]; where there is no token all columns count, and alike, as in the encoder's attention."""
        if how == "attention":
            scores_S = torch.tanh(self._linear(state_SD, "features.tokens.inner")) @ self._tensors["features.tokens.score.weight"][0]
            return scores_S.masked_fill(~is_token, torch.finfo(scores_S.dtype).min).softmax(dim=0) @ state_SD
        tokens_TD = state_SD[is_token] if is_token.any() else state_SD
        return {"cls": state_SD[0], "mean": tokens_TD.mean(dim=0), "max": tokens_TD.amax(dim=0)}[how]

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.linear(x, self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"])


def eager_of(folder: str | Path, dtype: torch.dtype = torch.float32) -> Eager:
    """The eager model of a folder, whichever head it has."""
    file = Path(folder) / "config.json"
    own = file.is_file() and HEAD_KEY in json.loads(file.read_text(encoding="utf-8"))
    return EagerHead(folder, dtype) if own else Eager(folder, dtype)


class Answers:
    """What the eager model answers to the grid: logits [B, C] of each case, float64 and float32. several: whether a text has several labels."""

    def __init__(self, exact: list[np.ndarray], rounded: list[np.ndarray], several: bool = False):
        self.exact, self.rounded, self.several = exact, rounded, several

    @classmethod
    def of(cls, folder: str | Path, cases: list[Case]) -> Answers:
        """Ask the model of a folder, one dtype after the other: both at once would be three times the model's size.

        Raises:
            CheckpointError: it cannot be loaded, or an answer is not finite, and nothing can be held against it.
        """
        exact, _ = _ask(folder, torch.float64, cases)
        rounded, several = _ask(folder, torch.float32, cases)
        for case, *logits in zip(cases, exact, rounded, strict=True):
            for row in np.flatnonzero(~np.isfinite(np.hstack(logits)).all(axis=1)).tolist():
                raise CheckpointError(
                    f"{folder}: transformers' own logits are not finite for {case.where(int(row))}; a weight of the checkpoint is not a number, "
                    "or too large: take an earlier checkpoint, or train again in bf16 or fp32"
                )
        return cls(exact, rounded, several)

    @property
    def noise(self) -> float:
        """The mean difference of float32 from float64: what rounding alone does to a logit."""
        return float(np.mean(np.concatenate([np.abs(a - b).ravel() for a, b in zip(self.exact, self.rounded, strict=True)])))

    @property
    def spread(self) -> float:
        """The standard deviation of the logits, over cases and classes."""
        return max(float(np.concatenate([array.ravel() for array in self.exact]).std()), 1e-6)


def _ask(folder: str | Path, dtype: torch.dtype, cases: list[Case]) -> tuple[list[np.ndarray], bool]:
    model = eager_of(folder, dtype)
    return [model.logits(case.features) for case in cases], model.config.problem_type == MULTILABEL


def checkpoint_hashes(folder_or_name: str | Path) -> dict[str, str]:
    """The SHA-256 of a checkpoint's config and weights, by file."""
    folder = resolve_folder(str(folder_or_name))
    files = sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern)})
    return {file.name: sha256_of(file) for file in files}
