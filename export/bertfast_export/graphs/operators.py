"""The standard operators that a classifier's graph is made of, and the network as they read it: weights by name and sizes.

A subclass writes the same parts with other operators: fused ones, packed ones, or ones in int8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from onnx import TensorProto

from bertfast.config import HeadConfig
from bertfast.model import head_of
from bertfast_export.contract import DEFAULT_OPSET, OUTPUT
from bertfast_export.graphs.writer import GraphWriter

if TYPE_CHECKING:
    from transformers import BertConfig

    from bertfast.model import BertClassifier

# Added to the score of a column that is masked. Any score vanishes beside it, so a row with no token attends to all columns equally.
MASKED = float(np.finfo(np.float32).min)

_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")


class Network:
    """A classifier's config and weights as numpy arrays: products as [inputs, outputs], all else as the model has it; float32."""

    def __init__(self, config: BertConfig, weights: Mapping[str, np.ndarray]):
        self.config = config
        self.weights = weights

    @classmethod
    def of(cls, model: BertClassifier) -> Network:
        """The network of a model in memory."""
        products: tuple[str, ...] = (".qkv.weight", ".attention_out.weight", ".ffn_up.weight", ".ffn_down.weight", "pooler.weight")
        products += (
            "classifier.weight",
            "tokens.inner.weight",
            "tokens.score.weight",
            *(f"hidden.{number}.weight" for number in range(len(model.hidden))),
        )
        weights = {}
        for name, tensor in model.state_dict().items():
            array = tensor.detach().float().cpu().numpy()
            weights[name] = np.ascontiguousarray(array.T) if name.endswith(products) else array
        return cls(model.config, weights)

    @property
    def head(self) -> HeadConfig:
        """What is made of the encoder's outputs, its layers counted from 0."""
        return head_of(self.config)

    @property
    def head_layers(self) -> tuple[int, ...]:
        """The layers that the head reads."""
        layers = self.head.layers
        assert layers is not None, "head_of names the layers"
        return layers

    @property
    def num_labels(self) -> int:
        labels = self.config.num_labels
        assert labels is not None, "a classifier's config counts its classes"
        return labels

    @property
    def num_layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def head_size(self) -> int:
        return self.config.hidden_size // self.config.num_attention_heads

    @property
    def gelu_is_tanh(self) -> bool:
        return self.config.hidden_act in _TANH_GELU

    def bias_of(self, product: str) -> str:
        """The weight that holds a product's bias: with us it belongs to the operator that adds it."""
        layer, _, part = product.rpartition(".")
        return {
            "attention_out": f"{layer}.attention_norm.x_bias",
            "ffn_up": f"{layer}.gelu.bias",
            "ffn_down": f"{layer}.ffn_norm.x_bias",
        }.get(part, f"{product}.bias")


