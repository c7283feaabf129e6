"""What labelled data say of a model's probabilities: how to put them right, where to decide, and what is then to be expected."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
