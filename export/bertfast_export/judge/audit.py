"""The audit: every number that a graph holds, against the checkpoint that it was made from.

Logits cannot show what rounding hides: one weight of thousands that is 1 % off moves them less than float32 does. So the weights themselves are
compared. In a float32 file each must be the checkpoint's, bit for bit; in float16, the checkpoint's, rounded. In an int8 file each scale must be
the one that its column's largest weight gives, and each 8-bit weight near to what it stands for. Constants must be those of the operators.
What the checkpoint holds is read by transformers, and what a constant must be is written here once more: the audit shares no code with the graphs.

Without the checkpoint, the SHA-256 of every weight, kept in the record, takes its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from transformers import BertConfig

from bertfast.errors import CheckpointError

# K inputs and N outputs of a product

# 8-bit weights are rounded one input after the other, each taking over the errors of those before it: so single ones may be some levels off, and
# those of inputs that are hardly ever seen more than others, while most are within half a level. Measured: 0.3 on average, at most 5.
_LEVELS_APART = 24.0
_MEAN_LEVELS_APART = 1.0
_SCALE_APART = 1e-5  # relative; a scale is computed from float64 and stored in float32
_GELU_FLOOR = 0.17
_GELU_ZERO = 16  # the level of 0 behind GELU
_MEASURED = (
    ".scale",
    ".evened",
    ".step",
    ".zero",
)  # what stands beside 8-bit weights; the last three come from a sample, and the logits judge them


@dataclass
class Audit:
    """What an audit found. `hashes`: the SHA-256 of every weight and constant by name. `fault` names the first that is not as it must be."""

    hashes: dict[str, str]
    fault: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For verification.json."""
        return {"compared": len(self.hashes), **self.facts, "sha256": self.hashes}


class KeptWeights:
    """The weights of one file as an earlier audit found them."""

    def __init__(self, hashes: Mapping[str, str]):
        self._hashes = hashes

    def audit(self, model: onnx.ModelProto, half: bool) -> Audit:
        """Compare hashes. `half` is of no account here."""
        return self.compare(_initializers(model), half)

    def compare(self, given: Mapping[str, np.ndarray], half: bool = False) -> Audit:
        """The same of weights and constants by name."""
        found = {name: hash_of(values) for name, values in given.items()}
        changed = sorted(name for name in found.keys() | self._hashes.keys() if found.get(name) != self._hashes.get(name))
        fault = None
        if changed:
            name = changed[0]
            said = "is missing, which" if name not in found else "is new, and" if name not in self._hashes else "is not the one that"
            fault = f"its weight {name} {said} was {'not ' if name not in self._hashes else ''}there when the file was audited{_and_more(changed)}"
        return Audit(found, fault)


