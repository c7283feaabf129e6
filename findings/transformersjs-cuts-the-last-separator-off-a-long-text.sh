#!/usr/bin/env bash
# expected: that `truncation: true` shortens the texts and keeps the special tokens around them, as tokenizers and transformers do in Python with the same
#           tokenizer.json: a long text ends with [SEP], and of a pair the longer text is cut first.
# happens:  the finished sequence is cut at its end: a long text loses its [SEP], and of a pair the second text goes first, whole if need be, and its separator. A
#           BERT classifier then reads an input of a kind that it never saw in training. Its own text-classification pipeline truncates in this way.
# since:    @huggingface/transformers 3.0.2, the oldest that was tried; the same in 3.8.1 and in 4.3.1, the last.
# do:       cut in front of the tokenizer: encode each text with add_special_tokens: false, keep as many ids as there is room for, and put [CLS] and [SEP] around them.
# Needs Node 20 and npm beside Python.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'tokenizers==0.23.1'
(cd "$folder" && npm install --ignore-scripts --no-audit --no-fund --silent '@huggingface/transformers@4.3.1')

mkdir "$folder/bert"
cat > "$folder/make.py" <<'PYTHON'
import json
from importlib.metadata import version

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
words = [*SPECIAL, "a", "good", "film", "and", "the", "plot", "is", "fine"]
tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
tokenizer.normalizer = normalizers.BertNormalizer()
tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)])
tokenizer.add_special_tokens(SPECIAL)
tokenizer.save("bert/tokenizer.json")
with open("bert/tokenizer_config.json", "w") as file:
    json.dump({"tokenizer_class": "BertTokenizer", "model_max_length": 512, "sep_token": "[SEP]", "cls_token": "[CLS]"}, file)

print(f"tokenizers {version('tokenizers')} in Python")
tokenizer.enable_truncation(6)
for texts in (["the plot is fine and a good film"], ["the plot is fine", "a good film"]):
    print(f"  {' | '.join(texts):34} {' '.join(tokenizer.encode(*texts).tokens)}")
PYTHON
cat > "$folder/cut.mjs" <<'NODE'
import { readFileSync } from "node:fs";
import { AutoTokenizer, env } from "@huggingface/transformers";

Object.assign(env, { allowRemoteModels: false, localModelPath: "./" });
const { version } = JSON.parse(readFileSync("node_modules/@huggingface/transformers/package.json"));
console.log(`@huggingface/transformers ${version} on Node ${process.versions.node}`);
const names = Object.entries(JSON.parse(readFileSync("bert/tokenizer.json")).model.vocab).reduce((all, [word, id]) => ((all[id] = word), all), []);
const tokenizer = await AutoTokenizer.from_pretrained("bert");
const seen = [];
for (const [text, text_pair] of [["the plot is fine and a good film"], ["the plot is fine", "a good film"]]) {
    const { input_ids } = tokenizer(text, { text_pair, truncation: true, max_length: 6, return_tensor: false });
    seen.push(input_ids.map((id) => names[id]).join(" "));
    console.log(`  ${[text, text_pair].filter(Boolean).join(" | ").padEnd(34)} ${seen.at(-1)}`);
}
if (seen[0] !== "[CLS] the plot is fine and" || seen[1] !== "[CLS] the plot is fine [SEP]") {
    console.error("it has changed: a long text lost its [SEP], and a pair its whole second text");
    process.exit(1);
}
NODE
cd "$folder"
venv/bin/python make.py
node cut.mjs
