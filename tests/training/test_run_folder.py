"""Whole runs that are stopped, killed and led back, in this process: model, checkpoints and records agree, and nothing is lost."""

import copy
import json
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from bertfast.config.load import load_config
from bertfast.errors import BertfastError, CheckpointError, Terminated
from bertfast.storage import folders
from bertfast.storage.locks import LOCK_FILE
from tests.storage.test_locks import HOLD
from tests.support.runs import losses, need_deepspeed, write_task

LAST, EVERY = 12, 3  # steps of the run, and between its evaluations


class Killed(BaseException):
    """What a kill is to the rest of the process."""


@pytest.fixture(scope="module", autouse=True)
def metric():
    """In the place of the accuracy, which these few steps do not move: a number that moves with the weights, up to step 9 and then down."""
    need_deepspeed()
    from bertfast.training.objectives import classification

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            classification,
            "compute_metrics",
            lambda task, logits, _: {"accuracy": -abs(float((logits[:, 1] - logits[:, 0]).mean()) - 0.128)},
        )
        yield


@pytest.fixture(scope="module")
def task(tmp_path_factory, metric):
    """A config whose evaluations come at other steps than its saves; with `truth`, its run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("task")
    config = write_task(folder)
    config["optimizer"]["params"]["lr"] = 1e-2
    config["bertfast"]["run"] |= {"eval_steps": EVERY, "save_steps": 2, "keep_checkpoints": 9, "early_stopping_patience": 4}
    config["folder"] = folder
    fit(config, "truth")
    return config


@pytest.fixture
def run(task, tmp_path):
    """run(name, **settings): fits in a folder of the test's own."""
    own = copy.deepcopy(task) | {"folder": tmp_path}
    return lambda name="run", **settings: fit(own, name, **settings)


def fit(task, name, resume=False, path=None, deepspeed=None, with_changes=False, **settings):
    from bertfast.training.trainer import Trainer

    config = {key: copy.deepcopy(value) for key, value in task.items() if key != "folder"} | (deepspeed or {})
    config["bertfast"]["run"] |= {"model_dir": str(task["folder"] / name), **settings}
    path = path and str(path)
    return Trainer(load_config(config), device="cpu", resume=resume, checkpoint_path=path, with_changes=with_changes).fit()


def stop_at(monkeypatch, step):
    """SIGTERM comes during this step of the next run, and of no later one."""
    from bertfast.training.guards import Termination

    looks = iter(range(1, 99))
    monkeypatch.setattr(Termination, "agreed", lambda self: next(looks) == step)


def kill_at(monkeypatch, method, call):
    """The next run is killed as it enters a call of the run folder's method, counted from 1."""
    from bertfast.training.run_folder import RunFolder

    real, calls = getattr(RunFolder, method), iter(range(1, 99))

    def enter(self, *given):
        if next(calls) == call:
            raise Killed
        real(self, *given)

    monkeypatch.setattr(RunFolder, method, enter)


def evaluations(folder):
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(record["step"], record["metrics"]) for record in records if "metrics" in record]


def outcome(folder):
    """What two runs that are one must have in common."""
    from safetensors.numpy import load_file

    results = json.loads((folder / "results.json").read_text())
    training = {name: results["training"][name] for name in ("steps", "best_step", "epochs", "examples")}
    weights = {name: tensor.tobytes() for name, tensor in load_file(folder / "model" / "model.safetensors").items()}
    return {
        "losses": losses(folder.parent, folder.name),
        "evaluations": evaluations(folder),
        "metrics": results["metrics"],
        "training": training,
        "model's step": folders.sealed_step(folder / "model"),
        "model": weights,
        "fault": folders.fault_of(folder / "model"),
    }


def newest(folder):
    return folders.steps_in(folder / "checkpoints")[-1]


