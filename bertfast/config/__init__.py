"""A run, described: read from a file, checked, frozen, and `"auto"` worked out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
