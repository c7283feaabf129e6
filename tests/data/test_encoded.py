"""The Arrow file of a data set, and its cache."""

from __future__ import annotations

import json
import os
import resource
import time

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast.config.schema import TaskConfig
from bertfast.data import cache
from bertfast.data.cache import CacheWriter, cache_folder, header_of, label_type_of
from bertfast.data.encoded import EncodedDataset, open_cached
from bertfast.data.tokenizing import TokenBlock
from bertfast.errors import DataError
from bertfast.packing.batch import IGNORE_LABEL
from bertfast.tasks.catalogue import get_task

TASK = get_task("mnli")
FILLER = (101, 102)


def block(sequences, types=None) -> TokenBlock:
    types = types or [[index % 2 for index in range(len(ids))] for ids in sequences]
    flat = (np.concatenate([np.asarray(row, dtype=dtype) for row in rows]) for rows, dtype in ((sequences, np.int32), (types, np.uint8)))
    return TokenBlock(*flat, np.array([len(ids) for ids in sequences], dtype=np.int32))


def build(folder, sequences, labels=None, blocks=1, task=TASK, parts=None, rows=None, name="x.arrow") -> EncodedDataset:
    """A data set of these sequences, written in so many blocks; example i stands on line 10 * i."""
    header = header_of(task, "f" * 64, 512, "line", FILLER, rows)
    with CacheWriter(folder, folder / name, header, label_type_of(labels), parts is not None) as writer:
        for chosen in np.array_split(np.arange(len(sequences)), blocks):
            if len(chosen):
                writer.write(
                    block([sequences[index] for index in chosen]),
                    None if labels is None else labels[chosen],
                    (chosen * 10).astype(np.int32),
                    None if parts is None else [parts[index] for index in chosen],
                )
    return EncodedDataset(folder / name, task, "data.tsv")


def sequences_of(batch):
    cuts = batch.cu_seqlens.tolist()
    return [batch.input_ids[begin:end].tolist() for begin, end in zip(cuts, cuts[1:], strict=False)]


@settings(max_examples=60, deadline=None)
@given(
    sequences=st.lists(st.lists(st.integers(0, 30_521), min_size=1, max_size=12), min_size=1, max_size=30),
    blocks=st.integers(1, 8),
    per_batch=st.integers(1, 9),
    data=st.data(),
)
def test_batch_gives_back_what_was_written(tmp_path_factory, sequences, blocks, per_batch, data):
    indices = data.draw(st.lists(st.integers(-1, len(sequences) - 1), max_size=40))
    labels = np.arange(len(sequences), dtype=np.int32) % 3
    before, cache.BATCH_EXAMPLES = cache.BATCH_EXAMPLES, per_batch
    try:
        dataset = build(tmp_path_factory.mktemp("cache"), sequences, labels, blocks)
    finally:
        cache.BATCH_EXAMPLES = before
    batch = dataset.batch(np.array(indices, dtype=np.int64))
    wanted = [list(FILLER) if index < 0 else sequences[index] for index in indices]
    assert sequences_of(batch) == wanted
    types = [[0, 0] if index < 0 else [place % 2 for place in range(len(sequences[index]))] for index in indices]
    assert batch.token_type_ids.tolist() == sum(types, [])
    assert batch.position_ids.tolist() == [place for ids in wanted for place in range(len(ids))]
    assert batch.labels.tolist() == [IGNORE_LABEL if index < 0 else labels[index] for index in indices]
    assert batch.example_ids.tolist() == indices and batch.max_seqlen == max(map(len, wanted), default=0)
    assert dataset.lengths.tolist() == list(map(len, sequences)) and dataset.lengths.dtype == np.int32
    assert [dataset.where(index) for index in range(len(sequences))] == [f"data.tsv, line {10 * index}" for index in range(len(sequences))]


def test_a_filler_of_regression_has_a_label_that_is_nan(tmp_path):
    dataset = build(tmp_path, [[2, 3]], np.array([2.5], dtype=np.float32), task=get_task("stsb"))
    labels = dataset.batch([0, -1]).labels
    assert labels[0] == 2.5 and labels[1].isnan() and str(labels.dtype) == "torch.float32"


