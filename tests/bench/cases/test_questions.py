"""bench.cases.questions: what is asked is what was given."""

import numpy as np
import pytest

from bench.cases.questions import Texts, Tokens, padded

TOKENS = Tokens(
    np.array([2, 3, 2, 7, 8, 3, 2, 9, 3], np.int32), np.array([0, 0, 0, 0, 1, 1, 0, 0, 0], np.uint8), np.array([2, 4, 3], np.int32)
)


def test_examples_are_taken_in_the_order_asked_for():
    found = TOKENS.take([2, 0])
    assert found.input_ids.tolist() == [2, 9, 3, 2, 3] and found.lengths.tolist() == [3, 2] and len(found) == 2
    assert TOKENS.take([1]).token_type_ids.tolist() == [0, 0, 1, 1]
    assert len(TOKENS.take([])) == 0


def test_a_padded_batch():
    found = padded(TOKENS, np.array([1, 0]))
    assert found["input_ids"].tolist() == [[2, 7, 8, 3], [2, 3, 0, 0]] and found["input_ids"].dtype == np.int64
    assert found["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert found["token_type_ids"].tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize("second", [None, ["b", "é"]])
def test_both_are_read_as_they_were_written(tmp_path, second):
    TOKENS.save(tmp_path / "tokens.npz")
    found = Tokens.load(tmp_path / "tokens.npz")
    assert all((a == b).all() and a.dtype == b.dtype for a, b in zip(found, TOKENS, strict=True))
    texts = Texts(["a", "\u2028"], second)
    texts.save(tmp_path / "texts.json")
    assert Texts.load(tmp_path / "texts.json") == texts
