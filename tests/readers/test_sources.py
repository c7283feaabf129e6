"""Which files a split is read from, and how each distribution is laid out."""

from __future__ import annotations

import logging
import re
import threading
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer

import datasets
import pandas
import pytest
from huggingface_hub import constants, is_offline_mode

from bertfast.config.blocks import InputConfig
from bertfast.config.schema import TaskConfig
from bertfast.errors import ConfigError, DataError
from bertfast.readers import hub as hub_module
from bertfast.readers.sources import find_source
from bertfast.readers.splits import load_split
from bertfast.tasks.catalogue import get_task


def put(folder, **files: str | bytes):
    """Write files; in a keyword, __ stands for the dot before the suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read(task, folder, split="train"):
    """Texts, labels and places of a split, as plain lists."""
    raw = load_split(task, InputConfig(data_dir=str(folder)), split)
    texts = list(raw.text_a) if raw.text_b is None else list(zip(raw.text_a, raw.text_b, strict=True))
    return texts, None if raw.labels is None else raw.labels.tolist(), [raw.where(row) for row in range(len(raw))]


MNLI_TRAIN = "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse sentence1 sentence2 label1 gold_label"
MNLI_DEV = MNLI_TRAIN.replace("label1", "label1 label2 label3 label4 label5")


def mnli_row(header: str, **values: str) -> str:
    return "\t".join(values.get(name, "-") for name in header.split()) + "\n"


def test_mnli_official_columns(tmp_path):
    texts = {"sentence1": 'He said "no', "sentence2": "He spoke"}
    put(
        tmp_path,
        train__tsv=MNLI_TRAIN.replace(" ", "\t") + "\n" + mnli_row(MNLI_TRAIN, **texts, label1="neutral", gold_label="entailment"),
        dev_matched__tsv=MNLI_DEV.replace(" ", "\t") + "\n" + mnli_row(MNLI_DEV, **texts, label1="neutral", gold_label="contradiction"),
        test_matched__tsv="index\tsentence1\tsentence2\n0\ta\tb\n",
    )
    assert len(MNLI_TRAIN.split()) == 12 and len(MNLI_DEV.split()) == 16
    assert read("mnli", tmp_path) == ([('He said "no', "He spoke")], [0], [f"{tmp_path / 'train.tsv'}, line 2"])
    assert read("mnli", tmp_path, "dev_matched")[1] == [2]
    assert read("mnli", tmp_path, "test_matched")[:2] == ([("a", "b")], None)


@pytest.mark.parametrize("parent", [False, True], ids=["task-folder", "its-parent"])
def test_data_dir_is_the_folder_of_the_task_or_its_parent(tmp_path, parent):
    folder = put(tmp_path / "glue" / "SST-2", train__tsv="sentence\tlabel\na film \t1\n")
    texts, labels, _ = read("sst2", tmp_path / "glue" if parent else folder)
    assert (texts, labels) == (["a film "], [1])


def test_cola_has_a_header_in_test_alone(tmp_path):
    put(tmp_path, train__tsv="gj04\t1\t\tOur friends won't buy this.\ngj04\t0\t*\tThey am.\n", test__tsv="index\tsentence\n0\tBill left.\n")
    expected = (["Our friends won't buy this.", "They am."], [1, 0], [f"{tmp_path / 'train.tsv'}, line {line}" for line in (1, 2)])
    assert read("cola", tmp_path) == expected
    assert read("cola", tmp_path, "test")[:2] == (["Bill left."], None)


def test_mrpc_of_the_download_script(tmp_path):
    put(
        tmp_path,
        train__tsv="\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t70\t71\tone\ttwo\r\n",
        test__tsv="index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tthree\tfour\n",
    )
    assert read("mrpc", tmp_path)[:2] == ([("one", "two")], [1])
    assert read("mrpc", tmp_path, "test")[:2] == ([("three", "four")], None)


MSR_ROWS = "".join(f"{i % 2}\t{i}\t{i + 100}\tfirst {i}\tsecond {i}\r\n" for i in range(20))


def test_mrpc_raw_with_dev_ids(tmp_path):
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    put(
        tmp_path,
        msr_paraphrase_train__txt=header + MSR_ROWS,
        msr_paraphrase_test__txt=header + "1\t1\t2\ta\tb\r\n",
        dev_ids__tsv="3\t103\n7\t107\n",
    )
    texts, labels, places = read("mrpc", tmp_path, "dev")
    assert texts == [("first 3", "second 3"), ("first 7", "second 7")] and labels == [1, 1]
    assert places == [f"{tmp_path / 'msr_paraphrase_train.txt'}, line {line}" for line in (5, 9)]
    assert [text for text, _ in read("mrpc", tmp_path)[0]] == [f"first {i}" for i in range(20) if i not in (3, 7)]
    assert read("mrpc", tmp_path, "test")[:2] == ([("a", "b")], [1])


def test_mrpc_raw_without_dev_ids_takes_every_tenth_row(tmp_path):
    put(tmp_path, msr_paraphrase_train__txt="Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n" + MSR_ROWS)
    assert [text for text, _ in read("mrpc", tmp_path, "dev")[0]] == ["first 9", "first 19"]
    assert len(read("mrpc", tmp_path)[0]) == 18


def test_a_change_of_dev_ids_changes_the_digest(tmp_path):
    put(tmp_path, msr_paraphrase_train__txt="Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n" + MSR_ROWS, dev_ids__tsv="3\t103\n")
    config = InputConfig(data_dir=str(tmp_path))
    before = find_source(get_task("mrpc"), config, "dev").digest()
    put(tmp_path, dev_ids__tsv="4\t104\n")
    assert find_source(get_task("mrpc"), config, "dev").digest() != before


def test_qqp_torn_rows(tmp_path, caplog):
    put(
        tmp_path,
        train__tsv="id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tWhat?\tWhich?\t1\n4\t5\t6\tHalf\n7\t8\t9\tHow?\tWhy?\t0\n",
        test__tsv="id\tquestion1\tquestion2\n0\ta\tb\n1\tc\n",
    )
    with caplog.at_level(logging.WARNING):
        assert read("qqp", tmp_path)[:2] == ([("What?", "Which?"), ("How?", "Why?")], [1, 0])
    assert f"{tmp_path / 'train.tsv'}, line 3" in caplog.text
    assert read("qqp", tmp_path, "test")[0] == [("a", "b"), ("c", "")], "a submission needs every row of the test set"


def test_ax_is_test_only(tmp_path):
    put(tmp_path, diagnostic__tsv="index\tsentence1\tsentence2\n0\ta\tb\n")
    assert read("ax", tmp_path, "test")[:2] == ([("a", "b")], None)
    header = "Lexical Semantics\tPredicate-Argument Structure\tLogic\tKnowledge\tDomain\tPremise\tHypothesis\tLabel\n"
    (tmp_path / "diagnostic-full.tsv").write_text(header + "\t\t\t\tNews\ta\tb\tneutral\n")
    assert read("ax", tmp_path, "test")[:2] == ([("a", "b")], [1])
    with pytest.raises(ConfigError, match="task ax has no split 'train'; it has test"):
        read("ax", tmp_path)


@pytest.mark.parametrize("task", ["rte", "wnli", "qnli"])
def test_other_pairs(tmp_path, task):
    first, second = get_task(task).text_columns
    label = {"wnli": "1"}.get(task, "entailment")
    put(tmp_path, dev__tsv=f"index\t{first}\t{second}\tlabel\n0\tx\ty\t{label}\n")
    assert read(task, tmp_path, "dev")[:2] == ([("x", "y")], [get_task(task).label_names.index("entailment")])


def test_stsb(tmp_path):
    put(tmp_path, dev__tsv="index\tgenre\tsentence1\tsentence2\tscore\n0\tg\ta\tb\t3.750\n")
    assert read("stsb", tmp_path, "dev")[:2] == ([("a", "b")], [3.75])


def test_yelp_csv(tmp_path):
    put(tmp_path, train__csv='"1","Bad ""food"".\\n\\nNever, again."\n"5","Great"\n', classes__txt="1\n2\n3\n4\n5\n")
    expected = ['Bad "food".\n\nNever, again.', "Great"]
    assert read("yelp_full", tmp_path) == (expected, [0, 4], [f"{tmp_path / 'train.csv'}, line {line}" for line in (1, 2)])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        pytest.param('"3","Title","A second\\team"\n', "Title A second\nteam", id="official"),
        pytest.param("Class Index,Title,Description\n3,Title,Text\n", "Title Text", id="header-with-parts"),
        pytest.param("id,text,label\n9,Text,3\n", "Text", id="header-with-text"),
        pytest.param("label,title,description\n3,T,D\n", "T D", id="header-in-small-letters"),
    ],
)
def test_ag_news_csv(tmp_path, content, text):
    put(tmp_path, test__csv=content)
    assert read("ag_news", tmp_path, "test")[:2] == ([text], [2])


def test_header_of_the_hub_columns_leaves_other_columns_out(tmp_path):
    put(tmp_path, train__csv="id,topic,question_title,question_content,best_answer\n7,0,t,c,a\n8,9,x,,y\n")
    assert read("yahoo_answers", tmp_path)[:2] == (["t c a", "x  y"], [0, 9])


def test_a_tsv_whose_name_goes_on(tmp_path):
    put(tmp_path, train_10k__tsv='label\ttext\n4\t"quoted\n')
    assert read("ag_news", tmp_path) == (['"quoted'], [3], [f"{tmp_path / 'train_10k.tsv'}, line 2"])


def test_classes_txt_of_another_task(tmp_path):
    put(tmp_path, train__csv='"1","a"\n', classes__txt="World\nSports\nBusiness\nSci/Tech\n")
    with pytest.raises(DataError, match=r"classes.txt: 4 classes, but task yelp_full has 5"):
        read("yelp_full", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param('"1","a"\n"6","b"\n', "line 2: unknown label '6'; the labels are '1 star', '2 stars'", id="class"),
        pytest.param('"1"\n', "line 1: the row has one field", id="no-text"),
        pytest.param("sentiment,text\n1,a\n", "line 1: there is no column 'label'", id="header-without-label"),
    ],
)
def test_zhang_faults(tmp_path, content, message):
    put(tmp_path, train__csv=content)
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'train.csv'}, {message}")):
        read("yelp_full", tmp_path)


def test_trec_folder(tmp_path):
    put(tmp_path, TREC_10__label="NUM:dist How far ?\nHUM:ind Who ?\n")
    assert read("trec", tmp_path, "test")[:2] == (["How far ?", "Who ?"], [5, 3])


def test_imdb_folder_and_tsv(tmp_path):
    put(tmp_path / "aclImdb" / "train" / "pos", **{"1_9__txt": "fine"})
    put(tmp_path / "aclImdb" / "train" / "neg", **{"0_2__txt": "poor"})
    put(tmp_path / "aclImdb" / "train" / "unsup", **{"5_0__txt": "who knows"})
    texts, labels, places = read("imdb", tmp_path)
    assert (texts, labels) == (["poor", "fine"], [0, 1])
    assert places[1] == str(tmp_path / "aclImdb" / "train" / "pos" / "1_9.txt")
    put(tmp_path, test__tsv="label\tid\ttext\n1\t1_9\tfine\n0\t2_1\tpoor\n")
    assert read("imdb", tmp_path, "test")[:2] == (["fine", "poor"], [1, 0])


def test_missing_folder_and_files(tmp_path):
    put(tmp_path, readme__md="x")
    with pytest.raises(
        DataError, match=rf"data_dir {tmp_path}/no: there is no such folder; {tmp_path} holds readme.md; expected SST-2/train.tsv"
    ):
        read("sst2", tmp_path / "no")
    with pytest.raises(
        DataError,
        match=r"no data for split 'train' of task mrpc; looked for MRPC/train.tsv or MRPC/msr_paraphrase_train.txt.*holds readme.md",
    ):
        read("mrpc", tmp_path)
    with pytest.raises(DataError, match=rf"data_file {tmp_path}/no.csv: there is no such file; {tmp_path} holds readme.md"):
        load_split("sst2", InputConfig(data_file=str(tmp_path / "no.csv")), "train")
    with pytest.raises(DataError, match="the suffix '.md' is not known; give a file that ends in .tsv, .csv"):
        load_split("sst2", InputConfig(data_file=str(tmp_path / "readme.md")), "train")


def test_splits_that_a_task_has_not(tmp_path):
    with pytest.raises(ConfigError, match="task mnli has no split 'dev'; it has train, dev_matched"):
        read("mnli", tmp_path, "dev")


OWN = TaskConfig(name="mine", text_columns=("question",), label_column="answer")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("x.csv", 'answer,question\nyes,"a, ""b"""\nno,c\n', id="csv"),
        pytest.param("x.tsv", 'question\tanswer\na, "b"\tyes\nc\tno\n', id="tsv"),
        pytest.param("x.jsonl", '{"question": "a, \\"b\\"", "answer": "yes"}\n{"question": "c", "answer": "no"}\n', id="jsonl"),
        pytest.param("X.JSON", '{"question": "a, \\"b\\"", "answer": "yes"}\n{"question": "c", "answer": "no"}\n', id="json"),
    ],
)
def test_own_file(tmp_path, name, content):
    put(tmp_path, **{name.replace(".", "__"): content})
    raw = load_split(OWN, InputConfig(data_file=str(tmp_path / name)), "train")
    assert list(raw.text_a) == ['a, "b"', "c"] and raw.labels.tolist() == [1, 0] and raw.task.label_names == ("no", "yes")


