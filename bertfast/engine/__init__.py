"""DeepSpeed and what stands around it: ranks, optimizer, schedules, memory, CUDA graphs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
