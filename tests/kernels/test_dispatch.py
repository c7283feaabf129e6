"""Which backend an op takes, and what is said where it cannot."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from bertfast_kernels import Dropout, dispatch, use_backend
from bertfast_kernels.dispatch import current_backend, takes_triton
from tests.support import ROOT

X = torch.zeros(2, 4)


class OnGpu:
    """As much of a tensor on a GPU as the choice looks at."""

    is_cuda, dtype, device = True, torch.float16, torch.device("cuda")


def test_the_tensor_decides_unless_told():
    assert current_backend() is None
    assert not takes_triton(X)
    assert takes_triton(OnGpu()) == dispatch.HAS_TRITON
    double = OnGpu()
    double.dtype = torch.float64
    assert not takes_triton(double)


def test_a_block_gives_back_what_was_before():
    with use_backend("torch"):
        assert current_backend() == "torch"
        assert not takes_triton(OnGpu())
        with use_backend(None):
            assert current_backend() is None
        assert current_backend() == "torch"
    assert current_backend() is None


def test_a_plain_call_stays():
    use_backend("torch")
    assert current_backend() == "torch"
    use_backend(None)
    assert current_backend() is None


def test_a_block_left_by_an_error_gives_back_too():
    with pytest.raises(KeyError), use_backend("torch"):
        raise KeyError
    assert current_backend() is None


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match="backend is 'cuda'; it must be one of torch, triton"):
        use_backend("cuda")


def test_triton_on_the_cpu_needs_the_interpreter(monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    monkeypatch.setattr(dispatch, "is_interpreting", lambda: False)
    with use_backend("triton"), pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        takes_triton(X)
    monkeypatch.setattr(dispatch, "is_interpreting", lambda: True)
    with use_backend("triton"):
        assert takes_triton(X)


def test_triton_without_triton(monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    assert not takes_triton(OnGpu())
    with use_backend("triton"), pytest.raises(RuntimeError, match="Triton is not installed"):
        takes_triton(OnGpu())


def test_triton_says_which_dtypes(monkeypatch):
    monkeypatch.setattr(dispatch, "is_interpreting", lambda: True)
    with use_backend("triton"), pytest.raises(TypeError, match=r"not torch\.float64"):
        takes_triton(X.double())


def test_a_stream_is_for_the_twins():
    stream = Dropout(0.1, stream=np.random.Generator(np.random.SFC64(1)))
    assert not takes_triton(X, stream)
    if dispatch.HAS_TRITON:
        with pytest.raises(ValueError, match="by key"):
            takes_triton(OnGpu(), stream)
        assert takes_triton(OnGpu(), stream._replace(p=0.0))


def test_an_onnx_export_takes_the_twin(monkeypatch):
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert not takes_triton(OnGpu())


NAMES = sorted(
    ".".join(path.relative_to(ROOT / "kernels").with_suffix("").parts)
    for path in (ROOT / "kernels" / "bertfast_kernels").rglob("*.py")
    if path.stem != "__init__"
)


@pytest.mark.parametrize(
    ("before", "has_triton"),
    [pytest.param("sys.modules['triton'] = None", False, id="without-triton"), pytest.param("pass", dispatch.HAS_TRITON, id="as-it-is")],
)
def test_a_cpu_needs_no_triton(before, has_triton):
    """Every kernel module, and a forward and backward pass, where Triton is missing, or there and not worth its 0.2 s; no GPU is touched."""
    code = f"""
import importlib, sys, torch
{before}
for name in {NAMES!r}:
    importlib.import_module(name)
from bertfast_kernels import bias_gelu
from bertfast_kernels.primitives.lazy_triton import HAS_TRITON
x = torch.ones(2, 8, requires_grad=True)
bias_gelu(x, torch.zeros(8)).sum().backward()
assert HAS_TRITON == {has_triton} and x.grad is not None and not torch.cuda.is_initialized()
assert sys.modules.get("triton") is None
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "kernels", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.triton
def test_a_broken_triton_says_so(tmp_path):
    (tmp_path / "triton.py").write_text("raise ImportError('no driver here')\n", encoding="utf-8")
    code = f"""
import sys, torch
sys.path.insert(0, {str(tmp_path)!r})
from bertfast_kernels import bias_gelu, use_backend
use_backend("triton")
bias_gelu(torch.ones(2, 8), torch.zeros(8))
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "kernels", capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and done.stderr.endswith("ImportError: no driver here\n")
