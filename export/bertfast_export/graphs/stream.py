"""The graph without padding for a CPU: every product, norm and GELU works on one stream [T, D] of the tokens of all rows.

Which columns are tokens is read from the mask inside the graph, so inputs and outputs are those of every other file. What stays in the stream is
each row's tokens, its first column, which is pooled whatever its mask says, and all columns of a row that has no token, since they attend to each
other equally: so any mask gives what the padded graphs give. Attention alone works on rows of one width. The gathers that lay the stream out for
it take the place of a split, and one more brings its result back; their indices are the same for every layer.

The operators are those that ONNX Runtime 1.32 runs fastest on a CPU (128 tokens of MiniLM, one core): its standard LayerNormalization takes a
tenth of the time of its SkipLayerNormalization (into which it fuses nothing here: a test looks), its standard Gelu 0.6 of
BiasGelu's, and the standard Attention 0.85 of MultiHeadAttention's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto

from bertfast_export.contract import DEFAULT_OPSET
from bertfast_export.graphs.network import write_network
from bertfast_export.graphs.operators import Network, Operators

# B batch, S sequence, T tokens that stay, D hidden

LEAST_OPSET = 23  # the first that has Attention
# Added to the score of a column that is masked: any score vanishes beside it. The least float32 would be an infinity to ONNX Runtime's Attention,
# which gives a row with no token zeros where eager attention gives it the mean of its columns.
_MASKED = -1e30


class StreamOperators(Operators):
    """Standard operators on tokens [T, D] in the place of [B, S, D]. A product adds its bias itself, unless it says so in `left`."""

    attends_first_alone = True

    def __init__(self, network: Network, opset: int = LEAST_OPSET):
        super().__init__(network, max(opset, LEAST_OPSET))
        self.left: set[str] = set()  # biases that a product has left to the operator behind it
        self._cut: set[str] = set()

    def mask(self, mask: str) -> str:
        """[B, S] of ones and zeros -> [B, 1, S, S] to add to the scores; and the indices from rows to the stream and back."""
        add, axis = self.graph.add, self.constant("last_axis", [-1], np.int64)
        first, flat = self.constant("first", 0, np.int64), self.constant("stream.flat", [-1], np.int64)
        is_token = add("Cast", [mask], "mask.is_token", to=TensorProto.BOOL)
        add("Shape", [mask], "stream.width", start=1, end=2)
        one = self.constant("stream.one", 1, np.int64)
        columns = add("Range", [first, add("Squeeze", ["stream.width"], "stream.bound"), one], "stream.columns")
        counted = add("ReduceSum", [add("Cast", [is_token], "stream.counts", to=TensorProto.INT64), axis], "stream.tokens", keepdims=1)
        pooled = add(
            "Or", [add("Equal", [columns, first], "stream.is_first"), add("Equal", [counted, first], "stream.is_empty")], "stream.extra"
        )
        stays = add("Or", [is_token, pooled], "stream.stays")
        where = add("NonZero", [stays], "stream.where")  # [2, T]: the row and the column that each token of the stream has
        add("Transpose", [where], "stream.cells", perm=[1, 0])
        add("Gather", [where, one], "stream.positions", axis=0)
        kept = add("Reshape", [add("Cast", [stays], "stream.ones", to=TensorProto.INT64), flat], "stream.kept")
        ranks = add("CumSum", [kept, first], "stream.ranks")
        places = add("Reshape", [add("Sub", [ranks, one], "stream.back"), add("Shape", [mask], "stream.shape")], "stream.places")
        add("Gather", [places, first], "stream.firsts", axis=1)  # [B]
        query = add("Mul", [places, self.constant("stream.parts", 3, np.int64)], "stream.query")  # [B, S], in the stream as [T * 3, D]
        key = add("Add", [query, one], "stream.key")
        add("Add", [key, one], "stream.value")
        bias = add("Where", [is_token, self.constant("zero", 0.0), self.constant("stream.masked", _MASKED)], "mask.bias")
        add("Unsqueeze", [bias, self.constant("mask.axes", [1, 2], np.int64)], "mask.broadcast")
        square = add(
            "Concat",
            [self.constant("stream.ones_axis", [1, 1], np.int64), "stream.width", self.constant("stream.any", [1], np.int64)],
            "mask.shape",
            axis=0,
        )
        return add("Expand", ["mask.broadcast", square], "mask.square")

    def embeddings(self, input_ids: str, token_type_ids: str) -> str:
        """Ids [B, S] -> [T, D]."""
        add = self.graph.add
        ids, segments = (add("GatherND", [name, "stream.cells"], f"{name}.kept") for name in (input_ids, token_type_ids))
        parts = [
            self.words(ids),
            *(
                add("Gather", [self.weight(f"embeddings.{table}"), index], f"embeddings.{table}s")
                for table, index in (("segment", segments), ("position", "stream.positions"))
            ),
        ]
        return self.layer_norm(add("Sum", parts, "embeddings.sum"), "embeddings", "embeddings.norm")

    def words(self, ids: str) -> str:
        """Ids [T] -> the rows of the table of words [T, D]."""
        return self.graph.add("Gather", [self.weight("embeddings.word"), ids], "embeddings.words")

    def product(self, x: str, name: str, part: str = "") -> str:
        """x times the weights `name`, with their bias; part: of the projection, the "query" columns alone or the "others"."""
        weights = [self.cut(self.weight(f"{name}.weight"), part), self.cut(self.weight(self.network.bias_of(name)), part)]
        return self.graph.add("Gemm", [x, *weights], f"{name}{part and '.'}{part}")

    def cut(self, weight: str, part: str) -> str:
        """Of the projection's weights [.., 3 D] the columns of the queries, or the others. A runtime does it once, as it loads the file."""
        if part and f"{weight}.query" not in self._cut:
            sizes = self.constant("stream.cut", [self.config.hidden_size, 2 * self.config.hidden_size], np.int64)
            self.graph.add("Split", [weight, sizes], f"{weight}.cut", [f"{weight}.query", f"{weight}.others"], axis=-1)
            self._cut.add(f"{weight}.query")
        return f"{weight}.{part}" if part else weight

    def attention(self, x: str, mask: str, name: str) -> str:
        """[T, D] -> [T, D]: queries, keys and values are gathered from the projection [T, 3 D], read as [3 T, D]."""
        add = self.graph.add
        thirds = self._rows(self.product(x, name), f"{name}.thirds")
        parts = [add("Gather", [thirds, f"stream.{part}"], f"{name}.{part}") for part in ("query", "key", "value")]
        return add("GatherND", [self._attend([*parts, mask], name), "stream.cells"], f"{name}.joined")

    def last_attention(self, x: str, name: str) -> tuple[str, str]:
        """[T, D] -> [B, D] of the first columns, and x there: theirs are the only queries whose answer is read."""
        add, first = self.graph.add, self.graph.add("Gather", [x, "stream.firsts"], "first_token")
        alone = self.constant("stream.alone", [-1, 1, self.config.hidden_size], np.int64)
        query = add("Reshape", [self.product(first, name, "query"), alone], f"{name}.alone")
        halves = self._rows(self.product(x, name, "others"), f"{name}.halves")
        key = add("Mul", ["stream.places", self.constant("stream.halves", 2, np.int64)], "stream.last_key")
        places = (key, add("Add", [key, self.constant("stream.one", 1, np.int64)], "stream.last_value"))
        parts = [add("Gather", [halves, index], f"{name}.{part}") for part, index in zip(("key", "value"), places, strict=True)]
        return self._rows(self._attend([query, *parts, "mask.broadcast"], name), f"{name}.joined"), first

    def add_norm(self, x: str, residual: str, name: str) -> str:
        parts = [x, residual, *([self.weight(f"{name}.x_bias")] if f"{name}.x_bias" in self.left else [])]
        return self.layer_norm(self.graph.add("Sum", parts, f"{name}.sum"), name, name)

    def bias_gelu(self, x: str, name: str) -> str:
        if f"{name}.bias" in self.left:
            x = self.graph.add("Sum", [x, self.weight(f"{name}.bias")], f"{name}.biased")
        return self.graph.add("Gelu", [x], name, approximate="tanh" if self.network.gelu_is_tanh else "none")

    def columns(self, x: str) -> str:
        """[T, D] -> [B, S, D]; a column that is not in the stream has the values of another, and no head counts it."""
        return self.graph.add("Gather", [x, "stream.places"], f"{x}.columns")

    def _attend(self, inputs: list[str], name: str) -> str:
        heads = self.config.num_attention_heads
        return self.graph.add("Attention", inputs, f"{name}.heads", q_num_heads=heads, kv_num_heads=heads)

    def _rows(self, x: str, name: str) -> str:
        """As rows of D."""
        return self.graph.add("Reshape", [x, self.constant("stream.row", [-1, self.config.hidden_size], np.int64)], name)


def stream_graph(
    network: Network, opset: int = DEFAULT_OPSET, integers: str = "int64", metadata: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """model_packed_cpu.onnx, float32, in `opset` or the first that has its operators."""
    return write_network(StreamOperators(network, opset), integers, metadata)
