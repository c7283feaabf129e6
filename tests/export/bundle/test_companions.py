"""What a bundle says of its models: one thing in all its parts, for whichever client reads which of them."""

import json
import shutil

import numpy as np
import pytest

from tests.support.exported import LABELS, write_classifier

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from bertfast.errors import CheckpointError, VerificationError  # noqa: E402
from bertfast_export.bundle.export import export_bundle  # noqa: E402
from bertfast_export.bundle.source import Candidate  # noqa: E402
from bertfast_export.bundle.verify import verify_bundle  # noqa: E402
from bertfast_export.classifier import OnnxClassifier  # noqa: E402
from bertfast_export.contract import Options  # noqa: E402
from bertfast_export.runtime import sha256_of  # noqa: E402

LENGTH = 24
POSITIONS = {"max_position_embeddings": 40}  # the judge's grid goes up to the longest
TEXTS = ["", "a good film", "the Dog sleeps " * 30, "[SEP] not [MASK] very bad"]
PAIRS = ["the cat runs " * 9, "", "he was dull " * 30, "fine"]


def read(path):
    return json.loads(path.read_text())


def export(model, output, is_pair=True, layout="flat", length=LENGTH):
    options = Options(("portable",), layout=layout, max_sequence_length=length)
    export_bundle(str(model), str(output), options, source=Candidate(str(model), options, is_pair=is_pair), say=lambda line: None)
    return output


def write_odd_classifier(folder, **config):
    """One whose files say little, or what another use of it wanted: fixed padding and another length, padding on the left."""
    from transformers import AutoTokenizer

    write_classifier(folder, **POSITIONS, **config)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.enable_truncation(64, stride=2, strategy="only_first")
    tokenizer.backend_tokenizer.enable_padding(length=100)
    tokenizer.init_kwargs |= {"max_length": 64, "stride": 2, "padding_side": "left"}
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two models of pairs and their bundles, which differ in labels, vocabulary and length."""
    folder = tmp_path_factory.mktemp("made")
    for name, seed, labels in (("one", 1, LABELS), ("other", 2, ("0", "1", "two words"))):
        model = write_odd_classifier(folder / f"{name}-model", seed=seed)
        config = read(model / "config.json")
        (model / "config.json").write_text(json.dumps(config | {"id2label": dict(enumerate(labels)), "label2id": None}))
        if name == "other":
            tokenizer = (model / "tokenizer.json").read_text()
            (model / "tokenizer.json").write_text(tokenizer.replace('"good"', '"?"').replace('"bad"', '"good"').replace('"?"', '"bad"'))
        export(model, folder / name, length=LENGTH if name == "one" else 32)
    return folder


def test_every_part_says_the_same(made):
    """Held against transformers' own reading of the checkpoint, at the length that was asked for."""
    from tokenizers import Tokenizer
    from transformers import AutoConfig, AutoTokenizer

    bundle, checkpoint = made / "one", AutoTokenizer.from_pretrained(made / "one-model")
    facts = {item.key: item.value for item in onnx.load(bundle / "model.onnx").metadata_props}
    alone, loaded = Tokenizer.from_file(str(bundle / "tokenizer.json")), AutoTokenizer.from_pretrained(bundle)
    assert int(facts["max_sequence_length"]) == loaded.model_max_length == alone.truncation["max_length"] == LENGTH
    assert read(bundle / "sentence_bert_config.json")["max_seq_length"] == LENGTH
    assert read(bundle / "bertfast.json")["bertfast"]["eval_input"]["max_sequence_length"] == LENGTH
    assert "max_length" not in read(bundle / "tokenizer_config.json") and alone.padding is None and loaded.padding_side == "right"
    config = AutoConfig.from_pretrained(bundle)
    assert tuple(json.loads(facts["labels"])) == tuple(config.id2label[index] for index in range(3)) == LABELS
    assert config.label2id == {name: index for index, name in enumerate(LABELS)}
    assert config.problem_type == "single_label_classification" and facts["task"] == "text-classification"
    settings = {"truncation": True, "max_length": LENGTH, "return_token_type_ids": True}
    expected = [checkpoint([text], [pair], **settings) for text, pair in zip(TEXTS, PAIRS, strict=True)]
    for row, encoding in zip(expected, alone.encode_batch(list(zip(TEXTS, PAIRS, strict=True))), strict=True):
        assert encoding.ids == row["input_ids"][0] and encoding.type_ids == row["token_type_ids"][0]
    features = loaded(TEXTS, PAIRS, truncation=True, padding=True)
    for index, row in enumerate(expected):
        count = len(row["input_ids"][0])
        assert features["input_ids"][index][:count] == row["input_ids"][0] and sum(features["attention_mask"][index][:count]) == count
        assert features["token_type_ids"][index][:count] == row["token_type_ids"][0]


