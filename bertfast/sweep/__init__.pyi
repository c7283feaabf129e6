from .report import print_results
from .run import Search, Sweep
from .space import read_space
from .trials import places_of, train_command

__all__ = [
    "Search",
    "Sweep",
    "places_of",
    "print_results",
    "read_space",
    "train_command",
]
