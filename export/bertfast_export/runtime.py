"""ONNX Runtime sessions: opened on the provider that was asked for, or not at all, with the fix named."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.metadata
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from bertfast import machine
from bertfast.errors import ExportError
from bertfast.wording import reason

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime

CPU = "CPUExecutionProvider"
WORDS = "embeddings.word.int8"  # an int8 file's table of words, half of its bytes
# Field numbers of onnx.proto: ModelProto.graph, GraphProto.initializer, and of a TensorProto its lengths, name and bytes.
_GRAPH, _INITIALIZER, _DIMS, _NAME, _RAW = 7, 5, 1, 8, 9
_WHEELS = ("onnxruntime", "onnxruntime-gpu")
_CUDA = ((27, "CUDA 13"), (19, "CUDA 12"), (0, "CUDA 11"))  # what onnxruntime-gpu 1.x from PyPI is built for, from which x on


class Value(Protocol):
    """An input or output of a session: `type` as in "tensor(int64)", and in `shape` a number for each length that is fixed."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def shape(self) -> Sequence[int | str]: ...


class Session(Protocol):
    """What answers as a session of onnxruntime does."""

    def run(self, names: list[str], features: dict[str, np.ndarray], /) -> list[np.ndarray]: ...
    def get_inputs(self) -> Sequence[Value]: ...
    def get_outputs(self) -> Sequence[Value]: ...


def check_wheels() -> None:
    """Raise where no onnxruntime is installed, or two are: they share one import name and overwrite each other's files."""
    found = [name for name in _WHEELS if _version(name)]
    if not found:
        raise ExportError("onnxruntime is not installed; for a CPU: pip install 'bertfast[export]'")
    if len(found) > 1:
        raise ExportError(
            "onnxruntime and onnxruntime-gpu are both installed, and each overwrites the other's files: "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install the one that is wanted"
        )


def check_onnx() -> None:
    """Raise where graphs cannot be written, for want of onnx."""
    if not _version("onnx"):
        raise ExportError("onnx is not installed; writing a graph needs it: pip install 'bertfast[export]'")


def open_session(
    model: str | Path | bytes, providers: Sequence[str] | None = None, threads: int | None = None
) -> onnxruntime.InferenceSession:
    """A session on the first of `providers` (left out: the CPU).

    threads: of the CPU within an operator; left out, onnxruntime's own choice, one a core, or fewer where the process is to use fewer:
    onnxruntime counts the machine's cores, whatever OMP_NUM_THREADS, the affinity or a container says.

    Raises:
        ExportError: the file cannot be read, or the provider is not there; with what to do.
    """
    check_wheels()
    import onnxruntime

    wanted = list(providers or [CPU])
    if missing := [name for name in wanted if name not in onnxruntime.get_available_providers()]:
        raise ExportError(_advice(missing[0], onnxruntime))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is None and machine.threads() < (os.cpu_count() or 1):
        threads = machine.threads()
    if threads is not None:
        options.intra_op_num_threads = threads
    table = None if isinstance(model, bytes) or wanted[0] != CPU else _mapped_words(Path(model))
    if table is not None:
        held = onnxruntime.OrtValue.ortvalue_from_numpy(table)
        options.add_initializer(WORDS, held)
    source = model if isinstance(model, bytes) else str(model)
    name = "a graph in memory" if isinstance(model, bytes) else str(model)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=wanted)
    except Exception as error:  # onnxruntime's errors share no base class
        raise ExportError(f"{name}: onnxruntime {onnxruntime.__version__} cannot open it ({reason(error)})") from None
    if wanted[0] != CPU and session.get_providers()[0] != wanted[0]:  # it falls back to the CPU with a warning in the log, no more
        raise ExportError(f"{wanted[0]} could not be started. {_advice(wanted[0], onnxruntime)}")
    if table is not None:
        session.words = held  # onnxruntime reads it for as long as the session lives, and keeps no count of it
        _give_back()
    return session


def _mapped_words(path: Path) -> np.ndarray | None:
    """The table of words [V, D] of an int8 file, mapped from the file: of 11.7 MB those pages alone are in memory whose words have come, once for
    all sessions. None of a file that has none, or cannot be read, which onnxruntime then says better."""
    import numpy as np

    try:
        with open(path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for graph in _fields(content, 0, len(content), _GRAPH):
            for tensor in _fields(content, *graph, _INITIALIZER):
                named = [content[begin:end] for begin, end in _fields(content, *tensor, _NAME)]
                if named == [WORDS.encode()]:
                    (begin, end), *_ = _fields(content, *tensor, _RAW)
                    columns = [length for length, _ in _fields(content, *tensor, _DIMS)][-1]
                    return np.frombuffer(content, dtype=np.int8, count=end - begin, offset=begin).reshape(-1, columns)
    except (OSError, ValueError, IndexError):
        pass
    return None


def _fields(content: mmap.mmap, begin: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Of a protobuf message, (begin, end) of each field of that number; of a number (it, 0)."""

    def varint() -> int:
        nonlocal begin
        value = shift = 0
        while True:
            byte = content[begin]
            begin += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while begin < end:
        key = varint()
        number, kind = key >> 3, key & 7
        if kind == 0:
            found = (varint(), 0)
        else:
            length = varint() if kind == 2 else {1: 8, 5: 4}.get(kind, 0)
            found = (begin, begin + length)
            begin += length
        if number == wanted:
            yield found


def _give_back() -> None:
    """Ask glibc for what it holds and nobody uses: 8 MB, after a file was parsed. Other C libraries do it themselves, or cannot."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def input_types(session: Session) -> dict[str, type[np.integer]]:
    """The integer type of each input."""
    import numpy as np

    return {value.name: np.int32 if value.type == "tensor(int32)" else np.int64 for value in session.get_inputs()}


def _advice(provider: str, onnxruntime: ModuleType) -> str:
    version, available = onnxruntime.__version__, ", ".join(onnxruntime.get_available_providers())
    if provider != "CUDAExecutionProvider":
        return f"onnxruntime {version} has no {provider}; it has {available}"
    minor = int(version.split(".")[1])
    cuda = next(name for since, name in _CUDA if minor >= since)
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return (
            f"onnxruntime {version} is the CPU's wheel (it has {available}): pip uninstall -y onnxruntime, then "
            f"pip install 'onnxruntime-gpu[cuda,cudnn]', which from 1.27 on wants CUDA 13, before that CUDA 12"
        )
    return (
        f"onnxruntime-gpu {version} wants the libraries of {cuda} and cuDNN 9: pip install 'onnxruntime-gpu[cuda,cudnn]=={version}', and call "
        "onnxruntime.preload_dlls(), or take a version that fits the CUDA of this machine"
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
