"""`bertfast train` with an "export" block: a verified bundle at the end, or a fault before the first step."""

import json

import pytest

from bertfast.checks.validate import run_checks
from bertfast.cli.entry import main
from bertfast.config.load import load_config
from bertfast.errors import ConfigError
from bertfast_export import commands
from tests.support.multitask_runs import SIZES, write_tasks
from tests.support.runs import train, write_task
from tests.support.tiny_bert import write_tiny_bert


def write_run(folder, **export) -> dict:
    config = write_task(folder)
    config["bertfast"]["export"] = export
    config["bertfast"]["run"]["max_steps"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    return config


def test_training_ends_with_a_verified_bundle(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    write_run(tmp_path, variants=["portable", "optimized"])
    said = train(tmp_path)
    bundle = tmp_path / "run" / "onnx"
    assert "model_optimized.onnx: passed" in said
    verdicts = json.loads((bundle / "verification.json").read_text())["verdicts"]
    assert {name: verdict["data"]["dev"]["agreement"] for name, verdict in verdicts.items()} == {"model.onnx": 1, "model_optimized.onnx": 1}
    assert json.loads((bundle / "config.json").read_text())["id2label"] == {"0": "no", "1": "yes"}


def test_each_of_several_tasks_is_exported(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    config = write_tasks(tmp_path)
    config["bertfast"] |= {"export": {"variants": ["portable"]}, "run": {**config["bertfast"]["run"], "max_steps": 2}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checks = run_checks(lambda: load_config(config), "cpu", commands.describe_training)
    places = {check.name: check.detail for check in checks if check.name.startswith("export: ") and check.result == "ok"}
    assert list(places) == [f"export: {name}" for name in SIZES] and "judged on dev" in places["export: score"]
    train(tmp_path)
    for name in SIZES:
        bundle = tmp_path / "run" / "onnx" / name
        assert f"model.onnx to {bundle}," in places[f"export: {name}"]
        verdict = json.loads((bundle / "verification.json").read_text())["verdicts"]["model.onnx"]
        assert verdict["passed"] and verdict["data"]["dev"]["agreement"] == 1


def test_what_an_export_needs_is_asked_for_before_training(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnx")
    write_run(tmp_path)
    monkeypatch.setattr("bertfast_export.runtime._version", lambda package: None)
    assert main(["train", "--config", str(tmp_path / "config.json")]) == 2
    assert "pip install 'bertfast[export]'" in capsys.readouterr().err and not (tmp_path / "run").exists()


def write_plan(folder, **changes):
    """A config whose data need not be there."""
    model = write_tiny_bert(folder / "bert", num_hidden_layers=2)
    source = {"data_file": str(folder / "dev.tsv")}
    task = {"text_columns": ["text"], "label_names": ["no", "yes"]}
    block = {"task": task, "model": {"checkpoint": str(model)}, "train_input": source, "eval_input": source, "export": {}}
    block |= {"run": {"model_dir": str(folder / "run")}, **changes}
    (folder / "config.json").write_text(json.dumps({"bertfast": {key: value for key, value in block.items() if value is not None}}))
    return folder / "config.json"


def export_row(config):
    checks = run_checks(lambda: load_config(config), "cpu", commands.describe_training)
    return next(check for check in checks if check.name == "export")


def test_validate_says_what_will_be_exported(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    row = export_row(write_plan(tmp_path, export={"variants": ["portable", "int8"], "opset": 21, "integers": "int32"}))
    place = tmp_path / "run" / "onnx"
    assert row.result == "ok"
    assert row.detail == f"model.onnx, model_quantized.onnx to {place}, opset 21, int32 inputs, judged on dev"
    row = export_row(write_plan(tmp_path, eval_input=None))
    assert row.result == "warning" and "judged on made-up batches alone; no int8, which needs examples" in row.detail
    assert "model_quantized.onnx" not in row.detail


@pytest.mark.parametrize(
    "changes, message",
    [
        pytest.param({"head": {"pieces": "max"}}, "bertfast.head.pieces is 'max'", id="pieces"),
        pytest.param({"head": {"layers": [4]}}, "bertfast.head.layers holds 4", id="a-layer-that-is-not-there"),
        pytest.param(
            {"head": {"pooling": "mean"}, "export": {"variants": ["fp16"]}},
            "variants fp16: a head of bertfast's own is written in float32 alone",
            id="own-head-in-fp16-alone",
        ),
        pytest.param({"truncation": {"strategy": "tail"}}, "bertfast.truncation.strategy is 'tail'", id="tail"),
        pytest.param({"truncation": {"strategy": "hierarchical"}}, "bertfast.truncation.strategy is 'hierarchical'", id="documents"),
        pytest.param({"pretrain": {}}, "pre-training makes no classifier", id="pre-training"),
        pytest.param({"export": {"variants": ["int8"]}, "eval_input": None}, "asks for int8 alone", id="int8-without-examples"),
        pytest.param({"export": {"output": "{folder}/mine"}}, "mine: holds files that no export wrote", id="a-folder-in-use"),
        pytest.param({"export": {"output": "{folder}/config.json"}}, "config.json: is a file", id="a-file"),
        pytest.param({"export": {"output": "{folder}/config.json/x"}}, "config.json is a file", id="within-a-file"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_training(changes, message, tmp_path, capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    changes = json.loads(json.dumps(changes).replace("{folder}", str(tmp_path)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    config = write_plan(tmp_path, **changes)
    row = export_row(config)
    assert row.result == "failed" and message in row.detail
    assert main(["pretrain" if "pretrain" in changes else "train", "--config", str(config)]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_head_of_our_own_is_trained_and_exported(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    config = write_run(tmp_path)
    config["bertfast"]["head"] = {"layers": [-1, -2], "pooling": "mean_max"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    row = export_row(tmp_path / "config.json")
    assert row.result == "warning" and "model.onnx, model_optimized.onnx, model_packed_cpu.onnx to" in row.detail
    assert "no fp16 and no int8: a head of bertfast's own is written in float32 alone" in row.detail
    said = train(tmp_path)
    assert "model_optimized.onnx: passed" in said and "model_quantized.onnx: not written; a head of bertfast's own" in said
    assert sorted(path.name for path in (tmp_path / "run" / "onnx").glob("*.onnx")) == [
        "model.onnx",
        "model_optimized.onnx",
        "model_packed_cpu.onnx",
    ]


@pytest.mark.parametrize(
    "export, message",
    [
        pytest.param({"variants": ["int4"]}, r"bertfast\.export\.variants", id="variant"),
        pytest.param({"opset": 17}, r"bertfast\.export\.opset = 17", id="opset"),
        pytest.param({"folder": "x"}, r"unknown key 'folder' in bertfast\.export; known keys: ", id="key"),
    ],
)
def test_keys_that_cannot_be(export, message):
    with pytest.raises(ConfigError, match=message):
        load_config({"bertfast": {"task": "sst2", "model": {"checkpoint": "x"}, "export": export}})


def test_what_does_not_go_together_is_refused_before_training(tmp_path, capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    write_run(tmp_path, variants=["portable", "openvino"], layout="triton")
    assert main(["train", "--config", str(tmp_path / "config.json")]) == 2
    assert "layout 'triton' holds ONNX models, and variants name openvino" in capsys.readouterr().err and not (tmp_path / "run").exists()
