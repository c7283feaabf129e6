"""bench.peers, contest and bench_step: every contender trains alike before it is timed, and takes the same examples."""

import importlib.util
import json
import multiprocessing

import numpy as np
import pytest

from bench import bench_step, bench_task, contest
from bench.peers import BASELINE, PEERS, Peer, build, check_losses, peers_for
from bench.workloads import FIXED, LENGTHS, Examples, Network, lengths_of, write_model
from tests.support.tiny_bert import WORDS, write_tiny_bert

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
    monkeypatch.setattr("bench.peers.LEARNING_RATE", 1e-4)
    with pytest.raises(SystemExit, match="other does not train as transformers fp32 does: its loss at step 2"):
        check_losses({BASELINE: baseline, "other": losses_of(Peer("other", "loop"), folder)}, {BASELINE: "fp32", "other": "fp32"})


@pytest.mark.parametrize("loss", [1.2, float("nan")])
def test_a_loss_that_differs_is_named(loss):
    with pytest.raises(SystemExit, match="at step 2"):
        check_losses({"a": [1.0, 1.1], "b": [1.0, loss]}, {"a": "fp32", "b": "bf16"})


def test_dropout_is_on_when_it_is_timed(folder, monkeypatch):
    monkeypatch.setattr("bench.peers.LEARNING_RATE", 0.0)  # so that nothing else changes the loss
    for name in (BASELINE, "bertfast fp32, bare loop"):
        contender = build(PEERS[name], folder, 4, "cpu")
        prepared = contender.prepare(Examples(np.array([9, 30], dtype=np.int32), seed=1).batch(np.arange(2)))
        contender.set_dropout(True)
        assert len({round(contender.step(prepared).item(), 7) for _ in range(3)}) == 3


def test_length_grouping_takes_the_same_examples_in_even_rounds():
    lengths = lengths_of("sst2", 1600, seed=0)
    examples = Examples(lengths, seed=0)
    plain, grouped = examples.random_batches(32, seed=0), examples.grouped_batches(32, 5, seed=0)
    for batches in (plain, grouped):
        assert sorted(np.concatenate(batches).tolist()) == list(range(1600)) and {len(batch) for batch in batches} == {32}
    padded = [lengths[batch].max() * 32 for batch in grouped]
    assert lengths.sum() / sum(padded) > 0.9 > 0.5 > lengths.sum() / sum(lengths[batch].max() * 32 for batch in plain)
    rounds = np.array(padded).reshape(10, 5).sum(axis=1)
    assert rounds.std() < 0.25 * rounds.mean() and max(padded) > 5 * min(padded)


def test_examples_are_what_a_tokenizer_gives():
    examples = Examples(np.array([2, 7], dtype=np.int32), seed=5)
    features = examples.batch(np.array([1, 0])).to_features()
    assert features["input_ids"][1].tolist() == [101, 102, 0, 0, 0, 0, 0]
    assert features["input_ids"][0, 0] == 101 and features["input_ids"][0, 6] == 102 and features["input_ids"][0, 1:6].min() >= 1000


@pytest.mark.parametrize("name", [*LENGTHS, *FIXED])
def test_lengths(name, monkeypatch):
    monkeypatch.delenv("BERTFAST_DATA", raising=False)
    bench_step.origin_of.__globals__["_histogram"].cache_clear()
    lengths = lengths_of(name, 20_000, seed=1)
    mean = {"sst2": 13.3, "mnli": 39.2, "imdb": 275.3, "fixed128": 128, "fixed512": 512}[name]
    assert lengths.mean() == pytest.approx(mean, rel=0.03) and lengths.dtype == np.int32
    assert (lengths == lengths_of(name, 20_000, seed=1)).all()
    bench_step.origin_of.__globals__["_histogram"].cache_clear()


def test_flops_are_those_of_the_matrix_products():
    """Counted by hand for one layer: four D x D products and two D x F a token, two attention products a pair of tokens; 2 a multiplication."""
    network = Network(layers=1, hidden=8, wide=32)
    forward = 2 * 5 * (4 * 64 + 2 * 256) + 2 * 2 * 25 * 8
    assert network.training_flops(np.array([5], dtype=np.int32)) == 3 * forward


def test_a_small_run(tmp_path, capsys):
    output = tmp_path / "rows.jsonl"
    contenders = [BASELINE, "bertfast fp32, bare loop"]
    words = ["--models", "tiny", "--lengths", "sst2", "--batches", "2", "--rounds", "8", "--steps", "1", "--device", "cpu"]
    assert bench_step.main([*words, "--output", str(output), "--contenders", *contenders]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["contender"] for row in rows] == contenders and not [row for row in rows if "fault" in row]
    assert all(len(row["samples"]) == 8 and row["seed"] == 42 and row["commit"] and row["peak_bytes"] > 0 for row in rows)
    assert rows[1]["ratios"][0]["to"] == BASELINE and len(rows[1]["losses_without_dropout"]) == 3
    assert "tiny, sst2, batch 2" in capsys.readouterr().out


def test_the_others_go_on_where_a_contender_dies(folder, monkeypatch):
    """As it does where memory ends: its process is gone in the third round."""
    ask, pipes, died = contest._ask, [], "its process ended (out of memory?)"

    def asked(pipe, what):
        if pipe not in pipes:
            pipes.append(pipe)
        if what == 2 and pipe is pipes[1]:
            pipe.close()
        return died if pipe.closed else ask(pipe, what)

    monkeypatch.setattr(contest, "_ask", asked)
    job = contest.Job(folder, np.full(64, 8, dtype=np.int32), 2, 8, 1, "cpu", 0)
    outcome = contest.contest(peers_for("cpu", [BASELINE, "bertfast fp32, bare loop"]), job)
    assert list(outcome.seconds) == list(outcome.facts) == [BASELINE] and all(taken > 0 for taken in outcome.seconds[BASELINE])
    assert outcome.faults == {"bertfast fp32, bare loop": died}


def test_a_run_that_ended_before_it_was_asked_says_why():
    ours, theirs = multiprocessing.Pipe()
    theirs.send({"fault": "ImportError: no accelerate"})
    theirs.close()
    assert bench_task.ask(ours, "go") == {"fault": "ImportError: no accelerate"}
    assert bench_task.ask(ours, "go") == bench_task.ask(ours) == {"fault": "its process ended (out of memory?)"}


def test_whole_runs_take_turns(tmp_path):
    if not HAS_DEEPSPEED:
        pytest.skip("deepspeed is not installed")
    folder = tmp_path / "SST-2"
    folder.mkdir()
    for name, rows in (("train", 352), ("dev", 20)):  # ten segments need ten steps of 32
        lines = [f"{'good' if row % 2 else 'bad'} {WORDS[row % len(WORDS)]}\t{row % 2}" for row in range(rows)]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    run = bench_task.Run("sst2", tmp_path, str(write_tiny_bert(tmp_path / "bert")), None, 1, 0, 8)
    rows = bench_task.measure(run, ("transformers bf16 autocast", "bertfast fp32"))
    assert [row["contender"] for row in rows] == ["transformers bf16 autocast", "bertfast fp32"] and not [
        row for row in rows if "fault" in row
    ]
    assert all(len(row["curve"]) == bench_task.SEGMENTS and 0 <= row["metrics"]["dev"]["accuracy"] <= 1 for row in rows)
