"""The graphs for OpenVINO: standard operators, so arranged that its CPU plugin takes its fastest kernels, in float32 or in int8; and an IR of a graph.

What its profile shows (PERF_COUNT): queries, keys and values as three products need no Split, which is copied by a plain loop there (7 % of an int8
model's time); scores, mask, softmax and mixing become one kernel; a bias, GELU and the next product's quantization are done within the product
before. The last layer asks for column 0 alone, so its queries and its output projection are computed for that column.

int8: weights as in `quantized`, smoothed (SmoothQuant, Xiao et al. 2023) and rounded one input after the other (GPTQ, Frantar et al. 2023), with a scale
for each output. Activations are uint8 between a least and a largest value that were measured beforehand: no answer depends on its neighbours. Word
embeddings are int8 with a scale for each word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto

from bertfast.errors import ExportError
from bertfast_export.contract import FACTS
from bertfast_export.graphs.network import write_network
from bertfast_export.graphs.operators import Network, Operators
from bertfast_export.graphs.quantized import Recipe, Statistics, evenness, round_weights, round_words

if TYPE_CHECKING:
    import openvino

# B batch, S sequence, N heads, H head size, D hidden, V vocabulary, K inputs and N outputs of a product

PROJECTIONS = ("query", "key", "value")
_OPENVINO = "org.openvinotoolkit"  # the domain of OpenVINO's own operators in an ONNX graph
_OPSET = 20
# Added to the score of a masked column. The least float32 would be -inf in bfloat16, and a row with no token NaN.
_MASKED = -(2.0**100)


class OpenvinoOperators(Operators):
    """The operators of the float32 file, which may be run in bfloat16 too."""

    attends_first_alone = True

    def __init__(self, network: Network):
        super().__init__(network, _OPSET)

    def mask(self, mask: str) -> str:
        """[B, S] of ones and zeros -> [B, 1, 1, S] to add to the scores."""
        is_token = self.graph.add("Cast", [mask], "mask.is_token", to=TensorProto.BOOL)
        bias = self.graph.add("Where", [is_token, self.constant("zero", 0.0), self.constant("masked.openvino", _MASKED)], "mask.bias")
        return self.graph.add("Unsqueeze", [bias, self.constant("mask.axes", [1, 2], np.int64)], "mask.broadcast")

    def attention(self, x: str, mask: str, name: str) -> str:
        return self._attention(dict.fromkeys(PROJECTIONS, self.taken(x, name)), mask, name)

    def last_attention(self, x: str, name: str) -> tuple[str, str]:
        taken = self.taken(x, name)
        bounds = [self.constant(f"first.{part}", [value], np.int64) for part, value in (("begin", 0), ("end", 1), ("axis", 1))]
        first = self.graph.add("Slice", [x, *bounds], f"{name}.first")
        heads = self._attention({"query": self.taken(first, name, ".first"), "key": taken, "value": taken}, "mask.broadcast", name)
        return self.first_token(heads), self.graph.add("Gather", [x, self.constant("first", 0, np.int64)], "first_token.x", axis=1)

    def taken(self, x: str, name: str, mark: str = "") -> str:
        """x as the product `name` takes it."""
        return x

    def projection(self, x: str, name: str, part: str) -> str:
        """x times the columns of one part of `name`, and their bias."""
        product = self.graph.add("MatMul", [x, self.part(f"{name}.weight", part)], f"{name}.{part}.product")
        return self.graph.add("Add", [product, self.part(f"{name}.bias", part)], f"{name}.{part}")

    def part(self, weight: str, part: str) -> str:
        """The columns of one part of a weight or bias of `qkv`, under a name of its own: layers.0.qkv.query.weight."""
        name, _, kind = weight.rpartition(".")
        return self.graph.weight(f"{name}.{part}.{kind}", columns_of(self.network.weights[weight], part))

    def _attention(self, taken: Mapping[str, str], mask: str, name: str) -> str:
        add, heads, size = self.graph.add, self.config.num_attention_heads, self.network.head_size
        split = self.constant("heads.split", [0, 0, heads, size], np.int64)
        query, key, value = (
            add(
                "Transpose",
                [add("Reshape", [self.projection(taken[part], name, part), split], f"{name}.{part}.heads")],
                f"{name}.{part}.turned",
                perm=order,
            )
            for part, order in zip(PROJECTIONS, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
        )
        scaled = add("Mul", [add("MatMul", [query, key], f"{name}.scores"), self.constant("heads.scale", size**-0.5)], f"{name}.scaled")
        shares = add("Softmax", [add("Add", [scaled, mask], f"{name}.masked")], f"{name}.shares", axis=-1)
        turned = add("Transpose", [add("MatMul", [shares, value], f"{name}.mixed")], f"{name}.turned", perm=[0, 2, 1, 3])
        return add("Reshape", [turned, self.constant("heads.join", [0, 0, self.config.hidden_size], np.int64)], f"{name}.joined")


class OpenvinoInt8Operators(OpenvinoOperators):
    """The same with products in int8 as a recipe says, and the word embeddings in int8."""

    def __init__(self, network: Network, statistics: Mapping[str, Statistics], recipe: Recipe):
        super().__init__(network)
        self.statistics, self.recipe = statistics, recipe
        self._rounded: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def words(self, input_ids: str) -> str:
        add, (levels_VD, scale_V) = self.graph.add, round_words(self.network)
        levels = self.graph.weight("embeddings.word.int8", levels_VD)
        rows = add("Cast", [add("Gather", [levels, input_ids], "embeddings.words.levels")], "embeddings.words.float", to=TensorProto.FLOAT)
        scales = add("Gather", [self.graph.weight("embeddings.word.scale", scale_V), input_ids], "embeddings.words.scales")
        scales = add("Unsqueeze", [scales, self.constant("last_axis", [-1], np.int64)], "embeddings.words.scales.column")
        return add("Mul", [rows, scales], "embeddings.words")

    def taken(self, x: str, name: str, mark: str = "") -> str:
        if name in self.recipe.floats:
            return x
        # behind GELU too: its outputs alone made half of the error
        add, even = self.graph.add, evenness(self.network, self.statistics[name], self.recipe, name)
        if self.recipe.smoothing is not None and not np.all(even == 1):
            x = add("Mul", [x, self.constant(f"{name}.evened", 1 / even)], f"{name}.even{mark}")
        least, largest = _bounds(self.statistics[name], even)
        ends = [self.constant(f"{name}.least", least), self.constant(f"{name}.largest", largest)]
        return add("FakeQuantize", [x, *ends, *ends], f"{name}.taken{mark}", domain=_OPENVINO, levels=256)

    def projection(self, x: str, name: str, part: str) -> str:
        if name in self.recipe.floats:
            return super().projection(x, name, part)
        levels, scale = (columns_of(values, part) for values in self._weights(name))
        product = self.graph.add("MatMul", [x, self._dequantized(f"{name}.{part}", levels, scale)], f"{name}.{part}.product")
        return self.graph.add("Add", [product, self.part(f"{name}.bias", part)], f"{name}.{part}")

    def product(self, x: str, name: str) -> str:
        if name in self.recipe.floats:
            return super().product(x, name)
        return self.graph.add("MatMul", [self.taken(x, name), self._dequantized(name, *self._weights(name))], name)

    def _weights(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        if name not in self._rounded:
            even = evenness(self.network, self.statistics[name], self.recipe, name)
            weight = self.network.weights[f"{name}.weight"] * even[:, None]
            self._rounded[name] = round_weights(weight, self.statistics[name].gram / np.outer(even, even))
        return self._rounded[name]

    def _dequantized(self, name: str, levels_KN: np.ndarray, scale_N: np.ndarray) -> str:
        inputs = [self.graph.weight(f"{name}.int8", levels_KN), self.graph.weight(f"{name}.scale", scale_N)]
        return self.graph.add("DequantizeLinear", inputs, f"{name}.weights", axis=1)


def columns_of(values: np.ndarray, part: str) -> np.ndarray:
    """The columns [..., D] of one of PROJECTIONS, of what holds all three [..., 3 D]."""
    size = values.shape[-1] // len(PROJECTIONS)
    begin = PROJECTIONS.index(part) * size
    return np.ascontiguousarray(values[..., begin : begin + size])


def openvino_graph(
    network: Network, integers: str = "int64", statistics: Mapping[str, Statistics] | None = None, recipe: Recipe | None = None
) -> onnx.ModelProto:
    """The float32 graph; with statistics and a recipe the int8 graph. OpenVINO alone runs it."""
    if recipe is None:
        return write_network(OpenvinoOperators(network), integers)
    assert statistics is not None, "a recipe goes by statistics"
    return write_network(OpenvinoInt8Operators(network, statistics, recipe), integers)


def ir_of(graph: onnx.ModelProto, metadata: Mapping[str, str]) -> openvino.Model:
    """A graph as OpenVINO's IR, which carries `metadata` in its rt_info, under "bertfast"."""
    import openvino

    model = openvino.Core().read_model(graph.SerializeToString())
    model.set_rt_info(json.dumps(dict(metadata), ensure_ascii=False), FACTS)
    return model


def save_ir(model: openvino.Model, path: Path) -> None:
    """Write PATH.xml and its .bin, every weight as it is: OpenVINO's own default would round them to float16.

    Raises:
        ExportError: naming the file that cannot be written.
    """
    import openvino

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        openvino.save_model(model, str(path), compress_to_fp16=False)
    except (OSError, RuntimeError) as error:
        raise ExportError(f"{path}: cannot be written: {error}; give another place") from None


def _bounds(seen: Statistics, even: np.ndarray) -> tuple[float, float]:
    """The least and the largest value that uint8 tells apart; 0 is one of its levels, so that what is 0 stays so."""
    least, largest = min(float((seen.least / even).min()), 0.0), max(float((seen.largest / even).max()), 0.0)
    step = max(largest - least, 1e-12) / 255
    below = round(-least / step)
    return -below * step, (255 - below) * step
