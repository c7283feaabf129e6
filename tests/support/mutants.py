"""Kernels with a deliberate fault in them: does a test see it?"""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

import bertfast_kernels

FOLDER = Path(bertfast_kernels.__file__).parent
_count = itertools.count()


def load_mutant(name: str, old: str, new: str, folder: Path, inside: str | None = None) -> ModuleType:
    """The kernel module `name` with the first `old` of its source replaced by `new`, under op names of its own.

    inside: the module whose source holds `old`, where `name` imports the fault from there.
    """
    number = next(_count)
    source = (_file_of(name)).read_text(encoding="utf-8").replace('custom_op("bertfast::', f'custom_op("bertfast_mutant{number}::')
    if inside:
        source = source.replace(f"from bertfast_kernels.{inside} import", f"from bertfast_kernels_mutant{number} import")
        faulty = (_file_of(inside)).read_text(encoding="utf-8")
        _load(f"bertfast_kernels_mutant{number}", _replaced(faulty, old, new), folder)
    else:
        source = _replaced(source, old, new)
    return _load(f"mutant{number}_{name.replace('.', '_')}", source, folder)


def _file_of(name: str) -> Path:
    return FOLDER / f"{name.replace('.', '/')}.py"


def _replaced(source: str, old: str, new: str) -> str:
    assert old in source, f"the source no longer holds {old!r}: write the fault anew"
    return source.replace(old, new, 1)


def _load(name: str, source: str, folder: Path) -> ModuleType:
    path = folder / f"{name}.py"  # Triton reads a kernel's source from its file
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
