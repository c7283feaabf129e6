"""Folders that are whole or not there: training checkpoints by step, and the model folder.

A checkpoint is written under a name that nothing reads, listed in a manifest (each file's size and CRC-32), and renamed. A folder whose files do
not match its manifest is torn; `newest_whole` passes over it. Knows files only: what goes into a folder is the caller's business.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

from bertfast.errors import CheckpointError
from bertfast.storage.files import write_fault

MANIFEST = "manifest.json"
_LATER = ("calibration.json",)  # written into a sealed model, and written anew, by whoever calibrates it
_STEP = re.compile(r"step-(\d{8,})")
_INSTANT_SECONDS = 0.5  # two renames take microseconds


MODEL = "model"  # the folder of a training checkpoint that is transformers'


def step_folder(folder: Path, step: int) -> Path:
    """The place of the checkpoint taken after `step` optimizer steps."""
    return folder / f"step-{step:08d}"


def unfinished(final: Path) -> Path:
    """The name beside `final` under which it is written until it is whole."""
    return final.with_name(f".writing-{final.name}")


def seal(folder: Path, step: int | None = None) -> None:
    """Flush every file of `folder` to the disk and list them in its manifest, with the optimizer step that they are of."""
    files = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (MANIFEST, *_LATER)):
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
        files[str(file.relative_to(folder))] = {"bytes": file.stat().st_size, "crc32": _crc32(file)}
    with open(folder / MANIFEST, "w", encoding="utf-8") as handle:
        json.dump({**({} if step is None else {"step": step}), "files": files}, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())


def sealed_step(folder: Path) -> int | None:
    """The optimizer step that a sealed folder says it is of; None where it does not, or is not there."""
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("step")
    except (OSError, ValueError, AttributeError):
        return None


def fault_of(folder: Path) -> str | None:
    """What is wrong with a sealed folder, or None where it is whole."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (ValueError, KeyError, TypeError):
        return f"its {MANIFEST} cannot be read"
    for name, facts in files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != facts["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, not {facts['bytes']}"
        if _crc32(file) != facts["crc32"]:
            return f"{name} has changed since it was written"
    return None


def put_in_place(final: Path) -> None:
    """Rename the sealed folder `unfinished(final)` to `final`, replacing what stood there.

    Between the two renames of a replacement only the old folder, under `.old-NAME`, and the new one, sealed, exist; `recover` mends that.
    """
    beside, old = unfinished(final), final.with_name(f".old-{final.name}")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.rename(final, old)
    os.rename(beside, final)
    _sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(final: Path) -> None:
    """Undo what a kill in the middle of a replacement leaves behind: the new folder where it is whole, else the old one.

    It deletes what is half-written: only for whoever alone writes to `final`, for a run with the lock of its folder. Readers have `standing`.
    """
    beside, old = unfinished(final), final.with_name(f".old-{final.name}")
    if not final.exists():
        if beside.exists() and fault_of(beside) is None:
            os.rename(beside, final)
        elif old.exists():
            os.rename(old, final)
    if final.exists():
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def recover_steps(folder: Path) -> None:
    """`recover` for every checkpoint below `folder`."""
    for old in list(folder.glob(".old-step-*")):
        recover(old.with_name(old.name.removeprefix(".old-")))


def standing(final: Path) -> Path:
    """The folder to read in the place of `final`: another only where a kill between the two renames of a replacement has left `final` missing.

    For readers: it changes nothing. A writer that is alive is between those renames for an instant, which is waited for.
    """
    beside, old = unfinished(final), final.with_name(f".old-{final.name}")
    until = time.monotonic() + _INSTANT_SECONDS
    while not final.exists() and (old.exists() or (beside / MANIFEST).exists()):
        if time.monotonic() > until:
            return beside if fault_of(beside) is None else old
        time.sleep(_INSTANT_SECONDS / 20)
    return final


def remove(folder: Path) -> None:
    """Delete a folder, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def write_folder(final: Path, write: Callable[[Path], None], step: int | None = None) -> None:
    """Have `write` fill a folder beside `final`, then seal it (see there for `step`) and put it in its place. For one process.

    Raises:
        CheckpointError: naming the folder where the disk is full or cannot be written; what stood there before stays.
    """
    beside = unfinished(final)
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        write(beside)
        seal(beside, step)
        put_in_place(final)
    except BaseException as error:
        recover(final)
        remove(beside)
        if (fault := write_fault(error)) is None:
            raise
        raise CheckpointError(f"{final}: cannot be written: {fault}") from error


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint below `folder` that is whole; a warning names each torn one that is passed over. None: there is none at all.

    Raises:
        CheckpointError: there are checkpoints, and every one is torn.
    """
    torn: list[tuple[Path, str]] = []
    for path in sorted(steps_in(folder), reverse=True):
        fault = fault_of(path)
        if fault is None:
            for name, why in torn:
                warnings.warn(f"{name} is torn ({why}); resuming from {path.name}, the one before", stacklevel=2)
            return path
        torn.append((path, fault))
    if torn:
        listed = "; ".join(f"{path.name}: {why}" for path, why in torn)
        raise CheckpointError(f"{folder}: no checkpoint there is whole ({listed}); delete the folder to begin anew")
    return None


def steps_in(folder: Path) -> list[Path]:
    """The checkpoints below `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and _STEP.fullmatch(path.name))


def step_of(path: Path) -> int:
    """The optimizer step in a checkpoint's name."""
    match = _STEP.fullmatch(path.name)
    assert match is not None, "asked of what steps_in gives"
    return int(match[1])


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what an earlier run left half-written."""
    for path in steps_in(folder)[:-keep]:
        doomed = path.with_name(f".deleting-{path.name}")
        os.rename(path, doomed)  # renamed first: a kill in the middle must not leave a folder that looks like a torn checkpoint
        shutil.rmtree(doomed, ignore_errors=True)
    for leftover in [*folder.glob(".deleting-step-*"), *folder.glob(".writing-step-*")]:
        shutil.rmtree(leftover, ignore_errors=True)


def _crc32(file: Path) -> int:
    crc = 0
    with open(file, "rb") as handle:
        while block := handle.read(2**22):
            crc = zlib.crc32(block, crc)
    return crc


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
