"""What the flags do, what the user is told, and the exit codes. The trainer is a stand-in."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest

from bertfast.cli import entry
from bertfast.cli.flags import FLAGS
from bertfast.cli.parser import names_command, overrides, parse_command, parse_launch
from bertfast.config.load import load_config
from bertfast.errors import CheckpointError, ConfigError, Interrupted, NonFiniteLossError, OutOfMemoryError, Terminated
from tests.support import ROOT

CONFIG = {
    "bertfast": {
        "task": "sst2",
        "model": {"checkpoint": "some-bert"},
        "train_input": {"data_dir": "data"},
        "eval_input": {"data_dir": "data"},
    }
}


@pytest.fixture(autouse=True)
def lone_rank(monkeypatch, tmp_path):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.json").write_text(json.dumps(CONFIG))


class FakeTrainer:
    """Records how it was made, and raises what it is told to."""

    made: ClassVar[dict] = {}
    fault: ClassVar[BaseException | None] = None

    def __init__(self, config, **options):
        type(self).made = {"config": config.bertfast, **options}

    def _answer(self, name, value):
        type(self).made["called"] = name
        if self.fault is not None:
            raise self.fault
        return value

    def fit(self):
        return self._answer("fit", {"metrics": {"dev": {"accuracy": 0.91234, "f1": 0.5}}})

    def evaluate(self):
        return self._answer("evaluate", {"dev_matched": {"accuracy": 0.75}, "dev_mismatched": {"accuracy": 0.5, "f1": 0.25}})


@pytest.fixture
def trainer(monkeypatch):
    module = ModuleType("bertfast.training")
    module.Trainer = type("Trainer", (FakeTrainer,), {"made": {}, "fault": None})
    monkeypatch.setitem(sys.modules, "bertfast.training", module)
    return module.Trainer


def model_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "bertfast.json").write_text(json.dumps(CONFIG))
    return path


@pytest.mark.parametrize("run, command", [(entry.main, ["train"]), (entry.launch, []), (entry.launch, ["--mode", "train_and_eval"])])
def test_train(trainer, capsys, run, command):
    assert run([*command, "--config", "c.json"]) == 0
    assert trainer.made["called"] == "fit"
    assert (trainer.made["device"], trainer.made["resume"], trainer.made["checkpoint_path"]) == (None, False, None)
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("split", "accuracy", "dev", "0.9123", "0.5000"))


@pytest.mark.parametrize("run, command", [(entry.main, ["eval"]), (entry.launch, ["--mode", "eval"])])
def test_eval(trainer, capsys, run, command):
    assert run([*command, "--config", "c.json", "--checkpoint_path", "m"]) == 0
    assert trainer.made["called"] == "evaluate" and trainer.made["checkpoint_path"] == "m"
    shown = capsys.readouterr().out
    assert [line.split() for line in shown.splitlines() if "dev" in line] == [
        ["│", "dev_matched", "│", "0.7500", "│", "│"],
        ["│", "dev_mismatched", "│", "0.5000", "│", "0.2500", "│"],
    ]


def test_only_rank_0_prints_the_table(trainer, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert entry.main(["eval", "--config", "c.json", "--checkpoint_path", "m"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "argv, device",
    [
        pytest.param(["CPU", "--config", "c"], "cpu", id="leading"),
        pytest.param(["gpu", "--config", "c"], "gpu", id="lower-case"),
        pytest.param(["--local_rank=1", "Cpu", "--config", "c"], "cpu", id="after-what-deepspeed-puts-in-front"),
        pytest.param(["--config", "c"], None, id="left-out"),
        pytest.param(["--config", "cpu"], None, id="the-value-of-a-flag"),
    ],
)
def test_a_leading_device(argv, device):
    arguments = parse_launch(argv)
    assert arguments.device == device and arguments.config == argv[-1]


def test_the_device_may_stand_before_or_after_the_command():
    for argv in (["train", "CPU", "--config", "c"], ["CPU", "train", "--config", "c"]):
        arguments = parse_command(argv)
        assert (arguments.command, arguments.device) == ("train", "cpu")


def test_flags_become_config_keys():
    argv = ["train", "--params", "c.json", "--set", "bertfast.run.epochs=2", "--set", "bertfast.run.seed=1", "--model_dir"]
    argv += ["runs/a: b", "--checkpoint_path", "123", "--is_pretrained_checkpoint", "--load_checkpoint_states", "model"]
    arguments = parse_command([*argv, "--disable_strict_checkpoint_loading"])
    block = load_config(arguments.config, overrides(arguments)).bertfast
    assert (block.run.epochs, block.run.seed, block.run.model_dir) == (2.0, 1, "runs/a: b")
    assert block.model.checkpoint == "123" and block.model.is_pretrained_checkpoint and not block.model.strict
    assert block.model.load_checkpoint_states == "model"


def test_without_flags_nothing_is_overridden():
    assert overrides(parse_launch(["--config", "c.json"])) == []


def test_a_flag_beats_a_set():
    arguments = parse_command(["train", "--config", "c.json", "--model_dir", "b", "--set", "bertfast.run.model_dir=a"])
    assert load_config(arguments.config, overrides(arguments)).bertfast.run.model_dir == "b"


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag.key], ids=lambda flag: flag.dest)
def test_the_key_that_a_flag_names_exists(flag, capsys):
    value = (
        flag.value if flag.value is not None else flag.options.get("choices", [{int: 1, float: 0.5}.get(flag.options.get("type"), "x")])[0]
    )
    value = flag.expand(-1)[flag.key] if flag.expand else [value] if "nargs" in flag.options else value
    config = load_config(CONFIG, [f"{flag.key}={json.dumps(value)}"]).to_dict()
    for part in flag.key.split("."):
        config = config[part]
    assert (config if not flag.expand else {key: config[key] for key in value}) == value
    assert entry.launch(["--help"]) == 0
    assert flag.key in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "eval", "predict", "validate", "compile"])
def test_help(command, capsys):
    assert entry.main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "[CPU|GPU]" in shown and "--params" in shown and "local_rank" not in shown
    assert ("\n  --resume" in shown) == (command == "train") and ("\n  --format" in shown) == (command == "predict")


def test_version(capsys):
    from bertfast import __version__

    assert entry.main(["--version"]) == 0
    assert capsys.readouterr().out == f"bertfast {__version__}\n"


@pytest.mark.parametrize(
    "argv, words",
    [
        pytest.param(["train"], ["bertfast train: --config is missing", "ds_mnli.json"], id="no-config"),
        pytest.param(["eval"], ["--config is missing", "--checkpoint_path"], id="eval-of-nothing"),
        pytest.param(["train", "--confg", "c.json"], ["unknown flag --confg", "did you mean --config?"], id="misspelt"),
        pytest.param(["train", "--config", "c.json", "--model-dir=x"], ["unknown flag --model-dir", "--model_dir?"], id="a-hyphen"),
        pytest.param(["train", "--config", "c.json", "--xyz"], ["unknown flag --xyz", "known flags: --checkpoint_path"], id="unheard-of"),
        pytest.param(["train", "ds_mnli.json"], ["'ds_mnli.json'", "did you mean --config ds_mnli.json?"], id="bare-config"),
        pytest.param(["train", "--config", "c.json", "GPU"], ["GPU must stand first"], id="device-at-the-end"),
        pytest.param(["train", "--config", "c.json", "more"], ["unexpected argument 'more'"], id="a-stray-word"),
        pytest.param(["trian", "--config", "c.json"], ["'trian'", "train"], id="misspelt-command"),
        pytest.param([], ["COMMAND"], id="no-command"),
        pytest.param(["train", "--config"], ["--config", "expected one argument"], id="no-value"),
        pytest.param(["train", "--config", "c.json", "--load_checkpoint_states", "all"], ["'all'", "model"], id="unknown-choice"),
        pytest.param(["eval", "--config", "c.json", "--resume"], ["bertfast eval: unknown flag --resume"], id="resume-an-evaluation"),
        pytest.param(["train", "--config", "c.json", "--conf", "d"], ["unknown flag --conf"], id="no-abbreviations"),
    ],
)
def test_wrong_flags_are_answered_with_one_message(argv, words, capsys):
    assert entry.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("bertfast: error: ") and "Traceback" not in err
    assert all(word in err for word in words), err


@pytest.mark.parametrize(
    "argv, words",
    [
        pytest.param(["--mode", "test"], ["launch.py", "'test'", "train_and_eval"], id="unknown-mode"),
        pytest.param(["--input", "a"], ["--input is for predict, not for train"], id="input-of-a-training"),
        pytest.param(["--mode", "eval", "--resume"], ["--resume is for train and pretrain, not for eval"], id="resume-an-evaluation"),
        pytest.param(["--mode", "predict", "--validate_only"], ["--validate_only is for train"], id="validate-a-prediction"),
        pytest.param(["--mode", "eval", "--is_pretrained_checkpoint"], ["--is_pretrained_checkpoint is for train and"], id="a-new-head"),
    ],
)
def test_wrong_flags_of_launch(argv, words, capsys):
    assert entry.launch(["--config", "c.json", *argv]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words), err


def test_deepspeeds_own_flag_is_taken():
    assert parse_launch(["--local_rank=3", "--config", "c"]).local_rank == 3


def test_resume_continues_a_training_checkpoint(trainer):
    assert entry.launch(["GPU", "--config", "c.json", "--resume", "--checkpoint_path", "runs/a/step-7", "--profile_startup"]) == 0
    made = trainer.made
    assert (made["device"], made["resume"], made["checkpoint_path"], made["profile_startup"]) == ("gpu", True, "runs/a/step-7", True)
    assert made["config"].model.checkpoint == "some-bert"


def test_resume_with_changes_names_the_checkpoint_to_continue_too(trainer):
    assert entry.launch(["--config", "c.json", "--resume_with_changes", "--checkpoint_path", "runs/a/step-7"]) == 0
    made = trainer.made
    assert (made["with_changes"], made["checkpoint_path"], made["config"].model.checkpoint) == (True, "runs/a/step-7", "some-bert")


def test_without_resume_the_checkpoint_is_where_training_starts(trainer):
    assert entry.launch(["--config", "c.json", "--checkpoint_path", "mine"]) == 0
    assert trainer.made["checkpoint_path"] is None and trainer.made["config"].model.checkpoint == "mine"


def test_eval_takes_the_model_that_training_left(trainer, tmp_path):
    model_folder(tmp_path / "runs" / "model" / "model")
    assert entry.main(["eval", "--config", "c.json"]) == 0
    assert trainer.made["checkpoint_path"] == "runs/model"
    assert trainer.made["config"].model.checkpoint == "some-bert"


def test_a_model_that_was_being_replaced_when_the_run_was_killed_is_found(trainer, tmp_path):
    model_folder(tmp_path / "runs" / "model" / ".old-model")
    assert entry.main(["eval", "--config", "c.json"]) == 0
    assert trainer.made["called"] == "evaluate" and trainer.made["checkpoint_path"] == "runs/model"
    assert entry.main(["eval", "--checkpoint_path", "runs/model", "--set", "bertfast.eval_input.batch_size=7"]) == 0
    assert [path.name for path in (tmp_path / "runs" / "model").iterdir()] == [".old-model"], "to read it is not to move it"


def test_a_model_folder_needs_no_other_config(trainer, tmp_path):
    folder = model_folder(tmp_path / "run" / "model")
    for path in (folder, folder.parent):
        assert entry.main(["eval", "--checkpoint_path", str(path), "--set", "bertfast.eval_input.batch_size=7"]) == 0
        assert trainer.made["config"].eval_input.batch_size == 7 and trainer.made["checkpoint_path"] == str(path)


@pytest.mark.parametrize(
    "argv, words",
    [
        pytest.param(["eval", "--config", "c.json"], ["runs/model/model", "no fine-tuned model", "--checkpoint_path"], id="not-trained"),
        pytest.param(["eval", "--checkpoint_path", "m"], ["--checkpoint_path m", "no bertfast.json", "--config"], id="a-plain-folder"),
        pytest.param(["train", "--config", "nothing.json"], ["--config nothing.json: no such file"], id="no-such-config"),
        pytest.param(["train", "--config", "c.json", "--set", "bertfast.task=sst3"], ["'sst3'", "did you mean 'sst2'"], id="unknown-task"),
        pytest.param(["train", "--config", "c.json", "--set", "bertfast.run.epoch=1"], ["'epoch'", "'epochs'"], id="unknown-key"),
        pytest.param(["train", "--config", "c.json", "--set", "bertfast.train_input=null"], ["c.json", "train_input"], id="no-train-input"),
        pytest.param(
            ["eval", "--config", "c.json", "--checkpoint_path", "m", "--set", "bertfast.eval_input=null"],
            ["c.json", "eval_input"],
            id="no-eval-input",
        ),
    ],
)
def test_bad_configs_are_answered_before_the_trainer_is_made(argv, words, capsys, trainer):
    assert entry.main(argv) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words), err
    assert not trainer.made


def test_train_and_eval_needs_something_to_evaluate(capsys, trainer):
    assert entry.launch(["--config", "c.json", "--mode", "train_and_eval", "--set", "bertfast.eval_input=null"]) == 2
    assert "eval_input" in capsys.readouterr().err
    assert entry.launch(["--config", "c.json", "--set", "bertfast.eval_input=null"]) == 0


@pytest.mark.parametrize(
    "fault, code",
    [
        pytest.param(ConfigError("a"), 2, id="config"),
        pytest.param(CheckpointError("a"), 2, id="checkpoint"),
        pytest.param(NonFiniteLossError("a"), 3, id="loss"),
        pytest.param(Terminated("a"), 143, id="sigterm"),
        pytest.param(Interrupted("a"), 130, id="ctrl-c-after-a-checkpoint"),
        pytest.param(OutOfMemoryError("a"), 2, id="memory"),
        pytest.param(KeyboardInterrupt(), 130, id="ctrl-c"),
    ],
)
def test_exit_codes(trainer, capsys, fault, code):
    trainer.fault = fault
    assert entry.main(["train", "--config", "c.json"]) == code
    goes_on = ": bertfast train --config c.json --resume" if isinstance(fault, Terminated) else ""
    said = "interrupted" if isinstance(fault, KeyboardInterrupt) else f"error: a{goes_on}"
    assert capsys.readouterr().err == f"bertfast: {said}\n"


def test_memory_that_runs_out_anywhere_is_one_line(trainer, capsys):
    trainer.fault = MemoryError("Unable to allocate 20. TiB for an array")
    assert entry.main(["train", "--config", "c.json"]) == 2
    said = "bertfast: error: memory ran out (20. TiB more were asked for); end what else runs here, or take a machine with more\n"
    assert capsys.readouterr().err == said


def test_a_stop_that_all_ranks_know_of_is_told_once(trainer, capsys, monkeypatch):
    monkeypatch.setattr(entry.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("RANK", "1")
    trainer.fault = Terminated("a")
    assert entry.main(["train", "--config", "c.json"]) == 143
    assert capsys.readouterr().err == ""


def test_our_own_faults_keep_their_traceback(trainer):
    trainer.fault = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        entry.main(["train", "--config", "c.json"])


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK"])
def test_the_other_ranks_wait_and_then_say_what_only_they_have_met(trainer, capsys, monkeypatch, variable):
    naps = []
    monkeypatch.setattr(entry.time, "sleep", lambda seconds: naps.append((seconds, capsys.readouterr().err)))
    monkeypatch.setenv(variable, "1")
    trainer.fault = ConfigError("a")
    assert entry.main(["train", "--config", "c.json"]) == 2
    assert naps == [(entry._HEAD_START_SECONDS, "")] and entry._HEAD_START_SECONDS > 1
    assert capsys.readouterr().err == "bertfast: rank 1: error: a\n"


def test_a_bad_config_is_answered_without_the_heavy_imports(tmp_path):
    code = (
        "import sys; from bertfast.cli import main; codes = [main(['--help']), main(['train', '--config', 'c.json', '--set', 'a=1'])];"
        "heavy = {'torch', 'transformers', 'deepspeed', 'datasets', 'numpy', 'rich'} & set(sys.modules); print('\\n', codes, heavy)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == " [0, 2] set()", done.stderr
    assert "unknown key 'a' at the top level" in done.stderr


def test_the_reader_of_our_output_may_leave(trainer, monkeypatch, tmp_path):
    trainer.fault = BrokenPipeError()
    with open(tmp_path / "out", "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert entry.main(["train", "--config", "c.json"]) == 0


@pytest.mark.parametrize(
    "argv, expected",
    [
        pytest.param(["validate", "--config", "c"], True, id="a-command"),
        pytest.param(["--local_rank=0", "CPU", "train"], True, id="after-what-deepspeed-puts-in-front"),
        pytest.param([], True, id="nothing"),
        pytest.param(["--version"], True, id="version"),
        pytest.param(["--local_rank=0", "--config", "train"], False, id="flags-of-launch"),
        pytest.param(["gpu", "--mode", "eval"], False, id="a-device-and-flags"),
    ],
)
def test_the_module_is_the_command_or_launch(argv, expected):
    assert names_command(argv) == expected


def test_deepspeeds_own_flag_is_taken_before_a_command():
    arguments = parse_command(["--local_rank=3", "train", "--config", "c"])
    assert (arguments.local_rank, arguments.command) == (3, "train")


@pytest.mark.parametrize("words", [["validate", "--config", "c.json"], ["--mode", "predict", "--config", "c.json"]])
def test_the_module_runs_as_a_user_types_it(words):
    done = subprocess.run([sys.executable, "-m", "bertfast", *words], capture_output=True, text=True, env=python_path())
    assert done.returncode == 2 and "unexpected argument" not in done.stderr
    assert "some-bert" in done.stdout if words[0] == "validate" else "no fine-tuned model yet" in done.stderr


def python_path():
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]), "HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize("package, block", [("tensorboard", "tensorboard"), ("wandb", "wandb"), ("comet_ml", "comet")])
def test_a_monitor_without_its_package_is_named(trainer, capsys, monkeypatch, package, block):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find_spec(name, *rest))
    assert entry.main(["train", "--config", "c.json", "--set", f"{block}.enabled=true"]) == 2
    shown = capsys.readouterr().err
    assert f"{block}.enabled" in shown and f"pip install {package}" in shown and "called" not in trainer.made
    assert entry.main(["train", "--config", "c.json", "--set", f"{block}.enabled=false"]) == 0
    assert entry.main(["eval", "--config", "c.json", "--checkpoint_path", "m", "--set", f"{block}.enabled=true"]) == 0


def test_training_ends_with_where_things_are(trainer, capsys):
    assert entry.main(["train", "--config", "c.json", "--model_dir", "runs/x"]) == 0
    assert "model: runs/x/model; figures: runs/x/results.json" in capsys.readouterr().err
