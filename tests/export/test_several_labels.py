"""Exported classifiers of several labels a text: each label's own probability and decision, by every file, held by the judge and read by others."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification, pipeline

from bertfast.cli.entry import main
from bertfast.config.schema import TaskConfig
from bertfast.tasks.calibrated import Calibration
from bertfast.tasks.catalogue import get_task
from tests.support.exported import LABELS, write_classifier, write_config
from tests.support.tiny_bert import WORDS

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from bertfast_export import OnnxClassifier
from bertfast_export.judge.trial import agree

TEXTS = [" ".join(WORDS[(7 * index + place) % len(WORDS)] for place in range(3 * index + 1)) for index in range(12)]
VARIANTS = ("portable", "optimized", "int8", "packed_cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    model = write_classifier(folder / "model", problem_type="multi_label_classification")
    loaded = BertForSequenceClassification.from_pretrained(model)
    with torch.no_grad():
        loaded.classifier.weight.mul_(3)  # so that decisions differ from text to text
    loaded.save_pretrained(model)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 30))) for _ in range(300)]
    far = (np.abs(by_transformers(model, texts)) > 0.3).all(
        axis=1
    )  # from one half, or int8's rounding decides: there are too few texts to forgive one
    rows = [{"text": text, "label": [n for n in LABELS if rng.random() < 0.4]} for text, is_far in zip(texts, far, strict=True) if is_far]
    (folder / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = write_config(folder, folder / "dev.jsonl", model)
    assert (
        main(
            [
                "export",
                str(model),
                "-o",
                str(folder / "bundle"),
                "--config",
                str(config),
                "--variants",
                "portable,optimized,int8,packed_cpu,fp16",
            ]
        )
        == 0
    )
    return folder


def by_transformers(folder, texts):
    """Logits [n, C], in float64."""
    model = BertForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    features = AutoTokenizer.from_pretrained(folder)(texts, truncation=True, max_length=32, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(**features).logits.numpy()


@pytest.fixture(scope="module")
def wanted(made):
    """Probabilities [n, C] by transformers."""
    return 1 / (1 + np.exp(-by_transformers(made / "model", TEXTS)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_file_gives_each_label_its_own_probability(made, wanted, variant):
    answers = OnnxClassifier.from_bundle(made / "bundle", variant).predict(TEXTS)
    tolerance = 0.05 if variant == "int8" else 1e-5
    for answer, chances in zip(answers, wanted, strict=True):
        assert list(answer.probabilities.values()) == pytest.approx(chances.tolist(), abs=tolerance)
        assert answer.labels == tuple(name for name, chance in answer.probabilities.items() if chance > 0.5)
        assert answer.label == max(answer.probabilities, key=answer.probabilities.get) and answer.score == max(
            answer.probabilities.values()
        )
    assert len({len(answer.labels) for answer in answers}) > 1


def test_the_command_says_the_same(made, wanted):
    (made / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    asked = ["predict", "--onnx", str(made / "bundle"), "--variant", "portable", "--input", str(made / "texts.txt")]
    assert main([*asked, "--output", str(made / "answers.jsonl")]) == 0
    rows = [json.loads(line) for line in (made / "answers.jsonl").read_text().splitlines()]
    for row, chances in zip(rows, wanted, strict=True):
        assert list(row["probabilities"].values()) == pytest.approx(chances.tolist(), abs=1e-5)
        assert row["prediction"] == [name for name, chance in zip(LABELS, chances, strict=True) if chance > 0.5]


def test_config_json_tells_transformers(made, wanted):
    """By config.json of the bundle transformers' pipeline takes the sigmoid, and so do the programs that read it."""
    config = json.loads((made / "bundle" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    answers = pipeline("text-classification", str(made / "model"), top_k=None)(TEXTS, truncation=True, max_length=32)
    found = [[next(one["score"] for one in answer if one["label"] == name) for name in LABELS] for answer in answers]
    assert np.abs(np.array(found) - wanted).max() < 1e-5
    record = json.loads((made / "bundle" / "verification.json").read_text())
    metrics = record["verdicts"]["model.onnx"]["data"]["dev"]["metrics"]
    assert metrics["name"] == "micro_f1" and metrics["eager"] == pytest.approx(metrics["onnx"])


def test_a_bundle_is_verified_again(made):
    assert main(["verify", str(made / "bundle"), "--config", str(made / "config.json")]) == 0
    assert main(["verify", str(made / "bundle"), "--checkpoint_path", str(made / "model")]) == 0


def test_a_folder_that_says_nothing_but_its_type_is_exported_as_such(made, tmp_path):
    """A transformers classifier with no config of ours, and a bundle of it."""
    assert main(["export", str(made / "model"), "-o", str(tmp_path / "bundle"), "--variants", "portable", "--grid_only"]) == 0
    answers = OnnxClassifier.from_bundle(tmp_path / "bundle").predict(TEXTS[:2])
    assert sum(answers[0].probabilities.values()) != pytest.approx(1.0, abs=1e-3)


def test_the_same_answers_are_the_same_labels():
    expected = np.array([[1.0, -1.0, 2.0], [-1.0, -2.0, -0.1], [0.1, 3.0, 1.0]])
    given = expected + np.array([[0.0, 0.0, 5.0], [0.0, 0.0, 0.2], [0.0, 0.0, 0.0]])
    names = {"text_columns": ("text",), "label_names": ("a", "b", "c")}
    several, one = (get_task(TaskConfig(**names, labels=labels)) for labels in ("several", "one"))
    assert agree(given, expected, several, Calibration()).tolist() == [True, False, True]
    assert agree(given, expected, one, Calibration()).tolist() == [True, True, True]  # by the largest logit alone they are all alike
    assert agree(given, expected, several, Calibration(thresholds=(0.5, 0.5, 0.6))).tolist() == [True, True, True]
    assert not agree(np.full((1, 3), np.nan), expected[:1], several, Calibration()).any()


def test_a_config_that_says_one_label_is_refused(made, tmp_path, capsys):
    config = json.loads((made / "config.json").read_text())
    config["bertfast"]["task"] |= {"labels": "one"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["export", str(made / "model"), "-o", str(tmp_path / "bundle"), "--config", str(tmp_path / "config.json")]) == 2
    assert "the model gives a text several labels, and task custom is of one" in capsys.readouterr().err
