#!/usr/bin/env bash
# expected: that a file which ONNX Runtime's optimizer wrote either means the same in OpenVINO, or is refused. com.microsoft.FusedGemm is, in ONNX Runtime's
#           words, "the same as Gemm besides it includes attributes activation and leaky_relu_alpha", and the file says activation="Tanh".
# happens:  OpenVINO reads the file without a word and runs Relu in place of Tanh. That is what a BERT's pooler becomes, Gemm and then Tanh, once ONNX Runtime
#           has saved its optimized graph: every negative value of the pooler is 0, and the others can exceed 1.
# since:    openvino 2023.2.0, the oldest that was tried; the same in 2024.6.0, 2025.4.1 and 2026.4.1, the last.
# do:       give OpenVINO the graph as it was exported, never one from optimized_model_filepath: it fuses for itself. Where only the optimized file is left,
#           split each FusedGemm into Gemm and its activation. Compare the two runtimes on a few rows before either answers anybody.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'numpy==2.4.6' 'onnx==1.23.2' 'onnxruntime==1.32.0' 'openvino==2026.4.1'

cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

print(f"openvino {ov.__version__}, onnxruntime {ort.__version__}, onnx {onnx.__version__}, Python {sys.version.split()[0]}")

rng = np.random.default_rng(0)
weights, bias = rng.standard_normal((4, 4)).astype(np.float32), rng.standard_normal(4).astype(np.float32)
graph = helper.make_graph(
    [helper.make_node("Gemm", ["x", "weights", "bias"], ["z"]), helper.make_node("Tanh", ["z"], ["y"])],
    "pooler",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])],
    [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model)
onnx.save(model, "exported.onnx")

writer = ort.SessionOptions()
writer.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
writer.optimized_model_filepath = "optimized.onnx"
writer.log_severity_level = 3
ort.InferenceSession("exported.onnx", writer, providers=["CPUExecutionProvider"])
nodes = [(node.domain, node.op_type, [a.s.decode() for a in node.attribute if a.name == "activation"]) for node in onnx.load("optimized.onnx").graph.node]
print(f"ONNX Runtime's optimizer made of Gemm and Tanh: {nodes}")
if nodes != [("com.microsoft", "FusedGemm", ["Tanh"])]:
    sys.exit("it has changed: this was one com.microsoft.FusedGemm whose activation is Tanh")

x = rng.standard_normal((1, 4)).astype(np.float32)
z = x @ weights + bias
print(f"tanh, by NumPy:                     {np.round(np.tanh(z)[0], 4)}")
print(f"relu, by NumPy:                     {np.round(np.maximum(z, 0)[0], 4)}")
options = ort.SessionOptions()
options.intra_op_num_threads = 1
seen = {}
for file in ("exported.onnx", "optimized.onnx"):
    seen["ONNX Runtime", file] = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    try:
        compiled = ov.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    except RuntimeError as refusal:
        sys.exit(f"it has changed: OpenVINO refuses {file}: {refusal}")
    seen["OpenVINO", file] = compiled({"x": x})[0]
for (runtime, file), answer in seen.items():
    print(f"{runtime + ' on ' + file + ':':35} {np.round(answer[0], 4)}")

wrong = seen.pop(("OpenVINO", "optimized.onnx"))
as_described = all(np.allclose(answer, np.tanh(z), atol=1e-4) for answer in seen.values()) and np.allclose(wrong, np.maximum(z, 0), atol=1e-4)
print("as described: OpenVINO answers relu for the optimized file, and the other three answer tanh" if as_described else "")
sys.exit(0 if as_described else "it has changed from what is described: OpenVINO answered relu for the optimized file, and the other three were tanh")
PYTHON
