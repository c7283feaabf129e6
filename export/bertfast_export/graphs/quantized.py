"""int8 for a CPU: 8-bit products, written so that the answers stay; `bundle.int8_search` looks for the fastest recipe that keeps its promise.

Weights are int8 with a scale for each output, rounded one input after the other so that what one loses the next ones make up (GPTQ, Frantar
et al. 2023). Activations are uint8, with a scale for each token, taken as it comes: so an answer does not depend on who else is in the batch,
as with onnxruntime's own dynamic quantization. What comes from a norm is alike in size for every token, and may have one scale instead, measured
beforehand: no pass looks for the largest element and none multiplies the outputs. What comes from attention or GELU may not (98.5 % of SST-2's
answers with fixed scales everywhere, 99.8 % with them behind norms). Channels behind norms are evened out first, the inverse being folded into the
weights (SmoothQuant, Xiao et al. 2023). The output of GELU is never below -0.17, so that its zero lies at level 16 and nearly all levels are above.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from bertfast_export.contract import DEFAULT_OPSET, INPUTS, MICROSOFT
from bertfast_export.graphs.fused import fused_graph
from bertfast_export.graphs.network import write_network
from bertfast_export.graphs.operators import Network
from bertfast_export.graphs.stream import StreamOperators
from bertfast_export.runtime import open_session

# K inputs and N outputs of a product, T tokens

PARTS = ("qkv", "attention_out", "ffn_up", "ffn_down")
BEHIND_NORMS = ("qkv", "ffn_up")
GELU_FLOOR = 0.17  # the least value of GELU is -0.16997, of its tanh form too
GELU_ZERO = 16  # the level of 0 behind GELU: 16 levels of at least GELU_FLOOR / 16 reach down to its least value
_DAMPING = 0.01  # of the mean square of an input, added to all: keeps the rounding of rarely seen inputs near to the nearest
_BLOCK = 128


@dataclass(frozen=True)
class Recipe:
    """How the products are quantized. smoothing: 0 leaves all unevenness to the activations, 1 moves all of it into the weights; None: neither.
    floats: products, by name, that stay in float32. weight_only: 8-bit weights in blocks of 128 inputs, and activations as onnxruntime likes. fixed:
    what comes from a norm has one scale, measured beforehand."""

    name: str
    smoothing: float | None = 0.7
    floats: tuple[str, ...] = ()
    weight_only: bool = False
    fixed: bool = False

    def without(self, products: tuple[str, ...]) -> Recipe:
        """The same with these products in float32."""
        return Recipe(f"{self.name}, {len(products)} in float32", self.smoothing, products, self.weight_only, self.fixed)


@dataclass
class Statistics:
    """Of one product's inputs over a sample of tokens: least and largest of each channel [K], and the sum of x x^T [K, K]."""

    least: np.ndarray
    largest: np.ndarray
    gram: np.ndarray


def product_names(network: Network) -> list[str]:
    """Every product of the encoder, in order."""
    return [f"layers.{index}.{part}" for index in range(network.num_layers) for part in PARTS]


def int8_share(network: Network, recipe: Recipe) -> float:
    """The share of the encoder's multiplications that the recipe does in int8."""
    sizes = {name: network.weights[f"{name}.weight"].size for name in product_names(network)}
    return sum(size for name, size in sizes.items() if name not in recipe.floats) / sum(sizes.values())


def measure(network: Network, batches: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Statistics]:
    """Statistics of every product's inputs, over the tokens of padded features [B, S]."""
    graph = fused_graph(network)
    sources = {node.name.removesuffix(".joined"): node.input[0] for node in graph.graph.node if node.op_type in ("MatMul", "Attention")}
    wanted = sorted(set(sources.values()))
    graph.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in wanted)
    session = open_session(graph.SerializeToString())
    found: dict[str, Statistics] = {}
    for features in batches:
        outputs = session.run(wanted, {name: features[name].astype(np.int64) for name in INPUTS})
        tokens = features["attention_mask"].astype(bool)
        for name, values in zip(wanted, outputs, strict=True):
            rows_TK = values[tokens] if values.ndim == 3 else values
            new = Statistics(rows_TK.min(axis=0), rows_TK.max(axis=0), rows_TK.T @ rows_TK)
            old = found.get(name, new)
            gram = new.gram if old is new else old.gram + new.gram
            found[name] = Statistics(np.minimum(old.least, new.least), np.maximum(old.largest, new.largest), gram)
    return {product: found[source] for product, source in sources.items()}


