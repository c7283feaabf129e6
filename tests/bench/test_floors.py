"""bench's own walls: its packages lie on floors, imports go down only, and a folder is small enough to be read at a glance."""

import ast

import pytest

from bench import ROOT

FLOORS = (
    "harness",
    "cases",
    "contests",
    "report",
    "compare",
    "sweep",
    "answers",
    "suites",
    "wrappers",
)  # from the ground; "suites": the commands
MOST_FILES = 12
FILES = {path.relative_to(ROOT / "bench"): path for path in sorted((ROOT / "bench").rglob("*.py"))}
FOLDERS = sorted({path.parent for path in FILES.values()})


def floor_of(parts):
    """The floor of a file or module of bench, given its path without `bench`; the package itself, which holds ROOT, is the ground."""
    if not parts or parts == ("__init__",):
        return -1
    return FLOORS.index(parts[0] if len(parts) > 1 or parts[0] in FLOORS else "suites")


@pytest.mark.parametrize("name", FILES, ids=str)
def test_imports_go_down(name):
    own = name.with_suffix("").parts
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "bench":
            imported = tuple(node.module.split(".")[1:])
            same = own[0] == (imported or [""])[0] or {floor_of(own), floor_of(imported)} == {FLOORS.index("suites")}
            assert same or floor_of(imported) < floor_of(own), f"bench/{name} imports {node.module}"
            crossing = [alias.name for alias in node.names if alias.name.startswith("_")]
            assert not crossing or own[0] == imported[0], f"bench/{name} imports {crossing} of {node.module}"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_folder_has_few_files_of_different_names(folder):
    stems = [path.stem for path in folder.iterdir() if path.is_file()]
    assert len(stems) <= MOST_FILES
    words = [stem.strip("_").partition("_")[0] for stem in stems if not stem.startswith("bench_")]
    assert len(words) == len(set(words)), "no two files of one folder share a first word, but for the suites"


def test_a_package_says_its_job():
    assert all(ast.get_docstring(ast.parse(path.read_text())) for name, path in FILES.items() if name.name == "__init__.py")
