"""The classifier of a bundle, and `bertfast predict --onnx`: the answers of the model, in the order of the texts, from any thread."""

import io
import json
import re
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas
import pytest

from tests.support.exported import LABELS, write_classifier, write_config, write_data
from tests.support.runs import environment
from tests.support.tiny_bert import WORDS

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from bertfast.cli.entry import main
from bertfast.config import BertfastConfig
from bertfast.errors import DataError, ExportError
from bertfast_export import OnnxClassifier, Options, export_bundle
from bertfast_export.bundle.source import Candidate

LENGTHS = (1, 40, 3, 0, 17, 100, 2, 9)
TEXTS = [" ".join(WORDS[(index + place) % len(WORDS)] for place in range(length)) for index, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    model = write_classifier(folder / "model")
    config = write_config(folder, write_data(folder / "dev.tsv"), model)
    assert main(["export", str(model), "-o", str(folder / "bundle"), "--config", str(config), "--variants", "portable,optimized,int8"]) == 0
    return folder


@pytest.fixture(scope="module")
def classifier(made):
    return OnnxClassifier.from_bundle(made / "bundle", threads=1)


def eager_logits(folder, texts, pairs=None, length=32):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = []
    for row, text in enumerate(texts):
        pair = None if pairs is None else [pairs[row]]  # in a list: a lone "" would be taken for no pair at all
        features = tokenizer([text], pair, truncation=True, max_length=length, return_tensors="pt")
        with torch.inference_mode():
            rows.append(model(**features).logits[0].numpy())
    return np.array(rows)


def test_logits_are_those_of_transformers_in_order(made, classifier):
    expected = eager_logits(made / "model", TEXTS)
    for batch_size in (1, 3, 32):
        assert np.abs(classifier.logits(TEXTS, batch_size=batch_size) - expected).max() <= 5e-5


@pytest.fixture(scope="module")
def pair_classifier(made):
    block = BertfastConfig(
        task={"text_columns": ("premise", "hypothesis"), "label_names": LABELS},
        model={"checkpoint": "x"},
        eval_input={"max_sequence_length": 20},
    )
    source = Candidate(str(made / "model"), Options(), block)
    export_bundle(str(made / "model"), str(made / "pairs"), Options(("optimized",)), source=source, say=lambda line: None)
    return OnnxClassifier.from_bundle(made / "pairs", threads=1)


def test_pairs(made, pair_classifier):
    pairs = TEXTS[::-1]
    assert np.abs(pair_classifier.logits(TEXTS, pairs) - eager_logits(made / "model", TEXTS, pairs, length=20)).max() <= 5e-5
    assert pair_classifier.predict([], []) == []


def test_texts_of_another_kind_than_the_judge_saw(classifier, pair_classifier):
    with pytest.raises(DataError, match="verified for pairs of texts: give the second ones too, as text_pairs"):
        pair_classifier.predict(["a good film"])
    with pytest.raises(DataError, match="verified for single texts, and text_pairs were given; leave them out"):
        classifier.predict(["a good film"], [""])


@pytest.mark.parametrize("is_pair", [False, True])
def test_a_tokenizer_that_cuts_the_beginning(tmp_path, is_pair):
    from transformers import AutoTokenizer

    model = write_classifier(tmp_path / "model")
    AutoTokenizer.from_pretrained(model, truncation_side="left").save_pretrained(model)
    options = Options(("optimized",), max_sequence_length=32)
    source = Candidate(str(model), options, is_pair=is_pair)
    export_bundle(str(model), str(tmp_path / "out"), options, source=source, say=lambda line: None)
    pairs = TEXTS[::-1] if is_pair else None
    expected = eager_logits(model, TEXTS, pairs)
    assert np.abs(OnnxClassifier.from_bundle(tmp_path / "out").logits(TEXTS, pairs) - expected).max() <= 5e-5


def test_pairs_of_very_long_texts_take_no_more_memory_than_they_hold(pair_classifier):
    text = "the " * 30_000  # every piece of the one with every piece of the other would be a million
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert np.isfinite(pair_classifier.logits([text], [text])).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def test_predictions_have_names_and_probabilities(made, classifier):
    expected = eager_logits(made / "model", TEXTS)
    for prediction, logits in zip(classifier.predict(TEXTS), expected, strict=True):
        assert prediction.label == LABELS[logits.argmax()] and list(prediction.probabilities) == list(LABELS)
        assert prediction.score == max(prediction.probabilities.values())
        assert prediction.probabilities[prediction.label] == pytest.approx(1 / np.exp(logits - logits.max()).sum(), abs=1e-5)
    assert classifier.predict([]) == []


def test_a_regression_gives_a_number(tmp_path):
    model = write_classifier(tmp_path / "model", num_labels=1)
    export_bundle(str(model), str(tmp_path / "out"), Options(("optimized",), integers="int32"), say=lambda line: None)
    found = OnnxClassifier.from_bundle(tmp_path / "out").predict(TEXTS)
    assert {prediction.label for prediction in found} == {None}
    expected = eager_logits(model, TEXTS, length=128)[:, 0]
    assert [prediction.score for prediction in found] == pytest.approx(expected.tolist(), abs=5e-5)


def test_many_threads_at_once(classifier):
    expected = classifier.logits(TEXTS)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: classifier.logits(TEXTS[index % 3 :]), range(40)))
    for index, logits in enumerate(found):
        assert np.abs(logits - expected[index % 3 :]).max() <= 1e-6


