"""bench_scale: exponents, the fitted step time and the simulated ranks, against answers that are known."""

from types import SimpleNamespace

import numpy as np
import pytest

from bench import bench_scale
from bench.bench_scale import cost_rows, efficiency, exponent, fit_step_time, work_of
from bench.cases.workloads import lengths_of


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_a_known_exponent_is_found(power):
    rng = np.random.default_rng(0)
    sizes = np.array([8, 16, 32, 64])
    drift = np.linspace(1, 2, 12)  # of the machine: it slows all sizes of a round alike
    seconds = 1e-3 * sizes[:, None] ** power * drift * np.exp(0.02 * rng.standard_normal((4, 12)))
    value, low, high = exponent(sizes, seconds)
    assert value == pytest.approx(power, abs=0.05) and low <= power <= high and high - low < 0.15


def test_rows_of_a_cost(monkeypatch):
    """By a clock of its own, which the work moves: the machine's has other work in it."""
    now, noise = [0.0], np.random.default_rng(0)

    def work(size):
        now[0] += 1e-3 * size * np.exp(0.05 * noise.standard_normal())

    monkeypatch.setattr(bench_scale, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    *sizes, fit = cost_rows("batch", "examples", [1, 2], [lambda: work(1), lambda: work(2)], 8, False)
    assert [row["size"] for row in sizes] == [1, 2] and all(len(row["samples"]) == 8 for row in sizes)
    assert sizes[0]["seconds"][1] == pytest.approx(1e-3, rel=0.1) and sizes[1]["seconds"][1] == pytest.approx(2e-3, rel=0.1)
    assert fit["case"] == "batch, 1 to 2 examples" and fit["exponent"] == pytest.approx(1, abs=0.1)


def test_step_time_is_fitted():
    batches = [lengths_of(name, count, seed=count) for name in ("sst2", "mnli", "fixed128") for count in (8, 32, 128)]
    truth = np.array([0.01, 1e-5, 2e-8])
    seconds = [float(np.array(work_of(batch)) @ truth) for batch in batches]
    assert fit_step_time(batches, seconds) == pytest.approx(truth, rel=1e-6)


def test_no_negative_cost_is_fitted():
    batches = [np.full(count, 10, dtype=np.int32) for count in (8, 16, 32)]
    found = fit_step_time(batches, [0.9, 2.0, 4.4])
    assert (found >= 0).all() and found.any()


def test_simulated_ranks():
    lengths, tokens = lengths_of("mnli", 8 * 32 * 16, seed=1), np.array([0.0, 1e-5, 0.0])
    free = 1e30
    planned, random = (efficiency(lengths, 16, tokens, 1e8, free, flag) for flag in (True, False))
    assert planned > 0.99 > 0.93 > random
    assert efficiency(np.full(2048, 64, dtype=np.int32), 8, tokens, 1e8, free, False) == pytest.approx(1)


def test_the_sum_of_gradients_is_paid_for():
    """32 examples of 64 tokens take 20.48 ms; a ring over 8 ranks moves 2 x 7/8 of 100 MB at 10 GB/s in 17.5 ms."""
    found = efficiency(np.full(2048, 64, dtype=np.int32), 8, np.array([0.0, 1e-5, 0.0]), 1e8, 1e10, True)
    assert found == pytest.approx(20.48 / (20.48 + 17.5))
    assert efficiency(np.full(2048, 64, dtype=np.int32), 1, np.array([0.0, 1e-5, 0.0]), 1e8, 1e10, True) == 1
