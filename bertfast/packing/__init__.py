"""Micro-batches without padding: their layout, and the planners that choose what goes into them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
