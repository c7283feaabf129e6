"""tuning.json: for each kind of machine that `bertfast tune` has measured a bundle on, the variant and setting that were fastest there.

It is none of the files that the judge has seen: which of them is used, and how, changes no file, and each setting is one that was verified.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bertfast import machine
from bertfast.errors import ExportError
from bertfast.storage import write_json

TUNING_FILE = "tuning.json"
_FORMAT = 1
# What decides which kernels a runtime takes, of the names in /proc/cpuinfo.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve")


@dataclass(frozen=True)
class Setting:
    """How a bundle is run. variant: its name; streams: calls side by side; batch_tokens: of a batch at most, with its padding."""

    variant: str
    streams: int
    batch_tokens: int

    def __post_init__(self) -> None:
        numbers = (self.streams, self.batch_tokens)
        if not isinstance(self.variant, str) or any(type(number) is not int or number < 1 for number in numbers):
            raise ValueError(f"{asdict(self)}: variant is a name, streams and batch_tokens are numbers from 1 on")


@dataclass(frozen=True)
class Choice:
    """The fastest settings: for many texts at once, and for one text at a time."""

    many: Setting
    one: Setting


def machine_kind() -> dict[str, Any]:
    """What speed depends on: the processor, its instructions, and the threads that the process may use."""
    facts = _cpuinfo()
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    name = facts.get("model name") or platform.processor() or platform.machine()
    return {"processor": name, "flags": [flag for flag in _FLAGS if flag in flags], "threads": machine.threads()}


def key_of(kind: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(kind, sort_keys=True).encode()).hexdigest()[:16]


def read_choice(folder: Path) -> Choice | None:
    """What was chosen for this kind of machine; None where nothing was.

    Raises:
        ExportError: the file is there and cannot be read.
    """
    path = folder / TUNING_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{path}: cannot be read ({error}); remove it, or run bertfast tune again") from None
    try:
        machines = json.loads(text)["machines"]
        found = machines.get(key_of(machine_kind()))
        return None if found is None else Choice(Setting(**found["many"]), Setting(**found["one"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path}: cannot be read ({error}); remove it, or run bertfast tune again") from None


def write_choice(folder: Path, choice: Choice, measured: list[dict[str, Any]]) -> None:
    """Put the choice for this kind of machine beside those for others; a file that cannot be read is written anew.

    Raises:
        ExportError: the folder takes no files.
    """
    path, kind = folder / TUNING_FILE, machine_kind()
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        machines = dict(known["machines"]) if known["format"] == _FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError):
        machines = {}
    machines[key_of(kind)] = {"kind": kind, "many": asdict(choice.many), "one": asdict(choice.one), "measured": measured}
    try:
        write_json(path, {"format": _FORMAT, "machines": machines})
    except OSError as error:
        raise ExportError(
            f"{path}: cannot be written: {error.strerror or error}; tune a copy of the bundle in a place that can be written to, and use that copy"
        ) from None


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; of another system nothing."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
