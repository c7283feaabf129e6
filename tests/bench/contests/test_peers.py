"""bench.contests.peers: every contender trains alike before it is timed."""

import importlib.util

import numpy as np
import pytest

from bench.cases.workloads import Examples, write_model
from bench.contests.peers import BASELINE, PEERS, Peer, build, check_losses, peers_for

HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model("tiny", tmp_path_factory.mktemp("tiny"), seed=3, hidden_size=32, num_attention_heads=2, intermediate_size=64)


def losses_of(peer, folder, steps=3):
    examples = Examples(np.array([3, 9, 17, 30], dtype=np.int32), seed=1)
    contender = build(peer, folder, 4, "cpu")
    contender.set_dropout(False)
    prepared = contender.prepare(examples.batch(np.arange(4)))
    return [contender.step(prepared).item() for _ in range(steps)]


@pytest.fixture(scope="module")
def baseline(folder):
    return losses_of(PEERS[BASELINE], folder)


@pytest.mark.parametrize("name", [peer.name for peer in peers_for("cpu") if peer.engine != "compile" and peer.name != BASELINE])
def test_first_losses_agree(name, folder, baseline):
    """Weights, loss, gradients and optimizer: the third loss has seen two steps. (What clipping did, AdamW divides out again.)"""
    if PEERS[name].needs_deepspeed and not HAS_DEEPSPEED:
        pytest.skip("deepspeed is not installed")
    found = losses_of(PEERS[name], folder)
    check_losses({BASELINE: baseline, name: found}, {BASELINE: "fp32", name: PEERS[name].precision})
    assert baseline[2] < baseline[1] < baseline[0]


def test_another_learning_rate_is_seen(folder, baseline, monkeypatch):
    monkeypatch.setattr("bench.contests.peers.LEARNING_RATE", 1e-4)
    with pytest.raises(SystemExit, match="other does not train as transformers fp32 does: its loss at step 2"):
        check_losses({BASELINE: baseline, "other": losses_of(Peer("other", "loop"), folder)}, {BASELINE: "fp32", "other": "fp32"})


@pytest.mark.parametrize("loss", [1.2, float("nan")])
def test_a_loss_that_differs_is_named(loss):
    with pytest.raises(SystemExit, match="at step 2"):
        check_losses({"a": [1.0, 1.1], "b": [1.0, loss]}, {"a": "fp32", "b": "bf16"})


def test_dropout_is_on_when_it_is_timed(folder, monkeypatch):
    monkeypatch.setattr("bench.contests.peers.LEARNING_RATE", 0.0)  # so that nothing else changes the loss
    for name in (BASELINE, "bertfast fp32, bare loop"):
        contender = build(PEERS[name], folder, 4, "cpu")
        prepared = contender.prepare(Examples(np.array([9, 30], dtype=np.int32), seed=1).batch(np.arange(2)))
        contender.set_dropout(True)
        assert len({round(contender.step(prepared).item(), 7) for _ in range(3)}) == 3
