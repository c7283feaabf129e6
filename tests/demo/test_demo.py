"""The demo: its language against hand-written meanings, its checkpoint against transformers, its command against the config.

The training itself is not run here; `make demo` is the test of that.
"""

import csv
import hashlib
import itertools
import json
import random
import subprocess
from collections import Counter

import numpy as np
import pytest

from bertfast.cli.parser import overrides, parse_launch
from bertfast.config.load import load_config
from bertfast.demo import __main__
from bertfast.demo.__main__ import EXAMPLES, Folders, classify, majority_share, training_command, write_checkpoint, write_data
from bertfast.demo.language import (
    DEV_TEMPLATES,
    LABEL_NAMES,
    TRAIN_TEMPLATES,
    Pair,
    draw_scenes,
    frames,
    generate,
    label_of,
    write_sentence,
)
from bertfast.errors import BertfastError

# What each phrase means, written down anew: slot -> phrase -> what can be the case.
MEANINGS = {
    "who": {word: {word} for word in ("dog", "cat", "horse", "man", "woman", "child")}
    | {"animal": {"dog", "cat", "horse"}, "person": {"man", "woman", "child"}},
    "action": {word: {word} for word in ("running", "jumping", "swimming", "sleeping", "sitting")}
    | {"moving": {"running", "jumping", "swimming"}, "resting": {"sleeping", "sitting"}},
    "size": {word: {word} for word in ("big", "small")},
    "colour": {word: {word} for word in ("black", "white", "brown")},
    "place": {f"in the {word}": {word} for word in ("park", "forest", "kitchen", "office")}
    | {"outdoors": {"park", "forest"}, "indoors": {"kitchen", "office"}},
    "time": {"in the morning": {"morning"}, "at noon": {"noon"}, "in the evening": {"evening"}, "at midnight": {"midnight"}}
    | {"during the day": {"morning", "noon"}, "after dark": {"evening", "midnight"}},
}
WORLDS = list(itertools.product(*(sorted(set().union(*words.values())) for words in MEANINGS.values())))


def is_true(scene, world) -> bool:
    return all(fact in MEANINGS[slot][scene[slot]] for slot, fact in zip(MEANINGS, world, strict=True) if slot in scene)


def label_by_worlds(premise, hypothesis) -> str:
    """The textbook definition: go through every world in which the premise is true."""
    truths = {is_true(hypothesis, world) for world in WORLDS if is_true(premise, world)}
    return {(True,): "entailment", (False,): "contradiction"}.get(tuple(truths), "neutral")


def skeleton(sentence: str) -> str:
    """A sentence without what it says: every phrase of a slot replaced by the slot's initial."""
    text = f" {sentence} "
    for slot in ("place", "time", "size", "colour", "who", "action"):
        for phrase in MEANINGS[slot]:
            text = text.replace(f" {phrase} ", f" <{slot}> ")
    text = text.replace(" <size>", "").replace(" <colour>", "")
    for article in ("an", "a", "the"):
        text = text.replace(f" {article} <who>", " <who>")
    return text.strip()


def words_of(pairs) -> set[str]:
    return {word for pair in pairs for sentence in pair[:2] for word in sentence.split()}


@pytest.mark.parametrize("label", LABEL_NAMES)
def test_labels_hold_in_every_world(label):
    rng = random.Random(7)
    for _ in range(40):
        premise, hypothesis = draw_scenes(label, rng)
        assert label_by_worlds(premise, hypothesis) == label == label_of(premise, hypothesis)


@pytest.mark.parametrize(
    "premise, hypothesis, label",
    [
        pytest.param({"who": "dog"}, {"who": "animal"}, "entailment", id="more-general"),
        pytest.param({"who": "animal"}, {"who": "dog"}, "neutral", id="more-particular"),
        pytest.param({"who": "dog"}, {"who": "cat"}, "contradiction", id="its-sister"),
        pytest.param({"who": "dog"}, {"who": "person"}, "contradiction", id="another-kind"),
        pytest.param({"who": "dog", "size": "big"}, {"who": "dog"}, "entailment", id="a-detail-less"),
        pytest.param({"who": "dog"}, {"who": "dog", "size": "big"}, "neutral", id="a-detail-more"),
        pytest.param({"who": "dog", "size": "big"}, {"who": "cat", "colour": "black"}, "contradiction", id="contradiction-beside-neutral"),
        pytest.param({"who": "dog"}, {"who": "dog"}, "entailment", id="the-same"),
    ],
)
def test_label_of(premise, hypothesis, label):
    assert label_of(premise, hypothesis) == label == label_by_worlds(premise, hypothesis)


