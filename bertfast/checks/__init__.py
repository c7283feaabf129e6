"""`bertfast validate` and `bertfast compile`: everything that can be wrong before a run."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
