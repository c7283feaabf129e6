"""Ahead-of-time compilation, with no GPU: what fits, what does not, and what Triton's cache holds afterwards."""

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from bertfast_kernels.compile import TARGETS, CompiledKernel, _amd_usage, _problem, compile_kernels, launches_of
from bertfast_kernels.primitives import lazy_triton
from bertfast_kernels.shapes import EncoderShape
from tests.support import ROOT
from tests.support.triton_cases import needs_triton

pytestmark = needs_triton

CODE = """
import dataclasses, json, sys, torch
from bertfast_kernels.shapes import EncoderShape
from bertfast_kernels.compile import compile_kernels
if __name__ == "__main__":
    shape = EncoderShape(dtype=getattr(torch, sys.argv[1]))
    rows = compile_kernels(shape, sys.argv[2].split(","), processes=int(sys.argv[3]))
    print(json.dumps([dataclasses.asdict(row) for row in rows]))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """compiled(dtype, targets, processes): (the rows, the cache folder), from a Python without the interpreter."""
    folder = tmp_path_factory.mktemp("compile")
    script = folder / "compile_base.py"  # a file: worker processes import the main module again
    script.write_text(CODE, encoding="utf-8")
    cache = folder / "cache"
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT / "kernels")}
    environment.pop("TRITON_INTERPRET", None)

    def run(dtype, targets, processes):
        command = [sys.executable, str(script), dtype, targets, str(processes)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [CompiledKernel(**row) for row in json.loads(done.stdout.splitlines()[-1])], cache

    return run


def test_the_base_encoder_fits(compiled):
    rows, cache = compiled("bfloat16", "sm_90,gfx942", 2)
    assert {row.target for row in rows} == {"sm_90", "gfx942"}
    assert [row for row in rows if not row.fits or row.spills] == []
    assert all(0 < row.registers <= TARGETS[row.target].registers for row in rows)
    kernels = {row.kernel for row in rows}
    assert {"layer_norm_forward", "layer_norm_backward", "bias_gelu_backward", "table_runs", "cross_entropy_forward"} <= kernels
    assert any("DROPOUT=1" in row.shape_class for row in rows) and any("DROPOUT=0" in row.shape_class for row in rows)
    assert len(list(cache.rglob("*.cubin"))) == len(list(cache.rglob("*.hsaco"))) == len(rows) // 2


def test_a_second_time_comes_from_the_cache(compiled):
    first, cache = compiled("bfloat16", "sm_90,gfx942", 2)  # compiled by the test before, where that ran
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.cubin")}
    second, _ = compiled("bfloat16", "sm_90,gfx942", 1)
    after = {path: path.stat().st_mtime_ns for path in cache.rglob("*.cubin")}
    assert second == first and before and {path: after[path] for path in before} == before
    assert after.keys() == before.keys()


def test_keys_of_the_cache_do_not_depend_on_the_order_of_compilation():
    """Triton's key of a kernel must not depend on what was compiled before it, or another process compiles it again."""
    code = (
        "import json, sys, bertfast_kernels.compile\n"
        "from bertfast_kernels.primitives import lazy_triton\n"
        "lazy_triton._kernels[:] = lazy_triton._kernels[::int(sys.argv[1])]\n"
        "lazy_triton.load_triton()\n"
        "print(json.dumps({kernel.__name__: kernel.jitted.cache_key for kernel in lazy_triton._kernels}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "kernels")}
    environment.pop("TRITON_INTERPRET", None)
    forwards, backwards = (
        subprocess.run([sys.executable, "-c", code, step], env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        for step in ("1", "-1")
    )
    assert len(json.loads(forwards)) > 20 and json.loads(forwards) == json.loads(backwards)


def test_each_compilation_once():
    def dropouts(kernel, op="embedding", **change):
        launches = launches_of(dataclasses.replace(EncoderShape(), **change))
        return [launch.options["DROPOUT"] for launch in launches if launch.kernel.__name__ == f"_{op}_{kernel}_kernel"]

    assert dropouts("forward") == [False, True] and dropouts("backward") == [True]
    assert dropouts("forward", dropout=0.0) == dropouts("backward", dropout=0.0) == [False]
    assert dropouts("backward", trains_without_dropout=True) == [False, True]
    assert dropouts("backward", "layer_norm") == [True, True], "for few rows and for many"


def test_no_kernel_is_specialised_on_a_number():
    """A number that Triton may specialise on makes a compilation that the table does not show, and another one where the number changes."""
    kernels = {kernel.__name__: kernel for kernel in lazy_triton._kernels}
    for launch in launches_of(EncoderShape()):
        kernel = kernels[launch.kernel.__name__]
        names = list(inspect.signature(kernel.function).parameters)
        numbers = {name for name, arg in zip(names, launch.args, strict=False) if isinstance(arg, int)}
        assert numbers <= set(kernel.options.get("do_not_specialize", ())), kernel.__name__


ROW = CompiledKernel("k", "bfloat16", "", "sm_90", num_warps=8, registers=100, shared_memory=1024, spills=0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param({}, "", id="fits"),
        pytest.param({"spills": 8}, "spills 8 bytes", id="spills"),
        pytest.param({"shared_memory": 300000}, "needs 300000 bytes of shared memory; sm_90 has 232448", id="shared-memory"),
        pytest.param({"num_warps": 32}, "needs 100 registers a thread for 1024 threads; sm_90 has 65536", id="register-file"),
    ],
)
def test_what_does_not_fit_is_said(change, problem):
    assert _problem(dataclasses.replace(ROW, **change), TARGETS["sm_90"]).startswith(problem)
    assert bool(_problem(dataclasses.replace(ROW, **change), TARGETS["sm_90"])) == bool(problem)


def test_amd_counts_what_goes_to_memory():
    asm = "    .private_segment_fixed_size: 12\n    .sgpr_spill_count: 9\n    .vgpr_count:     60\n    .vgpr_spill_count: 2\n"
    assert _amd_usage(SimpleNamespace(asm={"amdgcn": asm})) == (60, 12)


def test_an_unknown_target_is_named():
    with pytest.raises(ValueError, match="target is 'sm_75'; it must be one of sm_80, sm_90, sm_100, gfx942"):
        compile_kernels(EncoderShape(), ["sm_90", "sm_75"])


def test_the_interpreter_compiles_nothing(monkeypatch):
    monkeypatch.setattr("bertfast_kernels.compile.is_interpreting", lambda: True)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET unset"):
        compile_kernels(EncoderShape(), ["sm_90"])


def test_a_shape_takes_no_memory():
    assert EncoderShape().tensor(10**9, 10**6).device == torch.device("meta")
