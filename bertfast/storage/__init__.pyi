from . import folders as folders
from .files import give_usual_mode as give_usual_mode
from .files import named as named
from .files import overwritten as overwritten
from .files import replacing as replacing
from .files import write_fault as write_fault
from .files import write_json as write_json
from .locks import alone_in as alone_in