class CheckpointWeights:
    """The weights of a checkpoint, under the names of the graphs.

    Args:
        state: transformers' state dict of BertForSequenceClassification, or of BertModel with the tensors of a head of our own, float32.

    Raises:
        CheckpointError: a tensor is missing.
    """

    def __init__(self, state: Mapping[str, np.ndarray], config: BertConfig):
        self.config = config
        try:
            self.tensors = dict(_renamed(state, config.num_hidden_layers))
        except KeyError as error:
            raise CheckpointError(f"the checkpoint has no {error.args[0]}, which BertForSequenceClassification has") from None
        self.constants = _constants(config)

    @classmethod
    def of(cls, folder: str | Path) -> CheckpointWeights:
        """Of a folder, as transformers loads it."""
        from bertfast_export.judge.reference import eager_of

        model = eager_of(folder)
        return cls(model.state(), model.config)

    def audit(self, model: onnx.ModelProto, half: bool) -> Audit:
        """Compare every initializer of a graph. half: its weights are float16."""
        return self.compare(_initializers(model), half)

    def compare(self, given: Mapping[str, np.ndarray], half: bool = False) -> Audit:
        """The same of weights and constants by name."""
        found = Audit({name: hash_of(values) for name, values in given.items()})
        faults, seen, apart = [], set(), [0.0]
        for name, values in given.items():
            if name in self.tensors:
                seen.add(name)
                wanted = self.tensors[name].astype(np.float16) if half else self.tensors[name]
                faults.append(_difference(name, values, wanted))
            elif name in self.constants:
                faults.append(_difference(name, values, self.constants[name]))
            elif name.endswith((".least", ".largest")) and f"{name.rpartition('.')[0]}.int8" in given:
                faults.append(_span(name.rpartition(".")[0], given))
            elif name.endswith(".int8"):
                product = name.removesuffix(".int8")
                seen.add(product if product in self.tensors else f"{product}.weight")
                fault, largest = self._table(product, given) if product in self.tensors else self._quantized(product, given)
                faults.append(fault)
                apart.append(largest)
            elif not (name.endswith(_MEASURED) and f"{name.rpartition('.')[0]}.int8" in given):
                faults.append(f"its weight {name} is none of the checkpoint's")
            elif not ((np.isfinite(values).all() and (values > 0).all()) or name.endswith(".zero")):
                faults.append(f"its weight {name} is {values.min():g} or not finite, where a scale should be")
        faults += [f"the checkpoint's {name} is missing from it" for name in self.tensors.keys() - seen]
        named = [fault for fault in faults if fault]
        found.fault = named[0] + _and_more(named) if named else None
        if max(apart) > 0:
            found.facts["largest_rounding_of_a_weight_in_levels"] = round(max(apart), 3)
        return found

    def _quantized(self, product: str, given: Mapping[str, np.ndarray]) -> tuple[str | None, float]:
        """The fault of a product in int8, and how many levels its 8-bit weights are apart from what they stand for, at most."""
        weight, levels, scale = self.tensors.get(f"{product}.weight"), given[f"{product}.int8"], given.get(f"{product}.scale")
        if weight is None or scale is None:
            return f"its weight {product}.int8 stands for none of the checkpoint's, or has no scale", 0.0
        if levels.ndim == 3:
            return _by_blocks(product, weight, levels, scale), 0.5
        weight = weight.astype(np.float64) / given.get(f"{product}.evened", np.ones(len(weight)))[:, None]
        if levels.shape != weight.shape or levels.dtype != np.int8 or scale.shape != weight.shape[1:]:
            return f"its weight {product}.int8 is {levels.dtype} {list(levels.shape)}, where int8 {list(weight.shape)} should be", 0.0
        wanted = np.maximum(np.abs(weight).max(axis=0) / 127, np.finfo(np.float32).tiny)
        off = np.abs(scale / wanted - 1)
        if not off.max() <= _SCALE_APART:
            column = int(np.argmax(np.where(np.isfinite(off), off, np.inf)))
            return f"its scale {product}.scale[{column}] is {scale[column]:.6g}, where its weights give {wanted[column]:.6g}", 0.0
        apart = np.abs(levels - weight / wanted)
        at = np.unravel_index(int(apart.argmax()), apart.shape)
        by_output = apart.mean(axis=0)
        if not apart[at] <= _LEVELS_APART:
            return f"its weight {product}.int8{list(map(int, at))} is {levels[at]}, where {weight[at] / wanted[at[1]]:.4g} is meant", float(
                apart[at]
            )
        if not by_output.max() <= _MEAN_LEVELS_APART:
            column = int(by_output.argmax())
            off_by = f"{by_output[column]:.3g} levels from what they stand for, on average"
            return f"its weights {product}.int8[:, {column}] are {off_by}", float(apart.max())
        return None, float(apart.max())

    def _table(self, name: str, given: Mapping[str, np.ndarray]) -> tuple[str | None, float]:
        """The fault of a table of words in int8, with a scale for each row: every level the nearest."""
        table, levels, scale = self.tensors[name].astype(np.float64), given[f"{name}.int8"], given.get(f"{name}.scale")
        if scale is None or levels.dtype != np.int8 or levels.shape != table.shape or scale.shape != table.shape[:1]:
            return (
                f"its weight {name}.int8 is {levels.dtype} {list(levels.shape)}, where int8 {list(table.shape)} with scales should be",
                0.0,
            )
        wanted = np.maximum(np.abs(table).max(axis=1) / 127, np.finfo(np.float32).tiny)
        off = np.abs(scale / wanted - 1)
        if not off.max() <= _SCALE_APART:
            row = int(np.argmax(np.where(np.isfinite(off), off, np.inf)))
            return f"its scale {name}.scale[{row}] is {scale[row]:.6g}, where its weights give {wanted[row]:.6g}", 0.0
        apart = np.abs(levels - table / wanted[:, None])
        at = np.unravel_index(int(apart.argmax()), apart.shape)
        if not apart[at] <= 0.5 + 1e-3:
            return f"its weight {name}.int8{list(map(int, at))} is {levels[at]}, where {table[at] / wanted[at[0]]:.4g} is meant", float(
                apart[at]
            )
        return None, float(apart[at])