def test_own_folder(tmp_path):
    put(tmp_path, train__csv="question,answer\na,yes\nb,no\n", validation__csv="question,answer\nc,no\n")
    train = load_split(OWN, InputConfig(data_dir=str(tmp_path)), "train")
    dev = load_split(train.task, InputConfig(data_dir=str(tmp_path)), "dev")
    assert dev.labels.tolist() == [0] and dev.task == train.task
    put(tmp_path, train__jsonl="{}")
    with pytest.raises(DataError, match=r"more than one file could be split 'train': train.csv, train.jsonl; name one as data_file"):
        load_split(OWN, InputConfig(data_dir=str(tmp_path)), "train")


def shards(folder, suffix, *numbers, of=2, rows=3):
    """Shards of a split as `datasets` writes them, of texts "0 0", "0 1"...; label 0 or 1 after the shard."""
    for number in numbers:
        table = pandas.DataFrame({"question": [f"{number} {row}" for row in range(rows)], "answer": [str(number % 2)] * rows})
        path = folder / f"train-{number:05}-of-{of:05}{suffix}"
        if suffix == ".parquet":
            table.to_parquet(path)
        elif suffix == ".jsonl":
            table.to_json(path, orient="records", lines=True)
        else:
            table.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")


@pytest.mark.parametrize(("suffix", "last"), [(".parquet", "row 2 (from 0)"), (".jsonl", "line 3"), (".csv", "line 4"), (".tsv", "line 4")])
def test_the_shards_of_a_split_are_read_together(tmp_path, suffix, last):
    shards(tmp_path, suffix, 1, 0)
    raw = load_split(OWN, InputConfig(data_dir=str(tmp_path)), "train")
    assert list(raw.text_a) == ["0 0", "0 1", "0 2", "1 0", "1 1", "1 2"] and raw.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert raw.source == str(tmp_path / f"train-*-of-00002{suffix}")
    assert raw.where(5) == f"{raw.source}, train-00001-of-00002{suffix}, {last}"
    before = raw.fingerprint
    shards(tmp_path, suffix, 1, rows=2)
    assert load_split(OWN, InputConfig(data_dir=str(tmp_path)), "train").fingerprint != before


