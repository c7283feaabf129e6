#!/usr/bin/env bash
# expected: that the text-classification pipeline answers a model of one output, whose config.json says `"problem_type": "regression"`, with the number that the model
#           gives: in Python the same pipeline leaves the output of such a model as it is.
# happens:  it takes a softmax over the one output, which is 1 whatever the model gives: every text, of a similarity or a rating model say, gets the score 1. It looks at
#           problem_type for "multi_label_classification" alone.
# since:    @huggingface/transformers 3.0.2, the oldest that was tried; the same in 3.8.1 and in 4.3.1, the last.
# do:       call the tokenizer and the model in the pipeline's place, and read `logits` of what the model returns.
# Needs Node 20 and npm beside Python.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'numpy==2.4.6' 'onnx==1.23.2' 'tokenizers==0.23.1'
(cd "$folder" && npm install --ignore-scripts --no-audit --no-fund --silent '@huggingface/transformers@4.3.1')

mkdir -p "$folder/rating/onnx"
cat > "$folder/make.py" <<'PYTHON'
import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

words = ["[PAD]", "[UNK]", "poor", "fair", "fine", "great"]
tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
tokenizer.save("rating/tokenizer.json")
names = {"input_ids": TensorProto.INT64, "attention_mask": TensorProto.INT64, "token_type_ids": TensorProto.INT64}
graph = helper.make_graph(  # the model: half the sum of the ids
    [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["ids", "axis"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "half"], ["logits"]),
    ],
    "rating",
    [helper.make_tensor_value_info(name, kind, ["batch", "length"]) for name, kind in names.items()],
    [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])],
    [numpy_helper.from_array(np.array([1]), "axis"), numpy_helper.from_array(np.array([0.5], np.float32), "half")],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "rating/onnx/model.onnx")
config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "problem_type": "regression", "id2label": {"0": "rating"}}
for name, content in (("config", config), ("tokenizer_config", {"tokenizer_class": "BertTokenizer", "model_max_length": 512})):
    with open(f"rating/{name}.json", "w") as file:
        json.dump(content, file)
PYTHON
cat > "$folder/rate.mjs" <<'NODE'
import { readFileSync } from "node:fs";
import { AutoModelForSequenceClassification, AutoTokenizer, env, pipeline } from "@huggingface/transformers";

Object.assign(env, { allowRemoteModels: false, localModelPath: "./" });
const { version } = JSON.parse(readFileSync("node_modules/@huggingface/transformers/package.json"));
console.log(`@huggingface/transformers ${version} on Node ${process.versions.node}`);
const rate = await pipeline("text-classification", "rating", { dtype: "fp32" });
const tokenizer = await AutoTokenizer.from_pretrained("rating");
const model = await AutoModelForSequenceClassification.from_pretrained("rating", { dtype: "fp32" });
const seen = [];
for (const text of ["poor", "great", "great great"]) {
    const [{ score }] = await rate(text);
    const { logits } = await model(tokenizer(text));
    seen.push([score, logits.data[0]]);
    console.log(`  ${text.padEnd(12)} the model gives ${logits.data[0]}, the pipeline ${score}`);
}
if (JSON.stringify(seen) !== "[[1,1],[1,2.5],[1,5]]") {
    console.error("it has changed: the pipeline answered 1 where the model gave 1, 2.5 and 5");
    process.exit(1);
}
NODE
cd "$folder"
venv/bin/python make.py
node rate.mjs
