"""What predict reads; and `bertfast predict` from text to file with a tiny model, held against transformers."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bertfast.cli import entry
from bertfast.config.schema import BertfastConfig, InputConfig, TaskConfig
from bertfast.errors import CheckpointError, ConfigError, DataError
from bertfast.readers import predict_input
from bertfast.readers.predict_input import files_of, read_inputs, read_lines, whole_rows
from bertfast.tasks.catalogue import get_task
from bertfast.weights.folder import read_config
from bertfast.weights.tokenizer import task_of_model
from tests.support.tiny_bert import write_tiny_bert

SST2, RTE, MNLI = get_task("sst2"), get_task("rte"), get_task("mnli")
TEXTS = ["a good film", "the dull film is bad", "", "great"]


def block(**changes):
    return BertfastConfig.model_validate({"task": "sst2", "model": {"checkpoint": "m"}, **changes})


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A model of two classes, as training leaves it in a run's folder."""
    run = tmp_path_factory.mktemp("run")
    folder = write_tiny_bert(run / "model", num_labels=2, id2label={0: "negative", 1: "positive"})
    settings = {"task": "sst2", "model": {"checkpoint": "m"}, "eval_input": {"data_dir": "data", "max_sequence_length": 16}}
    (folder / "bertfast.json").write_text(json.dumps({"bertfast": settings}))
    return run


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BERTFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(predict_input, "_is_piped", lambda: False)


def pipe(monkeypatch, content: bytes):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    monkeypatch.setattr(predict_input, "_is_piped", lambda: True)


@pytest.mark.parametrize(
    "content, expected",
    [
        pytest.param(b"one\ntwo\n", ["one", "two"], id="lines"),
        pytest.param(b"one\ntwo", ["one", "two"], id="no-line-break-at-the-end"),
        pytest.param(b"one\r\ntwo\r\n", ["one", "two"], id="windows"),
        pytest.param(b"one\rtwo\n", ["one\rtwo"], id="a-carriage-return-alone"),
        pytest.param(b"\xef\xbb\xbfone\n", ["one"], id="byte-order-mark"),
        pytest.param(b"one\n\ntwo\n\n", ["one", "", "two", ""], id="empty-texts"),
        pytest.param("a\u2028b\x85c\n".encode(), ["a\u2028b\x85c"], id="other-line-separators"),
        pytest.param(b'say "hi"\tnow\n', ['say "hi"\tnow'], id="quotes-and-tabs"),
        pytest.param(b'{"sentence": "one"}\n{"sentence": "", "label": 7}\n', ["one", ""], id="json"),
        pytest.param(b"{not json}\n", ["{not json}"], id="a-brace-is-no-json"),
        pytest.param(b"{}x\n", ["{}x"], id="an-object-and-more"),
    ],
)
def test_single_texts(content, expected):
    raw = read_lines(SST2, content, "standard input")
    assert list(raw.text_a) == expected and raw.text_b is None and raw.labels is None
    assert raw.where(0) == "standard input, line 1"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"one\ttwo\n\tthree\n", id="tabs"),
        pytest.param(b'{"sentence1": "one", "sentence2": "two"}\n{"sentence2": "three", "sentence1": ""}\n', id="json"),
    ],
)
def test_pairs(content):
    raw = read_lines(RTE, content, "f")
    assert (list(raw.text_a), list(raw.text_b)) == (["one", ""], ["two", "three"])


def test_other_names_of_a_column_are_known():
    assert list(read_lines(MNLI, b'{"premise": "a", "hypothesis": "b"}', "f").text_b) == ["b"]


@pytest.mark.parametrize(
    "task, content, words",
    [
        pytest.param(SST2, b"", ["f: there is no text", "one text a line"], id="empty"),
        pytest.param(SST2, b"one\ntw\xff\n", ["f, line 2", "not valid UTF-8 at byte 2"], id="not-utf8"),
        pytest.param(RTE, b"a\tb\nalone\n", ["f, line 2: 1 fields", "rte", "one tab"], id="half-a-pair"),
        pytest.param(RTE, b"a\tb\tc\n", ["f, line 1: 3 fields"], id="three-fields"),
        pytest.param(SST2, b'{"sentence": "a"}\nplain\n', ["f, line 2: not valid JSON"], id="json-and-plain"),
        pytest.param(SST2, b'{"sentence": "a"}\n[1]\n', ["f, line 2: a JSON list"], id="json-list"),
        pytest.param(SST2, b'{"text": "a"}\n', ["f, line 1: there is no key 'sentence'", "'text'"], id="missing-key"),
        pytest.param(SST2, b'{"sentence": null}\n', ["f, line 1: 'sentence' is null"], id="null"),
    ],
)
def test_faults_name_the_line(task, content, words):
    with pytest.raises(DataError) as caught:
        read_lines(task, content, "f")
    assert all(word in str(caught.value) for word in words), caught.value


