from .batch import IGNORE_LABEL, Extent, MixedBatch, PackedBatch, doubled
from .buckets import bucket_of, padded
from .masking import MaskedBatch, Masking
from .partition import random_order, ranges
from .plans import Plan, plan_examples, plan_sequential, plan_tokens
from .prefetch import ahead, prefetched

__all__ = [
    "IGNORE_LABEL",
    "Extent",
    "MaskedBatch",
    "Masking",
    "MixedBatch",
    "PackedBatch",
    "Plan",
    "ahead",
    "bucket_of",
    "doubled",
    "padded",
    "plan_examples",
    "plan_sequential",
    "plan_tokens",
    "prefetched",
    "random_order",
    "ranges",
]
