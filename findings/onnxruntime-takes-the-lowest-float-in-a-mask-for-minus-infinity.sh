#!/usr/bin/env bash
# expected: that a float attn_mask of ONNX's Attention (opset 23) is added as it stands: "a float attn_mask is added to the attention scores rather than
#           disabling positions", and a row of the output is zero where "every key's combined additive bias is -inf". The lowest float32, -3.4e38, is finite,
#           and is what many exporters put where a token is masked; softmax over scores that all have it is the plain mean of the values.
# happens:  ONNX Runtime answers zeros for a row whose mask is the lowest float32 throughout, and the mean of the values for one with -1e38 throughout. ONNX's
#           own reference answers the mean for both. Rows in which one token takes part are not touched.
# since:    onnxruntime 1.28.0, seen to 1.32.0, the last; 1.23.0, 1.24.4 and 1.27.0 answered the mean for both.
# do:       let a token take part in each row (the first one of a text does), so that nothing rests on this; or overwrite the rows of the output that belong
#           to no text. Do not compare padding's rows between runtimes or releases.
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
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

print(f"onnxruntime {ort.__version__}, onnx {onnx.__version__}, numpy {np.__version__}, Python {sys.version.split()[0]}")

rng = np.random.default_rng(0)
query, key, value = (rng.standard_normal((2, 3, 4)).astype(np.float32) for _ in range(3))
takes_part = np.array([[True, True, False], [False, False, False]])  # of the second text, no token
graph = helper.make_graph(
    [helper.make_node("Attention", ["query", "key", "value", "mask"], ["y"], q_num_heads=2, kv_num_heads=2)],
    "attention",
    [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3, 4]) for name in ("query", "key", "value")]
    + [helper.make_tensor_value_info("mask", TensorProto.FLOAT, [2, 1, 3, 3])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 4])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
onnx.checker.check_model(model)
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
reference = ReferenceEvaluator(model)

mean = np.broadcast_to(value[1].mean(0), (3, 4))
print(f"the mean of the second text's values:        {np.round(mean[0], 4)}")
seen = {}
for name, filler in (("the lowest float32", np.finfo(np.float32).min), ("-1e38", np.float32(-1e38))):
    mask = np.where(takes_part, np.float32(0), filler)[:, None, None, :].repeat(3, axis=2)
    feed = {"query": query, "key": key, "value": value, "mask": mask}
    seen["ONNX Runtime", name], seen["the reference", name] = session.run(None, feed)[0], reference.run(None, feed)[0]
for (runtime, name), answer in seen.items():
    print(f"{runtime + ', masked by ' + name + ':':44} {np.round(answer[1, 0], 4)}")

first_texts_agree = all(np.allclose(answer[0], seen["the reference", "-1e38"][0], atol=1e-4) for answer in seen.values())
odd = seen.pop(("ONNX Runtime", "the lowest float32"))
as_described = first_texts_agree and not odd[1].any() and all(np.allclose(answer[1], mean, atol=1e-4) for answer in seen.values())
print("as described: zeros from one of the four, the mean of the values from the others" if as_described else "")
sys.exit(0 if as_described else "it has changed from what is described: ONNX Runtime answered zeros for the lowest float32, and the other three the mean of the values")
PYTHON
