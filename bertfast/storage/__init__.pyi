from . import folders
from .files import give_usual_mode, named, replacing, write_fault, write_json
from .locks import alone_in

__all__ = ["alone_in", "folders", "give_usual_mode", "named", "replacing", "write_fault", "write_json"]
