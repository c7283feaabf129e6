"""Imports go down only, and what is heavy stays out of `import bertfast`."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the ground up. A module may import from its own floor and from those below.
FLOORS = [
    {
        "bertfast",
        "errors",
        "flags",
        "config_files",
        "machine",
        "deepspeed_keys",
        "crc32c",
        "tensor_bundle",
        "tensorflow_checkpoint",
        "blocks",
        "modules",
        "truncation",
        "schedules",
        "masking",
        "capture",
    },
    {
        "recompute",
        "config",
        "atomic",
        "locking",
        "partition",
        "packing",
        "planning",
        "tasks",
        "weights",
        "files",
        "records",
        "labels",
        "synthetic_nli",
        "multitask_blocks",
        "multitask_config",
    },
    {"buckets", "model", "heads", "resolve", "architectures", "memory", "arrow", "sources", "input_fn", "tokenizing", "encoded"},
    {
        "data",
        "checkpoint",
        "optim",
        "losses",
        "corpus",
        "pretraining_model",
        "mixture",
        "multitask_model",
        "metrics",
        "pretrained",
        "predictions",
        "report",
        "progress",
        "profiling",
        "prefetch",
    },
    {"engine", "steps", "inputs", "convert", "pretraining_data", "search", "trials", "sweep_report"},
    {"batches", "graphs", "keeping", "loading"},
    {
        "trainer",
        "pretraining",
        "multitask",
        "multitask_preflight",
        "validate",
        "preflight",
        "recipe_checks",
        "arguments",
        "compilation",
        "sweep",
        "sweep_checks",
    },
    {"cli", "demo", "__main__"},
]
KNOWS_DEEPSPEED = {"engine"}
KERNELS_MAY_IMPORT = {
    "__future__",
    "dataclasses",
    "functools",
    "itertools",
    "math",
    "types",
    "typing",
    "numpy",
    "torch",
    "bertfast_kernels",
}

OWN_IMPORTS = {
    "_triton": {"importlib", "os", "threading", "triton"},
    "compile": {"collections", "concurrent", "multiprocessing", "pathlib", "re", "subprocess", "tempfile"},
}


def modules():
    return sorted((ROOT / "bertfast").glob("*.py"))


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "bertfast" else {node.module}
    return found


def floor_of(name: str) -> int:
    floors = [index for index, names in enumerate(FLOORS) if name in names]
    assert len(floors) == 1, f"{name} must stand on exactly one floor of this test"
    return floors[0]


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_imports_go_down(path):
    name = "bertfast" if path.stem == "__init__" else path.stem
    here = floor_of(name)
    for imported in imports_of(path):
        package, _, rest = imported.partition(".")
        assert package != "bench"
        if package == "bertfast" and rest and not rest.startswith("__version__"):
            assert floor_of(rest.split(".")[0]) <= here, f"{name} imports {imported}, which stands above it"
        if package == "deepspeed":
            assert name in KNOWS_DEEPSPEED, f"{name} imports {imported}"


def test_kernels_know_tensors_only():
    for path in (ROOT / "kernels" / "bertfast_kernels").glob("*.py"):
        packages = {name.partition(".")[0] for name in imports_of(path)}
        own = OWN_IMPORTS.get(path.stem, set())
        assert packages <= KERNELS_MAY_IMPORT | own, path.name


def test_the_exporter_stands_below_the_command_line_alone():
    above = {"bertfast.cli", "bertfast.arguments", "bertfast.flags", "bertfast.demo", "bertfast.__main__", "deepspeed"}
    for path in (ROOT / "export" / "bertfast_export").glob("*.py"):
        assert not imports_of(path) & above, path.name
    for path in modules():
        if path.stem not in ("cli", "demo"):
            assert not {name for name in imports_of(path) if name.startswith("bertfast_export")}, path.name


def test_light_imports():
    code = "import bertfast, bertfast.config, bertfast.cli, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "deepspeed", "torchmetrics", "onnx", "onnxruntime"} & set(loaded)


def test_the_root_offers_no_package_called_kernels():
    """transformers takes an importable `kernels` with a loader for the PyPI package of that name (see docs/architecture.md)."""
    spec = importlib.util.find_spec("kernels")
    assert spec is None or spec.loader is None or (ROOT / "kernels") not in Path(spec.origin or "/").parents
    assert not (ROOT / "kernels" / "__init__.py").exists()
    subprocess.run([sys.executable, "-c", "from transformers import BertModel"], cwd=ROOT, check=True, capture_output=True)


def test_public_names():
    import bertfast

    assert all(callable(getattr(bertfast, name)) for name in bertfast.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Trayner'"):
        bertfast.Trayner  # noqa: B018
