"""What a path means that a command is given: a model's folder with no config, and things that its flag does not take."""

import json
import shutil

import numpy as np
import pytest

from bertfast.cli import entry
from bertfast.cli.parser import parse_command
from bertfast.readers import predict_input
from tests.support.tiny_bert import write_tiny_bert


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict_input, "_is_piped", lambda: False)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A classifier as transformers leaves it."""
    return write_tiny_bert(
        tmp_path_factory.mktemp("plain") / "m", num_labels=3, id2label={0: "no", 1: "yes", 2: "maybe"}, initializer_range=0.5
    )


TEXTS, OTHERS = ["a good film", "the dull film is bad"], ["great", "he runs"]


@pytest.mark.parametrize(
    "columns, options, is_pair",
    [
        pytest.param(("id", "text", "label"), [], False, id="text"),
        pytest.param(("text", "text_pair", "id"), [], True, id="text-pair"),
        pytest.param(("premise", "hypothesis", "id"), [], True, id="columns-of-mnli"),
        pytest.param(("review", "other", "id"), ["--set", "bertfast.task.text_columns=[review]"], False, id="named"),
    ],
)
def test_a_model_of_transformers_answers_with_no_config(plain, tmp_path, capfd, columns, options, is_pair):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    pandas = pytest.importorskip("pandas")
    values = dict(zip(("text", "review", "premise"), [TEXTS] * 3, strict=True)) | dict.fromkeys(
        ("text_pair", "other", "hypothesis"), OTHERS
    )
    pandas.DataFrame({name: values.get(name, [7, 8]) for name in columns}).to_csv(tmp_path / "in.csv", index=False)
    assert entry.main(["predict", "CPU", "--checkpoint_path", str(plain), "--input", "in.csv", "--output", "out.csv", *options]) == 0
    assert "cut to 128 tokens" in capfd.readouterr().err
    tokenizer, model = AutoTokenizer.from_pretrained(plain), AutoModelForSequenceClassification.from_pretrained(plain).eval()
    with torch.no_grad():
        logits = model(**tokenizer(TEXTS, OTHERS if is_pair else None, padding=True, return_tensors="pt")).logits.numpy().astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = pandas.read_csv(tmp_path / "out.csv")
    assert np.abs(found[["probability_no", "probability_yes", "probability_maybe"]].to_numpy() - shares).max() < 1e-5


def test_columns_that_say_nothing_are_named(plain, tmp_path, capsys):
    (tmp_path / "in.csv").write_text("a,b\nx,y\n")
    assert entry.main(["predict", "CPU", "--checkpoint_path", str(plain), "--input", "in.csv"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("bertfast: error: --input in.csv: which of its columns") and "'a', 'b'" in said and "text_columns=[a]" in said


PLACES = [
    (["predict", "--checkpoint_path", "bundle"], "is an exported bundle", "--onnx bundle"),
    (["eval", "--checkpoint_path", "bundle"], "is an exported bundle", "bertfast verify bundle"),
    (["train", "--config", "c.json", "--checkpoint_path", "bundle"], "is an exported bundle", "name the model that it was exported from"),
    (["predict", "--checkpoint_path", "model/model.safetensors"], "is a file", "the folder that it lies in: model"),
    (["eval", "--checkpoint_path", "model/config.json"], "is a file", "the folder that it lies in: model"),
    (["predict", "--checkpoint_path", "c.json"], "is a file", "--config c.json"),
    (["predict", "--checkpoint_path", "run/checkpoints"], "holds 2 training checkpoints", "run/checkpoints/step-00000012"),
    (["eval", "--checkpoint_path", "model"], "no bertfast.json there", "--config"),
    (["eval", "--checkpoint_path", "nothing"], "there is no such folder", "--config"),
    (["train", "--config", "model"], "--config model: is a folder", "--checkpoint_path"),
    (["train", "--config", "model/config.json"], "is the config.json of a model", "--checkpoint_path"),
    (["predict", "--onnx", "model"], "it is a model, and no bundle", "--checkpoint_path model"),
    (["predict", "--onnx", "run"], "there is no verification.json", "give the bundle run/onnx"),
    (["predict", "--onnx", "bundle/onnx"], "there is no verification.json", "give the bundle bundle"),
    (["predict", "--onnx", "bundle/model.onnx"], "is a file, and a bundle is a folder", "give bundle"),
    (["predict", "--onnx", "nothing"], "there is no such folder", "bertfast export wrote"),
    (["verify", "model"], "it is a model, and no bundle", "bertfast export model"),
    (["verify", "bundle/model.onnx"], "is a file", "give bundle"),
    (["export", "c.json", "-o", "new", "--grid_only"], "checkpoint c.json: is a file", "the folder that it lies in"),
]


@pytest.fixture
def places(tmp_path):
    """A model, a bundle, a run with its bundle, and a config, as far as their names tell."""
    for name in ("model/config.json", "model/model.safetensors", "bundle/model.onnx", "bundle/onnx/model.onnx", "bundle/verification.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"model_type": "bert"}))
    shutil.copytree(tmp_path / "bundle", tmp_path / "run" / "onnx")
    for step in (4, 12):
        (tmp_path / "run" / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    block = {"task": "sst2", "model": {"checkpoint": "model"}, "train_input": {"data_dir": "data"}, "eval_input": {"data_dir": "data"}}
    (tmp_path / "c.json").write_text(json.dumps({"bertfast": block}))


@pytest.mark.parametrize("argv, what, mend", PLACES, ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_what_a_flag_does_not_take_is_called_by_its_name(places, capsys, argv, what, mend):
    if argv[0] in ("export", "verify") or "--onnx" in argv:
        pytest.importorskip("onnxruntime")
    assert entry.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("bertfast: error: ") and len(err.splitlines()) == 1
    assert what in err and mend in err, err


def test_a_run_that_holds_its_own_config_is_a_run(tmp_path):
    from bertfast.weights import model_folder

    for place, content in (("run", {"bertfast": {}}), ("run/model", {"model_type": "bert"})):
        (tmp_path / place).mkdir()
        (tmp_path / place / "config.json").write_text(json.dumps(content))
    assert model_folder("run") == "run/model" and model_folder("run/model") == "run/model"


def test_a_hub_name_is_no_folder_to_look_into():
    from bertfast.cli.loading import _refuse_other_places

    _refuse_other_places(parse_command(["predict", "--checkpoint_path", "someone/some-bert"]))
