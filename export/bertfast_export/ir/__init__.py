"""A bundle's files for OpenVINO: written, judged on OpenVINO in each precision, and the search for int8 among them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
