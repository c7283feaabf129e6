"""The packed graph: for ONNX Runtime's CUDA provider, which computes no padding in it.

Padding is taken out once, behind the embeddings (RemovePadding), and every layer works on the tokens of the batch side by side (PackedAttention);
the first token of each row is gathered from where it lies. RemovePadding knows padding on the right alone, so the columns of each row are sorted
first, tokens before padding, each with the position of its own column: any hole in a mask is right. What the form cannot say is a row whose first
column is masked: that column is pooled, and attends, but is attended to by nobody. The logits of such a row are NaN, and never silently wrong.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto

from bertfast_export.contract import DEFAULT_OPSET, MICROSOFT, OUTPUT
from bertfast_export.graphs.fused import FusedOperators
from bertfast_export.graphs.network import write_network
from bertfast_export.graphs.operators import Network


class PackedOperators(FusedOperators):
    """The fused operators, on tokens [T, D] in the place of [B, S, D]."""

    def mask(self, mask: str) -> str:
        """[B, S] -> the order of each row's columns, tokens first; and how many are kept, of which the first column always is one."""
        add = self.graph.add
        tokens = self._as_int32(mask)
        width = add("Shape", [mask], "packed.width", start=1, end=2)
        narrow = add("Cast", [width], "packed.width.int32", to=TensorProto.INT32)
        none, one = self.constant("packed.zero", 0, np.int32), self.constant("packed.one", 1, np.int32)
        bound = add("Squeeze", [narrow], "packed.bound")
        columns = add("Range", [none, bound, one], "packed.columns")
        is_first = add("Cast", [add("Equal", [columns, none], "packed.is_first")], "packed.first_column", to=TensorProto.INT32)
        kept = add("Max", [tokens, is_first], "packed.kept")
        rank = add("Sub", [add("Mul", [kept, narrow], "packed.group"), columns], "packed.rank")
        add("TopK", [rank, width], "packed.sort", ["packed.ranks", "packed.order"], axis=-1, largest=1, sorted=1)
        add("ReduceSum", [kept, self.constant("last_axis", [-1], np.int64)], "packed.count", keepdims=0)
        pooled = add("Gather", [tokens, self.constant("packed.first", [0], np.int64)], "packed.pooled", axis=1)
        add("Cast", [pooled], "packed.is_pooled", to=TensorProto.BOOL)
        return "packed.order"

    def embeddings(self, input_ids: str, token_type_ids: str) -> str:
        add = self.graph.add
        ids = [
            add("GatherElements", [self._as_int32(name), "packed.order"], f"{name}.sorted", axis=1) for name in (input_ids, token_type_ids)
        ]
        positions = add("Cast", ["packed.order"], "packed.positions", to=TensorProto.INT32)
        tables = [self.weight(f"embeddings.{table}") for table in ("word", "position", "segment", "weight", "bias")]
        name = "embeddings.norm"
        outputs = [name, f"{name}.unused_mask_index"]
        inputs = [*ids, *tables, "", positions]
        self.graph.add("EmbedLayerNormalization", inputs, name, outputs, domain=MICROSOFT, epsilon=self.config.layer_norm_eps)
        outputs = ["packed.tokens", "packed.offsets", "packed.bounds", "packed.longest"]
        return self.graph.add("RemovePadding", [name, "packed.count"], "packed.remove", outputs, domain=MICROSOFT)

    def attention(self, x: str, mask: str, name: str) -> str:
        inputs = [x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"), "packed.offsets", "packed.bounds"]
        return self.fused("PackedAttention", inputs, f"{name}.joined", num_heads=self.config.num_attention_heads)

    def first_token(self, x: str) -> str:
        begin, end = self.constant("packed.first", [0], np.int64), self.constant("last_axis", [-1], np.int64)
        firsts = self.graph.add("Slice", ["packed.bounds", begin, end], "packed.firsts")
        return self.graph.add("Gather", [x, firsts], "first_token", axis=0)

    def head(self, cls: str, name: str = OUTPUT) -> str:
        logits = super().head(cls, f"{name}.all")
        return self.graph.add("Where", ["packed.is_pooled", logits, self.constant("packed.nan", np.nan)], name)


def packed_graph(
    network: Network,
    opset: int = DEFAULT_OPSET,
    integers: str = "int64",
    metadata: Mapping[str, str] | None = None,
    dtype: type[np.floating] = np.float16,
) -> onnx.ModelProto:
    """model_packed.onnx, in float16."""
    return write_network(PackedOperators(network, opset, integers, dtype), integers, metadata)