def test_without_labels(tmp_path):
    dataset = build(tmp_path, [[2, 3]])
    assert dataset.labels is None and dataset.batch([-1, 0]).labels is None


@pytest.mark.parametrize("index", [-2, 3])
def test_an_index_that_is_not_there(tmp_path, index):
    with pytest.raises(IndexError, match=f"example {index} of a data set of 3"):
        build(tmp_path, [[2], [3], [4]]).batch([0, index])


def test_a_folder_of_files_names_the_file(tmp_path):
    dataset = build(tmp_path, [[2], [3]], parts=["batch 0", "batch 1"])
    assert dataset.where(1) == "data.tsv, batch 1, line 10"


def test_ids_outside_the_vocabulary(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "BATCH_EXAMPLES", 2)
    dataset = build(tmp_path, [[2, 3], [4, 5], [6, 7], [8, 30522, 9], [40000]], blocks=5)
    dataset.check_vocabulary(40001, 2)
    with pytest.raises(DataError, match=r"data.tsv, line 30: token id 30522 is outside the model's 30522; the tokenizer does not belong"):
        dataset.check_vocabulary(30522)
    with pytest.raises(DataError, match=r"data.tsv, line 0: token type id 1 is outside the model's 1"):
        dataset.check_vocabulary(40001, 1)


def test_the_cache_completes_the_task(tmp_path):
    own = get_task(TaskConfig(text_columns=("text",)))
    build(tmp_path, [[2]], task=own.with_labels(("n", "y")), name="classes.arrow")
    build(tmp_path, [[2]], task=own.with_labels(None), name="scores.arrow")
    assert EncodedDataset(tmp_path / "classes.arrow", own, "x").task == own.with_labels(("n", "y"))
    assert EncodedDataset(tmp_path / "scores.arrow", own, "x").task.is_regression


def test_an_open_data_set_outlives_its_file(tmp_path):
    dataset = build(tmp_path, [[2, 3, 4]] * 1000)
    (tmp_path / "x.arrow").unlink()
    assert sequences_of(dataset.batch([999])) == [[2, 3, 4]]


def rewritten(path, **changes):
    """The file again, with another header."""
    with pa.ipc.open_file(path) as reader:
        table = reader.read_all()
    header = {**json.loads(table.schema.metadata[b"bertfast"]), **changes}
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema.with_metadata({"bertfast": json.dumps(header)})) as writer:
        writer.write_table(table)


def test_whole_cache_file_is_opened(tmp_path):
    build(tmp_path, [[2, 3]] * 5)
    assert len(open_cached(tmp_path / "x.arrow", "f" * 64, TASK, "data.tsv")) == 5
    assert open_cached(tmp_path / "other.arrow", "f" * 64, TASK, "data.tsv") is None


def _cut_columns(path):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("a", pa.int32())], {"bertfast": '{"format": 1}'})) as writer:
        writer.write_batch(pa.record_batch([pa.array([1], pa.int32())], names=["a"]))


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-100]), id="cut-at-the-end"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), id="cut-in-half"),
        pytest.param(lambda path: path.write_bytes(bytes(path.stat().st_size)), id="zeros"),
        pytest.param(lambda path: path.write_bytes(os.urandom(5000)), id="noise"),
        pytest.param(lambda path: rewritten(path, format=0), id="older-format"),
        pytest.param(lambda path: rewritten(path, rows=6), id="rows-missing"),
        pytest.param(lambda path: rewritten(path, fingerprint="0" * 64), id="other-fingerprint"),
        pytest.param(lambda path: rewritten(path, max_sequence_length=1), id="too-long"),
        pytest.param(_cut_columns, id="other-columns"),
    ],
)
def test_torn_and_foreign_cache_files_are_noticed(tmp_path, caplog, harm):
    build(tmp_path, [[2, 3]] * 5, rows=5)
    path = tmp_path / "x.arrow"
    assert open_cached(path, "f" * 64, TASK, "data.tsv") is not None
    harm(path)
    assert open_cached(path, "f" * 64, TASK, "data.tsv") is None
    assert f"{path}: " in caplog.text and "built again" in caplog.text


