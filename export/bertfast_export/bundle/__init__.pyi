from .examples import configured as configured
from .examples import from_file as from_file
from .export import export_bundle as export_bundle
from .planned import bundle_folder as bundle_folder
from .planned import check_planned as check_planned
from .record import bundle_block as bundle_block
from .source import Candidate as Candidate
from .verify import verify_bundle as verify_bundle
