"""What bench_kernels times: each op at the sizes that training has, ours beside what a user would take instead, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bertfast_kernels import Dropout, bias_gelu, cross_entropy, dropout_add_layer_norm, embedding_layer_norm

# T tokens, D hidden, F feed-forward, B rows of logits, C classes

DTYPE = torch.bfloat16
EPS = 1e-12
DIRECTIONS = ("forward", "backward", "forward+backward")


class Call(NamedTuple):
    """One call of a contender: its function, the leaves that it differentiates by, and the gradient of its output."""

    function: Callable[..., Tensor]
    leaves: list[Tensor]
    upstream: Tensor


@dataclass
class Case:
    """One op at one size. contenders: name -> the call on the i-th set of inputs; the first is ours.

    bytes_moved, flops: the least that the forward and the backward can do with. set_bytes: what one set of inputs takes.
    check: our op and inputs of it, for the comparison with float64.
    """

    op: str
    size: str
    dropout: float
    contenders: dict[str, Callable[[int], Call]]
    bytes_moved: tuple[int, int]
    set_bytes: int
    check: Callable[[], tuple[Callable[..., Tensor], list[Tensor]]]
    flops: tuple[int, int] = (0, 0)
    facts: dict = field(default_factory=dict)

    def work(self, direction: str) -> tuple[int, int]:
        """(bytes, floating-point operations) of a direction, at the least."""
        forward, backward = zip(self.bytes_moved, self.flops, strict=True)
        if direction == "forward+backward":
            return forward[0] + backward[0], forward[1] + backward[1]
        return forward if direction == "forward" else backward


def calls_of(contender: Callable[[int], Call], direction: str, sets: int) -> list[Callable[[], object]]:
    """What is timed of a contender: its calls on every set of inputs."""
    made = [contender(index) for index in range(sets)]
    if direction == "forward":
        return [lambda call=call: call.function(*call.leaves) for call in made]
    if direction == "backward":
        outs = [call.function(*call.leaves) for call in made]
        return [
            lambda call=call, out=out: torch.autograd.grad(out, call.leaves, call.upstream, retain_graph=True)
            for call, out in zip(made, outs, strict=True)
        ]
    return [lambda call=call: torch.autograd.grad(call.function(*call.leaves), call.leaves, call.upstream) for call in made]


class Maker:
    """Makes inputs on a device from a seed, and compiles contenders; `tiny` for a CPU, where nothing is to be learned but that all of it runs."""

    def __init__(self, device: torch.device, tiny: bool, seed: int):
        self.device, self.tiny, self.seed = device, tiny, seed
        self.generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = DTYPE, grad: bool = True) -> Tensor:
        x = torch.randn(shape, generator=self.generator, device=self.device).to(dtype)
        return x.requires_grad_() if grad else x

    def dropout(self, p: float, rows: int) -> Dropout | None:
        """By key, for rows of examples of 39 tokens."""
        if p == 0.0:
            return None
        row = torch.arange(rows, dtype=torch.int32, device=self.device)
        return Dropout(p, 3, torch.tensor([self.seed, 7], device=self.device), row // 39, row % 39)

    def compiled(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return torch.compile(function, dynamic=False, backend="eager" if self.tiny else "inductor")

    def keep(self, make: Callable[[], tuple]) -> Callable[[int], tuple]:
        """The i-th set of inputs, made when it is first asked for, and the same for every contender."""
        sets: dict[int, tuple] = {}
        return lambda index: sets.setdefault(index, make()) if index not in sets else sets[index]


def row_cases(make: Maker) -> Iterator[Case]:
    """Every op but attention."""
    rows = 48 if make.tiny else 16_384
    for columns in (64,) if make.tiny else (768, 1024):
        for p in (0.1, 0.0):
            yield layer_norm_case(make, rows, columns, p)
    for columns in (96,) if make.tiny else (3072, 4096):
        yield gelu_case(make, rows, columns)
    yield embedding_case(make, rows, *((50, 64) if make.tiny else (30_522, 768)))
    for size in ((9, 3), (5, 300)) if make.tiny else ((256, 3), (4096, 30_522)):
        yield cross_entropy_case(make, *size)


def layer_norm_case(make: Maker, rows: int, columns: int, p: float) -> Case:
    dropout = make.dropout(p, rows)

    def ours(x, x_bias, residual, weight, bias):
        return dropout_add_layer_norm(x, x_bias, residual, weight, bias, EPS, dropout)

    def eager(x, x_bias, residual, weight, bias):
        return F.layer_norm(residual + F.dropout(x + x_bias, p), weight.shape, weight, bias, EPS)

    def inputs():
        matrix, vector = (rows, columns), (columns,)
        leaves = [make.normal(*shape) for shape in (matrix, vector, matrix, vector, vector)]
        return leaves, make.normal(*matrix, grad=False)

    functions = {"bertfast": ours, "torch eager": eager, "torch.compile": make.compiled(eager)}
    if liger := liger_layer_norm():
        functions["Liger-Kernel"] = lambda x, x_bias, residual, weight, bias: liger(residual + F.dropout(x + x_bias, p), weight, bias, EPS)
    one = rows * columns * DTYPE.itemsize
    moved = (3 * one + 8 * rows, (5 if p else 4) * one + 8 * rows)
    return _case("dropout_add_layer_norm", f"{rows} x {columns}", p, functions, make.keep(inputs), moved, 3 * one)


def gelu_case(make: Maker, rows: int, columns: int) -> Case:
    def eager(x, bias):
        return F.gelu(x + bias)

    def inputs():
        return [make.normal(rows, columns), make.normal(columns)], make.normal(rows, columns, grad=False)

    functions = {"bertfast": bias_gelu, "torch eager": eager, "torch.compile": make.compiled(eager)}
    one = rows * columns * DTYPE.itemsize
    return _case("bias_gelu", f"{rows} x {columns}", 0.0, functions, make.keep(inputs), (2 * one, 3 * one), 2 * one)


def embedding_case(make: Maker, rows: int, vocabulary: int, columns: int, p: float = 0.1) -> Case:
    dropout, positions = make.dropout(p, rows), 512
    ranks = np.random.default_rng(make.seed).zipf(1.2, size=4 * rows)
    words = (
        torch.from_numpy(ranks[ranks <= vocabulary][:rows] - 1).int().to(make.device)
    )  # as words of a text: few are frequent, most are rare
    row = torch.arange(len(words), dtype=torch.int32, device=make.device)
    ids = (words, row // 20 % 2, row % 39)

    def ours(word, segment, position, weight, bias):
        return embedding_layer_norm(*ids, word, segment, position, weight, bias, EPS, dropout)

    def eager(word, segment, position, weight, bias):
        x = F.embedding(ids[0], word) + F.embedding(ids[1], segment) + F.embedding(ids[2], position)
        return F.dropout(F.layer_norm(x, weight.shape, weight, bias, EPS), p)

    def inputs():
        shapes = ((vocabulary, columns), (2, columns), (positions, columns), (columns,), (columns,))
        return [make.normal(*shape) for shape in shapes], make.normal(len(words), columns, grad=False)

    functions = {"bertfast": ours, "torch eager": eager, "torch.compile": make.compiled(eager)}
    one, tables = len(words) * columns * DTYPE.itemsize, (vocabulary + 2 + positions) * columns * DTYPE.itemsize
    size = f"{len(words)} tokens, {vocabulary} x {columns}"
    return _case("embedding_layer_norm", size, p, functions, make.keep(inputs), (2 * one, 2 * one + tables), tables + one)


def cross_entropy_case(make: Maker, rows: int, classes: int) -> Case:
    labels = torch.randint(classes, (rows,), generator=make.generator, device=make.device)

    def ours(logits):
        return cross_entropy(logits, labels)

    def eager(logits):
        return F.cross_entropy(logits.float(), labels, reduction="sum")

    def inputs():
        return [make.normal(rows, classes)], torch.ones((), device=make.device)

    functions = {"bertfast": ours, "torch eager": eager, "torch.compile": make.compiled(eager)}
    if liger := liger_cross_entropy():
        functions["Liger-Kernel"] = lambda logits: liger(logits * 1.0, labels)  # it writes the gradient over its input: a copy spares ours
    one = rows * classes * DTYPE.itemsize
    return _case("cross_entropy", f"{rows} x {classes}", 0.0, functions, make.keep(inputs), (one, 2 * one), one)


def _case(op, size, p, functions, inputs, moved, set_bytes) -> Case:
    def contender(function):
        return lambda index: Call(function, *inputs(index))

    contenders = {name: contender(function) for name, function in functions.items()}
    return Case(op, size, p, contenders, moved, set_bytes, lambda: (functions["bertfast"], inputs(0)[0]))


def liger_layer_norm() -> Callable[..., Tensor] | None:
    try:
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction
    except ImportError:
        return None
    return LigerLayerNormFunction.apply


def liger_cross_entropy() -> Callable[..., Tensor] | None:
    try:
        from liger_kernel.transformers import LigerCrossEntropyLoss
    except ImportError:
        return None
    return LigerCrossEntropyLoss(reduction="sum")