def test_the_truth_is_worth_comparing_with(task):
    truth = outcome(task["folder"] / "truth")
    assert [step for step, _ in truth["evaluations"]] == [3, 6, 9, 12] and truth["fault"] is None
    scores = [metrics["dev"]["accuracy"] for _, metrics in truth["evaluations"]]
    assert scores[0] < scores[1] < scores[2] > scores[3], "three are better than those before them, and the last is not"
    assert truth["model's step"] == truth["training"]["best_step"]
    kept = [path.name for path in folders.steps_in(task["folder"] / "truth" / "checkpoints")]
    assert [int(name[5:]) for name in kept] == [2, 3, 4, 6, 8, 9, 10, 12], "a checkpoint at every evaluation too"


@pytest.mark.parametrize("step", [9, 7, LAST], ids=["evaluating", "neither-evaluating-nor-saving", "the-last"])
def test_sigterm_loses_no_evaluation(step, task, run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Terminated, match=f"after step {step}; .*--resume"):
            run()
    assert [at for at, _ in evaluations(tmp_path / "run")] == [at for at in range(EVERY, step, EVERY)], "it is answered at once"
    with monkeypatch.context() as patch:
        kill_at(patch, "save", 1)
        with pytest.raises(Killed):
            run(resume=True)
    run(resume=True)
    assert outcome(tmp_path / "run") == outcome(task["folder"] / "truth")
    run(resume=True)
    assert outcome(tmp_path / "run") == outcome(task["folder"] / "truth"), "a run that has ended is resumed to the same end"


def test_an_owed_evaluation_can_end_the_run(task, run, tmp_path, monkeypatch):
    """With the patience of one evaluation, at a rate of 0: the first counts, the second is no better."""
    flat = {"deepspeed": {"optimizer": {"type": "AdamW", "params": {"lr": 0.0}}}, "early_stopping_patience": 1}
    run("truth", **flat)
    with monkeypatch.context() as patch:
        stop_at(patch, 2 * EVERY)
        with pytest.raises(Terminated):
            run(**flat)
    run(resume=True, **flat)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "truth")
    assert outcome(tmp_path / "run")["training"]["steps"] == 2 * EVERY


@pytest.mark.parametrize("better", [1, 3], ids=["of-the-first-evaluation", "of-the-third"])
def test_a_kill_between_a_checkpoint_and_its_model_is_mended(better, task, run, tmp_path, monkeypatch):
    """The model's folder is still that of the evaluation before, or is not there yet."""
    with monkeypatch.context() as patch:
        kill_at(patch, "write_model", better)
        with pytest.raises(Killed):
            run()
    step = EVERY * better
    assert folders.step_of(newest(tmp_path / "run")) == step
    assert folders.sealed_step(tmp_path / "run" / "model") == (step - EVERY or None)
    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        with pytest.raises(Terminated):
            run(resume=True)
    assert folders.sealed_step(tmp_path / "run" / "model") == step
    run(resume=True)
    assert outcome(tmp_path / "run") == outcome(task["folder"] / "truth")
    assert not list(tmp_path.glob("run/set-aside-*"))


