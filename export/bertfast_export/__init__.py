"""ONNX classifiers that are verified before anyone can deploy them.

The public names are imported when they are first asked for: `OnnxClassifier` needs neither torch nor onnx.
"""

import importlib

_HOMES = {"OnnxClassifier": "classifier", "Options": "source", "export_bundle": "bundle", "verify_bundle": "bundle"}
__all__ = ["OnnxClassifier", "Options", "export_bundle", "verify_bundle"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'bertfast_export' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bertfast_export.{_HOMES[name]}"), name)
