"""A classifier's ONNX graphs, written from its weights: portable, fused, packed, int8."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