def _initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def hash_of(values: np.ndarray) -> str:
    """The SHA-256 of an array: its type, its shape and its bytes."""
    return hashlib.sha256(f"{values.dtype.str} {list(values.shape)} ".encode() + np.ascontiguousarray(values).tobytes()).hexdigest()


def _renamed(state: Mapping[str, np.ndarray], num_layers: int) -> Iterator[tuple[str, np.ndarray]]:
    """(the graphs' name, tensor) for each tensor of a state dict of transformers; products as [K, N]."""
    embeddings = {"word": "word_embeddings", "position": "position_embeddings", "segment": "token_type_embeddings"}
    for ours, theirs in embeddings.items():
        yield f"embeddings.{ours}", state[f"bert.embeddings.{theirs}.weight"]
    for kind in ("weight", "bias"):
        yield f"embeddings.{kind}", state[f"bert.embeddings.LayerNorm.{kind}"]
    for index in range(num_layers):
        ours, theirs = f"layers.{index}", f"bert.encoder.layer.{index}"
        projections = [f"{theirs}.attention.self.{part}" for part in ("query", "key", "value")]
        yield f"{ours}.qkv.weight", np.concatenate([state[f"{name}.weight"].T for name in projections], axis=1)
        yield f"{ours}.qkv.bias", np.concatenate([state[f"{name}.bias"] for name in projections])
        yield f"{ours}.ffn_up.weight", state[f"{theirs}.intermediate.dense.weight"].T
        yield f"{ours}.gelu.bias", state[f"{theirs}.intermediate.dense.bias"]
        for product, norm, place in (("attention_out", "attention_norm", "attention.output"), ("ffn_down", "ffn_norm", "output")):
            yield f"{ours}.{product}.weight", state[f"{theirs}.{place}.dense.weight"].T
            yield f"{ours}.{norm}.x_bias", state[f"{theirs}.{place}.dense.bias"]
            yield f"{ours}.{norm}.weight", state[f"{theirs}.{place}.LayerNorm.weight"]
            yield f"{ours}.{norm}.bias", state[f"{theirs}.{place}.LayerNorm.bias"]
    own = {name.removeprefix("head."): values for name, values in state.items() if name.startswith("head.")}
    for name, values in own.items():
        yield name, values.T if values.ndim == 2 else values
    pooler = [("pooler", "bert.pooler.dense")] if not own or "bert.pooler.dense.weight" in state else []
    for ours, theirs in (*pooler, *([] if own else [("classifier", "classifier")])):
        yield f"{ours}.weight", state[f"{theirs}.weight"].T
        yield f"{ours}.bias", state[f"{theirs}.bias"]


