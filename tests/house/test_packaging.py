"""The wheel, what it holds and how it is used; the pinned versions; the Makefile's stamp."""

import configparser
import email
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bertfast import __version__
from tests.support import ROOT
from tests.support.runs import need_deepspeed
from tests.support.tiny_bert import write_tiny_bert

APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # sha256 of apache.org/licenses/LICENSE-2.0.txt
NOT_SOURCE = {str(ROOT / name) for name in ("runs", "data", "build", "dist")}  # and what begins with a dot


def run(*command, **options) -> str:
    """The standard output of a command that must end well."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def not_source(folder: str, names: list[str]) -> list[str]:
    built = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__")(folder, names)
    return [*built, *(name for name in names if os.path.join(folder, name) in NOT_SOURCE)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources without network."""
    pytest.importorskip("setuptools", minversion="77", reason="building the wheel needs setuptools 77 or newer")
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=not_source)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, folder / "source")
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def names(wheel) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def metadata(wheel) -> email.message.Message:
    return email.message_from_bytes(zipfile.ZipFile(wheel).read(f"bertfast-{__version__}.dist-info/METADATA"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """A folder that pip installed the wheel into, and nothing else."""
    folder = tmp_path_factory.mktemp("site-packages")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target", folder, wheel)
    return folder


def test_top_level_names(names):
    offered = {"bertfast", "bertfast_kernels", "bertfast_export", f"bertfast-{__version__}.dist-info"}
    assert {name.partition("/")[0] for name in names} == offered


@pytest.mark.parametrize(
    "folder, inside",
    [
        pytest.param("bertfast", "bertfast", id="bertfast"),
        pytest.param("kernels/bertfast_kernels", "bertfast_kernels", id="kernels"),
        pytest.param("export/bertfast_export", "bertfast_export", id="export"),
        pytest.param("configs", "bertfast/configs", id="configs"),
    ],
)
def test_every_file_is_shipped(names, folder, inside):
    source = {f"{inside}/{path.relative_to(ROOT / folder)}" for path in (ROOT / folder).rglob("*") if path.is_file()}
    source = {name for name in source if "__pycache__" not in name}
    assert source and source <= names
    assert not [name for name in names if "__pycache__" in name]


def test_type_checkers_are_told_that_there_are_types(names):
    assert {f"{package}/py.typed" for package in ("bertfast", "bertfast_kernels", "bertfast_export")} <= names


def test_metadata(wheel, metadata):
    assert (metadata["Name"], metadata["Version"], metadata["License-Expression"]) == ("bertfast", __version__, "Apache-2.0")
    assert {part.strip() for part in metadata["Requires-Python"].split(",")} == {">=3.11", "<3.13"}
    archive = zipfile.ZipFile(wheel)
    assert hashlib.sha256(archive.read(f"bertfast-{__version__}.dist-info/licenses/LICENSE")).hexdigest() == APACHE_2
    points = configparser.ConfigParser()
    points.read_string(archive.read(f"bertfast-{__version__}.dist-info/entry_points.txt").decode())
    assert dict(points["console_scripts"]) == {"bertfast": "bertfast.cli:main"}


@pytest.fixture
def installed(site, tmp_path):
    """installed(*command): its output, run by this Python in an empty folder, with the installed wheel in front of all other packages."""
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return lambda *command: run(sys.executable, *command, cwd=tmp_path, env=environment)


def test_an_installed_wheel_is_what_is_imported(site, installed):
    code = (
        "import bertfast, bertfast_kernels\n"
        "from bertfast import BertClassifier, PackedBatch, Trainer, load_config\n"
        "from bertfast_kernels import varlen_attention\n"
        "from transformers import BertModel, Trainer\n"  # transformers asks for a package of the name kernels
        "print(bertfast.__file__, bertfast_kernels.__file__)"
    )
    assert installed("-c", code).split() == [str(site / package / "__init__.py") for package in ("bertfast", "bertfast_kernels")]


def test_the_installed_command_trains_and_predicts(site, installed, tmp_path):
    need_deepspeed()
    write_tiny_bert(tmp_path / "tiny")
    rows = ["a good film,yes", "a bad film,no"]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows * 8]) + "\n")
    data = {"data_file": "train.csv", "max_sequence_length": 16, "batch_size": 4, "cache_dir": "cache"}
    block = {
        "task": {"text_columns": ["text"]},
        "model": {"checkpoint": "tiny"},
        "train_input": data,
        "eval_input": data,
        "run": {"max_steps": 3, "model_dir": "out"},
    }
    (tmp_path / "config.json").write_text(json.dumps({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}, "bertfast": block}))
    command = site / "bin" / "bertfast"  # the console script
    assert installed(command, "--version").split() == ["bertfast", __version__]
    installed(command, "train", "CPU", "--config", "config.json")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["training"]["steps"] == 3
    assert "accuracy" in installed(command, "eval", "CPU", "--config", "config.json")
    (tmp_path / "texts.txt").write_text("a very good film\n")
    answer = json.loads(installed(command, "predict", "CPU", "--checkpoint_path", "out/model", "--input", "texts.txt"))
    assert answer["prediction"] in ("yes", "no") and sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_an_installed_wheel_finds_its_configs(site, installed):
    found = installed("-c", "from bertfast.config import load_config; print(load_config('ds_mnli.json').path)")
    assert Path(found.strip()) == site / "bertfast" / "configs" / "ds_mnli.json"


