"""From the outputs of the chosen layers to the features of each example, on the packed stream (Sun et al. 2019, section 5.3).

Tokens are pooled within each layer, each vector may go through the NSP pooler, layers are combined, and so are the pieces of a document.
Every reduction is over neighbouring rows and is done in float32 (float64 for float64).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from bertfast.config import HEAD_KEY, HeadConfig
from bertfast.errors import ConfigError
from bertfast.model.layers import Linear, Pack

if TYPE_CHECKING:
    from transformers import BertConfig

# T tokens, P sequences (pieces), B examples, S segments (sequences or examples), D hidden, F features, A attention, X rows of any kind

ATTENTION_SIZE = 128  # as in the self-attention of Sun et al.'s code
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"tanh": torch.tanh, "gelu": nn.functional.gelu, "relu": torch.relu}


def resolved(head: HeadConfig, n_layers: int) -> HeadConfig:
    """`head` with its layers counted from 0, and its pooler decided.

    Raises:
        ConfigError: a layer that is not there, or stands twice.
    """
    asked = (n_layers - 1,) if head.layers is None else head.layers
    layers = tuple(index + n_layers if index < 0 else index for index in asked)
    for given, index in zip(asked, layers, strict=True):
        if not 0 <= index < n_layers:
            raise ConfigError(
                f"bertfast.head.layers holds {given}, but the checkpoint has {n_layers} layers: 0 to {n_layers - 1}, or -{n_layers} to -1"
            )
        if layers.count(index) > 1:
            raise ConfigError(f"bertfast.head.layers names layer {index} twice ({', '.join(map(str, asked))})")
    pooler = head.pooler if head.pooler is not None else head.layers is None and head.pooling == "cls"
    return head.model_copy(update={"layers": layers, "pooler": pooler})


def head_of(config: BertConfig) -> HeadConfig:
    """The head that a model's config.json describes, resolved."""
    return resolved(HeadConfig.model_validate(getattr(config, HEAD_KEY, None) or {}), config.num_hidden_layers)


def layers_of(head: HeadConfig) -> tuple[int, ...]:
    """The layers that a resolved head reads, counted from 0."""
    assert head.layers is not None  # `resolved` names them
    return head.layers


def check_head_is_kept(config: BertConfig, head: HeadConfig, source: str) -> None:
    """Hold a head that is asked for against the trained one of a checkpoint, whose weights it is to take.

    Raises:
        ConfigError: they differ in more than dropout.
    """
    own, asked = head_of(config), resolved(head, config.num_hidden_layers)
    differing = [name for name in HeadConfig.model_fields if name != "dropout" and getattr(own, name) != getattr(asked, name)]
    if differing:
        name = differing[0]
        raise ConfigError(
            f"bertfast.head.{name} = {getattr(asked, name)!r}, but the head of {source} was trained with {getattr(own, name)!r}: "
            "leave bertfast.head out to keep that one, or have a new one made (is_pretrained_checkpoint)"
        )


def set_head(config: BertConfig, head: HeadConfig) -> None:
    """Have `config` describe this head. Layers above the highest that the head reads are taken off the encoder.

    Raises:
        ConfigError: see `resolved`.
    """
    head = resolved(head, config.num_hidden_layers)
    config.num_hidden_layers = max(layers_of(head)) + 1
    if head.is_plain:
        if hasattr(config, HEAD_KEY):
            delattr(config, HEAD_KEY)
    else:
        setattr(config, HEAD_KEY, head.model_dump(mode="json", exclude={"dropout"}))


class Features(nn.Module):
    """The outputs of the chosen layers -> features [B, F] (before dropout); `size` is F.

    Outputs are in ascending order of their layers, each [T, D], or [P, D] where a layer computed its [CLS] rows alone.
    """

    def __init__(self, config: BertConfig, head: HeadConfig):
        super().__init__()
        self.head = head
        layers = layers_of(head)
        self._order = [sorted(layers).index(index) for index in layers]
        width = config.hidden_size * (2 if head.pooling == "mean_max" else 1)
        self.size = width * (len(layers) if head.layer_pooling == "concat" else 1)
        self.tokens = AttentionPooling(config.hidden_size) if head.pooling == "attention" else None
        self.pieces = AttentionPooling(self.size) if head.pieces == "attention" else None

    def forward(self, outputs: list[torch.Tensor], pack: Pack, cu_pieces: torch.Tensor | None, pooler: nn.Module | None) -> torch.Tensor:
        vectors = []
        for index in self._order:
            parts = self._pooled(outputs[index], pack)
            if pooler is not None:
                parts = [torch.tanh(pooler(part)) for part in parts]
            vectors.append(parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1))
        features_PF = _combined(vectors, self.head.layer_pooling)
        if self.pieces is not None:
            whole = torch.arange(len(features_PF) + 1, device=features_PF.device) if cu_pieces is None else cu_pieces
            return self.pieces(features_PF, whole)
        return features_PF if cu_pieces is None else segment_reduce(features_PF, cu_pieces, self.head.pieces)

    def _pooled(self, x_XD: torch.Tensor, pack: Pack) -> list[torch.Tensor]:
        """One layer's tokens pooled: one or two [P, D]."""
        pooling = self.head.pooling
        if pooling == "cls":
            return [x_XD if len(x_XD) == len(pack.cu_seqlens) - 1 else x_XD[pack.first_rows()]]
        if self.tokens is not None:
            return [self.tokens(x_XD, pack.cu_seqlens)]
        return [segment_reduce(x_XD, pack.cu_seqlens, how) for how in pooling.split("_")]


class AttentionPooling(nn.Module):
    """sum over a segment of softmax(v . tanh(W x + b)) x (Lin et al. 2017): rows [X, D] -> [S, D]."""

    def __init__(self, size: int):
        super().__init__()
        self.inner = Linear(size, ATTENTION_SIZE)
        self.score = Linear(ATTENTION_SIZE, 1, bias=False)

    def forward(self, x_XD: torch.Tensor, cu_segments: torch.Tensor) -> torch.Tensor:
        scores_X = self.score(torch.tanh(self.inner(x_XD)))[:, 0].to(_compute_dtype(x_XD))
        lengths = cu_segments.diff().long()
        of_X = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths, output_size=len(x_XD))
        highest_S = segment_reduce(scores_X.detach()[:, None], cu_segments, "max")[:, 0]
        powers_X = (scores_X - highest_S[of_X]).exp()
        sums_S = torch.zeros_like(highest_S).index_add(0, of_X, powers_X)
        weighted_XD = x_XD.to(powers_X.dtype) * (powers_X / sums_S[of_X])[:, None]
        return segment_reduce(weighted_XD, cu_segments, "sum").to(x_XD.dtype)


def segment_reduce(x_XD: torch.Tensor, cu_segments: torch.Tensor, how: str) -> torch.Tensor:
    """The mean, maximum or sum of the rows of each segment: [X, D] -> [S, D] of the same dtype. cu_segments: int [S + 1], none of them empty."""
    lengths = cu_segments.diff().long()
    return torch.segment_reduce(x_XD.to(_compute_dtype(x_XD)), how, lengths=lengths, axis=0, unsafe=True).to(x_XD.dtype)


def _combined(vectors: list[torch.Tensor], how: str) -> torch.Tensor:
    if len(vectors) == 1:
        return vectors[0]
    if how == "concat":
        return torch.cat(vectors, dim=-1)
    stacked = torch.stack(vectors)
    return stacked.mean(dim=0) if how == "mean" else stacked.amax(dim=0)


def _compute_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