def round_weights(weight_KN: np.ndarray, gram_KK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 [K, N] and scales [N]: each input's weights are rounded, and the error is spread over the inputs not yet rounded so that the outputs
    on the sample change least (GPTQ, algorithm 1, the inputs in order of falling mean square)."""
    weight = weight_KN.astype(np.float64)
    scale_N = np.maximum(np.abs(weight).max(axis=0) / 127, np.finfo(np.float32).tiny)
    gram = gram_KK.astype(np.float64)
    gram[np.diag_indices_from(gram)] += max(_DAMPING * float(np.mean(np.diag(gram))), 1e-9)
    order = np.argsort(-np.diag(gram), kind="stable")
    weight, gram = weight[order], gram[np.ix_(order, order)]
    upper = np.linalg.cholesky(np.linalg.inv(gram)).T
    rounded = np.zeros_like(weight)
    for begin in range(0, len(weight), _BLOCK):
        end = min(begin + _BLOCK, len(weight))
        errors = np.zeros((end - begin, weight.shape[1]))
        for row in range(begin, end):
            rounded[row] = np.clip(np.round(weight[row] / scale_N), -127, 127)
            errors[row - begin] = (weight[row] - rounded[row] * scale_N) / upper[row, row]
            weight[row + 1 : end] -= np.outer(upper[row, row + 1 : end], errors[row - begin])
        weight[end:] -= upper[begin:end, end:].T @ errors
    whole = np.empty_like(rounded)
    whole[order] = rounded
    return whole.astype(np.int8), scale_N.astype(np.float32)


def round_words(network: Network) -> tuple[np.ndarray, np.ndarray]:
    """The table of words as int8 [V, D], and a scale for each word [V]."""
    table_VD = network.weights["embeddings.word"].astype(np.float64)
    scale_V = np.maximum(np.abs(table_VD).max(axis=1) / 127, np.finfo(np.float32).tiny)
    return np.clip(np.round(table_VD / scale_V[:, None]), -127, 127).astype(np.int8), scale_V.astype(np.float32)


def evenness(network: Network, seen: Statistics, recipe: Recipe, name: str) -> np.ndarray:
    """What each input channel of a product is divided by [K]: reach^a / largest weight^(1 - a), of geometric mean 1 (SmoothQuant, equation 4)."""
    weight, strength = network.weights[f"{name}.weight"], recipe.smoothing
    if strength is None:
        return np.ones(len(weight))
    reach = np.maximum(np.maximum(np.abs(seen.least), np.abs(seen.largest)), 1e-6).astype(np.float64)
    heaviest = np.maximum(np.abs(weight).max(axis=1), 1e-6).astype(np.float64)
    even = reach**strength / heaviest ** (1 - strength)
    return even / np.exp(np.log(even).mean())


class QuantizedOperators(StreamOperators):
    """The operators of the stream, with products in int8 as a recipe says."""

    def __init__(self, network: Network, statistics: Mapping[str, Statistics], recipe: Recipe, opset: int = DEFAULT_OPSET):
        super().__init__(network, opset)
        self.statistics, self.recipe = statistics, recipe
        self.rounded: dict[str, tuple[str, str, str]] = {}  # by product: its weights, their scales, and the factors of its input or ""
        self._made: set[str] = set()

    def words(self, ids: str) -> str:
        add, (levels_VD, scale_V) = self.graph.add, round_words(self.network)
        rows = add("Gather", [self.graph.weight("embeddings.word.int8", levels_VD), ids], "embeddings.word_levels")
        scales = add("Gather", [self.constant("embeddings.word.scale", scale_V), ids], "embeddings.word_scales")
        return add("DequantizeLinear", [rows, scales], "embeddings.words", axis=0)

    def product(self, x: str, name: str, part: str = "") -> str:
        if name in self.recipe.floats:
            return super().product(x, name, part)
        made = f"{name}{part and '.'}{part}"
        if self.recipe.weight_only:
            return self._weight_only(x, name, made, part)
        if name not in self.rounded:
            self.rounded[name] = self._rounded(name)
        weight, scale, factors = self.rounded[name]
        if factors:
            x = self.graph.add("Mul", [x, factors], f"{made}.even")
        weights = [self.cut(weight, part), self.cut(scale, part)]
        bias = self.network.bias_of(name)
        if self.recipe.fixed and name.endswith(BEHIND_NORMS):
            return self._by_fixed_scale(x, name, made, [*weights, self.cut(self.weight(bias), part)])
        first = part != "others" and name.startswith(f"layers.{self.network.num_layers - 1}.")
        found = self._by_row(x, made, weights, "stream.firsts" if first else "stream.positions")
        if name.endswith(".qkv"):
            return self.graph.add("Add", [found, self.cut(self.weight(bias), part)], f"{made}.biased")
        self.left.add(bias)
        return found

    def _rounded(self, name: str) -> tuple[str, str, str]:
        seen, even = self.statistics[name], self._evenness(name)
        quantized, scale_N = round_weights(self.network.weights[f"{name}.weight"] * even[:, None], seen.gram / np.outer(even, even))
        factors = "" if (even == 1).all() else self.constant(f"{name}.evened", 1 / even)
        return self.graph.weight(f"{name}.int8", quantized), self.constant(f"{name}.scale", scale_N), factors

    def _evenness(self, name: str) -> np.ndarray:
        """`evenness` behind norms alone: what attention gives kept as many answers without (99.9 and 99.8 % on SST-2), and a pass less."""
        if not name.endswith(BEHIND_NORMS):
            return np.ones(len(self.network.weights[f"{name}.weight"]))
        return evenness(self.network, self.statistics[name], self.recipe, name)

    def _by_fixed_scale(self, x: str, name: str, made: str, weights: list[str]) -> str:
        """Levels of one scale and zero point, which reach as far as the sample did: values beyond are cut off."""
        seen, even = self.statistics[name], self._evenness(name)
        least, largest = (float(f(values / even)) for f, values in ((np.min, seen.least), (np.max, seen.largest)))
        step = max(max(largest, 0.0) - min(least, 0.0), 1e-20) / 255
        zero = int(np.clip(np.round(-min(least, 0.0) / step), 0, 255))
        reading = [self.constant(f"{name}.step", step), self.constant(f"{name}.zero", zero, np.uint8)]
        levels = self.graph.add("QuantizeLinear", [x, *reading], f"{made}.levels")
        weight, scale, bias = weights
        return self._product([levels, weight, reading[0], scale, reading[1], "", bias], made)

    def _by_row(self, x: str, made: str, weights: list[str], rows: str) -> str:
        """Each row is scaled by its own largest element: what is left of the scale is one number a row, which multiplies the outputs. rows: a list
        with one entry for each row."""
        add, behind_gelu = self.graph.add, made.endswith("ffn_down")
        size = x if behind_gelu else add("Abs", [x], f"{made}.size")
        largest = add("ReduceMax", [size, self.constant("last_axis", [-1], np.int64)], f"{made}.largest", keepdims=1)
        zero, top = (GELU_ZERO, 255 - GELU_ZERO) if behind_gelu else (128, 127)
        step = add("Mul", [largest, self.constant(f"by_row.{top}", 1 / top)], f"{made}.step")
        if behind_gelu:  # a row of zeros has no levels elsewhere, and a step of 0 that makes its products 0
            step = add("Max", [step, self.constant("gelu.least_step", GELU_FLOOR / GELU_ZERO)], f"{made}.wide_step")
        steps = add("Reshape", [step, self.constant("stream.flat", [-1], np.int64)], f"{made}.steps")
        levels = add("QuantizeLinear", [x, steps, self._zeros(zero, rows)], f"{made}.levels", axis=0)
        one, at = self.constant("one", 1.0), self.constant(f"zero.{zero}", zero, np.uint8)
        return add("Mul", [self._product([levels, weights[0], one, weights[1], at], f"{made}.by_row"), step], made)

    def _weight_only(self, x: str, name: str, made: str, part: str) -> str:
        weight = self.network.weights[f"{name}.weight"]
        inputs, outputs = weight.shape
        block = max(size for size in (16, 32, 64, 128) if inputs % size == 0 or size == 16)
        blocks = -(-inputs // block)
        padded = np.zeros((outputs, blocks * block), dtype=np.float32)
        padded[:, :inputs] = weight.T
        grouped = padded.reshape(outputs, blocks, block)
        scale = np.maximum(np.abs(grouped).max(axis=2, keepdims=True) / 127, np.finfo(np.float32).tiny)
        levels = (np.clip(np.round(grouped / scale), -127, 127) + 128).astype(np.uint8)
        tensors = [self.graph.weight(f"{name}.int8", levels), self.constant(f"{name}.scale", scale.reshape(-1))]
        sizes = {"K": inputs, "N": outputs, "bits": 8, "block_size": block, "accuracy_level": 4}
        whole = self.graph.add(
            "MatMulNBits", [x, *tensors, "", "", self.weight(self.network.bias_of(name))], f"{made}.all", domain=MICROSOFT, **sizes
        )
        return self.cut(whole, part)

    def _zeros(self, zero: int, rows: str) -> str:
        """The same zero point for each row."""
        name = f"{rows}.zeros.{zero}"
        if name not in self._made:
            shape = self.graph.add("Shape", [rows], f"{name}.shape")
            self.graph.add("Expand", [self.constant(f"zero.{zero}", zero, np.uint8), shape], name)
            self._made.add(name)
        return name

    def _product(self, inputs: list[str], name: str) -> str:
        """uint8 levels times int8 weights, as float32: levels, weights, the scales of both, the levels' zero point, then a bias."""
        return self.graph.add("MatMulIntegerToFloat", inputs, name, domain=MICROSOFT)


def quantized_graph(
    network: Network,
    statistics: Mapping[str, Statistics],
    recipe: Recipe,
    opset: int = DEFAULT_OPSET,
    integers: str = "int64",
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """model_quantized.onnx by one recipe."""
    return write_network(QuantizedOperators(network, statistics, recipe, opset), integers, metadata)
