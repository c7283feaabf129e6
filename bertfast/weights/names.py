"""Tensors by our names and by transformers', and what became of each when a checkpoint was loaded.

Our names differ in two ways: query, key and value are one matrix, and a product's bias belongs to the op that adds it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from bertfast.errors import CheckpointError

_OUTSIDE_LAYERS = {
    "embeddings.word": "bert.embeddings.word_embeddings.weight",
    "embeddings.position": "bert.embeddings.position_embeddings.weight",
    "embeddings.segment": "bert.embeddings.token_type_embeddings.weight",
    "embeddings.weight": "bert.embeddings.LayerNorm.weight",
    "embeddings.bias": "bert.embeddings.LayerNorm.bias",
    "pooler.weight": "bert.pooler.dense.weight",
    "pooler.bias": "bert.pooler.dense.bias",
    "classifier.weight": "classifier.weight",
    "classifier.bias": "classifier.bias",
}

_PRETRAINING = {
    "predictions.weight": "cls.predictions.transform.dense.weight",
    "predictions.dense_bias": "cls.predictions.transform.dense.bias",
    "predictions.norm_weight": "cls.predictions.transform.LayerNorm.weight",
    "predictions.norm_bias": "cls.predictions.transform.LayerNorm.bias",
    "embeddings.decoder_bias": "cls.predictions.bias",
    "seq_relationship.weight": "cls.seq_relationship.weight",
    "seq_relationship.bias": "cls.seq_relationship.bias",
}

_DECODER = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}

_IN_LAYER = {
    "attention_out.weight": "attention.output.dense.weight",
    "attention_norm.x_bias": "attention.output.dense.bias",
    "attention_norm.weight": "attention.output.LayerNorm.weight",
    "attention_norm.bias": "attention.output.LayerNorm.bias",
    "ffn_up.weight": "intermediate.dense.weight",
    "gelu.bias": "intermediate.dense.bias",
    "ffn_down.weight": "output.dense.weight",
    "ffn_norm.x_bias": "output.dense.bias",
    "ffn_norm.weight": "output.LayerNorm.weight",
    "ffn_norm.bias": "output.LayerNorm.bias",
}

_QKV = ("attention.self.query", "attention.self.key", "attention.self.value")

_HEADS_MADE_ANEW = (
    "pooler.",
    "classifier.",
    "features.",
    "hidden.",
    "heads.",
    "predictions.",
    "seq_relationship.",
    "embeddings.decoder_bias",
)

_OWN_HEAD = "head."  # before the tensors of a head that transformers has not

_LAYER = re.compile(r"bert\.encoder\.layer\.(\d+)\.(.+)")

# Buffers and heads of other tasks: no fault of a checkpoint, and not worth a line of the report.
_HARMLESS = re.compile(r"bert\.embeddings\.(position_ids|token_type_ids)|cls\..*")


@dataclass
class LoadReport:
    """What became of each tensor: names are ours, save for `unexpected`, which are the checkpoint's."""

    source: str
    loaded: list[str]
    missing: list[str]
    misshapen: list[str]  # "name: [checkpoint's shape], the model wants [shape]"
    unexpected: list[str]

    @classmethod
    def compare(cls, source: str, given: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], unexpected: list[str]) -> LoadReport:
        """Hold the tensors given, by our names, against those that the model wants."""
        misshapen = {
            name: f"{name}: {list(given[name].shape)}, the model wants {list(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in given and given[name].shape != tensor.shape
        }
        loaded = [name for name in wanted if name in given and name not in misshapen]
        missing = [name for name in wanted if name not in given]
        extra = [name for name in given if name not in wanted]
        return cls(source, loaded, missing, list(misshapen.values()), unexpected + extra)

    @property
    def made_anew(self) -> list[str]:
        """Pooler and head tensors that the checkpoint does not have: expected of a pre-trained one."""
        return [name for name in self.missing if name.startswith(_HEADS_MADE_ANEW)]

    def check(self, strict: bool) -> None:
        """Raise CheckpointError where the encoder is not whole, unless not strict; nothing loaded at all is always an error."""
        absent = [name for name in self.missing if name not in self.made_anew]
        faults = [f"missing: {name}" for name in absent] + [f"wrong shape: {line}" for line in self.misshapen]
        if faults and (strict or not self.loaded):
            shown = "\n  ".join(faults[:10] + ([f"... and {len(faults) - 10} more"] if len(faults) > 10 else []))
            raise CheckpointError(
                f"{self.source} does not fit the model:\n  {shown}\n"
                "Give a checkpoint of the same architecture, or pass over these tensors with --disable_strict_checkpoint_loading."
            )

    def summary(self) -> str:
        """One line for a person."""
        parts = [f"{len(self.loaded)} tensors loaded"]
        if self.made_anew:
            parts.append(f"made anew: {', '.join(self.made_anew)}")
        absent = [name for name in self.missing if name not in self.made_anew]
        for name, items in (("missing", absent), ("wrong shape", self.misshapen), ("unexpected", self.unexpected)):
            if items:
                parts.append(f"{name}: {', '.join(items[:5])}" + (f" and {len(items) - 5} more" if len(items) > 5 else ""))
        return f"{self.source}: " + "; ".join(parts)


