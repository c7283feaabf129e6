from .examples import configured, from_file
from .export import export_bundle
from .planned import bundle_folder, check_planned
from .record import bundle_block
from .source import Candidate
from .verify import verify_bundle

__all__ = [
    "Candidate",
    "bundle_block",
    "bundle_folder",
    "check_planned",
    "configured",
    "export_bundle",
    "from_file",
    "verify_bundle",
]
