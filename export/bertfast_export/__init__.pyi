from .bundle import export_bundle, verify_bundle
from .classifier import OnnxClassifier
from .contract import Options

__all__ = ["OnnxClassifier", "Options", "export_bundle", "verify_bundle"]
