"""bench.cases.attention_cases: the lengths that attention is timed with."""

import pytest

from bench.cases.attention_cases import mnli_lengths


def test_lengths_of_mnli(monkeypatch):
    monkeypatch.delenv("BERTFAST_DATA", raising=False)
    lengths = mnli_lengths(1)
    assert lengths.mean() == pytest.approx(39.2, rel=0.03) and lengths.max() <= 128 and (lengths == mnli_lengths(1)).all()
