"""int8 for a CPU: 8-bit products, written so that the answers stay; `bundle.int8_search` looks for the fastest recipe that keeps its promise.

Weights are int8 with a scale for each output, rounded one input after the other so that what one loses the next ones make up (GPTQ, Frantar
et al. 2023). Activations are uint8, with a scale for each token, taken as it comes: so an answer does not depend on who else is in the batch,
as with onnxruntime's own dynamic quantization, and a text unlike all others is not cut off, as with scales measured beforehand (on the grid
such scales were wrong by whole logits, and on real texts they were not better). Channels are evened out first, the inverse being folded into
the weights (SmoothQuant, Xiao et al. 2023). The output of GELU is never below -0.17: moved up by that much it needs no sign, which is one bit
more, and the bias takes the move back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from bertfast_export.contract import DEFAULT_OPSET, INPUTS
from bertfast_export.graphs.fused import FusedOperators, fused_graph
from bertfast_export.graphs.network import write_network
from bertfast_export.graphs.operators import MASKED, Network
from bertfast_export.runtime import open_session

# K inputs and N outputs of a product, T tokens

PARTS = ("qkv", "attention_out", "ffn_up", "ffn_down")
GELU_FLOOR = 0.17  # the least value of GELU is -0.16997, of its tanh form too
_DAMPING = 0.01  # of the mean square of an input, added to all: keeps the rounding of rarely seen inputs near to the nearest
_BLOCK = 128


@dataclass(frozen=True)
class Recipe:
    """How the products are quantized. smoothing: 0 leaves all unevenness to the activations, 1 moves all of it into the weights; None: neither.
    floats: products, by name, that stay in float32. weight_only: 8-bit weights in blocks of 128 inputs, and activations as onnxruntime likes."""

    name: str
    smoothing: float | None = 0.7
    floats: tuple[str, ...] = ()
    weight_only: bool = False

    def without(self, products: tuple[str, ...]) -> Recipe:
        """The same with these products in float32."""
        return Recipe(f"{self.name}, {len(products)} in float32", self.smoothing, products, self.weight_only)


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


class QuantizedOperators(FusedOperators):
    """The fused operators, with products in int8 as a recipe says."""

    def __init__(
        self, network: Network, statistics: Mapping[str, Statistics], recipe: Recipe, opset: int = DEFAULT_OPSET, integers: str = "int64"
    ):
        super().__init__(network, opset, integers)
        self.statistics, self.recipe = statistics, recipe
        self.moved: dict[str, np.ndarray] = {}  # by the norm that adds it: what GELU's move puts into a bias

    def product(self, x: str, name: str) -> str:
        if name in self.recipe.floats:
            return super().product(x, name)
        if self.recipe.weight_only:
            return self._weight_only(x, name)
        part, seen, weight = name.rpartition(".")[2], self.statistics[name], self.network.weights[f"{name}.weight"]
        even = self._evenness(name)
        quantized, scale_N = round_weights(weight * even[:, None], seen.gram / np.outer(even, even))
        if part == "ffn_down":
            self.moved[name.replace("ffn_down", "ffn_norm")] = -GELU_FLOOR * (quantized * scale_N).sum(axis=0)
            x = self.graph.add("Add", [x, self.constant("gelu.floor", GELU_FLOOR)], f"{name}.moved")
        elif self.recipe.smoothing is not None:
            x = self.graph.add("Mul", [x, self.constant(f"{name}.evened", 1 / even)], f"{name}.even")
        return self._per_token(x, name, quantized, scale_N, signed=part != "ffn_down")

    def attention(self, x: str, mask: str, name: str) -> str:
        """The projection as a product of its own, and the rest as one MultiHeadAttention."""
        parts = [f"{name}.{part}" for part in ("query", "key", "value")]
        self.graph.add("Split", [self.product(x, name)], f"{name}.split", parts, axis=-1, num_outputs=3)
        inputs = [*parts, self.weight(f"{name}.bias"), mask]
        heads = self.config.num_attention_heads
        return self.fused("MultiHeadAttention", inputs, f"{name}.joined", num_heads=heads, mask_filter_value=MASKED)

    def add_norm(self, x: str, residual: str, name: str) -> str:
        """LayerNorm(x + bias + residual), part by part: on one core onnxruntime's SkipLayerNormalization takes a fifth of an int8 model's time,
        twice as long as these, each of which is a loop that its kernels have vectorised. It does not fuse them: the variance is no ReduceMean."""
        add, axis = self.graph.add, self.constant("last_axis", [-1], np.int64)
        bias = self.constant(f"{name}.bias_moved", self.network.weights[f"{name}.x_bias"] + self.moved.get(name, 0.0))
        x = add("Add", [add("Add", [x, bias], f"{name}.biased"), residual], f"{name}.sum")
        centred = add("Sub", [x, add("ReduceMean", [x, axis], f"{name}.mean", keepdims=1)], f"{name}.centred")
        squares = add("ReduceSumSquare", [centred, axis], f"{name}.squares", keepdims=1)
        variance = add("Mul", [squares, self.constant("one_of_hidden", 1 / self.config.hidden_size)], f"{name}.variance")
        deviation = add(
            "Sqrt", [add("Add", [variance, self.constant("eps", self.config.layer_norm_eps)], f"{name}.stable")], f"{name}.deviation"
        )
        scaled = add("Mul", [add("Div", [centred, deviation], f"{name}.unit"), self.weight(f"{name}.weight")], f"{name}.scaled")
        return add("Add", [scaled, self.weight(f"{name}.bias")], name)

    def _evenness(self, name: str) -> np.ndarray:
        """What each input channel is divided by [K]: reach^a / largest weight^(1 - a), of geometric mean 1. Behind GELU it is left alone."""
        weight, seen, strength = self.network.weights[f"{name}.weight"], self.statistics[name], self.recipe.smoothing
        if strength is None or name.endswith("ffn_down"):
            return np.ones(len(weight))
        reach = np.maximum(np.maximum(np.abs(seen.least), np.abs(seen.largest)), 1e-6).astype(np.float64)
        heaviest = np.maximum(np.abs(weight).max(axis=1), 1e-6).astype(np.float64)
        even = reach**strength / heaviest ** (1 - strength)
        return even / np.exp(np.log(even).mean())

    def _per_token(self, x: str, name: str, quantized: np.ndarray, scale_N: np.ndarray, signed: bool) -> str:
        """Each row is scaled by its own largest element: what is left of the scale is one number a row, which multiplies the outputs."""
        add = self.graph.add
        top, zero = (127, self.constant("middle", 128, np.uint8)) if signed else (255, self.constant("bottom", 0, np.uint8))
        size = add("Abs", [x], f"{name}.size") if signed else x
        largest = add("ReduceMax", [size, self.constant("last_axis", [-1], np.int64)], f"{name}.largest", keepdims=1)
        largest = add("Max", [largest, self.constant("tiny", 1e-20)], f"{name}.reach")
        inverse = add("Div", [self.constant(f"top{top}", top), largest], f"{name}.inverse")
        levels = add("QuantizeLinear", [add("Mul", [x, inverse], f"{name}.scaled"), self.constant("one", 1.0), zero], f"{name}.levels")
        weights = [self.graph.weight(f"{name}.int8", quantized), self.constant("one", 1.0), self.constant(f"{name}.scale", scale_N / top)]
        return add("Mul", [self.fused("MatMulIntegerToFloat", [levels, *weights, zero], f"{name}.by_row"), largest], name)

    def _weight_only(self, x: str, name: str) -> str:
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
        return self.fused("MatMulNBits", [x, *tensors], name, **sizes)


def quantized_graph(
    network: Network,
    statistics: Mapping[str, Statistics],
    recipe: Recipe,
    opset: int = DEFAULT_OPSET,
    integers: str = "int64",
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """model_quantized.onnx by one recipe."""
    return write_network(QuantizedOperators(network, statistics, recipe, opset, integers), integers, metadata)
