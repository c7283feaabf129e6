from .bert import GELU_FORMS, BertClassifier
from .heads import head_of, set_head
from .layers import RandomBits
from .losses import Loss, among_others, class_weights
from .multitask import MultitaskClassifier, OneTask, mixed_loss
from .pretrainer import BertPretrainer

__all__ = [
    "GELU_FORMS",
    "BertClassifier",
    "BertPretrainer",
    "Loss",
    "MultitaskClassifier",
    "OneTask",
    "RandomBits",
    "among_others",
    "class_weights",
    "head_of",
    "mixed_loss",
    "set_head",
]
