"""bench_task: whole runs take turns, and one that ended says why."""

import json
import multiprocessing

import pytest

from bench import bench_task
from bench.cases.topics import write_topics
from tests.support.runs import need_deepspeed
from tests.support.tiny_bert import WORDS, write_tiny_bert


def test_a_run_that_ended_before_it_was_asked_says_why():
    ours, theirs = multiprocessing.Pipe()
    theirs.send({"fault": "ImportError: no accelerate"})
    theirs.close()
    assert bench_task.ask(ours, "go") == {"fault": "ImportError: no accelerate"}
    assert bench_task.ask(ours, "go") == bench_task.ask(ours) == {"fault": "its process ended (out of memory?)"}


def test_whole_runs_take_turns(tmp_path):
    need_deepspeed()
    folder = tmp_path / "SST-2"
    folder.mkdir()
    for name, rows in (("train", 352), ("dev", 20)):  # ten segments need ten steps of 32
        lines = [f"{'good' if row % 2 else 'bad'} {WORDS[row % len(WORDS)]}\t{row % 2}" for row in range(rows)]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    run = bench_task.Run("sst2", folder, str(write_tiny_bert(tmp_path / "bert")), None, 1, 0, 8)
    rows = bench_task.measure(run, ("transformers bf16 autocast", "bertfast fp32"))
    assert [row["contender"] for row in rows] == ["transformers bf16 autocast", "bertfast fp32"] and not [
        row for row in rows if "fault" in row
    ]
    assert all(len(row["curve"]) == bench_task.SEGMENTS and 0 <= row["metrics"]["dev"]["accuracy"] <= 1 for row in rows)


def test_several_labels_a_text_by_every_contender(tmp_path, monkeypatch):
    """The made-up set of topics: read by both sides as the same rows and labels, and trained by both without a fault."""
    need_deepspeed()
    pytest.importorskip("accelerate")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):  # what DeepSpeed left behind in this process would have the Trainer wait for others
        monkeypatch.delenv(name, raising=False)
    news = tmp_path / "ag_news"
    news.mkdir()
    rows = [(row % 4 + 1, f"{WORDS[row % len(WORDS)]} {('oil', 'NASA', 'police', 'film')[row // 2 % 4]}") for row in range(352)]
    (news / "train_10k.tsv").write_text("".join(f"{label}\t{text}\n" for label, text in [("label", "text"), *rows]))
    (news / "test.csv").write_text("".join(f'"{label}","a title","{text}"\n' for label, text in rows[:20]))
    made = tmp_path / "made"
    made.mkdir()
    folder = write_topics(news, made)
    first = json.loads((folder / "dev.jsonl").read_text().splitlines()[2])
    assert first == {"text": f"a title {WORDS[2]} NASA", "topics": ["Business", "Space"]}
    run = bench_task.Run("topics", folder, str(write_tiny_bert(tmp_path / "bert")), None, 1, 0, 8)
    rows = bench_task.measure(run, bench_task.CONTENDERS[:3])
    assert not [row["fault"] for row in rows if "fault" in row]
    assert all(set(row["metrics"]["dev"]) >= {"micro_f1", "mean_average_precision"} for row in rows)