@pytest.mark.filterwarnings("ignore:.*gives BERT no token_type_ids")
def test_a_tokenizer_without_segments(tmp_path):
    """transformers' BERT then takes both texts of a pair for segment 0, and so does every client of the bundle."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    model = write_classifier(tmp_path / "model", **POSITIONS)
    settings = read(model / "tokenizer_config.json")
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"model_input_names": ["input_ids", "attention_mask"]}))
    bundle = export(model, tmp_path / "out")
    checkpoint, loaded = AutoTokenizer.from_pretrained(model), AutoTokenizer.from_pretrained(bundle)
    features = checkpoint(TEXTS, PAIRS, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
    assert "token_type_ids" not in features
    with torch.no_grad():
        expected = BertForSequenceClassification.from_pretrained(model).eval()(**features).logits.numpy()
    assert np.abs(OnnxClassifier.from_bundle(bundle).logits(TEXTS, PAIRS) - expected).max() < 2e-5
    rows = loaded(TEXTS, PAIRS, truncation=True, padding=True)
    assert rows["input_ids"] == features["input_ids"].tolist() and not any(map(any, rows["token_type_ids"]))
    facts = {item.key: item.value for item in onnx.load(bundle / "model.onnx").metadata_props}
    assert "in segment 0" in json.loads(facts["preprocessing"])["texts"]
    verify_bundle(str(bundle), say=lambda line: None)


def test_a_regression_is_one_for_every_client(tmp_path):
    """transformers and Optimum give a sigmoid of its number where config.json does not say so."""
    bundle = export(write_odd_classifier(tmp_path / "model", num_labels=1), tmp_path / "out", is_pair=False)
    assert read(bundle / "config.json")["problem_type"] == "regression"
    verify_bundle(str(bundle), say=lambda line: None)


def test_labels_with_odd_names(tmp_path):
    labels = {2: "two\nlines", 0: "a \"quoted\" one, 'twice'", 1: "ü 漢字\t"}
    model = write_classifier(tmp_path / "model", **POSITIONS)
    config = read(model / "config.json")
    (model / "config.json").write_text(json.dumps(config | {"id2label": labels}))
    bundle = export(model, tmp_path / "out", layout="triton")
    names = [labels[index] for index in range(3)]
    assert read(bundle / "config.json")["id2label"] == {str(index): name for index, name in enumerate(names)}
    assert next(bundle.glob("*/labels.txt")).read_text() == "".join(name.replace("\n", " ") + "\n" for name in names)


def edit(name, **values):
    """A change of keys of a JSON file; a key of a key is written with two underscores."""

    def change(bundle, other):
        said = read(bundle / name)
        for key, value in values.items():
            *outer, last = key.split("__")
            place = said
            for step in outer:
                place = place[step]
            place[last] = value
        (bundle / name).write_text(json.dumps(said))

    return change


def state(key, value):
    """A change of what model.onnx says of itself; of its steps, where the key is one of them."""

    def change(bundle, other):
        model = onnx.load(bundle / "model.onnx")
        for item in model.metadata_props:
            if item.key == key:
                item.value = value
            elif item.key == "preprocessing" and key in json.loads(item.value):
                item.value = json.dumps(json.loads(item.value) | {key: value})
        onnx.save(model, bundle / "model.onnx")

    return change


def take(name):
    """A change: a file of the other bundle in the place of this one's."""

    def change(bundle, other):
        (bundle / name).unlink()
        shutil.copy2(other / name, bundle / name)

    return change


