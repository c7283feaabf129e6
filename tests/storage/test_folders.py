"""Folders that are whole or not there, after kills at any moment, beside readers, and on full disks."""

import os
import resource
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from bertfast.engine.ranks import Ranks
from bertfast.engine.state import save_training_state
from bertfast.errors import CheckpointError
from bertfast.model.bert import BertClassifier
from bertfast.storage import folders
from bertfast.storage.folders import MANIFEST, fault_of, prune, recover, recover_steps, seal, sealed_step, standing, write_folder
from bertfast.weights.convert import convert_checkpoint
from bertfast.weights.folder import save_tensors
from tests.support.tiny_bert import write_tiny_bert

ALONE = Ranks(0, 1, torch.device("cpu"))
SIZE_LIMIT = 20_000  # bytes


def make(folder, text, sealed=True):
    folder.mkdir(parents=True)
    (folder / "file").write_text(text)
    if sealed:
        seal(folder)
    return folder


@contextmanager
def no_file_over(size):
    """The system refuses to let a file grow beyond `size` bytes: as on a full disk, each library meets an error of the system's."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# what a kill leaves (name -> sealed or not) -> what `final` holds when it is mended; None: nothing that is whole was there
KILLS = [
    pytest.param({".writing-model": False}, None, id="in-the-first-write"),
    pytest.param({".writing-model": True}, ".writing-model", id="before-the-first-rename-into-place"),
    pytest.param({"model": True, ".writing-model": False}, "model", id="in-a-later-write"),
    pytest.param({"model": True, ".writing-model": True}, "model", id="before-the-old-one-is-moved-away"),
    pytest.param({".old-model": True, ".writing-model": True}, ".writing-model", id="between-the-renames"),
    pytest.param({".old-model": True, ".writing-model": False}, ".old-model", id="the-new-one-torn-between-the-renames"),
    pytest.param({".old-model": True, "model": True}, "model", id="before-the-old-one-is-gone"),
]


@pytest.mark.parametrize(("left", "wanted"), KILLS)
def test_a_writer_mends_what_a_kill_left_and_a_reader_moves_nothing(left, wanted, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_INSTANT_SECONDS", 0.01)
    for name, sealed in left.items():
        make(tmp_path / name, name, sealed)
    read = standing(tmp_path / "model")
    assert (read / "file").read_text() == wanted if wanted else not read.exists()
    assert {path.name for path in tmp_path.iterdir()} == set(left)
    recover(tmp_path / "model")
    if wanted:
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        assert (tmp_path / "model" / "file").read_text() == wanted and fault_of(tmp_path / "model") is None
    else:
        assert not (tmp_path / "model").exists()


def test_a_reader_waits_for_a_writer_between_its_renames(tmp_path, monkeypatch):
    old, new = make(tmp_path / ".old-model", "old"), make(tmp_path / ".writing-model", "new")
    monkeypatch.setattr(folders.time, "sleep", lambda seconds: new.exists() and new.rename(tmp_path / "model"))
    assert standing(tmp_path / "model") == tmp_path / "model" and old.exists()


def test_a_checkpoint_that_was_being_written_again_is_mended(tmp_path):
    make(tmp_path / ".old-step-00000004", "old")
    make(tmp_path / "step-00000002", "two")
    recover_steps(tmp_path)
    assert [path.name for path in folders.steps_in(tmp_path)] == ["step-00000002", "step-00000004"]


def test_the_oldest_are_pruned_with_what_kills_left(tmp_path):
    names = ["step-00000002", "step-00000010", "step-00000006", "step-100000000"]
    for name in [*names, ".deleting-step-00000001", ".writing-step-00000012", "step-7", "notes"]:
        make(tmp_path / name, name)
    prune(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000010", "step-100000000", "step-7", "notes"}
    prune(tmp_path, 5)
    assert len(folders.steps_in(tmp_path)) == 2


def test_a_kill_while_pruning_leaves_no_torn_checkpoint(tmp_path, monkeypatch):
    for step in (1, 2):
        make(tmp_path / f"step-{step:08d}", str(step))
    monkeypatch.setattr(folders.shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path, 1)
    assert [path.name for path in folders.steps_in(tmp_path)] == ["step-00000002"]


def test_a_sealed_folder_says_of_which_step_it_is(tmp_path):
    write_folder(tmp_path / "model", lambda folder: (folder / "file").write_text("x"), 7)
    assert sealed_step(tmp_path / "model") == 7 and fault_of(tmp_path / "model") is None
    assert sealed_step(make(tmp_path / "plain", "x")) is None and sealed_step(tmp_path / "nothing") is None
    (tmp_path / "plain" / MANIFEST).write_text("{half")
    assert sealed_step(tmp_path / "plain") is None


# ---------------------------------------------------------------------------------------------------------------------------- full disks


def with_tensors(folder):
    save_tensors(folder, {"tensor": torch.zeros(SIZE_LIMIT)})


def with_a_tokenizer(folder):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    Tokenizer(WordLevel({f"word{index}": index for index in range(SIZE_LIMIT)}, unk_token="word0")).save(str(folder / "tokenizer.json"))


def with_plain_bytes(folder):
    (folder / "file").write_bytes(bytes(2 * SIZE_LIMIT))


@pytest.mark.parametrize("write", [with_tensors, with_a_tokenizer, with_plain_bytes])
def test_a_folder_that_no_longer_fits_leaves_the_old_one(write, tmp_path):
    final = make(tmp_path / "model", "old")
    with no_file_over(SIZE_LIMIT), pytest.raises(CheckpointError, match=f"^{final}: cannot be written: .*File too large"):
        write_folder(final, write)
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and (final / "file").read_text() == "old"


def test_a_mistake_of_ours_is_no_full_disk_and_leaves_nothing_half_written(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_folder(tmp_path / "model", lambda folder: 1 / 0)
    assert not list(tmp_path.iterdir())


def test_a_rename_that_fails_brings_the_old_folder_back(tmp_path, monkeypatch):
    final, rename = make(tmp_path / "model", "old"), os.rename

    def refuse(source, target):
        if target == final and source.name == ".writing-model":
            source.joinpath("file").unlink()
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(folders.os, "rename", refuse)
    with pytest.raises(CheckpointError, match="Input/output error"):
        write_folder(final, lambda folder: (folder / "file").write_text("new"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and (final / "file").read_text() == "old"


def deepspeed_s_state(folder, tag, **_):
    os.mkdir(f"{folder}/{tag}")
    torch.save({"tensor": torch.zeros(SIZE_LIMIT)}, f"{folder}/{tag}/state.pt")


@pytest.mark.parametrize(
    ("save", "write"),
    [
        pytest.param(deepspeed_s_state, lambda folder: None, id="torch"),
        pytest.param(lambda *_, **__: None, with_tensors, id="safetensors"),
        pytest.param(lambda *_, **__: None, with_a_tokenizer, id="tokenizers"),
    ],
)
def test_a_checkpoint_that_no_longer_fits_leaves_those_before_it(save, write, tmp_path):
    make(tmp_path / "step-00000001", "one")
    engine = SimpleNamespace(save_checkpoint=save)
    with no_file_over(SIZE_LIMIT), pytest.raises(CheckpointError, match="step-00000002: cannot be written: .* before it are kept"):
        save_training_state(engine, tmp_path, 2, {}, write, ALONE)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_conversion_that_does_not_fit_leaves_nothing(tmp_path):
    source = write_tiny_bert(tmp_path / "bert", hidden_size=32)
    with no_file_over(SIZE_LIMIT), pytest.raises(CheckpointError, match=r"out: cannot be written: .*File too large"):
        convert_checkpoint(str(source), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]


def test_the_umask_says_who_may_read_what_is_saved(tmp_path):
    before = os.umask(0o027)
    try:
        source = write_tiny_bert(tmp_path / "bert")
        convert_checkpoint(str(source), tmp_path / "converted")
        (tmp_path / "saved").mkdir()
        BertClassifier.from_pretrained(source, 2).save_pretrained(str(tmp_path / "saved"))
    finally:
        os.umask(before)
    for name in ("converted", "saved"):
        modes = {file.name: oct(file.stat().st_mode & 0o777) for file in (tmp_path / name).iterdir()}
        assert "model.safetensors" in modes and set(modes.values()) == {"0o640"}, modes
