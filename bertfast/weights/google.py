"""Google's BERT checkpoints in and out: `bert_model.ckpt.*` beside `bert_config.json` and `vocab.txt` (github.com/google-research/bert).

A variable's name says where its tensor belongs in transformers' BertForPreTraining; a dense layer's `kernel` is the transpose of a `weight`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import torch

from bertfast.errors import CheckpointError
from bertfast.weights.tensor_bundle import TensorBundle, write_bundle

CHECKPOINT, CONFIG_FILE = "bert_model.ckpt", "bert_config.json"
_WORD_EMBEDDINGS = "bert/embeddings/word_embeddings"
# What Google's optimizers and its loop add to the weights.
_NO_WEIGHT = re.compile(
    r".*/(adam_[mv]|Adam(_1)?|lamb_[mv]|Momentum|ExponentialMovingAverage)|global_step|beta[12]_power|loss_scale.*|_CHECKPOINTABLE.*"
)
_LAYER = re.compile(r"/layer_(\d+)/")
_LAST = {"gamma": "weight", "beta": "bias", "kernel": "weight", "output_weights": "weight", "output_bias": "bias"}
_EMBEDDINGS = ("word_embeddings", "position_embeddings", "token_type_embeddings")
_CLASSIFIER = {"output_weights": "classifier.weight", "output_bias": "classifier.bias"}
# Google's config has a few keys of its own; these are the ones of a model that was never in transformers.
_CONFIG_KEYS = (
    "attention_probs_dropout_prob",
    "hidden_act",
    "hidden_dropout_prob",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "type_vocab_size",
    "vocab_size",
)


def find_tensorflow_checkpoint(folder: Path) -> Path | None:
    """The prefix of a folder's TensorFlow checkpoint, or None: bert_model.ckpt, else the one with the most steps in its name."""
    prefixes = [file.with_suffix("") for file in folder.glob("*.index")]
    steps = {prefix: int(match[1]) if (match := re.search(r"-(\d+)$", prefix.name)) else -1 for prefix in prefixes}
    named = [prefix for prefix in prefixes if prefix.name == CHECKPOINT]
    return named[0] if named else max(prefixes, key=lambda prefix: (steps[prefix], prefix.name), default=None)


def read_tensorflow(prefix: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint by transformers' names; what an optimizer added is left out.

    Raises:
        CheckpointError: it is torn, or no checkpoint of Google's BERT.
    """
    bundle = TensorBundle(prefix)
    if _WORD_EMBEDDINGS not in bundle:
        some = ", ".join(bundle.names[:3])
        raise CheckpointError(f"{prefix}.index: has no {_WORD_EMBEDDINGS}, so it is no checkpoint of Google's BERT; its names: {some} ...")
    state = {}
    for name in bundle.names:
        if _NO_WEIGHT.fullmatch(name):
            continue
        values = bundle.tensor(name)
        if name.endswith("/kernel"):
            values = values.T
        state[from_tensorflow_name(name)] = torch.from_numpy(np.ascontiguousarray(values))
    return state


def write_tensorflow(folder: Path, config: dict, state: dict[str, torch.Tensor]) -> None:
    """Write bert_model.ckpt.* and bert_config.json into an existing folder; tensors by transformers' names."""
    tensors = {}
    for name, tensor in state.items():
        theirs = to_tensorflow_name(name, tensor.ndim)
        values = tensor.detach().float().cpu().numpy()
        tensors[theirs] = values.T if theirs.endswith("/kernel") else values
    write_bundle(folder / CHECKPOINT, tensors)
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{CHECKPOINT}"\nall_model_checkpoint_paths: "{CHECKPOINT}"\n')
    kept = {key: config[key] for key in _CONFIG_KEYS if key in config}
    (folder / CONFIG_FILE).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def from_tensorflow_name(name: str) -> str:
    """bert/encoder/layer_0/output/dense/kernel -> bert.encoder.layer.0.output.dense.weight."""
    if name in _CLASSIFIER:
        return _CLASSIFIER[name]
    if name == "cls/predictions/output_bias":
        return "cls.predictions.bias"
    *parents, last = _LAYER.sub(r"/layer/\1/", name).split("/")
    return ".".join([*parents, *((last, "weight") if last in _EMBEDDINGS else (_LAST.get(last, last),))])


def to_tensorflow_name(name: str, n_dims: int) -> str:
    """The opposite of `from_tensorflow_name`, for a tensor of n_dims dimensions."""
    for theirs, ours in _CLASSIFIER.items():
        if name == ours:
            return theirs
    if name == "cls.predictions.bias":
        return "cls/predictions/output_bias"
    *parents, last = name.split(".")
    path = re.sub(r"/layer/(\d+)/", r"/layer_\1/", "/".join(parents) + "/")
    if parents[-1] in _EMBEDDINGS:
        return path.rstrip("/")
    if parents[-1] == "LayerNorm":
        return path + {"weight": "gamma", "bias": "beta"}[last]
    if parents[-1] == "seq_relationship":
        return path + {"weight": "output_weights", "bias": "output_bias"}[last]
    return path + ("kernel" if last == "weight" and n_dims == 2 else last)