def test_many_shards_are_in_the_order_of_their_numbers(tmp_path):
    shards(tmp_path, ".csv", *range(1, 12), of=11, rows=1)  # some programs count from 1
    texts = load_split(OWN, InputConfig(data_dir=str(tmp_path)), "train").text_a
    assert [int(text.split()[0]) for text in texts] == list(range(1, 12))


@pytest.mark.parametrize(
    ("there", "missing"), [([0], "train-00001-of-00003.csv"), ([1, 2], "train-00000-of-00003.csv"), ([0, 2], "train-00001")]
)
def test_a_shard_that_is_not_there(tmp_path, there, missing):
    shards(tmp_path, ".csv", *there, of=3)
    with pytest.raises(DataError, match=f"{tmp_path}: {missing}.* is not there, one of 3 files"):
        load_split(OWN, InputConfig(data_dir=str(tmp_path)), "train")


def test_shards_of_two_splittings(tmp_path):
    shards(tmp_path, ".csv", 0, 1)
    shards(tmp_path, ".csv", 0, of=3)
    with pytest.raises(DataError, match="more than one file could be split 'train'"):
        load_split(OWN, InputConfig(data_dir=str(tmp_path)), "train")


def test_shards_that_are_not_alike(tmp_path):
    put(tmp_path, **{"test-0-of-2__csv": "question,answer\na,yes\n", "test-1-of-2__csv": "question\nb\n"})
    with pytest.raises(DataError, match="test-1-of-2.csv, line 2: labels begin or end here"):
        load_split(OWN, InputConfig(data_dir=str(tmp_path)), "test")


