"""The rules of the house that import-linter does not hold (its contracts stand in pyproject.toml): faces, sizes, and what stays light."""

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

FOLDERS = {
    "bertfast": ROOT / "bertfast",
    "bertfast_export": ROOT / "export" / "bertfast_export",
    "bertfast_kernels": ROOT / "kernels" / "bertfast_kernels",
}
MODULES = {
    ".".join((package, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__"): path
    for package, folder in FOLDERS.items()
    for path in sorted(folder.rglob("*.py"))
}
PACKAGES = {name for name, path in MODULES.items() if path.name == "__init__.py"}
MOST_FILES = 12
KERNELS_MAY_IMPORT = {
    "__future__",
    "contextlib",
    "dataclasses",
    "functools",
    "itertools",
    "math",
    "types",
    "typing",
    "numpy",
    "torch",
    "lazy_loader",
    "bertfast_kernels",
}
OWN_IMPORTS = {
    "build": {"ctypes", "hashlib", "os", "pathlib", "platform", "re", "shutil", "subprocess", "tempfile"},
    "rows": {"ctypes"},
    "calls": {"ctypes"},
    "products": {"weakref"},
    "adamw": {"collections", "ctypes"},
    "lazy_triton": {"importlib", "os", "threading", "triton"},
    "compile": {"collections", "concurrent", "multiprocessing", "pathlib", "re", "subprocess", "tempfile"},
}


def room_of(module: str) -> str:
    """The package that a face stands for: bertfast.config, bertfast_export.judge, and bertfast_kernels as a whole."""
    parts = module.split(".")
    return parts[0] if parts[0] == "bertfast_kernels" else ".".join(parts[:2])


def imports_of(path: Path) -> list[tuple[str, str | None]]:
    """(module, name) of every import of a file, those inside functions too; (module, None) of a plain `import module`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [(node.module, alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("package", sorted(package for package in PACKAGES if MODULES[package].with_suffix(".pyi").exists()))
def test_a_face_offers_what_it_names(package):
    """Every name of the stub is there, under its own name (which tells type checkers that it is offered), once, and none is private."""
    face = importlib.import_module(package)
    tree = ast.parse(MODULES[package].with_suffix(".pyi").read_text(encoding="utf-8"))
    aliases = [alias for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    offered = [alias.name for alias in aliases]
    assert sorted(offered) == sorted(face.__all__) and all(alias.asname == alias.name for alias in aliases)
    assert not [name for name in offered if name.startswith("_")]
    assert all(getattr(face, name) is not None for name in offered)
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        face.nothing_of_that_name  # noqa: B018


@pytest.mark.parametrize("module", sorted(MODULES))
def test_other_packages_are_asked_by_their_faces(module):
    for imported, name in imports_of(MODULES[module]):
        if imported.partition(".")[0] not in FOLDERS or room_of(imported) == room_of(module):
            continue
        assert name is not None, f"{module} imports {imported} as a whole"
        assert imported == room_of(imported) or imported in FOLDERS, (
            f"{module} imports from {imported}, which is private to {room_of(imported)}"
        )
        assert not name.startswith("_") or name.startswith("__"), f"{module} imports {name} of {imported}"


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_a_package_has_few_files_of_different_names(package):
    files = [path.stem for path in MODULES[package].parent.glob("*.py")]
    assert len(files) <= MOST_FILES
    words = [stem.strip("_").partition("_")[0] for stem in files]
    assert len(words) == len(set(words)), "no two files of one package share a first word"


def test_a_package_says_its_job():
    assert not [package for package in PACKAGES if not (ast.get_docstring(ast.parse(MODULES[package].read_text())) or "").strip()]


def test_a_test_lies_where_its_subject_lies():
    """tests/training/ for bertfast/training/; tests/export, tests/kernels and tests/bench for the other folders; tests/house for the whole."""
    rooms = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    subjects = {package.split(".")[1] for package in PACKAGES if package.startswith("bertfast.")}
    assert rooms - {"support", "house", "export", "kernels", "bench"} == subjects
    assert not list((ROOT / "tests").glob("test_*.py"))


def test_kernels_know_tensors_only():
    for name, path in MODULES.items():
        if name.startswith("bertfast_kernels"):
            packages = {imported.partition(".")[0] for imported, _ in imports_of(path)}
            assert packages <= KERNELS_MAY_IMPORT | OWN_IMPORTS.get(path.stem, set()), name


@pytest.mark.parametrize(
    ("imports", "light"),
    [
        pytest.param("import bertfast, bertfast.config, bertfast.cli.entry", {"numpy"}, id="the-command"),
        pytest.param("from bertfast_export import OnnxClassifier", set(), id="the-classifier-of-a-bundle"),
    ],
)
def test_light_imports(imports, light):
    code = f"{imports}; import sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "deepspeed", "torchmetrics", "onnx", "onnxruntime", *light} & set(loaded)


def test_the_root_offers_no_package_called_kernels():
    """transformers takes an importable `kernels` with a loader for the PyPI package of that name (see docs/architecture.md)."""
    spec = importlib.util.find_spec("kernels")
    assert spec is None or spec.loader is None or (ROOT / "kernels") not in Path(spec.origin or "/").parents
    assert not (ROOT / "kernels" / "__init__.py").exists()
    subprocess.run([sys.executable, "-c", "from transformers import BertModel"], cwd=ROOT, check=True, capture_output=True)


def test_public_names():
    import bertfast

    assert all(callable(getattr(bertfast, name)) for name in bertfast.__all__)
    with pytest.raises(AttributeError, match="Trayner"):
        bertfast.Trayner  # noqa: B018
