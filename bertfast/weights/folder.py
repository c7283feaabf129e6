"""Hugging Face folders in and out: config.json with model.safetensors (or pytorch_model.bin). Folders of Google's
and of the first PyTorch releases are read too: bert_config.json, with bert_model.ckpt.* or pytorch_model.bin.

Knows tensors by name and no model.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bertfast.errors import CheckpointError
from bertfast.storage import folders, give_usual_mode
from bertfast.weights.config_keys import MULTILABEL, config_from
from bertfast.weights.faults import refuse_faults
from bertfast.weights.files import WEIGHTS, no_weights, read_tensors, refuse_pointer
from bertfast.weights.google import CONFIG_FILE as OLD_CONFIG_FILE
from bertfast.weights.google import find_tensorflow_checkpoint, read_tensorflow

if TYPE_CHECKING:
    from transformers import BertConfig

_WANTED = "give a folder that transformers' save_pretrained wrote"
_ADAPTER = "adapter_config.json"  # peft's


def read_weights(folder_or_name: str, config: BertConfig | None = None) -> tuple[BertConfig, dict[str, torch.Tensor]]:
    """The BertConfig (that one, where it is read already) and the tensors, by transformers' names, of a local folder or of a model on the hub.

    Reads safetensors, sharded or not, `.bin` files by torch's safe loader alone, which runs no code from the file, and TensorFlow's checkpoints.

    Raises:
        CheckpointError: naming the folder or file and what it lacks, or the tensor that is none of a plain BERT's.
    """
    folder = resolve_folder(folder_or_name)
    config = config or read_config(folder)
    state = read_tensors(folder)
    if state is None:
        state = _read_google(folder, config)
    refuse_faults(state, str(folder))
    return config, state


def _read_google(folder: Path, config: BertConfig) -> dict[str, torch.Tensor]:
    """The tensors of Google's checkpoint in a folder, by transformers' names; a classifier's tell `config` how many classes there are."""
    prefix = find_tensorflow_checkpoint(folder)
    if prefix is None:
        raise no_weights(folder)
    state = read_tensorflow(prefix)
    if "classifier.bias" in state:
        config.num_labels = state["classifier.bias"].numel()  # Google's config does not tell
    return state


def read_config(folder: Path) -> BertConfig:
    """The folder's config.json (or bert_config.json) as a BertConfig. Raises CheckpointError where bertfast would compute something else than
    transformers makes of it; see config_keys.py."""
    file = next((folder / name for name in ("config.json", OLD_CONFIG_FILE) if (folder / name).is_file()), None)
    if file is None:
        several = sorted(file.parent for file in [*folder.glob("model/*/config.json"), *folder.glob("*/config.json")])
        hint = f"it holds models of several tasks: give one of them, {several[0]} say" if several else _WANTED
        raise CheckpointError(f"{folder}: no config.json there; {hint}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: not valid JSON ({error})") from None
    if (folder / _ADAPTER).is_file():  # transformers adds it to the weights where peft is installed, and leaves it out where it is not
        raise CheckpointError(f"{folder / _ADAPTER}: bertfast reads no adapters; give a folder with the adapter merged into the weights")
    return config_from(values, str(file))


def write_weights(
    folder: str | Path, config: BertConfig, state: dict[str, torch.Tensor], architecture: str = "BertForSequenceClassification"
) -> None:
    """Write config.json and model.safetensors into an existing folder; tensors by transformers' names."""
    config.architectures = [architecture]
    if config.problem_type != MULTILABEL:  # what a classifier answers when nothing else was said
        config.problem_type = "regression" if config.num_labels == 1 else "single_label_classification"
    config.dtype = "float32"
    config.save_pretrained(folder)
    save_tensors(folder, {name: tensor.float().cpu() for name, tensor in state.items()})


def save_tensors(folder: str | Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write model.safetensors into an existing folder, as transformers loads it. Who may read it is for the umask to say, and not for safetensors,
    which lets its writer alone."""
    from safetensors.torch import save_file

    file = Path(folder) / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    give_usual_mode(file)


def resolve_folder(folder_or_name: str) -> Path:
    """The local folder that a path or a hub name means; a hub name is downloaded to transformers' own cache.

    Raises:
        CheckpointError: there is none, or what was given is no name.
    """
    if not isinstance(folder_or_name, str | os.PathLike):
        given = f"of type {type(folder_or_name).__name__}"
        raise CheckpointError(
            f"checkpoint: is {given}; give the path of a model's folder, or its name on the hub (save what is in memory with save_pretrained)"
        )
    path = Path(folder_or_name).expanduser()
    if path.is_dir():
        for name in ("config.json", OLD_CONFIG_FILE):
            refuse_pointer(path / name)
        return path
    if path.is_file():
        raise CheckpointError(f"checkpoint {folder_or_name}: is a file; give the folder that it lies in: {path.parent}")
    if path.is_absolute() or str(folder_or_name).startswith((".", "~")) or str(folder_or_name).count("/") > 1:
        raise CheckpointError(f"checkpoint {folder_or_name}: no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json", "vocab.txt", "tokenizer*.json"]
    wanted += ["special_tokens_map.json", "added_tokens.json"]
    try:
        folder = Path(snapshot_download(folder_or_name, allow_patterns=wanted))
        if not any((folder / f"{WEIGHTS[0]}{end}").is_file() for end in ("", ".index.json")):
            folder = Path(snapshot_download(folder_or_name, allow_patterns=[*wanted, "pytorch_model*.bin*"]))
        return folder
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"checkpoint {folder_or_name!r}: no local folder of that name, the hub cannot be reached, and the model is not in its cache; "
            "give the path of a folder with config.json, model.safetensors and the tokenizer's files"
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"checkpoint {folder_or_name!r}: neither a local folder nor a model that the hub gives ({type(error).__name__}); "
            "give the path of a folder with config.json, model.safetensors and the tokenizer's files"
        ) from None


def model_folder(path: str) -> str:
    """The transformers folder that a path means: a run's folder holds it as `model`, a training checkpoint too."""
    inner = folders.standing(Path(path) / folders.MODEL)
    return str(inner) if not holds_model(Path(path)) and holds_model(inner) else path


def holds_model(folder: Path) -> bool:
    """Whether a model's config.json lies right in this folder: in a run's folder, that name may be of the run's own config."""
    try:
        return "bertfast" not in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError, TypeError):  # whoever reads the model says what is wrong with it
        return True
