"""bench_export: contenders take turns."""

import time

import pytest


def test_contenders_take_turns():
    pytest.importorskip("onnxruntime")
    from bench.bench_export import WARM_UP, compare

    calls, rounds = [], 9
    contenders = {"slow": lambda: (calls.append("slow"), time.sleep(0.02)), "fast": lambda: calls.append("fast")}
    slow, fast = compare(contenders, rounds, {"suite": "export"})
    assert len(calls) == 2 * (rounds + WARM_UP) and {calls[0], calls[1]} == {calls[-1], calls[-2]} == {"slow", "fast"}
    assert fast["ratios"][0]["to"] == "slow" and fast["ratios"][0]["low"] > 1 and slow["milliseconds"][1] >= 20
