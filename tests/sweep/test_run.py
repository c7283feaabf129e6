"""bertfast sweep: what is searched, how trials are run, stopped and taken up again, and what is told of them. Most trials are trained by a stub."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bertfast.cli import entry
from bertfast.config.load import load_config
from bertfast.errors import BertfastError, ConfigError
from bertfast.sweep.report import figure_of, summarise
from bertfast.sweep.run import Search, Sweep
from bertfast.sweep.space import BERT_GRID, Range, Space, draw_settings, read_space
from bertfast.sweep.trials import Stop, train_command
from tests.support.multitask_runs import write_tasks
from tests.support.runs import environment, write_task
from tests.support.tiny_bert import write_tiny_bert

# Trains nothing: the score is 1000 x rate + seed / 1e5. It notes each of its starts, and may be slow, fail, or write "checkpoints" at SIGTERM.
STUB = """
import json, pathlib, signal, sys, time
file = pathlib.Path(sys.argv[1])
config, folder = json.loads(file.read_text()), file.parent
rate, run = config["optimizer"]["params"]["lr"], config["bertfast"]["run"]
assert run["model_dir"] == str(folder)
def leave(*_):
    (folder / "checkpoints").mkdir()
    sys.exit("bertfast: error: stopped by SIGTERM")
signal.signal(signal.SIGTERM, leave)
resumed = (folder / "checkpoints").is_dir()
with open(folder.parent.parent / "starts", "a") as starts:
    starts.write(f"{folder.name}{' resumed' if resumed else ''}\\n")
if rate == 9e-5 and not (folder.parent.parent / "mended").exists():
    print("Traceback:")
    sys.exit("bertfast: error: the loss is not finite")
while (folder.parent.parent / "slow").exists() and not resumed:
    time.sleep(0.02)
