"""bertfast: fine-tune BERT classifiers on packed sequences, and ship them.

The public names are imported when they are first asked for, so that `import bertfast` stays light.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "BertClassifier": "model",
    "PackedBatch": "packing",
    "Trainer": "trainer",
    "load_config": "config",
    "plan_examples": "planning",
    "plan_tokens": "planning",
}
__all__ = ["BertClassifier", "PackedBatch", "Trainer", "load_config", "plan_examples", "plan_tokens"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'bertfast' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bertfast.{_HOMES[name]}"), name)
