"""bench.harness.processes: a program answers, says what it cannot do, and may die."""

import subprocess
import sys

import pytest

from bench.harness.processes import DIED, Fault, Program, command_environment, one_line

ECHO = """
import os, sys
from bench.harness.processes import serve

def answer(question):
    print("a library that chats")
    if question == "die":
        os._exit(1)
    return {"twice": 2 * question, "loaded": "numpy" in sys.modules}

serve(answer)
"""


@pytest.fixture
def echo(tmp_path, monkeypatch):
    (tmp_path / "an_echo.py").write_text(ECHO)
    monkeypatch.syspath_prepend(str(tmp_path))
    with Program("an_echo") as program:
        yield program


def test_it_answers_and_a_fault_ends_nothing(echo):
    assert echo.ask(21) == {"twice": 42, "loaded": False}
    with pytest.raises(Fault, match=r"^TypeError: unsupported operand"):
        echo.ask(None)
    assert echo.ask("ab")["twice"] == "abab"


def test_one_that_dies_is_told_of(echo):
    for question in ("die", 1):
        with pytest.raises(Fault) as fault:
            echo.ask(question)
        assert str(fault.value) == DIED


def test_a_fault_is_one_line():
    assert one_line(ValueError("first\nsecond")) == "ValueError: first" and one_line(KeyError()) == "KeyError: no reason given"


def test_a_command_that_is_timed_keeps_its_bytecode(monkeypatch, tmp_path):
    """Else each start of bertfast compiles what pip has compiled for its peers."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    (tmp_path / "a_module.py").write_text("")
    command = [sys.executable, "-c", "import a_module"]
    subprocess.run(command, env=command_environment(PYTHONPATH=str(tmp_path)), check=True)
    assert len(list(tmp_path.rglob("a_module*.pyc"))) == 1
