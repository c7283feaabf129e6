"""ONNX classifiers that are verified before anyone can deploy them.

The public names are imported when they are first asked for: `OnnxClassifier` needs neither torch nor onnx.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