def from_transformers_names(state: dict[str, torch.Tensor], pretraining: bool = False) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Tensors by transformers' names -> float32 tensors by ours, and the names that bertfast has no use for.

    pretraining: with the MLM and NSP heads, which are passed over in silence otherwise. Takes a BertModel's names (no `bert.` prefix) too, and the `gamma` and `beta` of the first PyTorch releases.
    """
    state = modern_names(state)
    ours: dict[str, torch.Tensor] = {}
    used: set[str] = set()

    def take(our_name: str, *their_names: str) -> None:
        if all(name in state for name in their_names):
            tensors = [state[name].float() for name in their_names]
            ours[our_name] = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
            used.update(their_names)

    for our_name, their_name in (_OUTSIDE_LAYERS | (_PRETRAINING if pretraining else {})).items():
        take(our_name, their_name)
    for name in [name for name in state if name.startswith(_OWN_HEAD)]:
        take(name.removeprefix(_OWN_HEAD), name)
    for index in sorted({int(match[1]) for name in state if (match := _LAYER.fullmatch(name))}):
        theirs = f"bert.encoder.layer.{index}."
        for part in ("weight", "bias"):
            take(f"layers.{index}.qkv.{part}", *(f"{theirs}{name}.{part}" for name in _QKV))
        for our_name, their_name in _IN_LAYER.items():
            take(f"layers.{index}.{our_name}", theirs + their_name)
    return ours, [name for name in state if name not in used and not _HARMLESS.fullmatch(name)]


def to_transformers_names(ours: dict[str, torch.Tensor], plain_head: bool = True) -> dict[str, torch.Tensor]:
    """Tensors by our names -> contiguous tensors by the names of transformers' BertForSequenceClassification; a head that is not a plain one
    gets names of its own, so that it is never taken for one."""
    theirs, outside = {}, _OUTSIDE_LAYERS | _PRETRAINING
    for name, tensor in ours.items():
        if not plain_head and name.startswith(("classifier.", "features.", "hidden.")):
            theirs[_OWN_HEAD + name] = tensor
            continue
        if name in outside:
            theirs[outside[name]] = tensor
            continue
        _, index, inner = name.split(".", 2)
        prefix = f"bert.encoder.layer.{index}."
        if inner.startswith("qkv."):
            for their_name, part in zip(_QKV, tensor.chunk(3), strict=True):
                theirs[f"{prefix}{their_name}.{inner.removeprefix('qkv.')}"] = part
        else:
            theirs[prefix + _IN_LAYER[inner]] = tensor
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in theirs.items()}


def without_layers(state: dict[str, torch.Tensor], layers: range, pooler: bool) -> dict[str, torch.Tensor]:
    """Tensors by transformers' names without those of some encoder layers and, unless `pooler`, of the NSP pooler."""
    modern = modern_names(state)
    gone = [name for name in modern if (match := _LAYER.fullmatch(name)) and int(match[1]) in layers]
    gone += [] if pooler else [name for name in modern if name.startswith("bert.pooler.")]
    return {name: tensor for name, tensor in modern.items() if name not in set(gone)}


def without_decoder(state: dict[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """Tensors by today's names (see modern_names) without the MLM decoder, which in BERT is the word embeddings and cls.predictions.bias once more.

    Raises:
        CheckpointError: it is something else; transformers then unties the two.
    """
    state = modern_names(state)
    kept = {name: tensor for name, tensor in state.items() if name not in _DECODER}
    for copy, original in _DECODER.items():
        if copy in state and not torch.equal(state[copy], kept.setdefault(original, state[copy])):
            raise CheckpointError(f"{source}: {copy} is not {original}, as it is in BERT; bertfast has no place for a decoder of its own")
    return kept


def modern_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors by the names of today's BertForPreTraining: a BertModel's get their `bert.`, and `gamma` and `beta` become weight and bias."""
    return {modern_name(name): tensor for name, tensor in state.items()}


def modern_name(name: str) -> str:
    """The name that a tensor has in today's BertForPreTraining or BertForSequenceClassification."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    return f"bert.{name}" if name.startswith(("embeddings.", "encoder.", "pooler.")) else name
