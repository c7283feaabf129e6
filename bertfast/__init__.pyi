from .config import load_config
from .model import BertClassifier
from .packing import PackedBatch, plan_examples, plan_tokens
from .training import Trainer

__all__ = ["BertClassifier", "PackedBatch", "Trainer", "load_config", "plan_examples", "plan_tokens"]
__version__: str