def _constants(config: BertConfig) -> dict[str, np.ndarray]:
    """Every constant that a graph may hold."""
    size, heads = config.hidden_size, config.num_attention_heads
    is_tanh = config.hidden_act in ("gelu_new", "gelu_pytorch_tanh")
    floats = {"zero": 0.0, "one": 1.0, "half": 0.5, "masked": np.finfo(np.float32).min, "heads.scale": (size // heads) ** -0.5}
    floats |= {"gelu.cubic": 0.044715, "gelu.slope": (2 / np.pi) ** 0.5 if is_tanh else 0.5**0.5, "masked.openvino": -(2.0**100)}
    gelu_top = 255 - _GELU_ZERO
    floats |= {"gelu.least_step": _GELU_FLOOR / _GELU_ZERO, "by_row.127": 1 / 127, f"by_row.{gelu_top}": 1 / gelu_top}
    integers = {"mask.axes": [1, 2], "embeddings.begin": [0], "first": 0, "last_axis": [-1]}
    integers |= {"first.begin": [0], "first.end": [1], "first.axis": [1]}
    integers |= {"heads.split": [0, 0, heads, size // heads], "heads.join": [0, 0, size]}
    integers |= {"packed.first": [0], **{f"head.axis{axis}": [axis] for axis in (1, 2)}}
    integers |= {"stream.flat": [-1], "stream.one": 1, "stream.parts": 3, "stream.halves": 2, "stream.ones_axis": [1, 1], "stream.any": [1]}
    integers |= {"stream.cut": [size, 2 * size], "stream.alone": [-1, 1, size], "stream.row": [-1, size]}
    floats |= {"head.gelu.slope": 0.5**0.5, "packed.nan": np.nan, "stream.masked": -1e30}
    return {
        "packed.zero": np.asarray(0, dtype=np.int32),
        "packed.one": np.asarray(1, dtype=np.int32),
        **{name: np.asarray(value, dtype=np.float32) for name, value in floats.items()},
        **{name: np.asarray(value, dtype=np.int64) for name, value in integers.items()},
        **{f"zero.{zero}": np.asarray(zero, dtype=np.uint8) for zero in (128, _GELU_ZERO)},
    }


def _difference(name: str, given: np.ndarray, wanted: np.ndarray) -> str | None:
    """Where two arrays are not the same bits; None where they are."""
    if given.dtype != wanted.dtype or given.shape != wanted.shape:
        return f"its weight {name} is {given.dtype} {list(given.shape)}, where {wanted.dtype} {list(wanted.shape)} should be"
    bits = f"u{wanted.dtype.itemsize}"
    other = np.ascontiguousarray(given).reshape(-1).view(bits) != np.ascontiguousarray(wanted).reshape(-1).view(bits)
    if not other.any():
        return None
    first = int(np.argmax(other))
    place = list(map(int, np.unravel_index(first, wanted.shape)))
    more = f", and {int(other.sum()) - 1:,} more of it" if other.sum() > 1 else ""
    return f"its weight {name}{place or ''} is {given.reshape(-1)[first]:.9g}, where the checkpoint gives {wanted.reshape(-1)[first]:.9g}{more}"


def _by_blocks(product: str, weight: np.ndarray, levels: np.ndarray, scale: np.ndarray) -> str | None:
    """Eight-bit weights alone, [N, blocks, block] with a scale for each block: every one the nearest."""
    inputs, outputs = weight.shape
    if levels.dtype != np.uint8 or levels.shape[0] != outputs or scale.size != outputs * levels.shape[1] or levels[0].size < inputs:
        return f"its weight {product}.int8 is {levels.dtype} {list(levels.shape)}, which does not hold {list(weight.shape)}"
    padded = np.zeros((outputs, levels[0].size))
    padded[:, :inputs] = weight.T
    grouped, scale = padded.reshape(levels.shape), scale.reshape(outputs, -1, 1)
    wanted = np.maximum(np.abs(grouped).max(axis=2, keepdims=True) / 127, np.finfo(np.float32).tiny)
    if not np.allclose(scale, wanted, rtol=_SCALE_APART, atol=0):
        block = int(np.abs(scale / wanted - 1).argmax())
        return (
            f"its scale {product}.scale[{block}] is {scale.reshape(-1)[block]:.6g}, where its weights give {wanted.reshape(-1)[block]:.6g}"
        )
    apart = np.abs(levels - 128.0 - grouped / wanted)
    at = np.unravel_index(int(apart.argmax()), apart.shape)
    if not apart[at] <= 0.5 + 1e-3:
        return f"its weight {product}.int8{list(map(int, at))} is {levels[at]}, where {grouped[at] / wanted[at[0], at[1], 0] + 128:.5g} is meant"
    return None


def _span(product: str, given: Mapping[str, np.ndarray]) -> str | None:
    """What uint8 tells apart of a product's inputs: from a least value, 0 or below, to a largest, 0 being one of the 256 levels."""
    least, largest = (float(given.get(f"{product}.{end}", np.nan)) for end in ("least", "largest"))
    step = (largest - least) / 255
    if not (least <= 0 <= largest and step > 0 and abs(least / step - round(least / step)) <= 1e-3):
        return f"{product}: its inputs are to lie from {least:.6g} to {largest:.6g}, of which 0 must be one of 256 levels"
    return None


def _and_more(faults: Sequence[str]) -> str:
    return f"; and {len(faults) - 1} more" if len(faults) > 1 else ""
