"""The trace and the page of a run, and the sums behind them."""

import json
import time
from types import SimpleNamespace

import pytest
import torch

from bertfast.reporting.profiling import PROFILED_STEPS, WARM_UP_STEPS, Part, RunProfiler, _union, kind_of, page, shares_of, step_profiler
from tests.support.runs import losses, train, write_task


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "GEMM"),
        ("sm90_xmma_gemm_bf16bf16", "GEMM"),
        ("aten::bmm", "attention"),
        ("aten::_softmax", "attention"),
        ("aten::_fused_adamw_", "optimizer"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("aten::mul", "elementwise"),
    ],
)
def test_kinds(name, kind):
    assert kind_of(name) == kind


def test_union_counts_what_overlaps_once():
    assert _union([(0, 4), (1, 2), (3, 6), (8, 9)]) == 7 and _union([]) == 0


def test_shares_make_a_whole():
    a = torch.randn(300, 300)
    with step_profiler(False) as profiler:
        for _ in range(20):
            (a @ a).exp()
        time.sleep(1)
        (a @ a).exp()
    shares = shares_of(profiler)
    assert sum(shares.values()) == pytest.approx(1, abs=0.01) and {"GEMM", "elementwise", "outside operators"} <= set(shares)
    assert shares["outside operators"] > 0.1


def test_page_names_the_ten_largest():
    parts = [Part(f"aten::op{index}", 20.0 - index, 3) for index in range(12)]
    lines = page(parts, {"GEMM": 0.75}, 150.0, 200.0, {"DeepSpeed": "2.5% of the host's time"})
    assert "- Nothing ran (launch gaps on a GPU, Python on a CPU): 50.0 of 200.0 ms profiled" in lines and "| GEMM | 75.0% |" in lines
    assert "| `aten::op0` | 20.00 | 3 | 10.0% |" in lines and sum("aten::op" in line for line in lines) == 10
    assert "- DeepSpeed: 2.5% of the host's time" in lines


class Engine(torch.nn.Module):
    """Takes 20 ms of its own in each call, around 10 ms of work."""

    def __init__(self):
        super().__init__()
        self.module = torch.nn.Linear(1, 1)
        self.module.forward = lambda: time.sleep(0.01)
        self.optimizer = SimpleNamespace(step=lambda: time.sleep(0.01))

    def forward(self):
        time.sleep(0.02)
        self.module()

    def backward(self):
        time.sleep(0.02)

    def step(self):
        time.sleep(0.02)
        self.optimizer.step()


def test_the_engines_own_time_is_told(tmp_path):
    engine, said = Engine(), []

    def batches():
        for index in range(WARM_UP_STEPS + 2):
            time.sleep(0.02)
            yield index

    before = dict(vars(engine)), dict(vars(engine.module)), dict(vars(engine.optimizer))
    for _ in RunProfiler(tmp_path, engine, False, said.append).steps(batches()):
        engine()
        engine.backward()
        engine.step()
        torch.ones(4) + 1
    assert (vars(engine), vars(engine.module), vars(engine.optimizer)) == before
    lines = (tmp_path / "profile.md").read_text().splitlines()
    shares = {
        name: float(line.split(": ")[1].split("%")[0])
        for line in lines
        for name in ("Waiting on data", "DeepSpeed")
        if line.startswith(f"- {name}")
    }
    assert shares["DeepSpeed"] > 1.5 * shares["Waiting on data"] > 0 and 30 < shares["DeepSpeed"] < 75
    assert "- Steps profiled: 2, of" in "\n".join(lines) and said == [f"profile: {tmp_path / 'profile.md'}"]


def test_a_run_that_is_too_short_is_told_so(tmp_path):
    said = []
    assert list(RunProfiler(tmp_path, Engine(), False, said.append).steps(iter("ab"))) == ["a", "b"]
    assert said == ["profile: none, the run has only 2 steps, and the first 3 are not profiled"] and not list(tmp_path.iterdir())


def test_a_run_leaves_its_profile_and_trains_as_without(tmp_path):
    config = write_task(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    train(tmp_path)
    train(tmp_path, "--profile", "--model_dir", str(tmp_path / "profiled"))
    assert losses(tmp_path) == losses(tmp_path, "profiled")
    folder = tmp_path / "profiled" / "profile"
    assert json.loads((folder / "profile_trace.json").read_text())["traceEvents"]
    text = (folder / "profile.md").read_text()
    assert f"- Steps profiled: {PROFILED_STEPS}, of" in text and "- DeepSpeed: " in text and "- Waiting on data: " in text
    assert "aten::" in text and "| GEMM |" in text