def test_class_names_of_a_parquet_file_hold_for_training_and_evaluation(tmp_path):
    """The truth is int2str of `datasets`, whatever order the other file has the classes in."""
    texts, label, task = ["a", "b", "c"], [1, 0, 1], OWN
    for split, names in (("train", ["neg", "pos"]), ("dev", ["pos", "neg"])):
        features = datasets.Features({"question": datasets.Value("string"), "answer": datasets.ClassLabel(names=names)})
        data = datasets.Dataset.from_dict({"question": texts, "answer": label}, features)
        data.to_parquet(tmp_path / f"{split}.parquet")
        raw = load_split(task, InputConfig(data_dir=str(tmp_path)), split)
        assert raw.task.label_names == ("neg", "pos")
        assert [raw.task.label_names[index] for index in raw.labels] == data.features["answer"].int2str(label)
        task = raw.task


@pytest.mark.parametrize("name", ["train.csv.gz", "train.jsonl.zip"])
def test_compressed_files(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match=f"{name}: the file is compressed; unpack it first"):
        load_split(OWN, InputConfig(data_file=str(tmp_path / name)), "train")
    with pytest.raises(DataError, match=rf"no data for split 'train'.*\({name} is compressed: unpack it first\)"):
        load_split(OWN, InputConfig(data_dir=str(tmp_path)), "train")