def test_a_folder_called_configs_beside_an_installed_wheel_is_not_ours(site, tmp_path):
    (site / "configs").mkdir()
    (site / "configs" / "theirs.json").write_text("{}")
    code = "from bertfast.config.files import find_config; find_config('theirs.json')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True
    )
    assert "ConfigError: --config theirs.json: no such file" in done.stderr


@pytest.mark.parametrize(
    "how",
    [
        pytest.param([str(ROOT / "launch.py")], id="launch.py-from-another-folder"),
        pytest.param(["-m", "bertfast"], id="module-of-an-installed-wheel"),
    ],
)
def test_launch(how, site, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(site)}
    assert "launch.py" in how[0] or "COMMAND" in run(sys.executable, *how, "--help", cwd=tmp_path, env=environment)
    command = [sys.executable, *how, "--local_rank=0", "--config", "nowhere.json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "nowhere.json: no such file" in done.stderr


def pins(file: str = "constraints.txt") -> dict[str, str]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("torch==")
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line), f"{line!r}: exact versions and nothing else"
    pairs = [line.split("==") for line in lines]
    found = {canonicalize_name(name): version for name, version in pairs}
    assert len(found) == len(lines), "a name stands twice"
    assert [name for name, _ in pairs[1:]] == sorted((name for name, _ in pairs[1:]), key=str.lower)
    return found


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-oldest.txt"])
def test_what_we_need_is_pinned(metadata, file):
    pinned = pins(file)
    for text in metadata.get_all("Requires-Dist"):
        requirement = Requirement(text)
        if "monitor" in str(requirement.marker):  # TensorBoard and W&B are the user's own choice
            continue
        name = canonicalize_name(requirement.name)
        assert name in pinned and requirement.specifier.contains(pinned[name]), text


def test_the_oldest_versions_are_those_that_are_promised(metadata):
    oldest = pins("constraints-oldest.txt")
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    floors = {
        requirement.name: clause.version for requirement in requirements for clause in requirement.specifier if clause.operator == ">="
    }
    promised = {name: oldest[name] for name in ("torch", "transformers", "triton")}
    assert {name: f"{floors[name]}.0" for name in promised} == promised


@pytest.fixture
def make(tmp_path):
    """make(*arguments) in a folder that holds what .venv depends on; `make -n` only says what it would do."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "setup.py", "pyproject.toml", "constraints.txt", "constraints-oldest.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return lambda *arguments: subprocess.run(["make", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("target", "environment"),
    [("demo", ".venv"), ("test", ".venv"), ("bench", ".venv"), ("lint", ".venv"), ("check", ".venv"), ("oldest", ".venv-oldest")],
)
def test_make_installs_once(make, target, environment, tmp_path):
    assert "pip install" in make("-n", target).stdout
    stamp = tmp_path / environment / "installed"
    stamp.parent.mkdir()
    stamp.touch()
    again = make("-n", target)
    assert again.returncode == 0 and "pip" not in again.stdout and len(again.stdout.splitlines()) == 1


@pytest.mark.parametrize("name", ["setup.py", "pyproject.toml", "constraints.txt"])
def test_make_installs_again_when_something_changed(make, name, tmp_path):
    stamp = tmp_path / ".venv" / "installed"
    stamp.parent.mkdir()
    stamp.touch()
    later = stamp.stat().st_mtime + 10
    os.utime(tmp_path / name, (later, later))
    assert "pip install" in make("-n", "test").stdout


def test_an_install_that_fails_leaves_no_stamp(make, tmp_path):
    """A Python whose `-m venv` works and whose pip does not; an older stamp goes, too."""
    stamp = tmp_path / ".venv" / "installed"
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    stamp.touch()
    os.utime(stamp, (0, 0))
    (tmp_path / ".venv" / "bin" / "python").symlink_to(shutil.which("false"))
    assert make("test", f"PYTHON={shutil.which('true')}").returncode != 0
    assert not stamp.exists()


@pytest.mark.network
def test_an_empty_environment_beside_the_real_kernels(wheel, tmp_path):
    """Some minutes and, without a torch for CPUs at hand, some gigabytes: pytest -m network tests/house/test_packaging.py"""
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel, "kernels")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = "import kernels, bertfast_kernels; from transformers import BertModel, Trainer; print(kernels.__file__)"
    assert "site-packages" in run(python, "-c", code, cwd=tmp_path, env=environment)
    shown = run(python, "-m", "bertfast.demo", "--rows", "600", cwd=tmp_path, env=environment)
    assert "--module bertfast" in shown and "dev accuracy" in shown
    assert (tmp_path / "runs" / "demo" / "training" / "model" / "model.safetensors").is_file()
