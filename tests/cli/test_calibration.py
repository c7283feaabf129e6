"""bertfast calibrate: from a trained model to the probabilities and decisions of predict and of an exported bundle, held by the judge."""

import json
import random
import re

import numpy as np
import pytest

from bertfast.calibration.files import read_calibration
from bertfast.cli.entry import main
from bertfast.config.schema import TaskConfig
from bertfast.errors import CheckpointError
from bertfast.tasks.calibrated import Calibration
from bertfast.tasks.catalogue import get_task
from tests.support.exported import LABELS, write_classifier
from tests.support.tiny_bert import WORDS

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def labelled(path, several, rows=400):
    rng = random.Random(3)
    lines = []
    for _ in range(rows):
        text = " ".join(rng.choices(WORDS, k=rng.randint(1, 20)))
        label = [name for name in LABELS if rng.random() < 0.4] if several else rng.choice(LABELS)
        lines.append(json.dumps({"text": text, "label": label}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(params=["one", "several"])
def made(request, tmp_path):
    """A folder with a model that is far too sure, and labelled texts that have nothing to do with what it says."""
    several = request.param == "several"
    kind = {"problem_type": "multi_label_classification"} if several else {}
    write_classifier(tmp_path / "model", **kind)
    source = {"data_file": str(labelled(tmp_path / "dev.jsonl", several)), "cache_dir": str(tmp_path / "cache"), "max_sequence_length": 32}
    task = {"text_columns": ["text"], "label_names": list(LABELS), "labels": request.param}
    block = {"bertfast": {"task": task, "model": {"checkpoint": str(tmp_path / "model")}, "eval_input": source}}
    (tmp_path / "model" / "bertfast.json").write_text(json.dumps(block))
    return tmp_path, request.param


def predicted(folder, *arguments):
    output = folder / "answers.jsonl"
    assert main(["predict", *arguments, "--input", str(folder / "dev.jsonl"), "--output", str(output)]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_from_a_model_to_its_bundle(made, capsys):
    folder, kind = made
    model, bundle = str(folder / "model"), str(folder / "bundle")
    before = predicted(folder, "--checkpoint_path", model)
    aim = ["--recall", "0.9"] if kind == "several" else ["--risk", "0.62"]
    assert main(["calibrate", model, *aim]) == 0
    said = capsys.readouterr().out
    assert "expected calibration error: before" in said
    kept = json.loads((folder / "model" / "calibration.json").read_text())
    errors = kept["figures"]["calibration_error"]
    assert kept["method"] != "none" and errors["after"]["value"] < errors["before"]["value"] / 2

    after = predicted(folder, "--checkpoint_path", model)
    chances = [np.array([list(row["probabilities"].values()) for row in rows]) for rows in (before, after)]
    assert chances[1].max(axis=1).mean() < chances[0].max(axis=1).mean()
    calibration = Calibration.from_dict(kept)
    if kind == "several":
        held = chances[1] >= np.array(calibration.thresholds)
        assert [row["prediction"] for row in after] == [[n for n, is_true in zip(LABELS, row, strict=True) if is_true] for row in held]
    else:
        sure = chances[1].max(axis=1) >= calibration.least_confidence
        wanted = [LABELS[best] if is_sure else None for best, is_sure in zip(chances[1].argmax(axis=1), sure, strict=True)]
        assert [row["prediction"] for row in after] == wanted and not all(sure)

    assert main(["export", model, "-o", bundle, "--variants", "portable,int8"]) == 0
    exported = predicted(folder, "--onnx", bundle, "--variant", "portable")
    for ours, theirs in zip(after, exported, strict=True):
        assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=2e-5)
    assert np.mean([ours["prediction"] == theirs["prediction"] for ours, theirs in zip(after, exported, strict=True)]) > 0.99
    from bertfast_export import OnnxClassifier

    answers = OnnxClassifier.from_bundle(bundle, "portable").predict([json.loads(line)["text"] for line in (folder / "dev.jsonl").open()])
    assert [list(a.labels) if kind == "several" else (list(a.labels) or [None])[0] for a in answers] == [
        row["prediction"] for row in exported
    ]
    assert main(["verify", bundle]) == 0
    (folder / "bundle" / "calibration.json").write_text(json.dumps({**kept, "scale": [9.0]}))
    assert main(["verify", bundle]) != 0  # a file of the bundle has changed


FAULTS = [
    pytest.param(["--precision", "1.5"], "--precision 1.5: give a share between 0 and 1", id="no-share"),
    pytest.param(["--precision", "0.9", "--best_f1"], "each asks for other thresholds; give one of them", id="two-aims"),
    pytest.param(["--input", "tset"], "--input tset: neither a file nor a split to evaluate on (dev)", id="no-split"),
]


@pytest.mark.parametrize("arguments, message", FAULTS)
def test_faults_are_named(made, capsys, arguments, message):
    folder, _ = made
    assert main(["calibrate", str(folder / "model"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "model" / "calibration.json").exists()


def test_a_file_of_another_model_is_refused(made, capsys):
    folder, _ = made
    (folder / "model" / "calibration.json").write_text(json.dumps({"method": "vector", "scale": [1, 1], "shift": [0, 0]}))
    assert main(["predict", "--checkpoint_path", str(folder / "model"), "--input", str(folder / "dev.jsonl")]) == 2
    assert "calibration.json: does not fit this model of 3 classes" in capsys.readouterr().err


BROKEN = [
    pytest.param({"method": "isotonic"}, "does not fit this model", id="no-curves"),
    pytest.param({"method": "temperature", "scale": []}, "does not fit this model", id="no-scale"),
    pytest.param({"method": "none", "thresholds": [0.5]}, "does not fit this model", id="one-threshold"),
    pytest.param({"method": "isotonic", "curves": [[[], []]] * 3}, "a curve without points", id="empty-curves"),
    pytest.param({"method": "temperature", "scale": [float("nan")]}, "holds a number that is none", id="nan"),
    pytest.param({"method": "magic"}, "cannot be read (method is 'magic'", id="unknown"),
]


@pytest.mark.parametrize("values, message", BROKEN)
def test_a_file_that_is_broken_is_named(tmp_path, values, message):
    task = get_task(TaskConfig(text_columns=("text",), label_names=LABELS))
    (tmp_path / "calibration.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_calibration(tmp_path, task)


def test_texts_without_labels_calibrate_nothing(made, capsys):
    folder, _ = made
    (folder / "bare.jsonl").write_text('{"text": "a dog"}\n' * 60)
    assert main(["calibrate", str(folder / "model"), "--input", str(folder / "bare.jsonl")]) == 2
    assert "there is no column 'label'" in capsys.readouterr().err