def test_a_run_that_is_led_back_sets_aside_what_came_later(task, run, tmp_path, monkeypatch, capsys):
    shutil.copytree(task["folder"] / "truth", tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        with pytest.raises(Terminated):
            run(resume=True, path=checkpoints / "step-00000004", keep_checkpoints=2)
    said = capsys.readouterr().err
    assert [path.name for path in folders.steps_in(checkpoints)] == ["step-00000004", "step-00000005"]
    aside = tmp_path / "run" / "set-aside-1"
    assert [folders.step_of(path) for path in folders.steps_in(aside / "checkpoints")] == [6, 8, 9, 10, 12]
    assert f"goes on from {checkpoints / 'step-00000004'}; set aside in {aside}: checkpoints/step-00000012, " in said
    assert (aside / "results.json").is_file() and not (tmp_path / "run" / "results.json").exists()
    assert (aside / "log.jsonl").read_text() == (task["folder"] / "truth" / "log.jsonl").read_text()
    assert folders.sealed_step(tmp_path / "run" / "model") == EVERY, "the best until step 4"
    run(resume=True)
    assert outcome(tmp_path / "run") == outcome(task["folder"] / "truth")
    run("run", resume=True, path=aside / "checkpoints" / "step-00000009")
    assert outcome(tmp_path / "run") == outcome(task["folder"] / "truth"), "and one can go on from what was set aside"
    assert len(folders.steps_in(tmp_path / "run" / "set-aside-2" / "checkpoints")) > 2
    run(resume=True, path=checkpoints / "step-00000010")
    assert outcome(tmp_path / "run") == outcome(task["folder"] / "truth")
    assert folders.sealed_step(tmp_path / "run" / "set-aside-3" / "model") == 9, "the best of both is in both"


def test_a_best_model_that_is_gone_is_looked_for_again(task, run, tmp_path, capsys):
    """A checkpoint alone, in a folder of its own, without the best model of its past."""
    shutil.copytree(task["folder"] / "truth" / "checkpoints" / "step-00000004", tmp_path / "backup")
    run(resume=True, path=tmp_path / "backup")
    assert f"the best model so far, of step {EVERY}, is no longer there" in capsys.readouterr().err.replace("\n", " ")
    found, truth = outcome(tmp_path / "run"), outcome(task["folder"] / "truth")
    assert [step for step, _ in found["evaluations"]] == [4, 6, 9, 12] and found["evaluations"][1:] == truth["evaluations"][1:]
    assert found["losses"] == {step: loss for step, loss in truth["losses"].items() if step > 4}
    assert (
        found["model's step"] == found["training"]["best_step"]
        and found["metrics"]["dev"] == dict(found["evaluations"])[found["model's step"]]["dev"]
    )


def test_a_checkpoint_of_another_folder_brings_its_best_model(task, run, tmp_path):
    run(resume=True, path=task["folder"] / "truth" / "checkpoints" / "step-00000004", max_steps=4)
    assert folders.sealed_step(tmp_path / "run" / "model") == EVERY
    assert json.loads((tmp_path / "run" / "results.json").read_text())["training"]["best_step"] == EVERY


@pytest.mark.parametrize(
    ("block", "words"),
    [
        pytest.param({"params": {"lr": 2e-2, "weight_decay": 0.01}}, "optimizer.params.lr = 0.01, this run has 0.02", id="rate"),
        pytest.param({"params": {"lr": 1e-2, "weight_decay": 0.5}}, "optimizer.params.weight_decay = 0.01, this run has 0.5", id="decay"),
    ],
)
def test_another_optimizer_is_refused_by_name(block, words, task, run, tmp_path):
    path = newest(task["folder"] / "truth")
    with pytest.raises(CheckpointError, match=words):
        run(resume=True, path=path, deepspeed={"optimizer": {"type": "AdamW", **block}})


def test_what_deepspeed_cannot_load_is_an_error_of_ours(task, run, tmp_path, monkeypatch):
    from deepspeed.runtime.engine import DeepSpeedEngine

    def refuse(*_, **__):
        raise Exception("The checkpoint being loaded used another world size")

    monkeypatch.setattr(DeepSpeedEngine, "load_checkpoint", refuse)
    with pytest.raises(CheckpointError, match=r"does not fit this run \(Exception: The checkpoint being loaded"):
        run(resume=True, path=newest(task["folder"] / "truth"))


def test_zero_to_fp32_finds_the_state_where_it_lies(run, tmp_path):
    """DeepSpeed's own script, which it leaves in a checkpoint under ZeRO, as it documents it: in the checkpoint's folder, with `.` and no tag."""
    from bertfast.model.bert import BertClassifier

    run(deepspeed={"zero_optimization": {"stage": 2}, "data_types": {"grad_accum_dtype": "fp32"}}, max_steps=1)
    folder = newest(tmp_path / "run")
    found = runpy.run_path(str(folder / "zero_to_fp32.py"))["get_fp32_state_dict_from_zero_checkpoint"](str(folder))
    wanted = BertClassifier.from_pretrained(str(folder / "model")).state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert folders.fault_of(folder) is None and "latest" in json.loads((folder / folders.MANIFEST).read_text())["files"]


def test_other_data_are_refused_and_with_the_flag_told(task, tmp_path, capsys):
    """The rows of the training file in another order: nothing else tells them from the old ones."""
    own = copy.deepcopy(task) | {"folder": tmp_path}
    head, *rows = (task["folder"] / "train.tsv").read_text().splitlines()
    (tmp_path / "other.tsv").write_text("\n".join([head, *rows[::-1]]) + "\n")
    fit(own, "run", max_steps=4)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    own["bertfast"]["train_input"]["data_file"] = str(tmp_path / "other.tsv")
    with pytest.raises(CheckpointError) as refused:
        fit(own, "run", resume=True)
    words = str(refused.value)
    assert words.startswith(f"{newest(tmp_path / 'run')}: was written with training data.tokens = crc32 ")
    assert "(other too: training data.labels)" in words and "--resume_with_changes" in words and "\n" not in words
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    capsys.readouterr()
    results = fit(own, "run", with_changes=True, max_steps=6, deepspeed={"gradient_clipping": 0.5})
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("resumed with a change: ")]
    assert (
        told[0] == "resumed with a change: gradient_clipping = 1.0 -> 0.5"
        and len(told) == 3
        and " tokens = crc32 " in told[1].replace(".", " ")
    )
    assert results["training"]["resumed_with_changes"] == [f"after step 4: {line.removeprefix('resumed with a change: ')}" for line in told]
    again = fit(own, "run", resume=True, max_steps=7, deepspeed={"gradient_clipping": 0.5})
    assert again["training"]["resumed_with_changes"] == results["training"]["resumed_with_changes"] and again["training"]["steps"] == 7
    assert "resumed with a change" not in capsys.readouterr().err


