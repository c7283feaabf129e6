"""Rows, their subset, and the way from files to token ids by way of the cache."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast.config.blocks import InputConfig
from bertfast.config.schema import TaskConfig
from bertfast.data import load
from bertfast.data.load import encode, load_dataset_for
from bertfast.errors import DataError
from bertfast.readers import splits
from bertfast.readers.splits import RawSplit, TextColumn, load_split
from bertfast.tasks.catalogue import get_task

SINGLE, PAIR = get_task("sst2"), get_task("rte")


def sequences_of(dataset):
    batch = dataset.batch(np.arange(len(dataset)))
    cuts = batch.cu_seqlens.tolist()
    return [(batch.input_ids[i:j].tolist(), batch.token_type_ids[i:j].tolist()) for i, j in zip(cuts, cuts[1:], strict=False)]


def test_text_column_reads_like_a_list():
    raw = RawSplit.from_texts(SINGLE, ["a", "", "ü😀", "d"])
    column, texts = raw.text_a, ["a", "", "ü😀", "d"]
    assert isinstance(column, TextColumn) and list(column) == texts and len(column) == 4
    assert [column[index] for index in (0, 2, -1)] == ["a", "ü😀", "d"]
    assert column[1:3] == texts[1:3] and column[::2] == texts[::2] and column[3:1] == [] and column[::-1] == texts[::-1]


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        pytest.param(PAIR, (["a"],), "task rte takes pairs of texts", id="pair-wanted"),
        pytest.param(SINGLE, (["a"], ["b"]), "task sst2 takes single texts", id="single-wanted"),
        pytest.param(PAIR, (["a"], ["b", "c"]), "have 1 and 2 rows", id="other-length"),
        pytest.param(SINGLE, (["a", "b"], None, np.zeros(1)), "have 1 and 2 rows", id="labels"),
        pytest.param(SINGLE, ([],), "have 0 rows", id="no-row"),
        pytest.param(SINGLE, (["a", "b\ud800"],), "stdin, line 2: the text holds a lone surrogate", id="surrogate"),
    ],
)
def test_texts_that_cannot_be(task, arguments, message):
    with pytest.raises(DataError, match=message):
        RawSplit.from_texts(task, *arguments, source="stdin")


def test_a_lone_surrogate_in_json_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"sentence": "\\ud83d\\ude00", "label": 1}\n{"sentence": "\\ud83d", "label": 1}\n')
    with pytest.raises(DataError, match=f"{path}, line 2: the text holds a lone surrogate"):
        load_split("sst2", InputConfig(data_file=str(path)), "train")


def test_sample():
    raw = RawSplit.from_texts(PAIR, [f"a{i}" for i in range(100)], [f"b{i}" for i in range(100)], np.arange(100, dtype=np.int32))
    part = raw.sample(10, seed=3)
    assert len(part) == 10 and list(part.text_a) == [f"a{i}" for i in part.labels] and list(part.text_b) == [f"b{i}" for i in part.labels]
    assert part.labels.tolist() == sorted(set(part.labels.tolist()))
    assert [part.where(row) for row in range(10)] == [f"input, line {i + 1}" for i in part.labels]
    assert raw.sample(10, seed=3).labels.tolist() == part.labels.tolist() != raw.sample(10, seed=4).labels.tolist()
    assert len(raw.sample(500, seed=3)) == 100
    assert len({raw.fingerprint, part.fingerprint, raw.sample(10, 4).fingerprint, raw.sample(11, 3).fingerprint}) == 4


def test_every_row_is_as_likely_as_another():
    raw = RawSplit.from_texts(SINGLE, ["x"] * 20, labels=np.arange(20, dtype=np.int32))
    counts = np.bincount(np.concatenate([raw.sample(5, seed).labels for seed in range(400)]), minlength=20)
    assert counts.min() > 60 and counts.max() < 140


WORDS = st.lists(st.sampled_from(["a", "b", "film", "##s", "[SEP]", "", "😀", "good"]), max_size=8).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=20), length=st.integers(3, 16))
def test_encode_is_what_the_tokenizer_gives(tmp_path_factory, make_tokenizer, pairs, length):
    tokenizer = make_tokenizer()
    text_a, text_b = map(list, zip(*pairs, strict=True))
    dataset = encode(RawSplit.from_texts(PAIR, text_a, text_b), tokenizer, length, tmp_path_factory.mktemp("cache"))
    expected = make_tokenizer()(text_a, text_b, truncation=True, max_length=length, return_token_type_ids=True)
    assert sequences_of(dataset) == list(zip(expected["input_ids"], expected["token_type_ids"], strict=True))


def test_an_empty_text_is_an_example(tmp_path, make_tokenizer):
    tokenizer = make_tokenizer()
    assert sequences_of(encode(RawSplit.from_texts(SINGLE, [""]), tokenizer, 8, tmp_path)) == [([2, 3], [0, 0])]
    assert sequences_of(encode(RawSplit.from_texts(PAIR, [""], [""]), tokenizer, 8, tmp_path)) == [([2, 3, 3], [0, 0, 1])]


def sst2(folder: Path, rows=((1, "a good film"), (0, "a bad film"), (1, ""), (0, "b c d e"))) -> InputConfig:
    folder.mkdir(exist_ok=True)
    (folder / "train.tsv").write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for label, text in rows))
    return InputConfig(data_dir=str(folder), cache_dir=str(folder / "cache"), max_sequence_length=8)


def test_load_dataset_for(tmp_path, make_tokenizer):
    dataset = load_dataset_for("sst2", sst2(tmp_path), "train", make_tokenizer(), 1)
    assert dataset.labels.tolist() == [1, 0, 1, 0] and dataset.lengths.tolist() == [5, 5, 2, 6]
    assert dataset.where(3) == f"{tmp_path / 'train.tsv'}, line 5" and dataset.source == str(tmp_path / "train.tsv")
    assert dataset.task is SINGLE and dataset.max_sequence_length == 8


def counted(monkeypatch):
    """Count how often rows are read, and texts tokenised."""
    calls = {"read": 0, "tokenise": 0}
    for name, original in (("read", load.read_split), ("tokenise", load.tokenise)):

        def wrapper(*arguments, name=name, original=original):
            calls[name] += 1
            return original(*arguments)

        for module in (load, splits) if name == "read" else (load,):
            monkeypatch.setattr(module, "read_split" if name == "read" else "tokenise", wrapper)
    return calls


def test_a_second_start_reads_no_row(tmp_path, make_tokenizer, monkeypatch):
    config, calls = sst2(tmp_path), counted(monkeypatch)
    first = load_dataset_for("sst2", config, "train", make_tokenizer(), 1)
    second = load_dataset_for("sst2", config, "train", make_tokenizer(), 2)
    assert calls == {"read": 1, "tokenise": 1}
    assert (
        sequences_of(first) == sequences_of(second)
        and second.labels.tolist() == first.labels.tolist()
        and second.where(3) == first.where(3)
    )


def test_load_and_encode_meet_in_one_cache(tmp_path, make_tokenizer, monkeypatch):
    config, calls = sst2(tmp_path), counted(monkeypatch)
    encode(load_split("sst2", config, "train"), make_tokenizer(), 8, config.cache_dir)
    load_dataset_for("sst2", config, "train", make_tokenizer(), 1)
    assert calls == {"read": 1, "tokenise": 1} and len(list((tmp_path / "cache").iterdir())) == 1


def test_moved_data_keep_their_cache_and_name_their_new_place(tmp_path, make_tokenizer, monkeypatch):
    config = sst2(tmp_path / "old")
    load_dataset_for("sst2", config, "train", make_tokenizer(), 1)
    (tmp_path / "old").rename(tmp_path / "new")
    calls = counted(monkeypatch)
    moved = InputConfig(data_dir=str(tmp_path / "new"), cache_dir=str(tmp_path / "new" / "cache"), max_sequence_length=8)
    dataset = load_dataset_for("sst2", moved, "train", make_tokenizer(), 1)
    assert calls["read"] == 0 and dataset.where(0) == f"{tmp_path / 'new' / 'train.tsv'}, line 2"


@pytest.mark.parametrize("change", ["text", "label", "length", "tokenizer", "task", "sample", "seed"])
def test_whatever_changes_the_ids_changes_the_cache(tmp_path, make_tokenizer, monkeypatch, change):
    config = sst2(tmp_path).model_copy(update={"max_examples": 2})
    load_dataset_for("sst2", config, "train", make_tokenizer(), 1)
    calls, tokenizer, task, seed = counted(monkeypatch), make_tokenizer(), "sst2", 1
    match change:
        case "text":
            sst2(tmp_path, ((1, "a good film"), (0, "a bad film"), (1, "a"), (0, "b c d e")))
        case "label":
            sst2(tmp_path, ((1, "a good film"), (0, "a bad film"), (0, ""), (0, "b c d e")))
        case "length":
            config = config.model_copy(update={"max_sequence_length": 9})
        case "tokenizer":
            tokenizer = make_tokenizer("a b c")
        case "task":
            task = TaskConfig(name="sst2", text_columns=("sentence",), label_names=("no", "yes"))
        case "sample":
            config = config.model_copy(update={"max_examples": 3})
        case "seed":
            seed = 2
    load_dataset_for(task, config, "train", tokenizer, seed)
    assert calls["tokenise"] == 1


def test_a_sample_is_cached_and_is_the_sample(tmp_path, make_tokenizer, monkeypatch):
    config = sst2(tmp_path).model_copy(update={"max_examples": 2})
    first = load_dataset_for("sst2", config, "train", make_tokenizer(), 5)
    raw = load_split("sst2", config, "train").sample(2, 5)
    calls = counted(monkeypatch)
    again = load_dataset_for("sst2", config, "train", make_tokenizer(), 5)
    assert calls["read"] == 0 and [again.where(i) for i in (0, 1)] == [first.where(i) for i in (0, 1)] == [raw.where(i) for i in (0, 1)]


def test_a_torn_cache_is_built_again(tmp_path, make_tokenizer, caplog):
    config = sst2(tmp_path)
    whole = sequences_of(load_dataset_for("sst2", config, "train", make_tokenizer(), 1))
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:-30])
    assert sequences_of(load_dataset_for("sst2", config, "train", make_tokenizer(), 1)) == whole
    assert "torn or foreign" in caplog.text and list((tmp_path / "cache").iterdir()) == [path]


def test_the_cache_remembers_the_classes_of_an_own_task(tmp_path, make_tokenizer, monkeypatch):
    (tmp_path / "x.csv").write_text("text,label\na,spam\nb,ham\n")
    config = InputConfig(data_file=str(tmp_path / "x.csv"), cache_dir=str(tmp_path / "cache"))
    own = TaskConfig(name="mail/spam", text_columns=("text",))
    first = load_dataset_for(own, config, "train", make_tokenizer(), 1)
    calls = counted(monkeypatch)
    second = load_dataset_for(own, config, "train", make_tokenizer(), 1)
    assert calls["read"] == 0 and second.task == first.task and second.task.label_names == ("ham", "spam")


def test_own_regression(tmp_path, make_tokenizer):
    (tmp_path / "x.csv").write_text("text,label\na,1.5\nb,2\n")
    config = InputConfig(data_file=str(tmp_path / "x.csv"), cache_dir=str(tmp_path / "cache"))
    dataset = load_dataset_for(TaskConfig(text_columns=("text",)), config, "train", make_tokenizer(), 1)
    assert dataset.task.is_regression and dataset.labels.dtype == np.float32 and dataset.labels.tolist() == [1.5, 2.0]


def test_a_folder_of_reviews_names_the_file_from_the_cache_too(tmp_path, make_tokenizer):
    for name in ("neg/0_1.txt", "pos/0_9.txt"):
        (tmp_path / "train" / name).parent.mkdir(parents=True)
        (tmp_path / "train" / name).write_text("a film")
    config = InputConfig(data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    for _ in range(2):
        assert load_dataset_for("imdb", config, "train", make_tokenizer(), 1).where(1) == str(tmp_path / "train" / "pos" / "0_9.txt")


def test_a_tokenizer_that_is_not_berts(tmp_path, make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.cls_token = None
    with pytest.raises(DataError, match=r"the tokenizer has no \[CLS\]"):
        load_dataset_for("sst2", sst2(tmp_path), "train", tokenizer, 1)


def _build(folder: str, tokenizer, start, results) -> None:
    start.wait()
    dataset = load_dataset_for("sst2", InputConfig(data_dir=folder, cache_dir=f"{folder}/cache"), "train", tokenizer, 1)
    results.put(dataset.batch(np.arange(len(dataset))).input_ids.numpy().tobytes())


@pytest.mark.runs
def test_processes_that_build_at_once_do_not_meet(tmp_path, make_tokenizer):
    sst2(tmp_path, [(index % 2, f"a film {'good ' * (index % 50)}") for index in range(3000)])
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_build, args=(str(tmp_path), make_tokenizer(), start, results)) for _ in range(3)]
    for process in processes:
        process.start()
    contents = {results.get(timeout=300) for _ in processes}
    for process in processes:
        process.join()
    assert len(contents) == 1 and [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list((tmp_path / "cache").iterdir())) == 1


ROWS = [
    ("sst2", "glue/SST-2", {"train": 67_349, "dev": 872, "test": 1_821}),
    ("cola", "glue/CoLA", {"train": 8_551, "dev": 1_043, "test": 1_063}),
    ("mnli", "glue", {"train": 9_696, "dev_matched": 9_815, "dev_mismatched": 3_912}),
    ("rte", "glue/RTE", {"train": 2_490, "dev": 277, "test": 3_000}),
    ("stsb", "glue", {"train": 5_749, "dev": 1_500, "test": 1_379}),
    ("ag_news", "ag_news", {"train": 9_991, "test": 7_600}),
    ("imdb", "imdb", {"train": 2_000, "test": 2_000}),
]


@pytest.mark.parametrize(("name", "folder", "rows"), ROWS, ids=[row[0] for row in ROWS])
def test_real_data(data_dir, name, folder, rows):
    for split, count in rows.items():
        raw = load_split(name, InputConfig(data_dir=str(data_dir / folder)), split)
        assert len(raw) == count and all(isinstance(text, str) for text in raw.text_a)
        if split == "train":
            assert raw.task.is_regression or np.bincount(raw.labels).min() > 500
        lines = Path(raw.source).read_bytes().split(b"\n")
        for row in np.linspace(0, count - 1, 20, dtype=int):
            number = int(raw.where(row).rpartition(" ")[2])
            text = raw.text_a[row]
            assert name == "ag_news" or text.encode() in lines[number - 1], raw.where(row)


def test_real_labels_by_hand(data_dir):
    """The classes of rows that a reader can judge."""
    dev = load_split("sst2", InputConfig(data_dir=str(data_dir / "glue/SST-2")), "dev")
    assert dev.text_a[0].startswith("it 's a charming") and dev.labels[0] == 1
    assert dev.text_a[1].startswith("unflinchingly bleak") and dev.labels[1] == 0
    news = load_split("ag_news", InputConfig(data_dir=str(data_dir / "ag_news")), "test")
    assert news.text_a[0].startswith("Fears for T N pension") and news.task.label_names[news.labels[0]] == "Business"
    mnli = load_split("mnli", InputConfig(data_dir=str(data_dir / "glue/MNLI")), "dev_matched")
    assert mnli.text_b[1].endswith("not able to be searched.") and mnli.task.label_names[mnli.labels[1]] == "contradiction"
    stsb = load_split("stsb", InputConfig(data_dir=str(data_dir / "glue")), "dev")
    assert stsb.labels.min() >= 0 and stsb.labels.max() == 5.0


def test_the_environment_names_the_cache(tmp_path, make_tokenizer, monkeypatch):
    monkeypatch.setenv("BERTFAST_CACHE", str(tmp_path / "named"))
    load_dataset_for("sst2", sst2(tmp_path).model_copy(update={"cache_dir": None}), "train", make_tokenizer(), 1)
    assert [os.path.splitext(path.name)[1] for path in (tmp_path / "named").iterdir()] == [".arrow"]
