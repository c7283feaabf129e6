from .config import load_config as load_config
from .inference import Classifier as Classifier
from .model import BertClassifier as BertClassifier
from .packing import PackedBatch as PackedBatch
from .packing import plan_examples as plan_examples
from .packing import plan_tokens as plan_tokens
from .training import Trainer as Trainer

__version__: str
