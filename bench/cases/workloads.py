"""What the suites work on: models of the usual sizes, and made-up examples with the lengths of real sets.

Time depends on lengths and sizes alone, so token ids are random. Lengths come from the histograms in BERTFAST_DATA; without it they are drawn to
fit what is known of the sets (see lengths.py), and rows say so.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.cases.lengths import SUMMARIES, read_histograms, synthetic_histogram
from bertfast.packing.batch import PackedBatch
from bertfast.packing.plans import plan_examples

LENGTHS = {"sst2": ("sst2_train", 128), "mnli": ("mnli_dev_matched", 128), "imdb": ("imdb_train", 512)}  # histogram, max_sequence_length
FIXED = ("fixed128", "fixed512")
MODELS = {  # layers, hidden size, heads, feed-forward size
    "tiny": (2, 128, 2, 512),
    "minilm": (6, 384, 12, 1536),
    "base": (12, 768, 12, 3072),
    "large": (24, 1024, 16, 4096),
}
NUM_LABELS = 3
_VOCABULARY, _CLS, _SEP, _FIRST_WORD = 30_522, 101, 102, 1000


class Network(NamedTuple):
    """The sizes of an encoder that its work follows from."""

    layers: int
    hidden: int
    wide: int

    @property
    def products(self) -> int:
        """Weights that each token is multiplied with, over all layers."""
        return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.wide)

    def training_flops(self, lengths: np.ndarray) -> int:
        """Of a forward and a backward of these sequences, each layer for every token: three times those of the forward; padding is no work."""
        lengths = lengths.astype(np.int64)
        return 3 * (2 * self.products * int(lengths.sum()) + 4 * self.layers * self.hidden * int((lengths**2).sum()))


def network_of(size: str) -> Network:
    layers, hidden, _, wide = MODELS[size]
    return Network(layers, hidden, wide)


def write_model(size: str, folder: Path, seed: int, **changes: int) -> Path:
    """A BERT classifier of NUM_LABELS classes with random weights, as transformers saves one. changes: of its BertConfig."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    layers, hidden, heads, wide = MODELS[size]
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": wide}
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=_VOCABULARY, num_labels=NUM_LABELS, **{**sizes, **changes})
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@cache
def _histogram(name: str) -> tuple[np.ndarray, bool]:
    """Counts by length, and whether they are those of the real set."""
    data = os.environ.get("BERTFAST_DATA")
    if data:
        return read_histograms(Path(data) / "length_histograms")[name], True
    return synthetic_histogram(SUMMARIES[name]), False


def lengths_of(name: str, count: int, seed: int) -> np.ndarray:
    """`count` lengths of a set, int32, cut at its max_sequence_length; of "fixed128", all 128."""
    if name in FIXED:
        return np.full(count, int(name.removeprefix("fixed")), dtype=np.int32)
    histogram, longest = LENGTHS[name]
    counts, _ = _histogram(histogram)
    draws = np.random.default_rng(seed).choice(len(counts), size=count, p=counts / counts.sum())
    return np.minimum(draws, longest).astype(np.int32)


def origin_of(name: str) -> str:
    """Where the lengths come from, for a row."""
    if name in FIXED:
        return "all equal"
    return "histogram" if _histogram(LENGTHS[name][0])[1] else "synthetic"


class Examples:
    """Made-up examples of the given lengths, and the batches in which contenders take them: each example once."""

    def __init__(self, lengths: np.ndarray, seed: int):
        rng = np.random.default_rng(seed)
        self.lengths = lengths
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self._ids = rng.integers(_FIRST_WORD, _VOCABULARY, self._starts[-1], dtype=np.int32)
        self._ids[self._starts[:-1]] = _CLS
        self._ids[self._starts[1:] - 1] = _SEP
        self._labels = rng.integers(0, NUM_LABELS, len(lengths), dtype=np.int32)

    def batch(self, indices: np.ndarray) -> PackedBatch:
        ids = np.concatenate([self._ids[self._starts[index] : self._starts[index + 1]] for index in indices])
        return PackedBatch.from_ragged(ids, np.zeros_like(ids), self.lengths[indices], self._labels[indices], indices)

    def random_batches(self, batch_size: int, seed: int) -> list[np.ndarray]:
        """Batches of random examples, as everybody's shuffled data loader makes them."""
        plan = plan_examples(self.lengths, batch_size, seed=seed)
        return [plan.micro_batches(step, 0)[0] for step in range(len(plan))]

    def grouped_batches(self, batch_size: int, steps_per_round: int, seed: int) -> list[np.ndarray]:
        """Batches of like lengths, as transformers' length grouping makes them of 50 batches at a time.

        Their cost runs from the most to the least. Each round of `steps_per_round` takes batches from all over that range, one from the dearer end
        of its stretch and one from the cheaper end in turn, so that a round costs nearly as much as the mean.
        """
        order = np.argsort(-self.lengths, kind="stable")
        batches = [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]
        rounds = len(batches) // steps_per_round
        places = np.random.default_rng(seed).permutation(rounds)
        return [
            batches[rounds * step + (place if step % 2 == 0 else rounds - 1 - place)] for place in places for step in range(steps_per_round)
        ]
