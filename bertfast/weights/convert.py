"""`bertfast convert`: a BERT checkpoint from one format to another, with its pre-training and classification heads, and its tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from bertfast.errors import CheckpointError
from bertfast.storage import folders
from bertfast.weights.config_keys import head_of_another
from bertfast.weights.folder import read_weights, resolve_folder, save_tensors
from bertfast.weights.google import write_tensorflow
from bertfast.weights.names import without_decoder
from bertfast.weights.tokenizer import load_tokenizer

_HEADS = {"the MLM head": "cls.predictions.bias", "the NSP head": "cls.seq_relationship.bias", "a classifier": "classifier.bias"}


def convert_checkpoint(source: str, target: str | Path, to: str = "transformers") -> str:
    """Write the checkpoint of `source` (a folder of transformers', Google's or the first PyTorch releases, or a name on the hub) to `target`.

    to: "transformers" (config.json, model.safetensors, the tokenizer's files) or "tensorflow" (bert_model.ckpt.*, bert_config.json,
    vocab.txt). What an optimizer left in the checkpoint is not written. Returns a line that says what was.

    Raises:
        CheckpointError: the source cannot be read, the target is there already, or a tensor has no place in the other format.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target}: is there already; name a folder that is not")
    folder = resolve_folder(source)
    config, state = read_weights(str(folder))
    state = _without_copies({name: tensor.float() for name, tensor in state.items()}, str(folder))
    tokenizer = load_tokenizer(folder, config)
    # A classifier of tokens or of choices has the same names as one of texts: the class in config.json alone tells them apart.
    other = head_of_another(config) if "classifier.weight" in state else None
    if to == "transformers":
        config.architectures = [other or architecture(state)]
        config.dtype = "float32"
        folders.write_folder(target, lambda beside: _write_transformers(beside, config, state, tokenizer))
    elif other is not None:
        raise CheckpointError(
            f"{folder}: is a {other}, and TensorFlow's checkpoints do not tell its head from a classifier's; convert its encoder alone"
        )
    else:
        folders.write_folder(target, lambda beside: _write_google(beside, folder, config, state, tokenizer))
    heads = [head for head, name in _HEADS.items() if name in state]
    return f"{target}: {len(state)} tensors" + (f", with {' and '.join(heads)}" if heads else ", no head")


def architecture(state: dict[str, torch.Tensor]) -> str:
    """The class of transformers that has just these tensors."""
    if "classifier.weight" in state:
        return "BertForSequenceClassification"
    has_mlm, has_nsp = "cls.predictions.bias" in state, "cls.seq_relationship.bias" in state
    return (
        "BertForPreTraining"
        if has_mlm and has_nsp
        else "BertForMaskedLM"
        if has_mlm
        else "BertForNextSentencePrediction"
        if has_nsp
        else "BertModel"
    )


def _without_copies(state: dict[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """Leave out the MLM decoder, which is the word embeddings and cls.predictions.bias again, and the position ids, which are 0, 1, 2 ..."""
    positions = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")
    kept = {name: tensor for name, tensor in without_decoder(state, source).items() if name not in positions}
    strays = [name for name in kept if not name.startswith(("bert.", "cls.predictions.", "cls.seq_relationship.", "classifier."))]
    if strays:
        raise CheckpointError(
            f"{source}: {strays[0]} ({len(strays)} such) is no tensor of BERT's, its pre-training heads or a linear classifier"
        )
    return kept


def _write_transformers(folder: Path, config: Any, state: dict[str, torch.Tensor], tokenizer: Any) -> None:
    config.save_pretrained(folder)
    save_tensors(folder, state)
    tokenizer.save_pretrained(folder)


def _write_google(folder: Path, source: Path, config: Any, state: dict[str, torch.Tensor], tokenizer: Any) -> None:
    write_tensorflow(folder, config.to_dict(), state)
    if (source / "vocab.txt").is_file():
        shutil.copyfile(source / "vocab.txt", folder / "vocab.txt")
        return
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in vocabulary), encoding="utf-8")
