from .loader import head_to_train
from .objectives.masked_words import MaskedWords, pretraining_loss
from .trainer import Trainer

__all__ = ["MaskedWords", "Trainer", "head_to_train", "pretraining_loss"]