def test_zeros_in_place_of_offsets_are_noticed(tmp_path):
    build(tmp_path, [[7, 7, 7]] * 500)
    path = tmp_path / "x.arrow"
    data = path.read_bytes()
    offsets = np.arange(0, 1503, 3, dtype=np.int32).tobytes()
    assert offsets in data
    path.write_bytes(data.replace(offsets, bytes(len(offsets)), 1))
    assert open_cached(path, "f" * 64, TASK, "data.tsv") is None


def test_nothing_half_written_is_left(tmp_path):
    with pytest.raises(KeyboardInterrupt), CacheWriter(tmp_path, tmp_path / "x.arrow", {}, None, False) as writer:
        writer.write(block([[1]]), None, np.zeros(1, dtype=np.int32))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    sequences = [list(range(100))] * 2000
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DataError, match="cannot be written.*make room, or set cache_dir"):
            build(tmp_path, sequences)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=f"cache folder {tmp_path}/file/cache: cannot be written.*set cache_dir or"):
        build(tmp_path / "file" / "cache", [[1]])


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path):
    old, new = tmp_path / "building-old.tmp", tmp_path / "building-new.tmp"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    build(tmp_path, [[1]])
    assert not old.exists() and new.exists()


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("BERTFAST_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / ".cache" / "bertfast"
    monkeypatch.setenv("BERTFAST_CACHE", "/there")
    assert str(cache_folder(None)) == "/there" and str(cache_folder("/here")) == "/here"


def test_checksums_are_those_of_the_rows_and_not_of_their_file(tmp_path, monkeypatch):
    sequences, labels = [[5, 6], [7], [8, 9, 10], [7]], np.array([0, 1, 2, 0], dtype=np.int32)
    truth = build(tmp_path, sequences, labels).checksums()
    monkeypatch.setattr(cache, "BATCH_EXAMPLES", 1)
    assert build(tmp_path, sequences, labels, blocks=4, name="chunks.arrow").checksums() == truth
    assert build(tmp_path, sequences, name="bare.arrow").checksums() == {"tokens": truth["tokens"]}

    def differs(name, sequences, labels):
        found = build(tmp_path, sequences, labels, name=name).checksums()
        return {key for key in truth if found[key] != truth[key]}

    assert differs("labels.arrow", sequences, labels[::-1].copy()) == {"labels"}
    assert differs("scores.arrow", sequences, labels.astype(np.float32)) == {"labels"}
    assert differs("order.arrow", [sequences[index] for index in (1, 0, 2, 3)], labels) == {"tokens"}
    assert differs("cut.arrow", [[5], [6, 7], [8, 9, 10], [7]], labels) == {"tokens"}, "the same ids, cut otherwise"


def test_several_labels_a_text_are_given_back_as_floats(tmp_path):
    task = get_task(TaskConfig(text_columns=("text",), label_names=("a", "b", "c"), labels="several"))
    labels = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]], dtype=np.uint8)
    dataset = build(tmp_path, [[7], [8, 9], [10], [11]], labels, blocks=2, task=task)
    assert dataset.task.is_multilabel and np.array_equal(dataset.labels, labels)
    batch = dataset.batch(np.array([3, -1, 0]))
    assert batch.labels.dtype == torch.float32 and batch.labels[[0, 2]].tolist() == [[1, 1, 1], [1, 0, 1]]
    assert batch.labels[1].isnan().all()  # a filler
    assert (
        build(tmp_path, [[7], [8, 9], [10], [11]], 1 - labels, task=task, name="y.arrow").checksums()["labels"]
        != dataset.checksums()["labels"]
    )


def test_a_cache_tells_that_texts_have_several_labels(tmp_path):
    """To a task that does not know its labels yet, and to one that knows their names alone."""
    task = get_task(TaskConfig(text_columns=("text",), label_names=("a", "b"), label_separator=";"))
    build(tmp_path, [[7], [8]], np.array([[1, 0], [0, 1]], dtype=np.uint8), task=task)
    for keys in ({}, {"label_names": ("a", "b")}):
        found = EncodedDataset(tmp_path / "x.arrow", get_task(TaskConfig(text_columns=("text",), **keys)), "x").task
        assert found.is_multilabel and found.label_names == ("a", "b") and found.main_metric == "micro_f1" and found.label_separator == ";"