def test_official_files_may_have_rows_longer_than_the_header(tmp_path):
    put(tmp_path, train__tsv="sentence\tlabel\na\t1\tx\n", mine__tsv="sentence\tlabel\na\t1\tx\n")
    assert load_split("sst2", InputConfig(data_dir=str(tmp_path)), "train").labels.tolist() == [1]
    with pytest.raises(DataError, match="mine.tsv, line 2: the row has 3 fields"):
        load_split("sst2", InputConfig(data_file=str(tmp_path / "mine.tsv")), "train")


def test_the_eval_file_must_hold_known_labels(tmp_path):
    put(tmp_path, train__csv="question,answer\na,yes\nb,no\n", dev__csv="question,answer\nc,no\nd,maybe\n")
    task = load_split(OWN, InputConfig(data_dir=str(tmp_path)), "train").task
    with pytest.raises(DataError, match=rf"{tmp_path / 'dev.csv'}, line 3: unknown label 'maybe'; the labels are 'no', 'yes'"):
        load_split(task, InputConfig(data_dir=str(tmp_path)), "dev")


def test_a_known_task_from_a_file_of_its_hub_columns(tmp_path):
    put(tmp_path, x__jsonl='{"premise": "a", "hypothesis": "b", "label": 2}\n')
    raw = load_split("mnli", InputConfig(data_file=str(tmp_path / "x.jsonl")), "train")
    assert list(raw.text_b) == ["b"] and raw.labels.tolist() == [2]


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_label_column_is_needed_but_for_test_data(tmp_path, split):
    put(tmp_path, x__csv="question\na\n")
    config = InputConfig(data_file=str(tmp_path / "x.csv"))
    with pytest.raises(DataError, match=r"x.csv, line 1: there is no column 'answer'; the columns are 'question'"):
        load_split(OWN, config, split)
    assert load_split(OWN, config, "test").labels is None


