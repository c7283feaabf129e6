"""The library of the C++ kernels: compiled once for this machine and kept, in a file that is named after all that it was made from.

A compilation takes some 3 seconds on a core. Its result is written beside and renamed: a build that is killed leaves nothing that another waits for, and
two at once do the same work twice. Another CPU, compiler, OpenMP or source gives another name, so a home folder may be shared between machines.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).parent / "source"
FLAGS = ("-std=gnu++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
_OPENMP = re.compile(r"/lib(gomp|iomp5|omp)\b[^/]*\.so[^/]*$")  # GNU's; Intel's and LLVM's, which know GNU's calls
_LONGEST_BUILD = 300  # seconds; more is no compiler at work


class NoLibraryError(Exception):
    """Why there are no C++ kernels here, in a sentence."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels, compiled if need be; None where there can be none, for which `cpu_kernels_fault` has the reason."""
    return _outcome()[0]


def cpu_kernels_fault() -> str | None:
    """Why there are no C++ kernels here; None where there are."""
    return _outcome()[1]


@functools.cache
def _outcome() -> tuple[ctypes.CDLL | None, str | None]:
    try:
        return load(), None
    except NoLibraryError as error:
        return None, str(error)


def load() -> ctypes.CDLL:
    """The kernels, compiled if need be.

    Raises:
        NoLibraryError: there is no compiler, or its work cannot be kept or loaded.
    """
    compiler = shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++")
    if compiler is None:
        raise NoLibraryError("there is no C++ compiler (c++ or g++, or what CXX names)")
    openmp = _openmp()
    try:
        file = folder() / f"kernels-{_key(compiler, openmp)}.so"
    except (OSError, RuntimeError) as error:  # no executable for this machine; a user without a home
        raise NoLibraryError(f"{compiler} cannot be run, or there is no folder to keep them in ({error})") from error
    if not file.is_file():
        _compile(compiler, openmp, file)
    try:
        return _declared(ctypes.CDLL(str(file)))
    except (OSError, AttributeError) as error:  # torn by a full disk, say: it is made anew the next time
        file.unlink(missing_ok=True)
        raise NoLibraryError(f"{file} cannot be loaded ({error})") from error


def folder() -> Path:
    """Where compiled kernels are kept: of each user, in the folder for what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bertfast" / "kernels"


def _compile(compiler: str, openmp: str, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent, prefix="building-") as place:
            made = Path(place) / file.name
            object_file = str(made.with_suffix(".o"))
            for command in (
                [compiler, *FLAGS, "-c", str(SOURCE / "kernels.cpp"), "-o", object_file],
                [compiler, "-shared", object_file, openmp, "-o", str(made)],  # without -fopenmp, which would link the compiler's own
            ):
                done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_BUILD)
                if done.returncode:
                    said = next((line for line in done.stderr.splitlines() if "error" in line), f"exit status {done.returncode}")
                    raise NoLibraryError(f"{compiler} cannot compile them ({said.strip()[:200]})")
            made.replace(file)
    except subprocess.TimeoutExpired as error:
        raise NoLibraryError(f"{compiler} took more than {_LONGEST_BUILD} seconds") from error
    except OSError as error:
        raise NoLibraryError(f"{file.parent} cannot be written ({error.strerror or error})") from error


def _openmp() -> str:
    """The OpenMP library that torch has loaded. The kernels are linked with that file: a second one would bring threads of its own, which spin on
    the cores that torch's are to work on.

    Raises:
        NoLibraryError: torch has none that this compiler's code can use.
    """
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    loaded = {line.split(maxsplit=5)[-1] for line in lines if _OPENMP.search(line)}
    if not loaded:
        raise NoLibraryError("this process has loaded no OpenMP library that they could share")
    own = str(Path(torch.__file__).parent.parent)
    return min(loaded, key=lambda path: (not path.startswith(own), path))


def _key(compiler: str, openmp: str) -> str:
    """What the library is made from and for, as a hash."""
    told = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    parts = [*FLAGS, compiler, told, openmp, torch.__version__, cpu_model()]
    parts += [(SOURCE / name).read_text(encoding="utf-8") for name in sorted(os.listdir(SOURCE))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


@functools.cache
def cpu_model() -> str:
    """What -march=native goes by: the CPU's model and its instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    kept = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join(line for line in lines if line.split(":")[0].strip() in kept)


_P, _I, _L, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_float
_DECLARATIONS = {
    "norm_forward": (None, [_I, *[_P] * 6, _F, _F, _L, _L, *[_P] * 4, _I]),
    "norm_backward": (None, [_I, *[_P] * 6, _F, _L, _L, *[_P] * 4, _I]),
    "embedding_forward": (_L, [_I, *[_P] * 6, _F, _F, _L, _L, *[_P] * 3, _I]),
    "embedding_backward": (None, [_I, *[_P] * 7, _F, _L, _L, *[_P] * 3, _I]),
    "add_rows": (None, [_P, _P, _L, _L, _P, _I]),
    "gelu_forward": (None, [_I, _I, _P, _P, _L, _L, _P, _I]),
    "gelu_backward": (None, [_I, _I, *[_P] * 3, _L, _L, *[_P] * 3, _I]),
    "block": (_L, []),
    "attention_forward": (None, [_I, _P, _L, _L, _L, _I, _P, _P, _F, _P, _L, _P, _P, _L, _P, _L, _I]),
    "attention_backward": (None, [_I, _P, _L, _L, _L, _I, _P, _P, _F, _P, _L, _P, _P, _L, *[_P] * 4, _L, _I]),
    "squares": (ctypes.c_double, [_P, _P, _L, _I]),
    "adamw": (None, [_P, _L, ctypes.c_double, ctypes.c_double, _F, _F, _I]),
    "transpose": (None, [_P, _L, _L, _P, _I]),
    "moved": (None, [_P, _P, _L, _L, _P, _I]),
}


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    for name, (result, arguments) in _DECLARATIONS.items():
        function = getattr(found, f"bertfast_{name}")
        function.restype, function.argtypes = result, arguments
    return found
