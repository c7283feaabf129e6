from .entry import launch, main
from .parser import names_command

__all__ = [
    "launch",
    "main",
    "names_command",
]
