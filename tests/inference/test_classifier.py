"""Classifier: texts in memory, against transformers one text at a time, the trainer's own prediction, and an exported bundle."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertfast import Classifier
from bertfast.cli.entry import main
from bertfast.errors import ConfigError, DataError
from tests.support.exported import LABELS, write_classifier
from tests.support.tiny_bert import WORDS
from tests.support.tolerances import LOGITS

TEXTS = [" ".join(WORDS[(5 * index + place) % len(WORDS)] for place in range(index % 37 + 1)) for index in range(90)] + [""]
OTHERS = TEXTS[::-1]
KINDS = {
    "classes": {},
    "several": {"problem_type": "multi_label_classification"},
    "regression": {"num_labels": 1},
}


def by_transformers(folder, texts, pairs=None, length=128):
    """Logits [n, C], one text at a time."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = []
    for row, text in enumerate(texts):
        features = tokenizer([text], None if pairs is None else [pairs[row]], truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**features).logits[0].numpy())
    return np.array(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_pair", [False, True], ids=["single", "pairs"])
def test_a_plain_classifier_of_transformers(tmp_path, kind, is_pair):
    model, pairs = write_classifier(tmp_path / "model", **KINDS[kind]), OTHERS if is_pair else None
    classifier, wanted = Classifier.from_pretrained(model), by_transformers(model, TEXTS, pairs)
    assert np.abs(classifier.logits(TEXTS, pairs) - wanted).max() < LOGITS
    answers = classifier.predict(TEXTS, pairs)
    if kind == "regression":
        assert [answer.score for answer in answers] == pytest.approx(wanted[:, 0].tolist(), abs=LOGITS)
        assert classifier.labels == () and all(answer.label is None for answer in answers)
        with pytest.raises(ConfigError, match="a regression has no probabilities"):
            classifier.predict_proba(TEXTS, pairs)
        return
    given = torch.tensor(wanted, dtype=torch.float64)
    chances = (given.sigmoid() if kind == "several" else given.softmax(1)).numpy()
    assert classifier.labels == LABELS
    assert classifier.predict_proba(TEXTS, pairs) == pytest.approx(chances, abs=1e-5)
    for answer, row in zip(answers, chances, strict=True):
        assert list(answer.probabilities.values()) == pytest.approx(row.tolist(), abs=1e-5)
        assert answer.label == LABELS[row.argmax()]
        assert answer.labels == (
            tuple(name for name, p in zip(LABELS, row, strict=True) if p > 0.5) if kind == "several" else (answer.label,)
        )


HEADS = {
    "own-head": {"head": {"pooling": "attention", "layers": [-1, -2], "hidden_sizes": [8]}},
    "tail": {"truncation": {"strategy": "tail"}},
    "documents": {"truncation": {"strategy": "hierarchical", "overlap": 2}, "head": {"pieces": "max"}},
}


@pytest.mark.parametrize("name", HEADS)
def test_every_head_and_truncation_answers_as_the_command(tmp_path, name):
    from tests.support.runs import train, write_task

    config = write_task(tmp_path)
    config["bertfast"] |= HEADS[name]
    config["bertfast"]["run"]["max_steps"] = 2
    for part in ("train_input", "eval_input"):
        config["bertfast"][part]["max_sequence_length"] = 12
    (tmp_path / "config.json").write_text(json.dumps(config))
    train(tmp_path)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    assert (
        main(
            [
                "predict",
                "--checkpoint_path",
                str(tmp_path / "run"),
                "--input",
                str(tmp_path / "texts.txt"),
                "--output",
                str(tmp_path / "o.jsonl"),
            ]
        )
        == 0
    )
    said = [json.loads(line)["probabilities"] for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    answers = Classifier.from_pretrained(tmp_path / "run").predict(TEXTS)
    assert np.abs(np.array([list(a.probabilities.values()) for a in answers]) - [list(row.values()) for row in said]).max() < 1e-5


def test_a_bundle_gives_the_same_answers(tmp_path):
    pytest.importorskip("onnxruntime")
    from bertfast_export import OnnxClassifier

    model = write_classifier(tmp_path / "model", problem_type="multi_label_classification")
    assert main(["export", str(model), "-o", str(tmp_path / "bundle"), "--variants", "portable", "--grid_only"]) == 0
    ours, theirs = Classifier.from_pretrained(model), OnnxClassifier.from_bundle(tmp_path / "bundle")
    assert ours.labels == theirs.labels
    assert ours.predict_proba(TEXTS) == pytest.approx(theirs.predict_proba(TEXTS), abs=1e-5)
    assert [answer.labels for answer in ours.predict(TEXTS)] == [answer.labels for answer in theirs.predict(TEXTS)]
    assert type(ours.predict(TEXTS[:1])[0]) is type(theirs.predict(TEXTS[:1])[0])


def test_texts_are_cut_where_it_is_asked(tmp_path):
    model = write_classifier(tmp_path / "model")
    found = Classifier.from_pretrained(model, max_sequence_length=9).logits(TEXTS)
    assert np.abs(found - by_transformers(model, TEXTS, length=9)).max() < LOGITS
    with pytest.raises(ConfigError, match="max_sequence_length = 500, but the model has 128 positions"):
        Classifier.from_pretrained(model, max_sequence_length=500)


def test_what_is_no_list_of_texts_is_named(tmp_path):
    classifier = Classifier.from_pretrained(write_classifier(tmp_path / "model"))
    assert classifier.logits([]).shape == (0, 3) and classifier.predict([]) == []
    with pytest.raises(DataError, match="texts is one string; give a list of strings"):
        classifier.predict("a text")
    with pytest.raises(DataError, match=r"texts\[1\] is None, where a string should be; an empty text is ''"):
        classifier.predict(["a", None])
    with pytest.raises(DataError, match="there are 2 texts and 1 text_pairs"):
        classifier.predict(["a", "b"], ["c"])
    with pytest.raises(ConfigError, match="device = 'cuda': give 'cpu', 'gpu', or None"):
        Classifier.from_pretrained(tmp_path / "model", device="cuda")
    with pytest.raises(ConfigError, match="precision = 'fp16': give 'fp32' or 'bf16' on a CPU"):
        Classifier.from_pretrained(tmp_path / "model", device="cpu", precision="fp16")
