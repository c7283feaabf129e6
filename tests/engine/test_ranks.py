"""How many threads a rank on a CPU computes with."""

import pytest
import torch

from bertfast.engine import ranks
from bertfast.engine.ranks import start_ranks


@pytest.fixture(autouse=True)
def torchs_own(monkeypatch):
    """A process that may run on 8 threads of 4 cores; torch's number is put back."""
    before = torch.get_num_threads()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ranks, "threads", lambda: 8)
    monkeypatch.setattr(ranks, "physical_cores", lambda: 4)
    monkeypatch.setattr(ranks, "_threads_set", None)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "before, asked, after",
    [
        pytest.param(8, None, 8, id="all"),
        pytest.param(4, None, 8, id="one-a-core-is-torchs-own-choice"),
        pytest.param(16, None, 8, id="more-than-there-is-time-for"),
        pytest.param(3, None, 3, id="the-callers"),
        pytest.param(1, None, 1, id="the-callers-one"),
        pytest.param(3, 5, 5, id="the-configs"),
    ],
)
def test_threads(before, asked, after):
    torch.set_num_threads(before)
    start_ranks("cpu", asked)
    assert torch.get_num_threads() == after


def test_a_run_does_not_take_the_threads_of_the_run_before_it_for_the_callers():
    start_ranks("cpu", 2)
    start_ranks("cpu", None)
    assert torch.get_num_threads() == 8
