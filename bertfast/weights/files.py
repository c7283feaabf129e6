"""The tensor files of a model's folder: which of them are read, and by what name those are refused that cannot be.

The order is that of transformers: safetensors before pytorch_model.bin, one file before shards.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import torch

from bertfast.errors import CheckpointError
from bertfast.wording import counted, reason

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # each may be in shards, which NAME.index.json lists
_POINTER = b"version https://git-lfs"  # how a file begins that Git LFS has not fetched (git-lfs, docs/spec.md)
_POINTER_BYTES = 1024  # that specification's limit
_TRANSFORMERS_4 = "transformers 4 reads it, and its save_pretrained writes model.safetensors"
# Weights under other names, and what to do with them.
_OTHERS = {
    "model-*-of-*.safetensors": "a shard without model.safetensors.index.json: fetch that too",
    "pytorch_model-*-of-*.bin": "a shard without pytorch_model.bin.index.json: fetch that too",
    "model.*.safetensors": "a variant of the weights, which transformers reads where it is asked for by name: rename it to model.safetensors",
    "pytorch_model.*.bin": "a variant of the weights, which transformers reads where it is asked for by name: rename it to pytorch_model.bin",
    "adapter_model.*": "an adapter of peft's: merge it into its base model (merge_and_unload), and save that",
    "*.h5": f"TensorFlow's: {_TRANSFORMERS_4}",
    "*.msgpack": f"Flax's: {_TRANSFORMERS_4}",
    "*.gguf": "GGUF's: give the folder that it was made from",
    "*.onnx": "an ONNX graph: give the folder that it was made from",
    "onnx/*.onnx": "an ONNX graph: give the folder that it was made from",
}


def read_tensors(folder: Path) -> dict[str, torch.Tensor] | None:
    """The tensors of a folder's safetensors or .bin files, by the names they have there; None where it has neither.

    Raises:
        CheckpointError: naming the file that cannot be read, that is missing, or that lacks what the index says of it.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return _read_file(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _read_shards(folder / f"{name}.index.json")
    return None


def no_weights(folder: Path) -> CheckpointError:
    """What to raise for a folder in which there is no file of weights that bertfast reads; it names those that are there."""
    nothing = f"{folder}: no model.safetensors, no pytorch_model.bin and no bert_model.ckpt there"
    for pattern, what in _OTHERS.items():
        if found := sorted(folder.glob(pattern)):
            return CheckpointError(f"{nothing}, but {found[0].relative_to(folder)}, {what}")
    return CheckpointError(f"{nothing}; give a folder that transformers' save_pretrained wrote, or one of Google's")


def refuse_pointer(file: Path) -> None:
    """Raise CheckpointError for a file whose content Git LFS has not fetched: three lines that say where it lies. A missing file is none."""
    if not file.is_file() or file.stat().st_size > _POINTER_BYTES:
        return
    with file.open("rb") as opened:
        if opened.read(len(_POINTER)) == _POINTER:
            raise CheckpointError(f"{file}: is a Git LFS pointer, and not the file itself; run `git lfs pull` in {file.parent}")


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    refuse_pointer(index)
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(shard_of.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index}: is no index of shards, a weight_map of tensors and files ({reason(error)}); fetch it again"
        ) from None
    tensors: dict[str, torch.Tensor] = {}
    for shard in shards:
        if not (index.parent / shard).is_file():
            raise CheckpointError(f"{index.parent / shard}: {index.name} names it, but it is not there; fetch all {len(shards)} shards")
        held = _read_file(index.parent / shard)
        if lacking := [name for name, file in shard_of.items() if file == shard and name not in held]:
            raise CheckpointError(
                f"{index.parent / shard}: lacks {lacking[0]} ({counted(len(lacking), 'tensor')} in all), which {index.name} says it holds; "
                "they do not belong together: fetch both again"
            )
        tensors.update(held)
    return tensors


def _read_file(file: Path) -> dict[str, torch.Tensor]:
    refuse_pointer(file)
    if not file.stat().st_size:
        raise CheckpointError(f"{file}: is empty; fetch it again")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file}: safe loading refuses it: it holds more than tensors (a whole model, say), or is cut short; save the model's state_dict() alone"
        ) from error
    except Exception as error:  # safetensors and torch raise many kinds; each means that the file cannot be read
        raise CheckpointError(f"{file}: cannot be read ({type(error).__name__}: {reason(error)}); it may be cut short") from error
    others = content.items() if isinstance(content, dict) else [("its whole content", content)]
    for name, value in others:
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{file}: {name} is a {type(value).__name__}, and no tensor; save the model's state_dict() alone")
    return content