class Operators:
    """How each part of the network is written; the portable form: standard operators, float32. Every method gives the name of its output."""

    attends_first_alone = False  # whether the last layer's attention is written by `last_attention`, for column 0 alone

    def __init__(self, network: Network, opset: int = DEFAULT_OPSET):
        self.network = network
        self.config = network.config
        self.graph = GraphWriter(opset)

    def weight(self, name: str) -> str:
        return self.graph.weight(name, self.network.weights[name])

    def constant(self, name: str, values: ArrayLike, dtype: DTypeLike = np.float32) -> str:
        return self.graph.weight(name, np.asarray(values, dtype=dtype))

    def mask(self, mask: str) -> str:
        """[B, S] of ones and zeros -> what `attention` wants: [B, 1, 1, S] to add to the scores."""
        is_token = self.graph.add("Cast", [mask], "mask.is_token", to=TensorProto.BOOL)
        bias = self.graph.add("Where", [is_token, self.constant("zero", 0.0), self.constant("masked", MASKED)], "mask.bias")
        return self.graph.add("Unsqueeze", [bias, self.constant("mask.axes", [1, 2], np.int64)], "mask.broadcast")

    def embeddings(self, input_ids: str, token_type_ids: str) -> str:
        """Ids [B, S] -> [B, S, D]."""
        add = self.graph.add
        words = self.words(input_ids)
        segments = add("Gather", [self.weight("embeddings.segment"), token_type_ids], "embeddings.segments")
        width = add("Shape", [input_ids], "embeddings.width", start=1, end=2)
        bounds = [self.constant("embeddings.begin", [0], np.int64), width]
        positions = add("Slice", [self.weight("embeddings.position"), *bounds], "embeddings.positions")
        summed = add("Add", [add("Add", [words, segments], "embeddings.words_and_segments"), positions], "embeddings.sum")
        return self.layer_norm(summed, "embeddings", "embeddings.norm")

    def words(self, input_ids: str) -> str:
        """Ids [B, S] -> rows of the vocabulary's table [B, S, D]."""
        return self.graph.add("Gather", [self.weight("embeddings.word"), input_ids], "embeddings.words")

    def layer_norm(self, x: str, weights: str, name: str) -> str:
        parts = [x, self.weight(f"{weights}.weight"), self.weight(f"{weights}.bias")]
        return self.graph.add("LayerNormalization", parts, name, axis=-1, epsilon=self.config.layer_norm_eps)

    def product(self, x: str, name: str) -> str:
        """x times the weights `name`, without their bias."""
        return self.graph.add("MatMul", [x, self.weight(f"{name}.weight")], name)

    def attention(self, x: str, mask: str, name: str) -> str:
        """Self-attention [B, S, D] -> [B, S, D], from the projection of queries, keys and values to the heads side by side."""
        add, heads = self.graph.add, self.config.num_attention_heads
        qkv = add("Add", [self.product(x, name), self.weight(self.network.bias_of(name))], f"{name}.biased")
        parts = [f"{name}.{part}" for part in ("query", "key", "value")]
        add("Split", [qkv], f"{name}.split", parts, axis=-1, num_outputs=3)
        split = self.constant("heads.split", [0, 0, heads, self.network.head_size], np.int64)
        query, key, value = (
            add("Transpose", [add("Reshape", [part, split], f"{part}.heads")], f"{part}.turned", perm=order)
            for part, order in zip(parts, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
        )
        scaled = add("Mul", [query, self.constant("heads.scale", self.network.head_size**-0.5)], f"{name}.scaled")
        scores = add("Add", [add("MatMul", [scaled, key], f"{name}.scores"), mask], f"{name}.masked")
        shares = add("Softmax", [scores], f"{name}.shares", axis=-1)
        turned = add("Transpose", [add("MatMul", [shares, value], f"{name}.mixed")], f"{name}.turned", perm=[0, 2, 1, 3])
        return add("Reshape", [turned, self.constant("heads.join", [0, 0, self.config.hidden_size], np.int64)], f"{name}.joined")

    def last_attention(self, x: str, name: str) -> tuple[str, str]:
        """Self-attention of column 0 to all columns, and x of column 0: each [B, D]. Asked only of operators that say attends_first_alone, and theirs to write."""
        raise NotImplementedError

    def add_norm(self, x: str, residual: str, name: str) -> str:
        """LayerNorm(x + bias + residual)."""
        biased = self.graph.add("Add", [x, self.weight(f"{name}.x_bias")], f"{name}.biased")
        return self.layer_norm(self.graph.add("Add", [biased, residual], f"{name}.sum"), name, name)

    def bias_gelu(self, x: str, name: str) -> str:
        """gelu(x + bias); before opset 20 there is no Gelu operator."""
        add = self.graph.add
        x = add("Add", [x, self.weight(f"{name}.bias")], f"{name}.biased")
        if self.graph.opset >= 20:
            return add("Gelu", [x], name, approximate="tanh" if self.network.gelu_is_tanh else "none")
        if self.network.gelu_is_tanh:
            cube = add("Mul", [add("Mul", [x, x], f"{name}.square"), x], f"{name}.cube")
            inner = add("Add", [x, add("Mul", [cube, self.constant("gelu.cubic", 0.044715)], f"{name}.cubic")], f"{name}.inner")
            curve = add("Tanh", [add("Mul", [inner, self.constant("gelu.slope", np.sqrt(2 / np.pi))], f"{name}.scaled")], f"{name}.tanh")
        else:
            curve = add("Erf", [add("Mul", [x, self.constant("gelu.slope", np.sqrt(0.5))], f"{name}.scaled")], f"{name}.erf")
        share = add("Add", [curve, self.constant("one", 1.0)], f"{name}.share")
        return add("Mul", [add("Mul", [x, self.constant("half", 0.5)], f"{name}.half"), share], name)

    def columns(self, x: str) -> str:
        """x as [B, S, D], for a head that reads all columns."""
        return x

    def first_token(self, x: str) -> str:
        """[B, S, D] -> [B, D], of column 0."""
        return self.graph.add("Gather", [x, self.constant("first", 0, np.int64)], "first_token", axis=1)

    def head(self, cls: str, name: str = OUTPUT) -> str:
        """[B, D] -> logits [B, C]."""
        pooled = self.graph.add("Gemm", [cls, self.weight("pooler.weight"), self.weight("pooler.bias")], "pooler")
        pooled = self.graph.add("Tanh", [pooled], "pooler.tanh")
        return self.graph.add("Gemm", [pooled, self.weight("classifier.weight"), self.weight("classifier.bias")], name)
