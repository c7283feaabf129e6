from .arrow import number_array, numbers, text_array
from .labels import MAX_INFERRED_CLASSES
from .lines import line_blocks
from .predict_input import read_inputs, reads_standard_input
from .rows import needs_labels, place
from .sources import find_source
from .splits import RawSplit, fingerprint_of, load_split, random_subset, read_split, sample_fingerprint, source_fingerprint, split_texts

__all__ = [
    "MAX_INFERRED_CLASSES",
    "RawSplit",
    "find_source",
    "fingerprint_of",
    "line_blocks",
    "load_split",
    "needs_labels",
    "number_array",
    "numbers",
    "place",
    "random_subset",
    "read_inputs",
    "read_split",
    "reads_standard_input",
    "sample_fingerprint",
    "source_fingerprint",
    "split_texts",
    "text_array",
]
