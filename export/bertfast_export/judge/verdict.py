"""What a file is held to, what it is shown, and what is found: budgets, evidence, verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from bertfast.packing import PackedBatch
from bertfast.tasks import AS_IT_IS, Calibration, Task
from bertfast_export.contract import verdict_name


@dataclass(frozen=True)
class Budget:
    """What a variant may differ by. logits: at most, in the grid and on the data. probabilities: at most. rounding: the mean error over the
    grid, as a multiple of that of float32 eager; None where the variant rounds more by design. mean: the mean error over the grid, as a share
    of the standard deviation of the eager model's logits there. agreement: the share of examples with the
    eager model's answer. metric: points of the main metric, in hundredths, that may be lost."""

    logits: float
    probabilities: float
    rounding: float | None
    mean: float
    agreement: float
    metric: float


# The one table of budgets. float16 has 11 bits: 5e-4 of each of some hundred sums. int8 is held by its answers above all; its logits are
# bounded so that a fault that moves every one of them cannot hide behind answers that stay.
BUDGETS = {
    "model.onnx": Budget(logits=5e-5, probabilities=2e-5, rounding=2.0, mean=1e-5, agreement=1.0, metric=0.0),
    "model_optimized.onnx": Budget(logits=5e-5, probabilities=2e-5, rounding=2.0, mean=1e-5, agreement=1.0, metric=0.0),
    "model_packed_cpu.onnx": Budget(logits=5e-5, probabilities=2e-5, rounding=2.0, mean=1e-5, agreement=1.0, metric=0.0),
    "model_fp16.onnx": Budget(logits=5e-2, probabilities=1e-2, rounding=None, mean=5e-3, agreement=0.998, metric=0.2),
    "model_packed.onnx": Budget(logits=5e-2, probabilities=1e-2, rounding=None, mean=5e-3, agreement=0.998, metric=0.2),
    "model_quantized.onnx": Budget(logits=1.0, probabilities=0.25, rounding=None, mean=5e-2, agreement=0.99, metric=0.5),
}
# The same files' budgets go for OpenVINO. bfloat16 has 8 bits.
BUDGETS |= {
    verdict_name("openvino"): BUDGETS["model.onnx"],
    verdict_name("openvino-bf16"): Budget(logits=0.4, probabilities=0.1, rounding=None, mean=3e-2, agreement=0.995, metric=0.3),
    verdict_name("openvino-int8"): BUDGETS["model_quantized.onnx"],
    verdict_name("openvino-int8-bf16"): BUDGETS["model_quantized.onnx"],
}


@dataclass
class Verdict:
    """What the judge found of one file. `fault` names the first case out of budget; None where there is none. is_of_the_mean: no single case is,
    their mean error is."""

    file: str
    budget: Budget
    grid: dict[str, Any] = field(default_factory=dict)
    data: dict[str, dict[str, Any]] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None
    is_of_the_mean: bool = False
    failing: dict[str, np.ndarray] | None = None  # features, expected and given logits of that case

    def to_dict(self) -> dict[str, Any]:
        """For verification.json."""
        facts = {"passed": self.fault is None, "fault": self.fault, "budget": asdict(self.budget), "grid": self.grid, "data": self.data}
        return {**facts, "weights": self.weights}

    def fail(
        self, fault: str, features: dict[str, np.ndarray] | None = None, expected: np.ndarray | None = None, given: np.ndarray | None = None
    ) -> None:
        """Note a fault; the first one stays."""
        if self.fault is None:
            self.fault = fault
            if features is not None:
                self.failing = {**features, "expected": np.asarray(expected), "given": np.asarray(given)}


class Examples(Protocol):
    """What the judge reads of a data set, or of a part of one; see `bertfast.data.EncodedDataset`."""

    @property
    def task(self) -> Task: ...
    @property
    def source(self) -> str: ...
    @property
    def lengths(self) -> np.ndarray: ...
    @property
    def labels(self) -> np.ndarray | None: ...
    def __len__(self) -> int: ...
    def batch(self, rows: np.ndarray, /) -> PackedBatch: ...
    def where(self, row: int, /) -> str: ...


@dataclass
class Evidence:
    """One split of real examples, and the eager model's logits [n, C] for it. calibration: how answers are read from logits."""

    name: str
    dataset: Examples
    logits: np.ndarray
    calibration: Calibration = AS_IT_IS
