"""The ops on a CPU: C++ kernels, compiled once on the machine, and called through ctypes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
