from .bundle import export_bundle as export_bundle
from .bundle import verify_bundle as verify_bundle
from .classifier import Classifier as Classifier
from .classifier import OnnxClassifier as OnnxClassifier
from .contract import Options as Options
from .tuning import tune_bundle as tune_bundle
