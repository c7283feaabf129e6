"""The trial of an ONNX file against the model that it was made from. It shares no code with the graphs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
