"""bench.cases.workloads: lengths, examples, batches of like lengths, and the work of a network."""

import numpy as np
import pytest

from bench.cases import workloads
from bench.cases.workloads import FIXED, LENGTHS, Examples, Network, lengths_of


def test_length_grouping_takes_the_same_examples_in_even_rounds():
    lengths = lengths_of("sst2", 1600, seed=0)
    examples = Examples(lengths, seed=0)
    plain, grouped = examples.random_batches(32, seed=0), examples.grouped_batches(32, 5, seed=0)
    for batches in (plain, grouped):
        assert sorted(np.concatenate(batches).tolist()) == list(range(1600)) and {len(batch) for batch in batches} == {32}
    padded = [lengths[batch].max() * 32 for batch in grouped]
    assert lengths.sum() / sum(padded) > 0.9 > 0.5 > lengths.sum() / sum(lengths[batch].max() * 32 for batch in plain)
    rounds = np.array(padded).reshape(10, 5).sum(axis=1)
    assert rounds.std() < 0.25 * rounds.mean() and max(padded) > 5 * min(padded)


def test_examples_are_what_a_tokenizer_gives():
    examples = Examples(np.array([2, 7], dtype=np.int32), seed=5)
    features = examples.batch(np.array([1, 0])).to_features()
    assert features["input_ids"][1].tolist() == [101, 102, 0, 0, 0, 0, 0]
    assert features["input_ids"][0, 0] == 101 and features["input_ids"][0, 6] == 102 and features["input_ids"][0, 1:6].min() >= 1000


@pytest.mark.parametrize("name", [*LENGTHS, *FIXED])
def test_lengths(name, monkeypatch):
    monkeypatch.delenv("BERTFAST_DATA", raising=False)
    workloads._histogram.cache_clear()
    lengths = lengths_of(name, 20_000, seed=1)
    mean = {"sst2": 13.3, "mnli": 39.2, "imdb": 275.3, "fixed128": 128, "fixed512": 512}[name]
    assert lengths.mean() == pytest.approx(mean, rel=0.03) and lengths.dtype == np.int32
    assert (lengths == lengths_of(name, 20_000, seed=1)).all()
    workloads._histogram.cache_clear()


def test_flops_are_those_of_the_matrix_products():
    """Counted by hand for one layer: four D x D products and two D x F a token, two attention products a pair of tokens; 2 a multiplication."""
    network = Network(layers=1, hidden=8, wide=32)
    forward = 2 * 5 * (4 * 64 + 2 * 256) + 2 * 2 * 25 * 8
    assert network.training_flops(np.array([5], dtype=np.int32)) == 3 * forward
