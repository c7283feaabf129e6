"""The ops of a packed BERT encoder. They know tensors only: no config, no model, no trainer."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
