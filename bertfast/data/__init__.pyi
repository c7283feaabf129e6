from .encoded import EncodedDataset
from .load import check_reading, encode, load_dataset_for
from .mixture import MixtureSet, quotas
from .pretraining import PRETRAINING, PretrainingSet, load_pretraining_set
from .tokenizing import Encode, TokenBlock, backend_encoder
from .training_set import TrainingSet
from .truncation import leaves_no_tail, num_pieces

__all__ = [
    "PRETRAINING",
    "Encode",
    "EncodedDataset",
    "MixtureSet",
    "PretrainingSet",
    "TokenBlock",
    "TrainingSet",
    "backend_encoder",
    "check_reading",
    "encode",
    "leaves_no_tail",
    "load_dataset_for",
    "load_pretraining_set",
    "num_pieces",
    "quotas",
]
