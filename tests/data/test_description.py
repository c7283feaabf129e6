"""What is told of a split: counts that transformers' tokenizer gives too, and what is odd about labels."""

from __future__ import annotations

import re

import numpy as np
import pytest

from bertfast.checks.validate import run_checks
from bertfast.config.blocks import WHOLE_HEAD, TaskConfig, TruncationConfig
from bertfast.config.load import load_config
from bertfast.data.description import NO_EVALUATION, describe
from bertfast.data.load import encode, load_dataset_for
from bertfast.readers.splits import RawSplit, load_split
from bertfast.tasks.catalogue import get_task
from bertfast.training.objectives.choice import objective_of
from tests.support.tiny_bert import write_tiny_bert
from tests.training.objectives.test_choice import ALONE

WORDS = [f"w{index}" for index in range(40)]
OWN = {"text_columns": ("text",)}


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer):
    return make_tokenizer(" ".join(WORDS))


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, length)) for length in [*rng.integers(0, 30, 700), 0, 10, 11]]  # more than a block


@pytest.mark.parametrize("is_pair", [False, True], ids=["texts", "pairs"])
@pytest.mark.parametrize("is_fast", [True, False], ids=["fast", "slow"])
def test_cut_and_empty_are_counted_as_transformers_tokenises(tmp_path, tokenizer, texts, is_pair, is_fast, monkeypatch):
    if not is_fast:
        monkeypatch.setattr(type(tokenizer), "is_fast", False)
        monkeypatch.setattr("bertfast.data.load.tokenizer_fingerprint", lambda _: "slow")
    columns = [texts, texts[::-1]] if is_pair else [texts]
    raw = RawSplit.from_texts(get_task("rte" if is_pair else "sst2"), *columns)
    whole = tokenizer(*columns, truncation=False, verbose=False)["input_ids"]
    alone = [tokenizer(column, add_special_tokens=False)["input_ids"] for column in columns]
    for _ in range(2):  # made, and found in the cache
        data = encode(raw, tokenizer, 12, tmp_path)
        assert data.num_cut == sum(len(ids) > 12 for ids in whole) > 0
        assert data.num_empty == sum(min(map(len, row)) == 0 for row in zip(*alone, strict=True)) > 0


@pytest.mark.parametrize("overlap", [0, 3])
def test_documents_that_are_cut_after_their_last_piece(tmp_path, tokenizer, texts, overlap):
    truncation = TruncationConfig(strategy="hierarchical", max_pieces=2, overlap=overlap)
    data = encode(RawSplit.from_texts(get_task("sst2"), texts), tokenizer, 12, tmp_path, truncation=truncation)
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    assert data.num_cut == sum(length > 20 - overlap for length in lengths) > 0
    detail = describe(data, data.task, truncation).detail
    assert f"{data.num_cut / len(texts):.2%} cut after the last piece" in detail and f"{lengths.count(0)} rows with an empty text" in detail


@pytest.fixture
def own(tmp_path):
    """What is told of a file with these labels, by a task block with these keys."""

    def told(labels, name="train.csv", **keys):
        path = tmp_path / name
        path.write_text("text,label\n" + "".join(f"w{row},{label}\n" for row, label in enumerate(labels)))
        asked = get_task(TaskConfig(**OWN, **keys))
        raw = load_split(asked, load_config_input(path), "train")
        return describe(raw, asked, WHOLE_HEAD)

    return told


def load_config_input(path):
    return load_config(
        {"bertfast": {"task": OWN, "model": {"checkpoint": "x"}, "train_input": {"data_file": str(path)}}}
    ).bertfast.train_input