@pytest.mark.parametrize(
    "template, scene, sentence",
    [
        pytest.param("{place} , {who} is {action} {time}", {}, "a dog is running", id="comma-of-a-place-left-out"),
        pytest.param("{who} , {action} {place} , can be seen", {}, "a dog , running , can be seen", id="comma-that-stays"),
        pytest.param("{time} {who} is {action}", {"time": "at noon"}, "at noon a dog is running", id="time"),
        pytest.param("{who} is {action}", {"who": "animal"}, "an animal is running", id="an-before-a-vowel"),
        pytest.param(
            "{who} is {action}", {"who": "animal", "colour": "black", "size": "big"}, "a big black animal is running", id="adjectives"
        ),
    ],
)
def test_write_sentence(template, scene, sentence):
    assert write_sentence(template, {"who": "dog", "action": "running", **scene}) == sentence


def test_dev_templates_are_new_and_dev_words_are_not():
    train, dev = generate(6_000, TRAIN_TEMPLATES, 1), generate(1_500, DEV_TEMPLATES, 2)
    seen, unseen = ({skeleton(sentence) for pair in pairs for sentence in pair[:2]} for pairs in (train, dev))
    assert len(seen) > 50 and len(unseen) > 25
    assert not seen & unseen
    assert words_of(dev) <= words_of(train)


def test_examples_are_of_the_dev_templates_and_rightly_labelled():
    dev = {frame.replace("{", "<").replace("}", ">") for frame in frames(DEV_TEMPLATES)}
    for pair in EXAMPLES:
        assert {skeleton(pair.premise), skeleton(pair.hypothesis)} <= dev, pair
    assert [pair.label for pair in EXAMPLES] == ["entailment", "contradiction", "neutral", "entailment", "contradiction"]


def test_generate_is_seeded():
    first = generate(50, TRAIN_TEMPLATES, 3)
    assert first == generate(50, TRAIN_TEMPLATES, 3)
    assert first != generate(50, TRAIN_TEMPLATES, 4)


def test_the_hypothesis_alone_tells_little():
    """A set whose labels can be read off the hypothesis is no test of inference (Gururangan et al. 2018 get 67 % on SNLI so)."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    train, dev = generate(3_000, TRAIN_TEMPLATES, 5), generate(1_500, DEV_TEMPLATES, 6)
    words = CountVectorizer(ngram_range=(1, 2)).fit(pair.hypothesis for pair in train)
    model = LogisticRegression(max_iter=300).fit(words.transform([pair.hypothesis for pair in train]), [pair.label for pair in train])
    accuracy = model.score(words.transform([pair.hypothesis for pair in dev]), [pair.label for pair in dev])
    assert accuracy < 0.52
    shares = np.array(list(Counter(pair.label for pair in train).values())) / len(train)
    assert len(shares) == 3 and abs(shares - 1 / 3).max() < 0.03


def test_write_data(tmp_path):
    folders = Folders(tmp_path)
    train, dev = write_data(folders, 40, 20, seed=1)
    for path, pairs in ((folders.train_file, train), (folders.dev_file, dev)):
        with open(path, encoding="utf-8", newline="") as file:
            assert [Pair(**row) for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)] == pairs
    assert len(train) == 40 and len(dev) == 20


def test_a_dev_template_of_the_training_set_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(__main__, "DEV_TEMPLATES", (*DEV_TEMPLATES, "the picture shows {who} {action} {time}"))
    with pytest.raises(BertfastError, match="the picture shows {who} {action}"):
        write_data(Folders(tmp_path), 10, 10, seed=1)
    assert not list(tmp_path.iterdir())


def test_majority_share():
    train = [Pair("", "", label) for label in ("neutral", "neutral", "entailment")]
    dev = [Pair("", "", label) for label in ("entailment", "entailment", "neutral", "contradiction")]
    assert majority_share(train, dev) == 0.25


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A demo's folder with its data and its checkpoint."""
    folders = Folders(tmp_path_factory.mktemp("demo"))
    train, dev = write_data(folders, 2_000, 300, seed=1)
    write_checkpoint(folders.checkpoint, train, seed=1)
    return folders, train, dev


def test_the_tokenizer_keeps_every_word_whole(made):
    from transformers import AutoTokenizer

    folders, _, dev = made
    tokenizer = AutoTokenizer.from_pretrained(folders.checkpoint)
    for pair in dev[:100]:
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(pair.premise, pair.hypothesis)["input_ids"])
        assert tokens == ["[CLS]", *pair.premise.split(), "[SEP]", *pair.hypothesis.split(), "[SEP]"]


