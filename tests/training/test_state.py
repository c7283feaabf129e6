"""What is counted between two log records and between two saves, by a clock that the test moves."""

import time
from types import SimpleNamespace

import pytest
import torch

from bertfast.engine.ranks import Ranks
from bertfast.packing.batch import Extent
from bertfast.training.state import RunState, Window

BATCH = SimpleNamespace(unpadded=None, extent=Extent(tokens=100, max_seqlen=20, sequences=8))


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where the test says so."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


@pytest.fixture
def step(clock):
    """step(window): one step of 2 seconds, with 8 examples, 100 tokens (160 if padded) and a loss of 0.5."""

    def take(window):
        clock.now += 2.0
        window.add(torch.tensor(0.5), [BATCH], 8)

    return take


@pytest.fixture
def window(clock):
    return Window(Ranks(0, 1, torch.device("cpu")))


RATES = {"loss": 0.5, "seconds_per_step": 2.0, "samples_per_second": 4.0, "tokens_per_second": 50.0}


def test_a_pause_between_two_log_records_changes_no_rate(window, step, clock):
    """3 steps, an evaluation and a save of 10 s in all, 2 more steps, and the log record of all 5."""
    for _ in range(3):
        step(window)
    state = window.take_into(RunState(step=3))
    with window.paused():
        clock.now += 10.0
    for _ in range(2):
        step(window)
    assert window.rates() == pytest.approx(RATES)
    state = window.take_into(state._replace(step=5))
    assert (state.seconds, state.examples, state.tokens, state.padded_tokens) == (10.0, 40, 500, 800)


def test_a_pause_after_a_log_record_changes_none_either(window, step, clock):
    step(window)
    assert window.rates() == pytest.approx(RATES)
    window.take_into(RunState(step=1))
    with pytest.raises(KeyboardInterrupt), window.paused():
        clock.now += 10.0
        raise KeyboardInterrupt
    step(window)
    step(window)
    assert window.rates() == pytest.approx(RATES)


def test_each_save_counts_what_came_since_the_last(window, step):
    """Log records in between take nothing away."""
    state = RunState(seconds=7.0, examples=1, tokens=2, padded_tokens=3)
    for at in (1, 2, 3, 4):
        step(window)
        if at == 3:
            window.rates()
        if at % 2 == 0:
            state = window.take_into(state._replace(step=at))
    assert state == RunState(step=4, seconds=15.0, examples=33, tokens=402, padded_tokens=643)
