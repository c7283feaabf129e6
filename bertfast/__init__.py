"""bertfast: fine-tune BERT classifiers on packed sequences, and ship them.

Here and in every package the public names stand in `__init__.pyi`, and are imported when they are first asked for: `import bertfast` stays light.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
