"""How many threads a session computes with."""

import pytest

pytest.importorskip("onnxruntime")

from bertfast import machine
from bertfast_export import runtime
from bertfast_export.runtime import CPU, open_session


@pytest.mark.parametrize(
    "asked, own, expected",
    [
        pytest.param(None, 2, 2, id="the-process-is-to-use-fewer"),
        pytest.param(None, 8, 0, id="all-of-them-is-onnxruntimes-own-choice"),
        pytest.param(5, 2, 5, id="asked-for"),
    ],
)
def test_threads(monkeypatch, asked, own, expected):
    import onnxruntime

    def session(source, options, providers):
        raise ValueError(f"threads: {options.intra_op_num_threads}")

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(machine, "threads", lambda: own)
    monkeypatch.setattr(runtime.os, "cpu_count", lambda: 8)
    with pytest.raises(runtime.ExportError, match=rf"threads: {expected}\)"):
        open_session(b"", [CPU], asked)