def test_the_checkpoint_is_seeded(made, tmp_path):
    folders, train, _ = made
    write_checkpoint(tmp_path / "same", train, seed=1)
    write_checkpoint(tmp_path / "other", train, seed=2)
    digests = [
        {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
        for folder in (folders.checkpoint, tmp_path / "same", tmp_path / "other")
    ]
    assert digests[0] == digests[1]
    assert {name for name in digests[0] if digests[0][name] != digests[2][name]} == {"model.safetensors"}


def test_the_command_is_what_a_user_would_type(made):
    folders, _, _ = made
    command = training_command(folders, 7, ["bertfast.run.max_steps=5"])
    assert command[1].endswith("deepspeed")
    start = next(index for index, word in enumerate(command) if word.endswith("launch.py"))
    arguments = parse_launch(command[start + 1 :])
    block = load_config(arguments.config, overrides(arguments)).bertfast
    assert (block.train_input.data_file, block.eval_input.data_file) == (str(folders.train_file), str(folders.dev_file))
    assert (block.model.checkpoint, block.run.model_dir) == (str(folders.checkpoint), str(folders.training))
    assert (block.run.seed, block.run.max_steps, block.task.label_names) == (7, 5, LABEL_NAMES)
    assert (block.export is not None) == __main__.can_export()


def test_the_config_by_itself_means_the_default_folder():
    block, folders = load_config(__main__.CONFIG).bertfast, Folders(__main__._parse([]).output)
    assert (block.train_input.data_file, block.eval_input.data_file) == (str(folders.train_file), str(folders.dev_file))
    assert (block.model.checkpoint, block.run.model_dir) == (str(folders.checkpoint), str(folders.training))


def test_what_was_exported_is_shown(tmp_path):
    assert __main__.exported(tmp_path) == [("exported to ONNX", "no: pip install 'bertfast[export]'")]
    verdict = {"data": {"dev": {"agreement": 0.9987}}}
    (tmp_path / "verification.json").write_text(json.dumps({"verdicts": {"model_quantized.onnx": verdict}}))
    assert __main__.exported(tmp_path) == [(f"model_quantized.onnx in {tmp_path.name}: the same answers on dev", "99.87%")]


def test_classify_agrees_with_transformers(made, tmp_path):
    """Also where the saved model counts its labels in another order than the table."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folders, _, _ = made
    names = ("neutral", "contradiction", "entailment")
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(
        folders.checkpoint, num_labels=3, id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)}
    )
    tokenizer = AutoTokenizer.from_pretrained(folders.checkpoint)
    model.eval().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for pair, ours in zip(EXAMPLES, classify(tmp_path, EXAMPLES), strict=True):
        with torch.inference_mode():
            theirs = model(**tokenizer(pair.premise, pair.hypothesis, return_tensors="pt")).logits[0].softmax(dim=-1).tolist()
        assert ours == pytest.approx([theirs[names.index(name)] for name in LABEL_NAMES], abs=1e-5)
        assert sum(ours) == pytest.approx(1)


def results_of(folders, accuracy=0.885):
    training = {"samples_per_second": 859.4, "real_token_share": 1.0, "real_token_share_if_padded": 0.708}
    folders.training.mkdir(parents=True, exist_ok=True)
    (folders.training / "results.json").write_text(json.dumps({"metrics": {"dev": {"accuracy": accuracy}}, "training": training}))


@pytest.fixture
def answers(monkeypatch):
    monkeypatch.setattr(__main__, "classify", lambda folder, pairs: [[0.95, 0.01, 0.04]] * len(pairs))


def test_the_table(tmp_path, capsys, answers):
    folders = Folders(tmp_path)
    results_of(folders)
    __main__.show(folders, 0.331)
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert [row[-1] for row in cells[:5]] == ["88.5%", "33.1%", "859 samples/s", "100.0%", "70.8%"]
    answered = [row for row in cells[6:] if row[-1]]
    assert [row[-1] for row in answered] == [pair.label for pair in EXAMPLES]
    assert all(row[2:5] == ["95%", "1%", "4%"] for row in answered)


@pytest.mark.parametrize("code", [0, 2])
def test_the_whole_demo_around_its_training(tmp_path, capsys, monkeypatch, answers, code):
    folders, commands = Folders(tmp_path / "demo"), []

    def train(command):
        assert not folders.training.exists() and folders.train_file.is_file() and (folders.checkpoint / "model.safetensors").is_file()
        commands.append(command)
        results_of(folders, 0.75)
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(__main__.subprocess, "run", train)
    folders.training.mkdir(parents=True)
    (folders.training / "left-over").touch()
    assert __main__.main(["--output", str(folders.root), "--rows", "60", "--set", "bertfast.run.max_steps=3"]) == code
    shown = capsys.readouterr()
    assert "bertfast.run.max_steps=3" in commands[0] and "$ deepspeed --num_gpus 1" in shown.out
    assert ("75.0%" in shown.out and "Five pairs classified" in shown.out) == (code == 0)
    assert ("training ended with exit code 2" in shown.err) == (code == 2)
