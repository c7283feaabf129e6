"""The folder that is deployed: what goes in, how it is judged, recorded and verified again."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
