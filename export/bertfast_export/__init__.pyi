from .bundle import export_bundle as export_bundle
from .bundle import verify_bundle as verify_bundle
from .classifier import OnnxClassifier as OnnxClassifier
from .contract import Options as Options
