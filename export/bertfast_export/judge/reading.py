"""ONNX Runtime's packed operators, read out in numpy, for machines that have no CUDA provider.

ONNX's own reference evaluator runs the standard operators; those of com.microsoft are written here from their documentation. A graph that passes by
this reading says what it should; whether ONNX Runtime's kernels say the same, only a GPU can tell.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from bertfast_export.contract import MICROSOFT

# B batch, S sequence, T tokens, N heads, H head size, D hidden


def _norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, epsilon: float) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    return (centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon) * weight + bias).astype(np.float32)


class EmbedLayerNormalization(OpRun):
    op_domain = MICROSOFT

    def _run(self, ids, segments, word, position, segment, weight, bias, mask=None, positions=None, epsilon=None, **_):
        summed = word[ids] + segment[segments] + position[np.arange(ids.shape[1]) if positions is None else positions]
        return _norm(summed, weight, bias, epsilon), np.zeros(len(ids), dtype=np.int32)


class SkipLayerNormalization(OpRun):
    op_domain = MICROSOFT

    def _run(self, x, skip, weight, bias, x_bias=0.0, epsilon=None, **_):
        return (_norm(x + skip + x_bias, weight, bias, epsilon),)


class BiasGelu(OpRun):
    op_domain = MICROSOFT

    def _run(self, x, bias):
        return (torch.nn.functional.gelu(torch.from_numpy(x + bias)).numpy(),)


class FastGelu(OpRun):
    op_domain = MICROSOFT

    def _run(self, x, bias):
        return (torch.nn.functional.gelu(torch.from_numpy(x + bias), approximate="tanh").numpy(),)


class RemovePadding(OpRun):
    """The first count[b] columns of each row of [B, S, D], side by side; and the flat places of all columns, tokens first."""

    op_domain = MICROSOFT

    def _run(self, x, count):
        is_token = np.arange(x.shape[1]) < count[:, None]
        offsets = np.concatenate([np.flatnonzero(is_token), np.flatnonzero(~is_token)]).reshape(is_token.shape)
        bounds = np.concatenate([[0], np.cumsum(count)])
        longest = np.array([count.max()])
        return x[is_token], offsets.astype(np.int32), bounds.astype(np.int32), longest.astype(np.int32)


class PackedAttention(OpRun):
    """Self-attention of each of the sequences that lie side by side in [T, D], between consecutive bounds."""

    op_domain = MICROSOFT

    def _run(self, x, weight, bias, offsets, bounds, num_heads=None, **_):
        projected = torch.from_numpy(x @ weight + bias)
        mixed = torch.empty(len(x), projected.shape[1] // 3)
        for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
            query, key, value = projected[begin:end].reshape(int(end - begin), 3, num_heads, -1).permute(1, 2, 0, 3)
            shares = torch.softmax(query @ key.transpose(1, 2) * query.shape[-1] ** -0.5, dim=-1)
            mixed[begin:end] = (shares @ value).transpose(0, 1).reshape(int(end - begin), -1)
        return (mixed.numpy(),)


class GatherElements(OpRun):
    """onnx's own takes at most 64 rows."""

    op_domain = ""

    def _run(self, x, indices, axis=0):
        return (np.take_along_axis(x, indices, axis),)


class Described(NamedTuple):
    """An input or output of a graph, as a session of onnxruntime describes it."""

    name: str
    type: str
    shape: list[int | str]


class Reading:
    """Answers as a session of onnxruntime does; float16 weights are read as the float32 that they stand for."""

    OPERATORS: ClassVar = [
        EmbedLayerNormalization,
        SkipLayerNormalization,
        BiasGelu,
        FastGelu,
        RemovePadding,
        PackedAttention,
        GatherElements,
    ]

    def __init__(self, model: onnx.ModelProto | Path):
        wide = onnx.ModelProto()
        wide.CopyFrom(model if isinstance(model, onnx.ModelProto) else onnx.load(model))
        for tensor in wide.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT16:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
        self._graph = wide.graph
        self._evaluator = ReferenceEvaluator(wide, new_ops=self.OPERATORS)

    def run(self, names: list[str], features: dict[str, np.ndarray]) -> list[np.ndarray]:
        answers = self._evaluator.run(names, features)
        assert isinstance(answers, list), "it gives a dictionary where it is asked for what lies between, and there alone"
        return answers

    def get_inputs(self) -> list[Described]:
        return [_described(value) for value in self._graph.input]

    def get_outputs(self) -> list[Described]:
        return [_described(value) for value in self._graph.output]


def _described(value: onnx.ValueInfoProto) -> Described:
    kind = value.type.tensor_type
    names: dict[int, str] = {TensorProto.INT32: "tensor(int32)", TensorProto.INT64: "tensor(int64)", TensorProto.FLOAT: "tensor(float)"}
    return Described(name=value.name, type=names[kind.elem_type], shape=[dim.dim_param or dim.dim_value for dim in kind.shape.dim])