def test_own_task_without_data():
    with pytest.raises(ConfigError, match="task mine: its input names no data; give data_file, data_dir or input_fn"):
        load_split(OWN, InputConfig(), "train")


@pytest.fixture
def hub(monkeypatch):
    """Put a data set, or an exception, in the place of the hub; the calls are noted."""
    calls = []
    monkeypatch.setattr(hub_module, "_offline_unless_hub_answers", nullcontext)

    def put_there(answer):
        def load_dataset(name, config=None, split=None):
            calls.append((name, config, split))
            if isinstance(answer, Exception):
                raise answer
            return datasets.Dataset.from_dict(answer)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return put_there


def test_hub(hub):
    calls = hub({"premise": ["a", "b"], "hypothesis": ["c", ""], "label": [2, 0], "idx": [0, 1]})
    raw = load_split("mnli", InputConfig(), "dev_mismatched")
    assert calls == [("nyu-mll/glue", "mnli", "validation_mismatched")]
    assert list(raw.text_b) == ["c", ""] and raw.labels.tolist() == [2, 0]
    assert raw.where(1) == "nyu-mll/glue (mnli), split validation_mismatched, row 1 (from 0)"


def test_hub_counts_classes_from_zero_and_withholds_test_labels(hub):
    hub({"title": ["t"], "content": ["c"], "label": [1]})
    raw = load_split("dbpedia", InputConfig(), "train")
    assert list(raw.text_a) == ["t c"] and raw.labels.tolist() == [1]
    hub({"sentence": ["a"], "label": [-1]})
    assert load_split("sst2", InputConfig(), "test").labels is None


class _Silent(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.mark.parametrize("answers", [True, False])
def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch, answers):
    seen = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *names, **options: seen.append((is_offline_mode(), datasets.config.HF_HUB_OFFLINE))
    )
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server = HTTPServer(("127.0.0.1", 0), _Silent)  # answers every HEAD with 501
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    if answers:
        threading.Thread(target=server.handle_request, daemon=True).start()
    else:
        server.server_close()
    find_source(get_task("sst2"), InputConfig(), "dev")
    server.server_close()
    assert seen == [(not answers, not answers)]
    assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == (False, False)


@pytest.mark.parametrize(
    "error", [ConnectionError("Couldn't reach the Hub"), RuntimeError("Dataset scripts are no longer supported, but found x.py")]
)
def test_hub_out_of_reach(hub, error):
    hub(error)
    with pytest.raises(DataError) as caught:
        load_split("sogou", InputConfig(), "train")
    assert str(error) in str(caught.value) and "community-datasets/sogou_news" in str(caught.value)
    assert "Give data_dir, a folder with sogou_news_csv/train.csv or" in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        pytest.param(
            {"sentence": ["a", None], "label": [0, 1]}, "row 1 (from 0): the text in column 'sentence' is missing (null)", id="null-text"
        ),
        pytest.param({"sentence": ["a"], "label": [None]}, "row 0 (from 0): the label in column 'label' is missing", id="null-label"),
        pytest.param({"text": ["a"], "label": [0]}, "there is no column 'sentence'; the columns are 'text', 'label'", id="column"),
        pytest.param({"sentence": ["a"], "label": [2]}, "row 0 (from 0): unknown label '2'", id="label"),
    ],
)
def test_hub_faults(hub, answer, message):
    hub(answer)
    with pytest.raises(DataError, match=re.escape(message)):
        load_split("sst2", InputConfig(), "dev")
