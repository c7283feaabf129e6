"""Programs of their own that answer questions in JSON lines: each starts with nothing of its parent's in memory, and a fault ends in its own row.

multiprocessing's children import the parent's main module, and with it all that it imports; what a runtime's process holds could not be told from that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from bench import ROOT

DIED = "its process ended (out of memory?)"


class Fault(Exception):
    """What a program could not do, in one line."""


class Program:
    """A Python module that runs `serve`, beside this process. As a context it ends with the block."""

    def __init__(self, module: str, more_environment: Mapping[str, str] | None = None):
        path = os.pathsep.join([str(ROOT), *(str(ROOT / folder) for folder in ("kernels", "export")), *sys.path])
        environment = {**os.environ, "PYTHONPATH": path, **(more_environment or {})}
        command = [sys.executable, "-m", module]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(self, question: Any) -> Any:
        """What the program answers.

        Raises:
            Fault: it has none, or has ended.
        """
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise Fault(DIED)
        found = json.loads(line)
        if "fault" in found:
            raise Fault(found["fault"])
        return found["answer"]

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.communicate(timeout=20)  # its input ends, and so does it
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def command_environment(**more: str) -> dict[str, str]:
    """This process's environment for a whole command that is timed from its start: with its modules' bytecode kept, as pip leaves it and a clone's second
    run finds it. The peers' packages have theirs in any case."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | more


def serve(answer: Callable[[Any], Any]) -> None:
    """Answer every question that comes in on standard input until it ends. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        try:
            found = {"answer": answer(json.loads(line))}
        except Exception as error:  # whatever it is, the others go on, and the row says so
            traceback.print_exc()
            found = {"fault": one_line(error)}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


def one_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0][:200]}"
