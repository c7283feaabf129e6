from .batches import plan_of as plan_of
from .footprint import footprint_of as footprint_of
from .footprint import smaller_training as smaller_training
from .loader import head_to_train as head_to_train
from .objectives.masked_words import MaskedWords as MaskedWords
from .objectives.masked_words import pretraining_loss as pretraining_loss
from .trainer import Trainer as Trainer
