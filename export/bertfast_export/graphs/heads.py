"""A head of bertfast's own, layers x pooling, in standard ONNX operators on padded batches.

What `bertfast.model.heads` computes on a packed stream is computed here with the attention_mask: the tokens of a row are the columns whose mask is 1,
wherever they are. Weights of a mean or an attention over tokens are a softmax over the columns, to which a masked column brings nothing; a row
with no token at all is read as if all its columns were tokens, and all alike, as the encoder's attention reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from bertfast_export.contract import INPUTS, OUTPUT
from bertfast_export.graphs.operators import MASKED

if TYPE_CHECKING:
    from bertfast_export.graphs.operators import Operators

# B batch, S sequence, D hidden, A attention, F features, C classes


def write_own_head(operators: Operators, layers: Mapping[int, str], cls_only: int | None) -> str:
    """Outputs of the encoder's layers by number, each [B, S, D] (that of layer `cls_only` is [B, D], of column 0) -> logits [B, C]."""
    head, add, weight = operators.network.head, operators.graph.add, operators.weight
    tokens, vectors = _Tokens(operators), []
    for index in operators.network.head_layers:
        x, name = layers[index], f"head.layers.{index}"
        if head.pooling == "cls":
            parts = [x if index == cls_only else add("Gather", [x, operators.constant("first", 0, np.int64)], f"{name}.cls", axis=1)]
        else:
            parts = [getattr(tokens, how)(x, f"{name}.{how}") for how in head.pooling.split("_")]
        if head.pooler:
            parts = [
                add("Tanh", [add("Gemm", [part, weight("pooler.weight"), weight("pooler.bias")], f"{part}.pooler")], f"{part}.pooled")
                for part in parts
            ]
        vectors.append(parts[0] if len(parts) == 1 else add("Concat", parts, f"{name}.both", axis=-1))
    x = vectors[0]
    if len(vectors) > 1:
        how = {"concat": "Concat", "mean": "Mean", "max": "Max"}[head.layer_pooling]
        attributes: dict[str, Any] = {"axis": -1} if how == "Concat" else {}
        x = add(how, vectors, "head.features", **attributes)
    for number in range(len(head.hidden_sizes)):
        name = f"hidden.{number}"
        x = add("Gemm", [x, weight(f"{name}.weight"), weight(f"{name}.bias")], name)
        x = _activated(operators, x, head.activation)
    return add("Gemm", [x, weight("classifier.weight"), weight("classifier.bias")], OUTPUT)


class _Tokens:
    """The tokens of a layer [B, S, D] as one vector [B, D]. What depends on the mask alone is written once."""

    def __init__(self, operators: Operators):
        self._operators, self._add, self._constant = operators, operators.graph.add, operators.constant
        self._made: dict[str, str] = {}

    def mean(self, x: str, name: str) -> str:
        shares = self._once("head.shares", lambda made: self._add("Softmax", [self._bias()], made, axis=-1))
        return self._weighted(shares, x, name)

    def max(self, x: str, name: str) -> str:
        return self._add(
            "ReduceMax",
            [self._add("Where", [self._kept(), x, self._constant("masked", MASKED)], f"{name}.kept"), self._axis(1)],
            name,
            keepdims=0,
        )

    def attention(self, x: str, name: str) -> str:
        """softmax(v . tanh(W x + b)) over the tokens."""
        inner = self._add("MatMul", [x, self._operators.weight("features.tokens.inner.weight")], f"{name}.product")
        inner = self._add("Add", [inner, self._operators.weight("features.tokens.inner.bias")], f"{name}.inner")
        factors = [self._add("Tanh", [inner], f"{name}.tanh"), self._operators.weight("features.tokens.score.weight")]
        scores = self._add("Squeeze", [self._add("MatMul", factors, f"{name}.scores"), self._axis(2)], f"{name}.flat")
        shares = self._add("Softmax", [self._add("Add", [scores, self._bias()], f"{name}.masked")], f"{name}.shares", axis=-1)
        return self._weighted(shares, x, name)

    def _weighted(self, shares: str, x: str, name: str) -> str:
        """[B, S] and [B, S, D] -> [B, D]."""
        rows = self._add("Unsqueeze", [shares, self._axis(1)], f"{name}.row")
        return self._add("Squeeze", [self._add("MatMul", [rows, x], f"{name}.sum"), self._axis(1)], name)

    def _bias(self) -> str:
        """[B, S]: 0 for a token, and for a masked column what makes any score vanish beside it."""
        inputs = [self._constant("zero", 0.0), self._constant("masked", MASKED)]
        return self._once("head.bias", lambda made: self._add("Where", [self._is_token(), *inputs], made))

    def _kept(self) -> str:
        """[B, S, 1]: whether a column counts; in a row with no token every one does."""

        def write(made: str) -> str:
            any_token = self._add("ReduceMax", [INPUTS[1], self._axis(1)], "head.any", keepdims=1)
            is_empty = self._add("Not", [self._add("Cast", [any_token], "head.any.bool", to=TensorProto.BOOL)], "head.is_empty")
            kept = self._add("Or", [self._is_token(), is_empty], "head.kept.flat")
            return self._add("Unsqueeze", [kept, self._axis(2)], made)

        return self._once("head.kept", write)

    def _is_token(self) -> str:
        return self._once("head.is_token", lambda made: self._add("Cast", [INPUTS[1]], made, to=TensorProto.BOOL))

    def _axis(self, axis: int) -> str:
        return self._constant(f"head.axis{axis}", [axis], np.int64)

    def _once(self, name: str, write: Callable[[str], str]) -> str:
        if name not in self._made:
            self._made[name] = write(name)
        return self._made[name]


def _activated(operators: Operators, x: str, activation: str) -> str:
    add, name = operators.graph.add, f"{x}.{activation}"
    if activation != "gelu":
        return add({"tanh": "Tanh", "relu": "Relu"}[activation], [x], name)
    if operators.graph.opset >= 20:
        return add("Gelu", [x], name, approximate="none")
    scaled = add("Mul", [x, operators.constant("head.gelu.slope", np.sqrt(0.5))], f"{name}.scaled")
    share = add("Add", [add("Erf", [scaled], f"{name}.erf"), operators.constant("one", 1.0)], f"{name}.share")
    return add("Mul", [add("Mul", [x, operators.constant("half", 0.5)], f"{name}.half"), share], name)
