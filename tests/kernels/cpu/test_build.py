"""The library of the C++ kernels: made once, named after what it is made from, and the twins where it cannot be."""

import os
import subprocess
import sys

import pytest
import torch

from bertfast_kernels import bias_gelu
from bertfast_kernels.cpu import build, calls
from tests.support import ROOT
from tests.support.cpp_cases import needs_cpp


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bertfast" / "kernels"


@needs_cpp
def test_it_is_made_once_and_a_torn_one_anew(place, tmp_path, monkeypatch):
    build.load()
    (made,) = place.iterdir()
    stamp = made.stat().st_mtime_ns
    (place / "building-1").mkdir()  # what a build that was killed leaves
    build.load()
    assert made.stat().st_mtime_ns == stamp
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))  # this process would not look at a file of that path again
    torn = build.folder() / made.name
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"torn")
    with pytest.raises(build.NoLibraryError, match="cannot be loaded"):
        build.load()
    assert not torn.exists()


def test_another_cpu_compiler_or_source_gives_another_name(monkeypatch):
    names = {build._key("c++", "libgomp.so")}
    names.add(build._key("c++", "another.so"))
    monkeypatch.setattr(build, "cpu_model", lambda: "another CPU")
    names.add(build._key("c++", "libgomp.so"))
    monkeypatch.setattr(build, "FLAGS", ("-O2",))
    names.add(build._key("c++", "libgomp.so"))
    assert len(names) == 4


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        pytest.param(None, r"there is no C\+\+ compiler", id="none"),
        pytest.param("#!/bin/sh\necho 'kernels.cpp:1: error: unknown type' >&2\nexit 1\n", "cannot compile them", id="one-that-fails"),
        pytest.param("of another machine", "cannot be run", id="one-that-cannot-be-run"),
    ],
)
def test_without_a_compiler_the_reason_is_said(place, tmp_path, monkeypatch, compiler, said):
    tools = tmp_path / "bin"
    tools.mkdir()
    if compiler:
        (tools / "c++").write_text(compiler, encoding="utf-8")
        (tools / "c++").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/bin" if compiler else str(tools))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(build.NoLibraryError, match=said):
        build.load()
    assert not place.exists() or not list(place.iterdir())


@needs_cpp
def test_without_a_home_the_reason_is_said(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(build.Path, "home", no_home)
    with pytest.raises(build.NoLibraryError, match=r"no folder to keep them in \(Could not determine home directory\.\)"):
        build.load()


def test_without_a_library_the_twins_answer(monkeypatch):
    x = torch.randn(3, 8)
    wanted = torch.nn.functional.gelu(x)
    monkeypatch.setattr(calls, "library", lambda: None)
    assert torch.equal(bias_gelu(x, torch.zeros(8)), wanted)


@needs_cpp
def test_it_shares_torchs_threads():
    """A second OpenMP library would bring threads of its own, which wait on the cores that torch's work on."""
    code = """
import torch
from bertfast_kernels.cpu import build
build.load()
loaded = {line.split(maxsplit=5)[-1].strip() for line in open("/proc/self/maps") if build._OPENMP.search(line)}
assert len(loaded) == 1, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "kernels", capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
