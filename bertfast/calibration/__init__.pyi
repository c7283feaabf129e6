from .files import CALIBRATION_FILE as CALIBRATION_FILE
from .files import read_calibration as read_calibration
from .files import write_calibration as write_calibration
from .finding import Aims as Aims
from .finding import find_calibration as find_calibration
from .finding import shown as shown
from .reliability import reliability as reliability
from .thresholds import Aim as Aim