def test_more_texts_than_a_block(classifier, monkeypatch):
    expected = classifier.logits(TEXTS)
    monkeypatch.setattr("bertfast_export.classifier._BLOCK", 3)
    monkeypatch.setattr("bertfast_export.classifier._BATCH_TOKENS", 8)
    assert np.abs(classifier.logits(TEXTS) - expected).max() <= 1e-6


@pytest.mark.parametrize(
    "texts, pairs, message",
    [
        pytest.param("one", None, "texts is one string", id="a-string"),
        pytest.param(["a", 3], None, r"texts\[1\] is 3", id="a-number"),
        pytest.param(["a", "b"], ["c"], "2 texts and 1 text_pairs", id="pairs-missing"),
        pytest.param(["a"], [None], r"text_pairs\[0\] is None.*an empty text is ''", id="no-pair"),
        pytest.param(["a", float("nan")], None, r"texts\[1\] is nan.*an empty text is ''", id="a-gap-of-pandas"),
        pytest.param([("a", "b")], None, r"texts\[0\] is \('a', 'b'\).*as text_pairs", id="pairs-as-tuples"),
        pytest.param({"text": ["a"]}, None, "texts is of type dict", id="a-dictionary"),
        pytest.param(pandas.DataFrame({"text": ["a"]}), None, "texts is of type DataFrame.*one column", id="a-table"),
        pytest.param(7, None, "texts is of type int", id="no-list"),
    ],
)
def test_texts_that_are_none(texts, pairs, message, classifier):
    with pytest.raises(DataError, match=message):
        classifier.predict(texts, pairs)


@pytest.mark.parametrize("made_of", [tuple, np.array, pandas.Series, iter], ids=["tuple", "array", "series", "iterator"])
def test_texts_by_any_form(made_of, classifier, pair_classifier):
    assert np.array_equal(classifier.logits(made_of(TEXTS)), classifier.logits(TEXTS))
    assert np.array_equal(pair_classifier.logits(made_of(TEXTS), made_of(TEXTS)), pair_classifier.logits(TEXTS, TEXTS))


def test_a_bundle_is_named_by_its_path():
    with pytest.raises(ExportError, match="the bundle is of type dict; give the path"):
        OnnxClassifier.from_bundle({})


@pytest.mark.parametrize(
    "options, message",
    [
        pytest.param({"variant": "fp16"}, "has no variant 'fp16'; it has portable, optimized", id="variant"),
        pytest.param({"providers": ["CUDAExecutionProvider"]}, "CUDA", id="provider"),
    ],
)
def test_options_that_cannot_be(options, message, made):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is a CUDA provider here")
    with pytest.raises(ExportError, match=message):
        OnnxClassifier.from_bundle(made / "bundle", **options)


@pytest.mark.parametrize("name", ["model_optimized.onnx", "tokenizer.json", "config.json", "bertfast.json"])
def test_a_file_that_was_not_verified_is_not_used(name, made, tmp_path):
    import shutil

    bundle = shutil.copytree(made / "bundle", tmp_path / "moved and renamed")
    assert OnnxClassifier.from_bundle(bundle).labels == LABELS
    with open(bundle / name, "ab") as file:
        file.write(b" ")
    with pytest.raises(ExportError, match=rf"{re.escape(name)} is missing, or not the file that was verified"):
        OnnxClassifier.from_bundle(bundle)
    with pytest.raises(ExportError, match=r"no verification\.json"):
        OnnxClassifier.from_bundle(tmp_path)