def write_test_set(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text("index\tsentence\n0\tgood\n1\tbad\n")


def test_a_task_file_and_a_folder(tmp_path):
    write_test_set(tmp_path / "data", "test.tsv")
    for given in ("data", "data/test.tsv"):
        ((split, raw),) = read_inputs(block(), SST2, given, single=True)
        assert split == "test" and list(raw.text_a) == ["good", "bad"] and raw.labels is None


def test_without_input_the_configured_test_set_is_read(tmp_path):
    write_test_set(tmp_path / "data", "test.tsv")
    ((split, raw),) = read_inputs(block(train_input={"data_dir": "data", "max_examples": 1}), SST2, None, single=True)
    assert split == "test" and len(raw) == 2


def test_a_text_file_and_a_file_of_ones_own(tmp_path):
    (tmp_path / "a.txt").write_text("good\nbad\n")
    ((split, raw),) = read_inputs(block(), SST2, "a.txt", single=True)
    assert split == "test" and list(raw.text_a) == ["good", "bad"] and raw.where(1) == "a.txt, line 2"
    (tmp_path / "b.csv").write_text("title,stars\ngood,\n")
    task = get_task(TaskConfig(text_columns=("title",), label_column="mood", label_names=("sad", "happy")))
    ((_, raw),) = read_inputs(block(), task, "b.csv", single=True)
    assert list(raw.text_a) == ["good"] and raw.labels is None


@pytest.mark.parametrize(
    "name, content",
    [
        pytest.param("a.csv", "sentence,label\ngood,\nbad,\n", id="an-empty-column"),
        pytest.param("a.tsv", "sentence\tlabel\ngood\tlovely\nbad\t1\n", id="a-label-that-is-unknown"),
        pytest.param("a.jsonl", '{"sentence": "good", "label": null}\n{"sentence": "bad", "label": 0}\n', id="null"),
        pytest.param("a.jsonl", '{"sentence": "good", "label": 1}\n{"sentence": "bad"}\n', id="the-first-row-alone"),
    ],
)
def test_labels_do_not_matter_to_a_prediction(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    ((_, raw),) = read_inputs(block(), SST2, name, single=True, with_labels=False)
    assert list(raw.text_a) == ["good", "bad"] and raw.labels is None
    with pytest.raises(DataError, match="label"):
        read_inputs(block(), SST2, name, single=True)


def test_a_text_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.txt").write_text("good\n")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"--input a\.txt: cannot be read: Permission denied"):
        read_inputs(block(), SST2, "a.txt", single=True)


def test_two_test_sets_need_a_folder_or_one_file(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("test_matched.tsv", "test_mismatched.tsv"):
        (tmp_path / "data" / name).write_text(f"index\tsentence1\tsentence2\n0\ta\t{name}\n")
    with pytest.raises(ConfigError, match=r"mnli has 2 test sets \(test_matched, test_mismatched\).*folder as --output"):
        read_inputs(block(), MNLI, "data", single=True)
    found = read_inputs(block(), MNLI, "data", single=False)
    assert [(split, raw.text_b[0]) for split, raw in found] == [
        ("test_matched", "test_matched.tsv"),
        ("test_mismatched", "test_mismatched.tsv"),
    ]
    assert [split for split, _ in read_inputs(block(), MNLI, "data/test_mismatched.tsv", single=True)] == ["test_mismatched"]


def test_what_is_piped_in_comes_first_where_there_is_one_output(tmp_path, monkeypatch):
    write_test_set(tmp_path / "data", "test.tsv")
    pipe(monkeypatch, b"fine\n")
    source = block(eval_input={"data_dir": "data"})
    assert [list(raw.text_a) for _, raw in read_inputs(source, SST2, None, single=True)] == [["fine"]]
    assert [list(raw.text_a) for _, raw in read_inputs(source, SST2, None, single=False)] == [["good", "bad"]]


@pytest.mark.parametrize(
    "given, error, words",
    [
        pytest.param("nothing.tsv", DataError, ["--input nothing.tsv", "no such file"], id="no-such-file"),
        pytest.param(None, ConfigError, ["nothing to predict", "--input"], id="nothing-named"),
    ],
)
def test_nothing_to_read(given, error, words):
    with pytest.raises(error) as caught:
        read_inputs(block(eval_input={"data_file": "dev.tsv"}), SST2, given, single=True)
    assert all(word in str(caught.value) for word in words)


def test_several_ranks_cannot_share_standard_input(monkeypatch):
    pipe(monkeypatch, b"fine\n")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="several ranks; write the texts to a file"):
        read_inputs(block(), SST2, "-", single=True)
    with pytest.raises(ConfigError, match="nothing to predict"):
        read_inputs(block(), SST2, None, single=True)


def task_of(task, folder):
    return task_of_model(task, read_config(folder), folder)


def test_the_model_tells_the_classes(tmp_path):
    own = get_task(TaskConfig(text_columns=("text",)))
    two = write_tiny_bert(tmp_path / "two", num_labels=2, id2label={0: "no", 1: "yes"})
    assert task_of(own, two).label_names == ("no", "yes")
    assert task_of(own, write_tiny_bert(tmp_path / "one", num_labels=1)).is_regression
    with pytest.raises(CheckpointError, match="2 labels, but task mnli has 3"):
        task_of(MNLI, two)


def logits_of_transformers(folder, texts):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return np.concatenate([model(**tokenizer(text, return_tensors="pt")).logits.numpy() for text in texts])


def test_predict_from_standard_input_to_standard_output(classifier, monkeypatch, capfd, tmp_path):
    pipe(monkeypatch, "\n".join(TEXTS).encode())
    assert entry.main(["predict", "CPU", "--checkpoint_path", str(classifier)]) == 0
    out, _ = capfd.readouterr()
    records = [json.loads(line) for line in out.splitlines()]
    logits = logits_of_transformers(classifier / "model", TEXTS)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.abs(np.array([list(record["probabilities"].values()) for record in records]) - expected).max() < 2e-6
    assert [record["index"] for record in records] == [0, 1, 2, 3]
    assert not list(tmp_path.iterdir())  # nor does anything stay in the cache
    assert [record["prediction"] for record in records] == [("negative", "positive")[best] for best in logits.argmax(axis=1)]


def test_predict_from_a_folder_to_a_folder(classifier, tmp_path, capfd):
    write_test_set(tmp_path / "data", "test.tsv")
    (tmp_path / "c.json").write_text((classifier / "model" / "bertfast.json").read_text())
    argv = ["predict", "CPU", "--config", "c.json", "--checkpoint_path", str(classifier / "model"), "--output", "out/"]
    assert entry.main(argv) == 0
    answers = logits_of_transformers(classifier / "model", ["good", "bad"]).argmax(axis=1)
    assert (tmp_path / "out" / "SST-2.tsv").read_bytes() == f"index\tprediction\n0\t{answers[0]}\n1\t{answers[1]}\n".encode()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["SST-2.tsv"]
    out, err = capfd.readouterr()
    assert out == "" and "SST-2.tsv: 2 predictions" in err


def test_a_fault_leaves_no_output(classifier, tmp_path, capfd):
    (tmp_path / "a.txt").write_bytes(b"good\n\xff\n")
    assert entry.main(["predict", "CPU", "--checkpoint_path", str(classifier), "--input", "a.txt", "--output", "out.jsonl"]) == 2
    assert "a.txt, line 2: not valid UTF-8" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_only_our_lines_reach_standard_output():
    code = (
        "import os, sys\nfrom bertfast.reporting import clean_stdout\n"
        "with clean_stdout() as ours:\n    print('chatter')\n    os.write(1, b'from C\\n')\n    ours.write('caf\\u00e9\\n')\nprint('after')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.stdout == "café\nafter\n".encode() and b"chatter" in done.stderr and b"from C" in done.stderr


@pytest.mark.parametrize(
    "names, fault",
    [
        pytest.param(("ENTAILMENT", "neutral", "contradiction"), None, id="the-same-order"),
        pytest.param(
            ("contradiction", "entailment", "neutral"),
            "order contradiction, entailment, neutral, those of task mnli in the order entailment",
            id="another-order",
        ),
        pytest.param(("LABEL_0", "LABEL_1", "LABEL_2"), None, id="no-names"),
        pytest.param(("0", "1", "2"), None, id="numbers"),
        pytest.param(("2", "1", "0"), "classes are 2, 1, 0, those of task mnli are entailment", id="numbers-in-another-order"),
        pytest.param(
            ("joy", "anger", "fear"),
            "classes are joy, anger, fear, those of task mnli are entailment, neutral, contradiction; was it fine-tuned on another task",
            id="other-classes",
        ),
    ],
)
def test_other_classes_are_not_taken_for_ours(tmp_path, names, fault):
    folder = write_tiny_bert(tmp_path / "m", num_labels=3, id2label=dict(enumerate(names)))
    if fault is None:
        assert task_of(MNLI, folder) == MNLI
    else:
        with pytest.raises(CheckpointError, match=fault):
            task_of(MNLI, folder)


def test_predict_what_an_input_function_yields(classifier, tmp_path, monkeypatch, capfd):
    (tmp_path / "own_batches.py").write_text(
        "import numpy as np\n"
        "def batches(params):\n"
        "    ids = np.zeros((2, params['max_sequence_length']), np.int32)\n"
        "    ids[:, :3] = [[2, 10, 3], [2, 13, 3]]\n"
        "    assert params['mode'] == 'predict'\n"
        "    yield {'input_ids': ids, 'attention_mask': (ids > 0).astype(np.int32), 'token_type_ids': ids * 0}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"task": "sst2", "model": {"checkpoint": "m"}, "eval_input": {"input_fn": "own_batches:batches", "max_sequence_length": 8}}
    (tmp_path / "c.json").write_text(json.dumps({"bertfast": settings}))
    assert entry.main(["predict", "--config", "c.json", "--checkpoint_path", str(classifier)]) == 0
    ours = [json.loads(line)["probabilities"] for line in capfd.readouterr().out.splitlines()]
    assert entry.main(["predict", "--checkpoint_path", str(classifier), "--input", str(write_lines(tmp_path, "good\nbad\n"))]) == 0
    assert ours == [json.loads(line)["probabilities"] for line in capfd.readouterr().out.splitlines()]


def write_lines(folder, text):
    (folder / "lines.txt").write_text(text)
    return folder / "lines.txt"


WHOLE = {
    "a.csv": (
        b'id,sentence,label\n007,"a ""good"", one",x\n\n8,"two\r\nlines",\n',
        [["007", 'a "good", one', "x"], ["8", "two\nlines", ""]],
    ),
    "a.tsv": (b'id\tsentence\tnote\n007\t"good\tx\n8\tbad\t\n', [["007", '"good', "x"], ["8", "bad", ""]]),
    "short.tsv": (b"sentence\tid\tnote\ngood\n", [["good", "", ""]]),
    "a.jsonl": (
        b'{"id": 7, "sentence": "good", "sad": "\\ud800"}\n\n{"sentence": "bad", "tags": ["x"], "id": 8}\n',
        [[7, "good", "\\ud800", None], [8, "bad", None, ["x"]]],
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_rows_are_given_whole(tmp_path, name):
    content, expected = WHOLE[name]
    (tmp_path / name).write_bytes(content)
    ((_, raw),) = read_inputs(block(), SST2, name, single=True, with_labels=False)
    names, rows = whole_rows(raw)
    rows = [list(row) for row in rows]
    assert rows == expected and set(names) >= {"sentence", "id"} and len(rows) == len(raw)


def test_rows_of_a_known_set_may_be_longer_than_its_header(tmp_path):
    """As some of GLUE's own are: what has no column is left out."""
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tgood\tmore\n1\tbad\n")
    ((_, raw),) = read_inputs(block(), SST2, "test.tsv", single=True, with_labels=False)
    names, rows = whole_rows(raw)
    assert (names, [list(row) for row in rows]) == (("index", "sentence"), [["0", "good"], ["1", "bad"]])


def test_rows_of_parquet_keep_their_types(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"id": [7, 8], "sentence": ["good", "bad"], "score": [0.5, 1.0]})
    frame.to_parquet(tmp_path / "a.parquet")
    ((_, raw),) = read_inputs(block(), SST2, "a.parquet", single=True, with_labels=False)
    names, rows = whole_rows(raw)
    assert names == tuple(frame.columns) and [list(row) for row in rows] == frame.to_numpy().tolist()


@pytest.mark.parametrize(
    "content, names, expected",
    [
        pytest.param(b"good\nbad\n", ("sentence",), [("good",), ("bad",)], id="lines"),
        pytest.param(b'{"id": 7, "sentence": "good"}\n{"sentence": ""}', ("id", "sentence"), [[7, "good"], [None, ""]], id="json"),
    ],
)
def test_rows_of_standard_input_are_given_whole(content, names, expected):
    found, rows = whole_rows(read_lines(SST2, content, "standard input"))
    assert (found, list(rows)) == (names, expected)


def test_rows_of_a_set_with_no_header_are_its_texts(tmp_path):
    (tmp_path / "test.csv").write_text('"2","good","film"\n')
    ((_, raw),) = read_inputs(block(), get_task("ag_news"), "test.csv", single=True)
    names, rows = whole_rows(raw)
    assert (names, list(rows)) == (("text",), [("good film",)])


def test_a_file_that_has_become_another_is_not_given_other_answers(tmp_path):
    (tmp_path / "a.csv").write_text("sentence\ngood\nbad\n")
    ((_, raw),) = read_inputs(block(), SST2, "a.csv", single=True)
    (tmp_path / "a.csv").write_text("sentence\ngood\n")
    with pytest.raises(DataError, match=r"a\.csv: has changed while it was read"):
        list(whole_rows(raw)[1])


def test_the_files_of_a_task_are_known(tmp_path):
    write_test_set(tmp_path / "data", "test.tsv", "train.tsv", "notes.tsv")
    assert files_of(SST2, InputConfig(data_dir="data")) == ["data/train.tsv", "data/test.tsv"]
    assert files_of(SST2, InputConfig(data_file="x.csv")) == ["x.csv"] and files_of(SST2, InputConfig()) == []


@pytest.mark.parametrize("piped", [False, True], ids=["a-file", "standard-input"])
def test_predict_adds_columns_to_the_input(classifier, tmp_path, monkeypatch, piped):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"id": ["01", "02", "03", "04"], "sentence": TEXTS, "label": ["?", "", "x", "y"], "prediction": list("abcd")})
    argv = ["predict", "CPU", "--checkpoint_path", str(classifier), "--output", "out.csv"]
    if piped:
        pipe(monkeypatch, frame.to_json(orient="records", lines=True).encode())
    else:
        frame.to_csv(tmp_path / "in.csv", index=False)
        argv += ["--input", "in.csv"]
    assert entry.main(argv) == 0
    found = pandas.read_csv(tmp_path / "out.csv", dtype={"id": str}, keep_default_na=False)
    assert found[list(frame.columns)].equals(frame)
    logits = logits_of_transformers(classifier / "model", TEXTS)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.abs(found[["probability_negative", "probability_positive"]].to_numpy() - expected).max() < 2e-6
    assert list(found["prediction_2"]) == [("negative", "positive")[best] for best in logits.argmax(axis=1)]


def spelt(folder, place):
    """Other spellings of a file: itself, from above, by a link, by a hard link, through a linked folder."""
    (folder / "link").symlink_to(place)
    (folder / "hard").hardlink_to(place)
    (folder / "other").symlink_to(place.parent, target_is_directory=True)
    return [place, f"{place.parent}/../{place.parent.name}/{place.name}", folder / "link", folder / "hard", folder / "other" / place.name]


def test_predict_leaves_its_input_alone(classifier, tmp_path, capfd, monkeypatch):
    data = tmp_path / "data"
    write_test_set(data, "test.tsv", "train.tsv")
    (tmp_path / "c.json").write_text((classifier / "model" / "bertfast.json").read_text())
    argv = ["predict", "CPU", "--checkpoint_path", str(classifier), "--format", "csv"]
    cases = [([*argv, "--input", "data/test.tsv"], output) for output in spelt(tmp_path, data / "test.tsv")]
    cases += [([*argv, "--input", "data"], data / name) for name in ("test.tsv", "train.tsv")]
    cases += [
        ([*argv, "--config", "c.json", "--input", "data/test.tsv"], tmp_path / "c.json"),
        ([*argv, "--config", "c.json"], data / "train.tsv"),
    ]
    cases += [([*argv, "--input", "data/test.tsv"], classifier / "model" / name) for name in ("config.json", "bertfast.json", "vocab.txt")]
    files = [path for folder in (tmp_path, classifier) for path in folder.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    for command, output in cases:
        assert entry.main([*command, "--output", str(output)]) == 2, output
        said = capfd.readouterr().err.splitlines()[-1]
        assert said.startswith(f"bertfast: error: --output {output}: is an input of this command"), said
    assert {path: path.read_bytes() for path in before} == before
    (tmp_path / "out.csv").write_text("earlier")
    assert entry.main([*argv, "--input", "data/test.tsv", "--output", "out.csv"]) == 0
    assert (tmp_path / "out.csv").read_text().startswith("index,sentence,prediction,probability_negative")
