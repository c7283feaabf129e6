from .batches import plan_of as plan_of
from .loader import head_to_train as head_to_train
from .objectives.masked_words import MaskedWords as MaskedWords
from .objectives.masked_words import pretraining_loss as pretraining_loss
from .trainer import Trainer as Trainer
