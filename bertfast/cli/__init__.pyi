from .entry import launch as launch
from .entry import main as main
from .parser import names_command as names_command
