"""The graph for ONNX Runtime: its own fused operators, in float32 or float16.

Every layer's attention is one `Attention` node, given the raw mask [B, S]: the forms that count tokens (mask_index) are right for right
padding alone. `SkipLayerNormalization`, `BiasGelu` and `EmbedLayerNormalization` take the biases, residuals and norms. Written with these
operators from the start, no layer can be missed by a pattern matcher.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from bertfast.errors import ExportError
from bertfast_export.contract import DEFAULT_OPSET, MICROSOFT, OUTPUT
from bertfast_export.graphs.network import write_network
from bertfast_export.graphs.operators import MASKED, Network, Operators
from bertfast_export.graphs.writer import count_operators


class FusedOperators(Operators):
    """ONNX Runtime's operators. In float16 the mask stays safe: its value is an attribute, which the kernels add in float32."""

    def __init__(self, network: Network, opset: int = DEFAULT_OPSET, integers: str = "int64", dtype: type[np.floating] = np.float32):
        super().__init__(network, opset)
        self.integers = integers
        self.dtype = dtype

    def weight(self, name: str) -> str:
        return self.graph.weight(name, self.network.weights[name].astype(self.dtype, copy=False))

    def fused(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        return self.graph.add(operator, inputs, name, domain=MICROSOFT, **attributes)

    def mask(self, mask: str) -> str:
        return self._as_int32(mask)

    def embeddings(self, input_ids: str, token_type_ids: str) -> str:
        ids = [self._as_int32(input_ids), self._as_int32(token_type_ids)]
        tables = [self.weight(f"embeddings.{table}") for table in ("word", "position", "segment", "weight", "bias")]
        name = "embeddings.norm"
        return self.graph.add(
            "EmbedLayerNormalization",
            [*ids, *tables],
            name,
            [name, f"{name}.unused_mask_index"],
            domain=MICROSOFT,
            epsilon=self.config.layer_norm_eps,
        )

    def attention(self, x: str, mask: str, name: str) -> str:
        inputs = [x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"), mask]
        return self.fused("Attention", inputs, f"{name}.joined", num_heads=self.config.num_attention_heads, mask_filter_value=MASKED)

    def add_norm(self, x: str, residual: str, name: str) -> str:
        inputs = [x, residual, *(self.weight(f"{name}.{part}") for part in ("weight", "bias", "x_bias"))]
        return self.fused("SkipLayerNormalization", inputs, name, epsilon=self.config.layer_norm_eps)

    def bias_gelu(self, x: str, name: str) -> str:
        return self.fused("FastGelu" if self.network.gelu_is_tanh else "BiasGelu", [x, self.weight(f"{name}.bias")], name)

    def head(self, cls: str, name: str = OUTPUT) -> str:
        if self.dtype == np.float32:
            return super().head(cls, name)
        return self.graph.add("Cast", [super().head(cls, f"{name}.half")], name, to=TensorProto.FLOAT)

    def _as_int32(self, ids: str) -> str:
        return ids if self.integers == "int32" else self.graph.add("Cast", [ids], f"{ids}.int32", to=TensorProto.INT32)


def fused_graph(
    network: Network,
    opset: int = DEFAULT_OPSET,
    integers: str = "int64",
    half: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """model_optimized.onnx, or model_fp16.onnx with `half`; see `check_fusion` for what it promises."""
    operators = FusedOperators(network, opset, integers, np.float16 if half else np.float32)
    model = write_network(operators, integers, metadata)
    check_fusion(model, network)
    return model


def check_fusion(model: onnx.ModelProto, network: Network) -> None:
    """Every layer's parts are fused, and nothing is there twice: 7 nodes a layer and 8 more (three of them casts of int64 inputs); in float16
    a cast of the logits."""
    layers, counts = network.num_layers, count_operators(model)
    gelu = "FastGelu" if network.gelu_is_tanh else "BiasGelu"
    wanted = {"Attention": layers, "SkipLayerNormalization": 2 * layers, gelu: layers, "EmbedLayerNormalization": 1}
    found = {operator: counts.get(operator, 0) for operator in wanted}
    most = 7 * layers + 8 + (model.graph.node[-1].op_type == "Cast")
    nodes = [node for node in model.graph.node if network.head.is_plain or not node.name.startswith(("head.", "hidden."))]
    if found != wanted or len(nodes) > most:
        raise ExportError(f"the fused graph has {found} in {len(nodes)} nodes, where {wanted} in {most} were meant")
