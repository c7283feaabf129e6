"""Signals that end a run: what is noted, what is obeyed, and the command that goes on."""

import json
import os
import shlex
import signal

import pytest
import torch

from bertfast.cli import launch
from bertfast.engine import Ranks
from bertfast.errors import Interrupted, Terminated
from bertfast.training import Trainer
from bertfast.training.guards import Termination
from tests.support.runs import losses, train, write_task

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def interruptible():
    """As in a terminal, wherever the tests run; whatever a test sets is put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    "sent, kind, code, name",
    [
        pytest.param([signal.SIGTERM], Terminated, 143, "SIGTERM", id="sigterm"),
        pytest.param([signal.SIGINT], Interrupted, 130, "Ctrl-C", id="ctrl-c"),
        pytest.param([signal.SIGINT, signal.SIGTERM], Interrupted, 130, "Ctrl-C", id="ctrl-c-and-then-the-launcher"),
        pytest.param([signal.SIGTERM, signal.SIGINT], Terminated, 143, "SIGTERM", id="the-first-counts"),
    ],
)
def test_a_signal_is_noted(capfd, sent, kind, code, name):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Termination(ALONE) as termination:
        assert not termination.agreed()
        for number in sent:
            os.kill(os.getpid(), number)
        assert termination.agreed()
        fault = termination.fault("after step 3; the state is saved in x")
    assert type(fault) is kind and fault.exit_code == code
    assert str(fault) == f"stopped by {name} after step 3; the state is saved in x: go on with --resume"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert ("Ctrl-C again stops at once" in capfd.readouterr().err) == (signal.SIGINT in sent)


def test_a_second_ctrl_c_stops_at_once():
    with Termination(ALONE):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_what_a_script_put_in_the_background_is_not_for_ctrl_c():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Termination(ALONE) as termination:
        os.kill(os.getpid(), signal.SIGINT)
        assert not termination.agreed()


def test_ctrl_c_saves_and_the_line_that_it_prints_goes_on(tmp_path, monkeypatch):
    config = write_task(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    train(tmp_path, "--model_dir", "truth")
    real = Trainer._step

    def step(self, run, watch, number, *given):
        if number == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, run, watch, number, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", step)
        said = train(tmp_path, "--checkpoint_path", config["bertfast"]["model"]["checkpoint"], code=130)
    line = said.strip().splitlines()[-1]
    program, *words = shlex.split(line.rpartition("--resume: ")[2])
    assert line.startswith("bertfast: error: stopped by Ctrl-C after step 5;") and program == "launch.py" and words[-1] == "--resume"
    assert launch(words) == 0
    assert losses(tmp_path) == losses(tmp_path, "truth")
