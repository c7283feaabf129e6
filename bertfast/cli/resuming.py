"""The command that goes on with a run that was stopped: the one that started it, as it was typed, with --resume."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from bertfast.cli.parser import starts_from_checkpoint
from bertfast.machine import world_size

_PROC = Path("/proc")
_OF_LAUNCHERS = re.compile("--(?:local_rank|world_info)=")  # what deepspeed's own processes are started with; nobody types it


def resume_command(arguments: Namespace, argv: Sequence[str], program: str) -> str | None:
    """A line for the shell; None where a launcher started this process from another machine, and nothing here tells how.

    argv: the words that `arguments` are made from. program: what takes them, where no process was started with them.
    """
    own = [word for word in argv if not word.startswith("--local_rank=")]
    lines = list(_command_lines())[1 if world_size() > 1 else 0 :]  # a rank among several has been started by a launcher
    found = [line[: -len(own)] for line in lines if len(line) > len(own) and line[-len(own) :] == own]
    typed = next((line for line in found if not any(_OF_LAUNCHERS.match(word) for word in line)), None)
    if typed is None and world_size() > 1:
        return None
    return shlex.join([*(_short(typed) if typed else [program]), *_resuming(arguments, own)])


def _resuming(arguments: Namespace, argv: Sequence[str]) -> list[str]:
    """The words with --resume, beside which --checkpoint_path would mean a checkpoint of this run: the newest is the one to go on from."""
    words: list[str] = []
    skips = False
    for word in argv:
        if not skips and not word.startswith("--checkpoint_path=") and word != "--checkpoint_path":
            words.append(word)
        skips = word == "--checkpoint_path"
    if arguments.checkpoint_path is not None and starts_from_checkpoint(arguments):
        words += ["--set", f"bertfast.model.checkpoint={json.dumps(arguments.checkpoint_path)}"]
    return words if arguments.resume else [*words, "--resume"]


def _command_lines() -> Iterator[list[str]]:
    """This process's command line, and those of the processes that it descends from, where the system tells."""
    yield sys.orig_argv
    process = os.getppid()
    while process > 1:
        try:
            line = (_PROC / str(process) / "cmdline").read_bytes()
            state = (_PROC / str(process) / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        yield line.decode(errors="replace").split("\0")[:-1]
        process = int(state.rpartition(")")[2].split()[1])


def _short(words: list[str]) -> list[str]:
    """`python /usr/bin/bertfast` as `bertfast`, where that is what the shell would find."""
    is_script = len(words) > 1 and os.path.basename(words[0]).startswith("python") and os.access(words[1], os.X_OK)
    if is_script and not words[1].endswith(".py"):
        words = words[1:]
    name = os.path.basename(words[0])
    return [name, *words[1:]] if shutil.which(name) == words[0] else words
