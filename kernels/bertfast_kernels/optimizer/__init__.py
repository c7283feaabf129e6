"""The optimizer's step on a GPU, for all parameters in a few launches."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