def test_a_best_model_of_other_evaluation_data_is_not_compared_with(task, tmp_path, capsys):
    own = copy.deepcopy(task) | {"folder": tmp_path}
    fit(own, "run", max_steps=6)
    own["bertfast"]["eval_input"]["data_file"] = str(task["folder"] / "train.tsv")
    fit(own, "run", with_changes=True, max_steps=7)
    assert "resumed with a change: evaluation data.dev.tokens = " in capsys.readouterr().err
    found = evaluations(tmp_path / "run")
    assert [step for step, _ in found] == [3, 6, 7] and found[1][1] != evaluations(task["folder"] / "truth")[1][1], "step 6 is judged anew"
    best = max(found[1:], key=lambda entry: entry[1]["dev"]["accuracy"])
    training = json.loads((tmp_path / "run" / "results.json").read_text())["training"]
    assert training["best_step"] == best[0] == folders.sealed_step(tmp_path / "run" / "model")


def test_no_flag_lets_another_kind_of_optimizer_take_the_state(task, run):
    with pytest.raises(
        CheckpointError, match="optimizer.type = adamw, this run has adam; resume with the settings and data that wrote it, or start"
    ):
        run(with_changes=True, path=newest(task["folder"] / "truth"), deepspeed={"optimizer": {"type": "Adam", "params": {"lr": 1e-2}}})


def test_rates_after_a_resume_are_those_of_the_new_length(task, run, tmp_path):
    from bertfast.engine.schedules import schedule

    run(max_steps=2, eval_steps=9)
    run(resume=True, max_steps=5, eval_steps=9, warmup_steps=3)
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    rates = {record["step"]: record["learning_rate"] for record in records if "learning_rate" in record}
    assert rates == {step + 1: 1e-2 * schedule("linear", *((0, 2) if step < 2 else (3, 5)))(step) for step in range(5)}


