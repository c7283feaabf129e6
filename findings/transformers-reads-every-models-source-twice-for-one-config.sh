#!/usr/bin/env bash
# expected: that `from transformers import BertConfig` reads BERT's own files: the package is said to import lazily, a model when it is first asked for.
# happens:  the source of every model is opened and searched for the names that it exports, twice: once by `import transformers`, and once more when the first of
#           its classes is asked for, because transformers/models/__init__.py makes the same table again. In 5.24.0 these are over 3,400 files a start, of which
#           4 are BERT's. On a local disk with the files in memory that is some 1.1 s of each process's start; a network disk is asked 3,400 times.
# since:    twice in 4.53.3 (1,268 and 1,275 files), 4.57.6, 5.0.0 and 5.24.0; in 4.48.3 `import transformers` opened none, and the first class 967.
# do:       import transformers where it is needed, not at the top of a module that a command line or a server loads; serve with tokenizers and a runtime alone;
#           where many processes start, keep the environment on a local disk.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'transformers==5.24.0' 'tokenizers==0.23.3' 'huggingface-hub==2.4.0' 'numpy==2.4.6'

TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

opened = []


def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        name = arguments[0].replace("\\", "/")
        if "/transformers/models/" in name and name.endswith(".py"):
            opened.append(name)


sys.addaudithook(watch)
import transformers

first, opened = opened, []
from transformers import BertConfig

print(f"transformers {transformers.__version__}, Python {sys.version.split()[0]}")
print(f"opened by `import transformers`: {len(first):,} source files of models, {sum('/bert/' in name for name in first)} of them BERT's")
print(f"and then by `from transformers import BertConfig`: {len(opened):,}, {sum('/bert/' in name for name in opened)} of them BERT's")
print(f"of the first ones opened again: {len(set(first) & set(opened)):,}")
again = set(first) & set(opened)
if len(first) < 1000 or len(again) < 0.9 * len(set(first)):
    sys.exit("no longer as described: not every model's source is read twice")
PYTHON
