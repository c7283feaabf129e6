// Classifies texts with a bundle, twice: by transformers.js, tokenizer and all, and by onnxruntime-node, from the features it is given.
// node client.mjs REQUEST.json; the answers go to standard output, as JSON.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const request = JSON.parse(readFileSync(process.argv[2], "utf8"));
const require = createRequire(path.join(request.modules, "client.cjs"));
const ort = require("onnxruntime-node");

const session = await ort.InferenceSession.create(path.join(request.bundle, request.file));
const shape = [request.features.input_ids.length, request.features.input_ids[0].length];
const feeds = {};
for (const [name, rows] of Object.entries(request.features)) {
  feeds[name] = new ort.Tensor("int64", BigInt64Array.from(rows.flat().map(BigInt)), shape);
}
const { logits } = await session.run(feeds);

let answers = null;
if (request.transformers) {
  const entry = path.join(request.modules, "node_modules/@huggingface/transformers/dist/transformers.node.mjs");
  const { env, pipeline } = await import(pathToFileURL(entry).href);
  env.allowRemoteModels = false;
  env.localModelPath = path.dirname(request.bundle);
  const classify = await pipeline("text-classification", path.basename(request.bundle), { dtype: request.dtype });
  answers = await classify(request.texts, { top_k: null });
}
console.log(JSON.stringify({ logits: Array.from(logits.data), answers }));
