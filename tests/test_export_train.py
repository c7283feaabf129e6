"""`bertfast train` with an "export" block: a verified bundle at the end, or a fault before the first step."""

import json

import pytest
from runs import train, write_task

from bertfast.cli import main
from bertfast.config import load_config
from bertfast.errors import ConfigError


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


def test_what_an_export_needs_is_asked_for_before_training(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnx")
    write_run(tmp_path)
    monkeypatch.setattr("bertfast_export.runtime._version", lambda package: None)
    assert main(["train", "--config", str(tmp_path / "config.json")]) == 2
    assert "pip install 'bertfast[export]'" in capsys.readouterr().err and not (tmp_path / "run").exists()


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
