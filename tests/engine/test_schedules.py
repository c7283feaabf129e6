"""Schedules against transformers' own and against the papers' formulas."""

import pytest
import torch
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from bertfast.engine.optimizer import scheduler_of
from bertfast.engine.schedules import schedule, thawing

THEIRS = {
    "linear": lambda optimizer, warmup, total: get_linear_schedule_with_warmup(optimizer, warmup, total),
    "cosine": lambda optimizer, warmup, total: get_cosine_schedule_with_warmup(optimizer, warmup, total),
    "constant": lambda optimizer, warmup, total: get_constant_schedule_with_warmup(optimizer, warmup),
}


def rates(make, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(("warmup", "total"), [(3, 20), (0, 7), (7, 7)], ids=["warm-up", "no-warm-up", "all-warm-up"])
@pytest.mark.parametrize("name", THEIRS)
def test_every_step_equals_transformers(name, warmup, total):
    steps = total + (0 if name == "cosine" else 3)  # past the end their cosine rises again
    ours = rates(scheduler_of(schedule(name, warmup, total)), steps)
    assert ours == pytest.approx(rates(lambda optimizer: THEIRS[name](optimizer, warmup, total), steps), abs=1e-12)
    assert schedule(name, warmup, total)(total + 3) == (1.0 if name == "constant" else 0.0)


def test_slanted_triangles_are_howard_and_ruder_s():
    total, cut_share, ratio = 200, 0.1, 32
    cut = int(total * cut_share)
    factor = schedule("slanted_triangular", cut, total)
    for t in range(total):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_share - 1))
        assert factor(t) == pytest.approx((1 + p * (ratio - 1)) / ratio)
    assert factor(0) == 1 / 32 and factor(cut) == 1 and factor(total) == factor(total + 5) == 1 / 32


def test_a_group_has_no_rate_before_it_thaws():
    factors = thawing(schedule("linear", 2, 10), [0, 4])
    assert [factors[0](step) for step in range(10)] == [schedule("linear", 2, 10)(step) for step in range(10)]
    assert [factors[1](step) for step in range(4)] == [0.0] * 4
    assert factors[1](4) == schedule("linear", 2, 10)(4) == 0.75