def test_a_resume_with_nothing_to_resume_from_says_so(run, tmp_path, capsys):
    """Whoever starts a run by a scheduler always gives --resume; whoever names a checkpoint means that one."""
    run(resume=True, max_steps=1)
    said = capsys.readouterr().err.splitlines()
    line = f"there is no checkpoint in {tmp_path / 'run' / 'checkpoints'} to resume from: this run begins at step 0"
    assert line in said and said.index(line) < next(index for index, words in enumerate(said) if words.startswith("step 1/1"))
    with pytest.raises(CheckpointError, match=r"nowhere: cannot be resumed from: there is no such folder"):
        run("other", resume=True, path=tmp_path / "nowhere")
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoints"):
        with pytest.raises(CheckpointError, match="it is no checkpoint, but holds some; name one of them, .*step-00000001 say"):
            run("other", resume=True, path=folder)


def test_a_checkpoint_of_an_earlier_bertfast_is_resumed(task, run, tmp_path, capsys):
    """Which kept the identity with the weights alone, without the optimizer's settings, and did not say of which step a model is; and told little."""
    shutil.copytree(task["folder"] / "truth", tmp_path / "run")
    old = tmp_path / "run" / "checkpoints" / "step-00000012"
    (old / "run.json").unlink()
    states = next(old.glob("state/*model_states.pt"))
    kept = torch.load(states, weights_only=False)
    told = ("seed", "world_size", "batch size", "micro-steps", "planner", "steps per epoch", "training examples", "training tokens")
    kept["identity"] = {name: kept["identity"][name] for name in (*told, "head", "truncation", "loss", "optimization", "pretrain")}
    del kept["progress"]["changes"]
    torch.save(kept, states)
    for folder in (old, tmp_path / "run" / "model"):
        folders.seal(folder)
    run(resume=True)
    assert outcome(tmp_path / "run") == outcome(task["folder"] / "truth") | {"model's step": None}
    said = capsys.readouterr().err
    line = next(line for line in said.splitlines() if line.startswith(f"{old} is of an earlier bertfast, which did not write down "))
    assert all(name in line for name in ("classes", "optimizer", "precision", "tokenizer", "training data", "weights"))
    with pytest.raises(CheckpointError, match="was written with seed = 42, this run has 7"):
        run(resume=True, path=old, seed=7)


def test_two_runs_do_not_share_a_folder(task, run, tmp_path):
    (tmp_path / "run").mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run" / LOCK_FILE)], stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        with pytest.raises(BertfastError, match=f"{tmp_path / 'run'}: another run is at work there"):
            run()
    finally:
        holder.kill()
        holder.communicate()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]


def test_an_evaluation_leaves_the_model_alone_that_is_being_written(task, run, tmp_path):
    from bertfast.training.trainer import Trainer

    shutil.copytree(task["folder"] / "truth" / "model", tmp_path / "run" / "model")
    half = tmp_path / "run" / ".writing-model"
    half.mkdir()
    config = {key: value for key, value in task.items() if key != "folder"}
    metrics = Trainer(load_config(config), device="cpu", checkpoint_path=str(tmp_path / "run")).evaluate()
    assert half.is_dir() and metrics["dev"] == pytest.approx(outcome(task["folder"] / "truth")["metrics"]["dev"])


def test_a_metric_that_is_never_a_number_leaves_the_last_model(run, tmp_path, monkeypatch):
    from bertfast.training.objectives.classification import Classification

    monkeypatch.setattr(Classification, "score", lambda self, metrics: float("nan"))
    results = run(max_steps=4, warmup_steps=0)
    assert results["metrics"] == {} and results["training"]["best_step"] is None
    assert folders.sealed_step(tmp_path / "run" / "model") == 4 and np.isfinite(results["training"]["samples_per_second"])