def test_neither_torch_nor_transformers_is_needed(made):
    code = (
        "import sys; from bertfast_export import OnnxClassifier\n"
        f"print(OnnxClassifier.from_bundle({str(made / 'bundle')!r}).predict(['a good film'])[0].label)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    label, modules = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    ).stdout.split("\n", 1)
    assert label in LABELS and not {"torch", "transformers", "onnx", "datasets"} & set(modules.split())


def test_the_command_needs_neither_torch_nor_transformers(made, tmp_path):
    """Their imports were 3 of the 3.6 s of CPU time that one line took."""
    (tmp_path / "texts.txt").write_text("a good film\n")
    code = (
        "import sys; from bertfast.cli import main\n"
        f"code = main(['predict', '--onnx', {str(made / 'bundle')!r}, '--input', {str(tmp_path / 'texts.txt')!r}])\n"
        "print(code, *{name.partition('.')[0] for name in sys.modules})"
    )
    answer, modules = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert json.loads(answer)["prediction"] in LABELS and modules.startswith("0 ")
    assert not {"torch", "transformers", "onnx", "datasets", "deepspeed", "rich"} & set(modules.split())


@pytest.mark.parametrize("variant", ["portable", "optimized"])
def test_predict_writes_what_the_model_would(variant, made, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    arguments = ["predict", "--onnx", str(made / "bundle"), "--variant", variant, "--input", str(tmp_path / "texts.txt")]
    assert main([*arguments, "--output", str(tmp_path / "out.jsonl")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    expected = eager_logits(made / "model", TEXTS)
    assert [line["index"] for line in lines] == list(range(len(TEXTS)))
    assert [line["prediction"] for line in lines] == [LABELS[index] for index in expected.argmax(axis=1)]


def test_predict_of_standard_input(made, monkeypatch, capfd):
    class Piped:
        buffer = io.BytesIO(b'{"text": "a good film"}\n{"text": "the dog sleeps"}\n')

    monkeypatch.setattr("sys.stdin", Piped)
    assert main(["predict", "--onnx", str(made / "bundle"), "--input", "-"]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["index"] for line in lines] == [0, 1] and lines[0]["probabilities"].keys() == set(LABELS)


def test_predict_by_a_bundle_adds_columns_to_the_input(made, tmp_path, capsys):
    frame = pandas.DataFrame({"id": range(len(TEXTS)), "text": TEXTS, "label": [f'"{text[:3]}"\n' for text in TEXTS]})
    frame.to_csv(tmp_path / "in.csv", index=False)
    arguments = ["predict", "--onnx", str(made / "bundle"), "--input", str(tmp_path / "in.csv"), "--output"]
    assert main([*arguments, str(tmp_path / "out.parquet")]) == 0
    found, expected = pandas.read_parquet(tmp_path / "out.parquet"), eager_logits(made / "model", TEXTS)
    assert list(found["text"]) == TEXTS and list(found["label"]) == list(frame["label"])
    shares = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    assert np.abs(found[[f"probability_{name}" for name in LABELS]].to_numpy() - shares).max() < 2e-5
    capsys.readouterr()
    for output in (tmp_path / "in.csv", made / "bundle" / "model.onnx"):
        assert main([*arguments, str(output), "--format", "csv"]) == 2
        assert f"--output {output}: is an input of this command" in capsys.readouterr().err


def test_predict_of_pairs(made, pair_classifier, tmp_path):
    (tmp_path / "pairs.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in zip(TEXTS, TEXTS[::-1], strict=True)))
    (tmp_path / "pairs.tsv").rename(tmp_path / "pairs.txt")
    arguments = [
        "predict",
        "--onnx",
        str(made / "pairs"),
        "--input",
        str(tmp_path / "pairs.txt"),
        "--output",
        str(tmp_path / "out.jsonl"),
    ]
    assert main(arguments) == 0
    expected = eager_logits(made / "model", TEXTS, TEXTS[::-1], length=20)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["prediction"] for line in lines] == [LABELS[index] for index in expected.argmax(axis=1)]


def test_flags_that_do_not_go_together(capsys):
    assert main(["predict", "--variant", "int8", "--checkpoint_path", "x"]) == 2
    assert "--variant is of an exported folder; name one with --onnx" in capsys.readouterr().err
