"""OpenVINO sessions: an IR file on the CPU, under the hints that it was verified with. Nothing here imports OpenVINO before one is opened."""

from __future__ import annotations

import importlib.util
import json
import queue
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertfast import machine
from bertfast.errors import ExportError
from bertfast.wording import reason
from bertfast_export.contract import FACTS

if TYPE_CHECKING:
    import numpy as np
    import openvino

_CPU = "CPU"
_TYPES = {"i64": "tensor(int64)", "i32": "tensor(int32)", "f32": "tensor(float)"}
_BFLOAT16 = "BF16"


@dataclass(frozen=True)
class Port:
    """An input or output, as a session of onnxruntime describes it."""

    name: str
    type: str
    shape: list[int | str]


class OpenvinoSession:
    """Answers as a session of onnxruntime does. May be called from several threads at once, of which as many as there are streams run side by side.

    Args:
        compiled: the model, compiled for a device.
        facts: what the file says of itself.
        streams: calls that run side by side.
    """

    def __init__(self, compiled: openvino.CompiledModel, facts: Mapping[str, str], streams: int = 1):
        self.facts = dict(facts)
        self._inputs, self._outputs = ([_port(value) for value in values] for values in (compiled.inputs, compiled.outputs))
        self._requests: queue.SimpleQueue[openvino.InferRequest] = queue.SimpleQueue()
        for _ in range(streams):
            self._requests.put(compiled.create_infer_request())

    def run(self, names: list[str], features: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs by name. An input that a call leaves out would be the last call's without a word: all three must be there.

        Raises:
            ExportError: one is missing.
        """
        if missing := [value.name for value in self._inputs if value.name not in features]:
            raise ExportError(f"the input {missing[0]} is missing; OpenVINO would take the last call's")
        with self._request() as request:
            request.infer({value.name: features[value.name] for value in self._inputs})
            return [request.get_tensor(name).data.copy() for name in names]

    def get_inputs(self) -> list[Port]:
        return self._inputs

    def get_outputs(self) -> list[Port]:
        return self._outputs

    @contextmanager
    def _request(self) -> Iterator[openvino.InferRequest]:
        request = self._requests.get()
        try:
            yield request
        finally:
            self._requests.put(request)


def has_openvino() -> bool:
    return importlib.util.find_spec("openvino") is not None


def check_openvino() -> None:
    """Raise where OpenVINO is not installed."""
    if not has_openvino():
        raise ExportError("openvino is not installed; pip install 'bertfast[openvino]'")


def open_openvino(model: str | Path | openvino.Model, precision: str, threads: int | None = None, streams: int = 1) -> OpenvinoSession:
    """A session on the CPU.

    Args:
        model: an IR's .xml, with its .bin beside it, or a model in memory.
        precision: "f32" or "bf16", in which products compute that are not in int8; bf16 is refused on a CPU without the instructions, where OpenVINO
            would compute in float32 without a word.
        threads: of all streams together; left out, one a core, or fewer where the process is to use fewer.
        streams: calls that run side by side.

    Raises:
        ExportError: OpenVINO is not installed, cannot read the file, or has no bf16 here.
    """
    check_openvino()
    import openvino

    core = openvino.Core()
    if precision == "bf16" and not has_bfloat16():
        raise ExportError(f"{model if isinstance(model, str | Path) else 'a model'}: this CPU has no bfloat16; name another variant")
    try:
        loaded = core.read_model(str(model)) if isinstance(model, str | Path) else model
        compiled = core.compile_model(loaded, _CPU, hints(precision, threads or machine.threads(), streams))
    except RuntimeError as error:
        raise ExportError(f"{model}: openvino {openvino.__version__} cannot open it ({reason(error)})") from None
    return OpenvinoSession(compiled, facts_of(loaded), streams)


def hints(precision: str, threads: int, streams: int) -> dict[str, Any]:
    """What OpenVINO is told. Its own defaults would compute in bfloat16 wherever the CPU has it."""
    return {
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "EXECUTION_MODE_HINT": "ACCURACY" if precision == "f32" else "PERFORMANCE",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": streams,
    }


def has_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this CPU."""
    check_openvino()
    import openvino

    return _BFLOAT16 in openvino.Core().get_property(_CPU, "OPTIMIZATION_CAPABILITIES")


def facts_of(model: openvino.Model) -> dict[str, str]:
    """What an IR says of itself, in its rt_info; as metadata_props in an ONNX file."""
    if not model.has_rt_info(FACTS):
        return {}
    return json.loads(str(model.get_rt_info(FACTS).astype(str)))


def _port(value: Any) -> Port:
    shape = [str(length) if length.is_dynamic else length.get_length() for length in value.partial_shape]
    return Port(value.any_name, _TYPES.get(value.element_type.to_string(), value.element_type.to_string()), shape)