SPOILT = {
    "length-of-the-model": (state("max_sequence_length", "99"), r"the longest sequence: 24 in bertfast\.json, .*, but 99 in model\.onnx"),
    "length-for-transformers": (edit("tokenizer_config.json", model_max_length=512), r"but 512 in tokenizer_config\.json"),
    "length-for-rust": (edit("tokenizer.json", truncation__max_length=128), r"the longest sequence: .*, but 128 in tokenizer\.json"),
    "length-for-a-server": (edit("sentence_bert_config.json", max_seq_length=128), r"but 128 in sentence_bert_config\.json"),
    "length-of-bertfast": (
        edit("bertfast.json", bertfast__eval_input__max_sequence_length=20),
        r"the longest sequence: 20 in bertfast\.json, but 24 in",
    ),
    "first-text-cut-alone": (
        edit("tokenizer.json", truncation__strategy="OnlyFirst"),
        r'how texts are cut: .* but \{"strategy": "OnlyFirst"',
    ),
    "cut-on-the-left": (edit("tokenizer.json", truncation__direction="Left"), r'the side that is cut: .*"left"'),
    "padded-on-the-left": (
        edit("tokenizer_config.json", padding_side="left"),
        r'the side that is padded: "right" in the judge.s examples, but "left" in tok',
    ),
    "padded-far": (
        edit("tokenizer.json", padding={"strategy": {"Fixed": 128}}),
        r'how far texts are padded: .* but \{"Fixed": 128\} in tokenizer\.json',
    ),
    "single-texts": (
        state("texts", "one text: [CLS] a [SEP]"),
        r'the texts: "a pair" in bertfast\.json, onnx/model\.onnx, but "one text" in model\.onnx',
    ),
    "labels-of-the-model": (
        state("labels", '["maybe", "yes", "no"]'),
        r'the labels: \["no", "yes", "maybe"\] in config\.json, .* in model\.onnx',
    ),
    "pad-token": (state("pad_token", 7), r"the number of pad_token: 0 in tokenizer\.json, onnx/model\.onnx, but 7 in model\.onnx"),
    "another-checkpoint": (
        state("checkpoint_sha256", "{}"),
        r"the checkpoint: .* in verification\.json, onnx/model\.onnx, but \{\} in model\.onnx",
    ),
    "config-of-another": (take("config.json"), r'the labels: \["0", "1", "two words"\] in config\.json, but \["no", "yes", "maybe"\] in'),
    "tokenizer-of-another": (take("tokenizer.json"), r"the tokenizer's SHA-256: .* in tokenizer\.json, but .* in model\.onnx"),
    "model-of-another": (take("model.onnx"), r'the checkpoint: .* the labels: .*\["0", "1", "two words"\] in model\.onnx'),
    "fewer-positions": (
        edit("config.json", max_position_embeddings=20),
        r"the longest sequence: 24 in bertfast\.json, but 20 positions in config\.json",
    ),
    "one-segment": (edit("config.json", type_vocab_size=1), r"segments: 1 by tokenizer\.json, but type_vocab_size is 1 in config\.json"),
    "segments-left-out": (
        edit("tokenizer_config.json", model_input_names=["input_ids"]),
        r"the tokens of .* in OnnxClassifier, but .* as transformers",
    ),
    "case-kept": (
        edit("tokenizer_config.json", do_lower_case=False),
        r"the tokens of '' with 'A AND BAD .* in OnnxClassifier, but .* as transformers",
    ),
    "several-labels": (
        edit("config.json", problem_type="multi_label_classification"),
        r"the kind of answer: .*multi_label_classification.* config\.json.* but .*single_label_classification",
    ),
    "not-json": (
        lambda bundle, other: (bundle / "tokenizer_config.json").write_text("{"),
        r"one of its parts cannot be read \(JSONDecodeError: ",
    ),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_parts_that_disagree_are_named(spoilt, made, tmp_path):
    """Even where the record has the SHA-256 of the file that was changed."""
    change, message = SPOILT[spoilt]
    bundle = shutil.copytree(made / "one", tmp_path / "bundle")
    change(bundle, made / "other")
    record = read(bundle / "verification.json")
    record["files"] = {name: sha256_of(bundle / name) for name in record["files"]}
    (bundle / "verification.json").write_text(json.dumps(record))
    with pytest.raises(VerificationError, match=rf"bundle: its parts do not agree: .*{message}"):
        verify_bundle(str(bundle), say=lambda line: None)


@pytest.mark.parametrize(
    "change, message",
    [
        pytest.param({"problem_type": "regression"}, "problem_type is 'regression': a regression of 3 numbers", id="several-numbers"),
        pytest.param({"label2id": {"no": 2, "yes": 1, "maybe": 0}}, "'no' is class 2 there, and class 0 in id2label", id="label2id"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(change, message, made, tmp_path):
    """As it is of any model's folder, before its parts are held against each other."""
    bundle = shutil.copytree(made / "one", tmp_path / "bundle")
    edit("config.json", **change)(bundle, None)
    record = read(bundle / "verification.json")
    record["files"]["config.json"] = sha256_of(bundle / "config.json")
    (bundle / "verification.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        verify_bundle(str(bundle), say=lambda line: None)


def test_a_bundle_whose_parts_disagree_is_not_written(made, tmp_path, monkeypatch):
    def as_it_was(folder, source):
        source.tokenizer.save_pretrained(folder)
        return sha256_of(folder / "tokenizer.json")

    monkeypatch.setattr("bertfast_export.bundle.export.write_tokenizer", as_it_was)
    with pytest.raises(
        VerificationError,
        match=r"one-model: the parts of its bundle do not agree: the longest sequence: 24 .* but 1\d+ in tokenizer_config\.json",
    ):
        export(made / "one-model", tmp_path / "out")
    assert not list(tmp_path.iterdir())