@pytest.mark.parametrize(
    ("labels", "keys", "detail", "warning"),
    [
        pytest.param([1, 2, 2], {}, "2 classes, as the labels name them: 1 1, 2 2;", "^$", id="classes"),
        pytest.param(["no", "yes"], {"label_names": ("yes", "no")}, "rows; yes 1, no 1;", "^$", id="classes-of-the-config"),
        pytest.param(["no", "no"], {"label_names": ("yes", "no")}, "yes 0, no 2", "^no row of class yes$", id="a-class-without-a-row"),
        pytest.param([0.5, 1.0], {}, "regression, as the labels are numbers with a decimal point: labels 0.5 to 1", "^$", id="scores"),
        pytest.param(
            [0.0, 1.0], {}, "regression, as", "^every score is a whole number: set task.kind = 'classification'", id="whole-scores"
        ),
        pytest.param([0.0, 1.0], {"kind": "classification"}, "2 classes, as the labels name them: 0 1, 1 1", "^$", id="kind-classes"),
        pytest.param([0.0, 1.0], {"kind": "regression"}, "rows; labels 0 to 1, mean 0.500;", "^$", id="kind-scores"),
        pytest.param([1.0, 1.0], {"metric": "pearson"}, "labels 1 to 1", "^every label is the same$", id="one-score"),
        pytest.param(["NA", "EU"], {}, "EU 1, NA 1", "^class 'NA' may stand for a missing label$", id="na"),
        pytest.param(["Yes", "yes", "no"], {}, "Yes 1, no 1, yes 1", "^'Yes' and 'yes' are two classes$", id="capitals"),
        pytest.param(["01", "1", "2"], {}, "3 classes", "^'01' and '1' are two classes$", id="zeros"),
        pytest.param(
            [*range(30)] * 2, {}, "7 2 and 22 more classes", "^every class is a number: set task.kind = 'regression'", id="numbers"
        ),
        pytest.param(range(30), {"kind": "classification"}, "30 classes", "^30 of 30 classes have one row each$", id="ids"),
    ],
)
def test_what_is_told_of_labels(own, labels, keys, detail, warning):
    found = own(labels, **keys)
    assert detail in found.detail and re.search(warning, found.warning), found


def test_one_shard_alone_is_told(own):
    assert own([0, 1], name="train-00000-of-00002.csv").warning.startswith("the file is one of several that hold a split together")
    assert not own([0, 1], name="train-00000-of-00001.csv").warning


@pytest.mark.parametrize("several", [False, True], ids=["one-task", "several-tasks"])
def test_a_run_says_what_validate_says(tmp_path, monkeypatch, several):
    monkeypatch.setenv("BERTFAST_CACHE", str(tmp_path / "cache"))
    write_tiny_bert(tmp_path / "model")
    (tmp_path / "train_all.csv").write_text("text,label\n" + "".join(f"{'good ' * row},{row % 2}.0\n" for row in range(9)))
    (tmp_path / "dev.csv").write_text("text,label\nbad,1\n,0\n")
    inputs = {"train_input": {"data_dir": str(tmp_path), "max_sequence_length": 5}, "eval_input": {"data_dir": str(tmp_path)}}
    block = {"model": {"checkpoint": str(tmp_path / "model")}, **inputs, "task": OWN}
    if several:
        alone = {"task": {**OWN, "name": "b", "kind": "classification"}, "train_input": {"data_dir": str(tmp_path)}}
        block = {"model": block["model"], "multitask": {"tasks": [{"task": {**OWN, "name": "a"}, **inputs}, alone]}}
    config = load_config({"bertfast": block})
    objective = objective_of(config, ALONE)
    tokenizer = objective.tokenizer()
    lines = objective.data_lines(objective.training_set(tokenizer), objective.evaluation_sets(tokenizer))
    assert len(lines) == (4 if several else 2)
    rows = {check.name: check for check in run_checks(lambda: config, "cpu")}
    assert lines == [f"{name}: {check.detail}" for name, check in rows.items() if "_input" in name]
    assert f"{tmp_path / 'train_all.csv'}: 9 rows; regression, as" in lines[0] and "cut at 5, 1 row with an empty text" in lines[0]
    assert "more than half of the rows are cut" in lines[0] and "1 row with an empty text" in lines[1]
    assert not several or (lines[3] == f"b: eval_input: {NO_EVALUATION}" and "2 classes, as the labels name them: 0 5, 1 4" in lines[2])


def test_what_a_function_yields_is_told_without_what_is_not_known(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "feeds.py").write_text(
        "import numpy as np\ndef few(params):\n"
        "    yield {'input_ids': np.array([[2, 5, 3]]), 'attention_mask': np.ones((1, 3), int), 'labels': np.array([1])}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("BERTFAST_CACHE", str(tmp_path / "cache"))
    given = load_config_input("x").model_copy(update={"data_file": None, "input_fn": "feeds:few"})
    data = load_dataset_for("sst2", given, "train", tokenizer, 0)
    assert data.num_cut is None and data.num_empty is None
    told = describe(data, data.task, WHOLE_HEAD)
    assert told.detail.endswith("tokens: mean 3.0, 95 % up to 3, longest 3") and told.warning == "no row of class negative"
