"""Writes an ONNX graph node by node, under names that a person can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bertfast import __version__
from bertfast.errors import ExportError
from bertfast_export.contract import DEFAULT_OPSET, IR_VERSIONS, MICROSOFT, check_opset

SINGLE_FILE_BYTES = 2**31 - 2**16  # a protobuf message ends at 2 GiB; beyond, the weights lie in a file beside it


class GraphWriter:
    """Nodes and weights of one graph. `opset` is that of the standard operators."""

    def __init__(self, opset: int = DEFAULT_OPSET):
        check_opset(opset)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}

    def weight(self, name: str, values: np.ndarray) -> str:
        """Put a tensor into the graph, once for each name; gives the name."""
        if name not in self._weights:
            self._weights[name] = numpy_helper.from_array(np.asarray(values, order="C"), name)
        return name

    def add(self, operator: str, inputs: Sequence[str], name: str, outputs: Sequence[str] = (), domain: str = "", **attributes: Any) -> str:
        """Append a node; gives its (first) output, which has the node's name where `outputs` are left out. An input "" is one left out."""
        outputs = list(outputs) or [name]
        self.nodes.append(helper.make_node(operator, list(inputs), outputs, name=name, domain=domain, **attributes))
        return outputs[0]

    def model(self, inputs: Mapping[str, int], output: str, num_labels: int, metadata: Mapping[str, str]) -> onnx.ModelProto:
        """The model: int inputs [batch, sequence] by name and element type, and float32 logits [batch, num_labels]."""
        graph = helper.make_graph(
            self.nodes,
            "bertfast",
            [helper.make_tensor_value_info(name, kind, ["batch", "sequence"]) for name, kind in inputs.items()],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", num_labels])],
            initializer=list(self._weights.values()),
        )
        domains = [helper.make_opsetid("", self.opset)]
        if any(node.domain == MICROSOFT for node in self.nodes):
            domains.append(helper.make_opsetid(MICROSOFT, 1))
        model = helper.make_model(
            graph, opset_imports=domains, ir_version=IR_VERSIONS[self.opset], producer_name="bertfast", producer_version=__version__
        )
        for key, value in metadata.items():
            model.metadata_props.add(key=key, value=value)
        return model


def count_operators(model: onnx.ModelProto) -> dict[str, int]:
    """How many nodes of each operator a graph has."""
    counts: dict[str, int] = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def save_model(model: onnx.ModelProto, path: Path, single_file_bytes: int = SINGLE_FILE_BYTES) -> list[Path]:
    """Write `path`, and beyond `single_file_bytes` the weights into `path`.data beside it; gives the files written.

    Raises:
        ExportError: naming the file that cannot be written.
    """
    data = path.with_name(f"{path.name}.data")
    try:
        if model.ByteSize() <= single_file_bytes:
            path.write_bytes(model.SerializeToString(deterministic=True))
            return [path]
        onnx.save(model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=data.name, size_threshold=1024)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}; give another place") from None
    return [path, data]
