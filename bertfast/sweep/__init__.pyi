from .report import print_results as print_results
from .run import Search as Search
from .run import Sweep as Sweep
from .space import read_space as read_space
from .trials import places_of as places_of
from .trials import train_command as train_command
