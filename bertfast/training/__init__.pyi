from .loader import head_to_train
from .multitask import Multitasker
from .pretraining import Pretrainer, PretrainingLoader, pretraining_loss
from .trainer import Trainer

__all__ = [
    "Multitasker",
    "Pretrainer",
    "PretrainingLoader",
    "Trainer",
    "head_to_train",
    "pretraining_loss",
]
