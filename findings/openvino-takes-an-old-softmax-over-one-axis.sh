#!/usr/bin/env bash
# expected: that Softmax of a file with opset 11 or 12 is taken as those opsets define it: "The input does not need to explicitly be a 2D vector; rather, it
#           will be coerced into one", so that everything from `axis` on (1 where it is left out) is one row. OpenVINO's table of ONNX operations gives 13, 11
#           and 1 as the versions of Softmax that it supports, and names no limitation.
# happens:  OpenVINO takes it over the one axis that `axis` names, as opset 13 does; only up to opset 10 as defined. On an input of three axes or more the values
#           of an example then sum to the size of the axes behind, and not to 1, and no message says so. Where `axis` is the last one both are the same.
# since:    openvino 2023.2.0, the oldest that was tried; the same in 2024.6.0, 2025.4.1 and 2026.4.1, the last.
# do:       raise the opset of the file with onnx.version_converter before OpenVINO reads it, or flatten the input before a Softmax over its last axis.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'numpy==2.4.6' 'onnx==1.23.2' 'onnxruntime==1.32.0' 'openvino==2026.4.1'

"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
from onnx import TensorProto, helper

print(f"openvino {ov.__version__}, onnxruntime {ort.__version__}, onnx {onnx.__version__}, Python {sys.version.split()[0]}")

x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
rows = np.exp(x.reshape(2, 12))
as_defined = (rows / rows.sum(axis=1, keepdims=True)).reshape(x.shape)  # axis 1: all that is behind it is one row
over_one_axis = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)  # opset 13's
core, seen = ov.Core(), {}
for opset in (10, 11, 12, 13):
    graph = helper.make_graph(
        [helper.make_node("Softmax", ["x"], ["y"], axis=1)],
        "one_softmax",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    given = {
        "ONNX Runtime": ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0],
        "OpenVINO": core.compile_model(core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"x": x})[0],
    }
    for name, y in given.items():
        kind = "all axes from 1 on" if np.abs(y - as_defined).max() < 1e-5 else "axis 1 alone" if np.abs(y - over_one_axis).max() < 1e-5 else "neither"
        print(f"opset {opset}, {name:12}  softmax over {kind}; an example's values sum to {y[0].sum():.3f}")
        seen[opset, name] = kind

wanted = {(opset, name): "all axes from 1 on" if opset < (13 if name == "ONNX Runtime" else 11) else "axis 1 alone" for opset, name in seen}
sys.exit(0 if seen == wanted else f"it has changed: OpenVINO was the one that took axis 1 alone in opsets 11 and 12; now {seen}")
PYTHON
