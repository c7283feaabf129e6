#!/usr/bin/env bash
# expected: an error that names the input which is missing, as ONNX Runtime raises it. The description of CompiledModel.__call__ says "Method creates new
#           temporary InferRequest and run inference on it"; further down, that the request is stored and "can be later reused in consecutive calls".
# happens:  a compiled model that is called with a dictionary which lacks an input answers without a word, with the tensor that an earlier call gave for it:
#           the attention mask of somebody else's text, where the mask is what was left out. An InferRequest of one's own does the same.
# since:    openvino 2023.2.0, the oldest that was tried; the same in 2024.6.0, 2025.4.1 and 2026.4.1, the last.
# do:       compare the names of the dictionary with those of the compiled model's inputs before each call, and raise where one is missing. Do not lean on
#           the first call to fail: it does so only where shapes tell.
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
from onnx import TensorProto, helper, numpy_helper

print(f"openvino {ov.__version__}, onnxruntime {ort.__version__}, onnx {onnx.__version__}, Python {sys.version.split()[0]}")

graph = helper.make_graph(  # the sum of the values that the mask lets through
    [helper.make_node("Mul", ["values", "mask"], ["kept"]), helper.make_node("ReduceSum", ["kept", "axis"], ["sum"], keepdims=0)],
    "masked_sum",
    [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", "tokens"]) for name in ("values", "mask")],
    [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["rows"])],
    [numpy_helper.from_array(np.array([1], np.int64), "axis")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model)
core = ov.Core()
settings = {"INFERENCE_NUM_THREADS": 1}
called = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
own = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings).create_infer_request()


def row(*values):
    return np.array([values], np.float32)


seen = []
for kept in (1, 2, 3):
    mask = row(*[1] * kept, *[0] * (3 - kept))
    try:
        called({"values": row(1, 1, 1), "mask": mask})
        by_model = float(called({"values": row(100, 100, 100)})[0][0])
        own.infer({"values": row(1, 1, 1), "mask": mask})
        by_request = float(own.infer({"values": row(100, 100, 100)})[0][0])
    except (RuntimeError, ValueError, KeyError, TypeError) as refusal:
        sys.exit(f"it has changed: OpenVINO refuses a call without the mask: {refusal}")
    print(f"OpenVINO: a call whose mask keeps {kept} of 3, and then [100 100 100] without a mask: {by_model:.0f}; by a request of one's own: {by_request:.0f}")
    seen.append((by_model, by_request))

session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
try:
    session.run(None, {"values": row(100, 100, 100)})
    refused = False
except ValueError as refusal:
    refused = True
    print(f"ONNX Runtime raises: {refusal}")

as_described = seen == [(100, 100), (200, 200), (300, 300)] and refused
sys.exit(0 if as_described else f"it has changed: this was 100, 200 and 300, each from the mask of the call before, and ONNX Runtime raised; now {seen}")
PYTHON