(folder / "model").mkdir(exist_ok=True)
score = 1000 * rate + run["seed"] / 1e5
results = {"main_metric": "f1", "metrics": {"dev": {"accuracy": 0, "f1": score}, "dev2": {"f1": 7}}, "training": {"train_seconds": 2.0}}
(folder / "results.json").write_text(json.dumps(results))
"""
SPACE = {"optimizer.params.lr": [2e-5, 3e-5], "bertfast.run.epochs": [2, 3]}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_bert(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def base(tmp_path, tiny):
    """A config whose sweep lies in tmp_path/sweep."""
    source = {"data_file": str(tmp_path / "train.tsv")}
    run = {"seed": 5, "model_dir": str(tmp_path / "sweep")}
    block = {"task": "sst2", "model": {"checkpoint": str(tiny)}, "train_input": source, "eval_input": source, "run": run}
    (tmp_path / "train.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t1\n")
    (tmp_path / "stub.py").write_text(STUB)
    (tmp_path / "sweep").mkdir()
    return {"optimizer": {"type": "AdamW", "params": {"lr": 1e-5}}, "bertfast": {**block, "export": {}}}


def sweep_of(tmp_path, base, keys=SPACE, jobs=1, said=None, **search):
    command = lambda file: [sys.executable, str(tmp_path / "stub.py"), str(file)]  # noqa: E731
    say = (lambda line: None) if said is None else said.append
    return Sweep(load_config(base), Search(Space("space.yaml", keys), **{"seeds": 2, **search}), [None] * jobs, command, say)


def append_row(file):
    Path(file).write_text(Path(file).read_text() + "fine\t1\n")


def starts(tmp_path):
    return (tmp_path / "sweep" / "starts").read_text().splitlines()


def test_the_default_is_the_papers_grid(base):
    settings = draw_settings(read_space(None, load_config(base)), None, 0)
    wanted = {(size, rate, epochs) for size in (16, 32) for rate in (5e-5, 3e-5, 2e-5) for epochs in (2, 3, 4)}
    assert len(settings) == 18 and {tuple(setting[key] for key in BERT_GRID) for setting in settings} == wanted
    base["bertfast"]["train_input"] |= {"planner": "tokens", "tokens_per_batch": 512}
    assert len(draw_settings(read_space(None, load_config(base)), None, 0)) == 9


def test_draws():
    space = Space("s", {"a": Range(1e-5, 1e-3, log=True), "b": Range(2, 4), "c": [True, [1, 2], "x", None, 0.5]})
    draws = draw_settings(space, 300, seed=1)
    assert draws[:20] == draw_settings(space, 20, seed=1) != draw_settings(space, 20, seed=2)
    values = np.array([draw["a"] for draw in draws])
    assert values.min() >= 1e-5 and values.max() <= 1e-3 and 0.4 < (values < 1e-4).mean() < 0.6
    assert {draw["b"] for draw in draws} == {2, 3, 4} and all(isinstance(draw["b"], int) for draw in draws)
    assert {json.dumps(draw["c"]) for draw in draws} == {"true", "[1, 2]", '"x"', "null", "0.5"}


def test_some_of_a_grid_are_different_points_of_it():
    space = Space("s", {"a": [1, 2, 3], "b": ["x", "y"]})
    assert len({tuple(setting.values()) for setting in draw_settings(space, 5, seed=0)}) == 5
    assert draw_settings(space, 3, seed=0) == draw_settings(space, 5, seed=0)[:3]


def test_every_setting_and_seed_is_trained_once(tmp_path, base):
    results = sweep_of(tmp_path, base, jobs=2).run()
    assert sorted(starts(tmp_path)) == [f"{number:03d}-seed-{seed}" for number in range(4) for seed in (5, 6)]
    assert results == json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert {tuple(facts["values"].values()) for facts in results["settings"]} == {(lr, n) for lr in (2e-5, 3e-5) for n in (2, 3)}
    for facts in results["settings"]:
        scores = [1000 * facts["values"]["optimizer.params.lr"] + seed / 1e5 for seed in (5, 6)]
        assert list(facts["scores"].values()) == pytest.approx(scores, abs=1e-12)
        assert facts["mean"] == pytest.approx(np.mean(scores)) and facts["std"] == pytest.approx(np.std(scores, ddof=1))
        assert [facts["min"], facts["max"]] == pytest.approx(scores) and facts["train_seconds"] == 2.0
    assert results["best"] == results["settings"][0] and results["best"]["values"]["optimizer.params.lr"] == 3e-5
    trial = json.loads((tmp_path / "sweep" / "trials" / "000-seed-5" / "config.json").read_text())
    assert "export" not in trial["bertfast"] and trial["bertfast"]["run"]["threads"] >= 1


@pytest.mark.parametrize("asked, each", [(None, 4), ("3", 3), ("8", 4)])
def test_trials_at_the_same_time_share_the_cores(tmp_path, base, monkeypatch, asked, each):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", asked) if asked else monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    sweep = sweep_of(tmp_path, base, jobs=2)
    assert sweep._trial_config({}, 0, tmp_path)["bertfast"]["run"]["threads"] == each


def test_what_a_script_put_in_the_background_is_not_for_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signal is None and stop.count == 0
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_is_left_to_read(tmp_path, base):
    results = sweep_of(tmp_path, base).run()
    folder, best = tmp_path / "sweep", results["best"]["values"]
    config = load_config(folder / "best.json")
    assert config.deepspeed["optimizer"]["params"]["lr"] == best["optimizer.params.lr"] and config.bertfast.export is not None
    assert config.bertfast.run.epochs == best["bertfast.run.epochs"] and config.bertfast.run.model_dir == str(folder / "best")
    assert config.bertfast.run.seed == 5
    lines = (folder / "sweep.md").read_text().splitlines()
    assert lines[2] == "| lr | epochs | mean | std | min | max | seeds | seconds |" and lines[4].startswith("| 3e-05 |")
    assert any(line.startswith("- best by its mean over 2 seeds: lr 3e-05") for line in lines)
    assert "- score: f1 on dev" in lines and figure_of(results).axes[0].get_xlabel() == results["score"] == "f1 on dev"
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert [path.parent.name for path in folder.glob("trials/*/model")] == [f"{results['best']['setting']:03d}-seed-6"]


def test_all_models_may_be_kept(tmp_path, base):
    sweep_of(tmp_path, base, keep_models="all", seeds=1).run()
    assert len(list((tmp_path / "sweep").glob("trials/*/model"))) == 4


def test_a_finished_sweep_does_nothing_again_and_more_seeds_are_added(tmp_path, base):
    first = sweep_of(tmp_path, base, seeds=1, trials=2).run()
    assert sweep_of(tmp_path, base, seeds=1, trials=2).run() == first and len(starts(tmp_path)) == 2
    again = sweep_of(tmp_path, base, seeds=2, trials=3).run()
    assert len(starts(tmp_path)) == 6 and len({tuple(facts["values"].values()) for facts in again["settings"]}) == 3
    assert all(len(facts["scores"]) == 2 for facts in again["settings"])


def test_a_failing_trial_is_noted_and_the_others_go_on(tmp_path, base):
    keys, said = {"optimizer.params.lr": [9e-5, 2e-5]}, []
    results = sweep_of(tmp_path, base, keys, said=said).run()
    failed = [trial for trial in results["trials"] if trial["state"] == "failed"]
    assert results["counts"] == {"complete": 2, "failed": 2, "running": 0, "waiting": 0}
    assert {trial["error"] for trial in failed} == {"the loss is not finite"} and {trial["seed"] for trial in failed} == {5, 6}
    assert results["best"]["values"] == {"optimizer.params.lr": 2e-5}
    assert (
        results["settings"][1]["mean"] is None
        and "failed: lr 9e-05, seed 5: the loss is not finite" in (tmp_path / "sweep" / "sweep.md").read_text()
    )
    assert any("lr 9e-05, seed 5: failed: the loss is not finite (see " in line for line in said)
    sweep_of(tmp_path, base, keys).run()
    assert len(starts(tmp_path)) == 4
    (tmp_path / "sweep" / "mended").touch()
    assert sweep_of(tmp_path, base, keys, retry_failed=True).run()["counts"]["complete"] == 4
    assert len(starts(tmp_path)) == 6


def test_no_trial_succeeds(tmp_path, base):
    with pytest.raises(BertfastError, match="no trial has succeeded; the first one that failed says: the loss is not finite"):
        sweep_of(tmp_path, base, {"optimizer.params.lr": [9e-5]}).run()


def test_a_lucky_seed_alone_is_not_the_best(tmp_path, base):
    trials = sweep_of(tmp_path, base)
    trials.run()
    some = [trial for trial in trials.trials() if not (trial.values["optimizer.params.lr"] == 3e-5 and trial.seed == 6)]
    assert summarise(some)["best"]["values"]["optimizer.params.lr"] == 2e-5
    assert summarise(some)["settings"][0]["std"] is None


AS_A_PROCESS = """
import json, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from tests.sweep.test_run import sweep_of
from bertfast.cli import entry
entry._COMMANDS["sweep"] = lambda arguments: sweep_of(Path({folder!r}), json.loads(Path({folder!r}, "base.json").read_text()), jobs=2).run() and 0
sys.exit(entry.main(["sweep", "--config", "none"]))
"""


def started(tmp_path, base):
    """A sweep in a process of its own, once two of its trials are at work."""
    (tmp_path / "base.json").write_text(json.dumps(base))
    (tmp_path / "sweep" / "slow").touch()
    code = AS_A_PROCESS.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    # A shell's job in the background ignores SIGINT, and so would this process, which is to meet it.
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen([sys.executable, "-c", code], env=environment(), stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    until = time.monotonic() + 120
    while not (tmp_path / "sweep" / "starts").is_file() or len(starts(tmp_path)) < 2:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
    return process


@pytest.mark.parametrize(
    "number, code, words",
    [
        pytest.param(signal.SIGTERM, 143, "stopped by SIGTERM", id="terminated"),
        pytest.param(signal.SIGINT, 130, "interrupted", id="interrupted"),
        pytest.param(signal.SIGKILL, -9, "", id="killed"),
    ],
)
def test_a_sweep_that_was_stopped_goes_on(tmp_path, base, number, code, words):
    process = started(tmp_path, base)
    process.send_signal(number)
    _, told = process.communicate(timeout=300)
    assert process.returncode == code and words in told
    before = starts(tmp_path)
    assert before == ["000-seed-5", "001-seed-5"] or before == ["001-seed-5", "000-seed-5"]
    # The two that were cut short have their checkpoints, with which they go on; nothing else is done twice.
    (tmp_path / "sweep" / "slow").unlink()
    results = sweep_of(tmp_path, base).run()
    assert sorted(starts(tmp_path)[2:4]) == ["000-seed-5 resumed", "001-seed-5 resumed"]
    assert len(starts(tmp_path)) == 2 + 8 and results["counts"] == {"complete": 8, "failed": 0, "running": 0, "waiting": 0}


def test_what_a_kill_leaves_of_the_journal_is_mended(tmp_path, base):
    sweep_of(tmp_path, base, seeds=1).run()
    journal = tmp_path / "sweep" / "sweep.journal"
    with open(journal, "a") as file:
        file.write('{"op_code": 4, "wor')
    (tmp_path / "sweep" / "sweep.journal.lock").symlink_to(journal)
    assert sweep_of(tmp_path, base, seeds=2).run()["counts"]["complete"] == 8


def test_a_trial_that_had_finished_unnoted_is_not_trained_again(tmp_path, base):
    sweep = sweep_of(tmp_path, base, seeds=1)
    sweep._study = sweep._open_study()
    sweep._enqueue()
    trial = sweep._study.ask()
    folder = tmp_path / "sweep" / "trials" / f"{trial.user_attrs['setting']:03d}-seed-5"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text('{"main_metric": "f1", "metrics": {"dev": {"f1": 0.75}}, "training": {"train_seconds": 1}}')
    results = sweep_of(tmp_path, base, seeds=1).run()
    assert results["best"]["mean"] == 0.75 and results["counts"]["complete"] == 4
    assert len(starts(tmp_path)) == 3 and folder.name not in starts(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda base, keys: keys["optimizer.params.lr"].append(4e-5), id="space"),
        pytest.param(lambda base, keys: base["bertfast"]["run"].update(warmup_ratio=0.2), id="config"),
        pytest.param(lambda base, keys: append_row(base["bertfast"]["train_input"]["data_file"]), id="data"),
    ],
)
def test_another_sweep_in_the_same_folder_is_refused(tmp_path, base, change):
    keys = {"optimizer.params.lr": [2e-5]}
    sweep_of(tmp_path, base, keys).run()
    change(base, keys)
    with pytest.raises(
        ConfigError, match="sweep: holds a sweep in which (the space|the config|a data file) was another; give another --model_dir"
    ):
        sweep_of(tmp_path, base, keys).run()


@pytest.mark.parametrize(
    "text, words",
    [
        pytest.param(
            "bertfast.run.epoch: [2]", ["space.yaml:", "unknown key 'epoch' in bertfast.run", "did you mean 'epochs'"], id="unknown"
        ),
        pytest.param(
            "optimizer.params.learning_rate: [2]", ["space.yaml:", "'learning_rate' in optimizer.params"], id="unknown-to-deepspeed"
        ),
        pytest.param("bertfast.run.epochs: [2, -1]", ["space.yaml: bertfast.run.epochs=-1", "greater than 0"], id="value"),
        pytest.param("bertfast.run.epochs: 3", ["space.yaml: bertfast.run.epochs = 3", "list of values"], id="no-list"),
        pytest.param("bertfast.run.epochs: []", ["list of values"], id="empty-list"),
        pytest.param("bertfast.run.epochs: [2, 2.0]", ["stands there twice"], id="twice"),
        pytest.param("[1, 2]", ["space.yaml: must hold config keys"], id="no-mapping"),
        pytest.param("bertfast.run.seed: [1, 2]", ["bertfast.run.seed cannot be searched", "--seeds"], id="seeds"),
        pytest.param("bertfast.task: [sst2, cola]", ["bertfast.task cannot be searched"], id="tasks"),
        pytest.param("bertfast.run.epochs: {low: 2, high: 4}", ["--trials"], id="a-range-without-a-number"),
        pytest.param("bertfast.run.epochs: {low: 4, high: 2}", ["low being less than high"], id="a-range-backwards"),
        pytest.param("optimizer.params.lr: {low: 0.0, high: 1.0, log: true}", ["low is above 0"], id="a-log-of-0"),
        pytest.param("bertfast.run.epochs: {lo: 2, high: 4}", ["no 'lo'", "did you mean 'low'"], id="a-range-misspelt"),
        pytest.param("bertfast.train_input.batch_size: [16]", ["train_batch_size = 24 contradicts"], id="a-contradiction"),
    ],
)
def test_a_space_that_cannot_be_searched(tmp_path, base, text, words):
    (tmp_path / "space.yaml").write_text(text)
    config = load_config({**base, "train_batch_size": 24})
    with pytest.raises(ConfigError) as caught:
        Sweep(config, Search(read_space(str(tmp_path / "space.yaml"), config)), [None], list, str)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("name", ["best.json", "trials/000-seed-5/c.json", "sweep.json"])
def test_a_sweep_does_not_write_over_its_config(tmp_path, base, name):
    place = tmp_path / "sweep" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(base))
    config = load_config(place)
    with pytest.raises(ConfigError, match=r"bertfast\.run\.model_dir = .*is written there, and the config is read from"):
        Sweep(config, Search(read_space(None, config)), [None], list, str)
    assert json.loads(place.read_text()) == base


def test_a_rate_that_the_scheduler_would_replace(base):
    scheduler = {"type": "WarmupDecayLR", "params": {"warmup_max_lr": 3e-5, "total_num_steps": "auto"}}
    config = load_config({**base, "scheduler": scheduler})
    with pytest.raises(ConfigError, match="warmup_max_lr = 3e-05 is the rate of every trial"):
        Sweep(config, Search(read_space(None, config)), [None], list, str)


OFFERS = {"scheduler": {"type": "WarmupLR", "params": {}}}
PIECES = {"strategy": "hierarchical", "overlap": 6}
OWN = {"task": {"text_columns": ["sentence"]}}  # the rows tell the classes


@pytest.mark.parametrize(
    ("key", "good", "bad", "changes", "words"),
    [
        pytest.param("head.layers", [-1], [0, 2], {}, "head.layers holds 2, but the checkpoint has 2 layers", id="layers"),
        pytest.param("optimization.frozen_layers", 2, 3, {}, "frozen_layers = 3, but the model has 2 layers", id="frozen-layers"),
        pytest.param("head.layers", [1], [0], {"optimization": {"frozen_layers": 2}}, "the model has 1 layers", id="frozen-above-the-head"),
        pytest.param(
            "optimization.layer_learning_rate", [1e-4, 2e-4], [1e-4] * 3, {}, "holds 3 rates, but the model has 2 layers", id="rates"
        ),
        pytest.param("truncation", {}, PIECES, {}, "overlap = 6, but a piece has room for 6 tokens", id="overlap"),
        pytest.param("train_input.max_sequence_length", 9, 8, {"truncation": PIECES}, "room for 6 tokens", id="pieces-of-a-length"),
        pytest.param("train_input.max_sequence_length", 128, 129, {}, "has 128 position embeddings", id="longer-than-the-positions"),
        pytest.param("train_input.max_sequence_length", 3, 2, {"task": "rte"}, "special tokens of a pair alone are 3", id="no-room"),
        pytest.param("truncation.strategy", "tail", "hierarchical", {"task": "rte"}, "takes pairs of texts", id="pieces-of-pairs"),
        pytest.param("optimization.schedule", "linear", "cosine", OFFERS, "schedule = 'cosine' contradicts the scheduler", id="schedule"),
        pytest.param("optimization.layer_learning_rate_decay", None, 0.9, OFFERS, "--set scheduler=null", id="decay-and-a-scheduler"),
        pytest.param("loss.class_weights", [1, 2], [1, 2, 3], {}, "holds 3 weights, but the task has 2 classes", id="class-weights"),
        pytest.param("loss.class_weights", None, "balanced", {}, "class 0 has no training example", id="no-row-of-a-class"),
        pytest.param("loss.class_weights", [1, 1], [1], OWN, "holds 1 weights, but the task has 2 classes", id="classes-from-rows"),
        pytest.param("loss.label_smoothing", 0, 0.1, {"task": "stsb"}, "this task is a regression", id="regression"),
        pytest.param("model.checkpoint", None, "./nowhere", {}, "./nowhere: no such folder", id="checkpoint"),
        pytest.param("train_input.data_file", None, "nowhere.tsv", {}, "data_file nowhere.tsv: there is no such file", id="data"),
        pytest.param("eval_input", None, {"data_dir": "nowhere"}, {}, "data_dir nowhere: there is no such folder", id="held-out-data"),
    ],
)
def test_each_setting_is_held_against_the_config_before_any_trial(tmp_path, base, tiny, key, good, bad, changes, words):
    """One that is right comes first, so that it is the second that is named, and it does not depend on the first."""
    base = base | {name: value for name, value in changes.items() if name == "scheduler"}
    block = base["bertfast"] = base["bertfast"] | {name: value for name, value in changes.items() if name != "scheduler"}
    block["train_input"] = {"max_sequence_length": 8, **block["train_input"]}
    if changes is OWN:
        (tmp_path / "train.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\n")
    data = block["eval_input"]
    good = {"model.checkpoint": str(tiny), "train_input.data_file": data["data_file"], "eval_input": data}.get(key, good)
    sweep_of(tmp_path, base, {f"bertfast.{key}": [good]})
    with pytest.raises(ConfigError) as caught:
        sweep_of(tmp_path, base, {f"bertfast.{key}": [good, bad]})
    assert f"space.yaml: bertfast.{key}={json.dumps(bad)}: " in str(caught.value) and words in str(caught.value), caught.value
    assert not (tmp_path / "sweep" / "starts").exists()


def test_scores_on_other_data_are_not_compared(tmp_path, base):
    with pytest.raises(ConfigError, match=r"eval_input=null: it is evaluated on nothing, and the config on sst2 \(accuracy\)"):
        sweep_of(tmp_path, base, {"bertfast.eval_input": [base["bertfast"]["eval_input"], None]})


def test_a_scheduler_may_be_left_out_by_a_setting(tmp_path, base):
    base |= OFFERS
    base["bertfast"]["optimization"] = {"layer_learning_rate_decay": 0.9}
    results = sweep_of(tmp_path, base, {"scheduler": [None]}, seeds=1).run()
    assert results["counts"]["complete"] == 1 and "scheduler" not in load_config(tmp_path / "sweep" / "best.json").deepspeed


def test_a_trial_of_a_rate_alone_has_the_default_s_decay(tmp_path, base):
    from bertfast.config.resolve import resolve_optimizer

    del base["optimizer"]
    sweep_of(tmp_path, base, {"optimizer.params.lr": [2e-5]}, seeds=1).run()
    trial = load_config(tmp_path / "sweep" / "trials" / "000-seed-5" / "config.json")
    assert resolve_optimizer(trial.deepspeed) == {"type": "AdamW", "params": {"lr": 2e-5, "weight_decay": 0.01}}


def test_trials_of_a_config_that_pre_trains_are_fine_tuned(tmp_path, base):
    base["bertfast"]["pretrain"] = {"next_sentence": False}
    assert sweep_of(tmp_path, base, seeds=1, trials=1).run()["counts"]["complete"] == 1
    for name in ("best.json", "trials/000-seed-5/config.json"):
        assert load_config(tmp_path / "sweep" / name).bertfast.pretrain is None
    (tmp_path / "space.yaml").write_text("bertfast.pretrain.masked_lm_prob: [0.1, 0.2]")
    with pytest.raises(ConfigError, match="bertfast.pretrain.masked_lm_prob cannot be searched: trials are fine-tuned"):
        read_space(str(tmp_path / "space.yaml"), load_config(base))


def test_a_trial_whose_metric_was_never_a_number_has_failed(tmp_path, base):
    (tmp_path / "stub.py").write_text(STUB.replace('"metrics": {', '"metrics": {} and {'))
    with pytest.raises(BertfastError, match="the first one that failed says: its metric was not a number at any evaluation"):
        sweep_of(tmp_path, base, {"optimizer.params.lr": [2e-5]}, seeds=1).run()


def test_more_settings_than_there_are(tmp_path, base):
    with pytest.raises(ConfigError, match=r"--trials 5: space.yaml has no more than 4 settings"):
        sweep_of(tmp_path, base, trials=5)


@pytest.mark.parametrize("missing", ["optuna", "matplotlib"])
def test_a_missing_library_is_named(tmp_path, base, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(BertfastError, match=rf"needs {missing}, which is not installed: pip install 'bertfast\[sweep\]'"):
        sweep_of(tmp_path, base)


@pytest.mark.parametrize(
    "words, message",
    [
        pytest.param(["--seeds", "0"], "'0' is no whole number from 1 on", id="no-seeds"),
        pytest.param(["--space", "nowhere.yaml"], "--space nowhere.yaml: no such file", id="no-space"),
    ],
)
def test_flags(tmp_path, base, capsys, words, message):
    (tmp_path / "c.json").write_text(json.dumps(base))
    assert entry.main(["sweep", "--config", str(tmp_path / "c.json"), *words]) == 2
    assert message in capsys.readouterr().err


def test_the_command_trains(tmp_path):
    config = write_task(tmp_path)
    config["bertfast"]["run"] |= {"max_steps": 4, "save_steps": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "space.yaml").write_text("bertfast.optimization.schedule: [linear, constant]\n")
    command = [sys.executable, "-m", "bertfast", "sweep", "CPU", "--config", "config.json", "--space", "space.yaml", "--seeds", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "best by its mean over 1 seed: schedule" in done.stdout and "2 settings of space.yaml x 1 seed: 2 trials" in done.stderr
    results = json.loads((tmp_path / "run" / "sweep.json").read_text())
    for trial in results["trials"]:
        own = json.loads((tmp_path / trial["folder"] / "results.json").read_text())
        assert own["training"]["steps"] == 4 and trial["score"] == own["metrics"]["dev"]["accuracy"]
        assert not (tmp_path / trial["folder"] / "checkpoints").exists()
    assert load_config(tmp_path / "run" / "best.json").bertfast.run.max_steps == 4


def test_several_tasks_are_compared_by_the_mean_of_their_main_metrics(tmp_path):
    """The task that comes first has another main metric than the one after it, and neither is the mixture's."""
    config = write_tasks(tmp_path)
    block = config["bertfast"]
    block["multitask"]["tasks"] = block["multitask"]["tasks"][1:]
    block["run"] |= {"max_steps": 4, "save_steps": 4}
    search = Search(Space("space.yaml", {"bertfast.multitask.sampling": ["uniform"]}), seeds=1)
    results = Sweep(load_config(config), search, [None], train_command("cpu"), str).run()
    own = json.loads((tmp_path / "run" / "trials" / "000-seed-42" / "results.json").read_text())
    mean = (own["metrics"]["relation/dev"]["macro_f1"] + own["metrics"]["score/dev"]["pearson"]) / 2
    assert results["best"]["mean"] == pytest.approx(mean, abs=1e-9) and results["score"] == "mean_of_main_metrics"
    assert "- score: mean_of_main_metrics" in (tmp_path / "run" / "sweep.md").read_text().splitlines()
    assert figure_of(results).axes[0].get_xlabel() == "mean_of_main_metrics"
    tasks = [[{**task, "weight": 2.0} for task in block["multitask"]["tasks"]], block["multitask"]["tasks"][:1] * 2]
    tasks[1][1] = {**tasks[1][0], "task": {**tasks[1][0]["task"], "name": "other"}}
    with pytest.raises(ConfigError, match=r"evaluated on other \(macro_f1\), relation .* and the config on relation .*, score \(pearson\)"):
        sweep_of(tmp_path, config, {"bertfast.multitask.tasks": tasks})


def test_several_tasks_are_evaluated_at_the_length_that_they_are_trained_at(tmp_path):
    config = write_tasks(tmp_path)
    del config["bertfast"]["eval_input"]
    Path(tmp_path / "stub.py").write_text(STUB.replace('config["optimizer"]["params"]["lr"]', "1e-5"))
    (tmp_path / "run").mkdir()
    sweep_of(tmp_path, config, {"bertfast.train_input.max_sequence_length": [16]}, seeds=1).run()
    assert load_config(tmp_path / "run" / "best.json").bertfast.eval_input.max_sequence_length == 16
