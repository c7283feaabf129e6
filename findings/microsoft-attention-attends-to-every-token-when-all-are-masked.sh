#!/usr/bin/env bash
# expected: that com.microsoft.Attention lets no token of a row through whose mask is 0 throughout ("with value 0 for masked and 1 otherwise"), so that the
#           row's output is zero, or NaN. ONNX's own Attention, from onnxruntime 1.28.0 on, answers zeros for such a row of a boolean mask.
# happens:  the row gets, up to float32's rounding, the answer of a row whose mask is 1 throughout. The default mask_filter_value, -10000, is added to each
#           score of the row, and a softmax does not see what is added to all: a text that was masked whole is answered as if nothing had been masked.
# since:    onnxruntime 1.17.0, the oldest that was tried; the same in 1.20.1, 1.23.0 and 1.32.0, the last.
# do:       leave no row in a batch in which no token takes part, or throw its answer away by the mask, not by how the answer looks: it looks like any other.
#           The same holds for a graph of one's own that adds a finite number to masked scores.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'numpy==2.4.6' 'onnx==1.23.2' 'onnxruntime==1.32.0'

"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

print(f"onnxruntime {ort.__version__}, onnx {onnx.__version__}, numpy {np.__version__}, Python {sys.version.split()[0]}")

WIDTH = 8
rng = np.random.default_rng(0)
weights = (0.3 * rng.standard_normal((WIDTH, 3 * WIDTH))).astype(np.float32)  # query, key and value side by side
x = rng.standard_normal((1, 3, WIDTH)).astype(np.float32)
graph = helper.make_graph(
    [helper.make_node("Attention", ["x", "weights", "bias", "mask"], ["y"], domain="com.microsoft", num_heads=2)],
    "attention",
    [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "tokens", WIDTH]),
        helper.make_tensor_value_info("mask", TensorProto.INT32, ["rows", "tokens"]),
    ],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "tokens", WIDTH])],
    [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.zeros(3 * WIDTH, np.float32), "bias")],
)
opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def answer(mask):
    return session.run(None, {"x": x, "mask": np.array([mask], np.int32)})[0]


whole, part, nothing = answer([1, 1, 1]), answer([1, 1, 0]), answer([0, 0, 0])
for mask, seen in (("1 1 1", whole), ("1 1 0", part), ("0 0 0", nothing)):
    print(f"mask {mask}: {np.round(seen[0, 0, :4], 4)}")
apart, masked_one = float(np.abs(nothing - whole).max()), float(np.abs(part - whole).max())
print(f"from the answer of 1 1 1, that of 1 1 0 differs by {masked_one:.4f} and that of 0 0 0 by {apart:.4f}")

as_described = apart < 0.005 and masked_one > 0.05 and np.abs(nothing).max() > 0.1
sys.exit(0 if as_described else "it has changed from what is described: a mask of zeros got the answer of a mask of ones, to within 0.005")
PYTHON
