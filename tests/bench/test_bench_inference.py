"""bench_inference in small: what is asked, of whom, and rows that the report can read. Its contenders run in contests/test_runtimes.py."""

import json

import numpy as np
import pytest

from bench import bench_inference
from bench.bench_inference import QUICK, choose, main, of_length
from bench.cases.questions import Texts, Tokens
from bench.contests.inference_contest import Contest
from bench.contests.roster import BASELINE, everybody
from bench.report.page import report

RECORD = {"files": {"model_optimized.onnx": "a", "model_quantized.onnx": "b"}, "verdicts": {}}


@pytest.fixture
def asked(monkeypatch):
    """The contests, which only say what they were given."""
    given = []
    facts = {"same": 1.0, "largest_difference": 0.1, "alone_difference": 0.0, "alone_changed": 0, "resident_bytes": 2e8, "peak_bytes": 3e8}

    class Told(Contest):
        def __init__(self, runtimes, job, known):
            names = [
                runtime.name for runtime in runtimes if runtime.root == "bundle" or runtime.name in (BASELINE, "OpenVINO bf16, two streams")
            ]
            self.runtimes, self.job, self.asked, self.faults = runtimes, job, [], {"bertfast portable": "ended"}
            self.facts = dict.fromkeys(names, facts)
            given.append(self)

        def __exit__(self, *_):
            pass

        def turns(self, case, rounds):
            self.asked.append((case.question["kind"], rounds))
            return {name: [2.0 / (1 + place) + 1e-3 * n for n in range(8)] for place, name in enumerate(self.facts)}

    def convert(names, checkpoint, folder):
        asked = set(names)
        if asked == {"bundle"}:
            (folder / "bundle").mkdir()
            (folder / "bundle" / "verification.json").write_text(json.dumps(RECORD))
            for name in RECORD["files"]:
                (folder / "bundle" / name).write_bytes(bytes(1000))
            return {}
        if asked == {"recipes"}:
            (folder / "recipes").mkdir()
            (folder / "recipes" / "smoothing 0.7, 4 in float32.onnx").touch()
            return {}
        assert {"openvino", "ctranslate2-int8"} >= asked and not (checkpoint / "onnx").exists()
        for runtime in everybody({}, {}):
            for file in runtime.files if runtime.root == "files" else ():
                (folder / file).parent.mkdir(exist_ok=True)
                (folder / file).write_bytes(bytes(500))
        return {"ctranslate2-int8": "the converter is not installed"} if asked else {}

    for name, stand_in in (("Contest", Told), ("convert", convert)):
        monkeypatch.setattr(bench_inference, name, stand_in)
    return given


def test_a_quick_run_and_its_rows(asked, tmp_path, capsys):
    assert main(["--quick", "--size", "tiny", "--texts", "40", "--output", str(tmp_path / "rows.jsonl")]) == 0
    (contest,) = asked
    assert {runtime.name for runtime in contest.runtimes} == set(QUICK) - {"CTranslate2 int8, two workers"} and contest.job.threads == 2
    assert contest.asked == [(kind, 8) for kind in ("file", "texts", "server", "one", "one")]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert all(row["suite"] == "inference" and row["seed"] == 42 and row["device"] and row["commit"] for row in rows)
    assert {row["contender"]: row["fault"] for row in rows if "fault" in row} == {
        "CTranslate2 int8, two workers": "the converter is not installed",
        "bertfast portable": "ended",
    }
    ours = next(row for row in rows if row["contender"] == "bertfast int8" and row["case"].endswith("tokenising in"))
    assert ours["file_bytes"] == 1000 and [ratio["to"] for ratio in ours["ratios"]] == [BASELINE, "OpenVINO bf16, two streams"]
    assert "one text of 128 tokens" in capsys.readouterr().out
    text = "\n".join(report(rows))
    assert "- bertfast portable did not run" in text


def test_pieces_of_a_run(asked, tmp_path):
    words = ["--size", "tiny", "--texts", "40", "--parts", "one", "--only", "bertfast int8", "--threads", "1", "2", "--rounds", "30"]
    assert main([*words, "--files", str(tmp_path / "kept"), "--output", str(tmp_path / "rows.jsonl")]) == 0
    assert [[runtime.name for runtime in contest.runtimes] for contest in asked] == [[BASELINE, "bertfast int8"]] * 2
    assert [(contest.job.threads, contest.asked) for contest in asked] == [(1, [("one", 30)] * 4), (2, [("one", 30)] * 4)]
    assert Tokens.load(tmp_path / "kept" / "calibration.npz").lengths.min() >= 5
    assert "one text of 512 tokens, 30 rounds" in (tmp_path / "rows.jsonl").read_text()


def test_every_recipe_is_held_against_eager_float32(asked, tmp_path):
    assert main(["--size", "tiny", "--texts", "40", "--parts", "recipes", "--output", str(tmp_path / "rows.jsonl")]) == 0
    (contest,) = asked
    assert [runtime.name for runtime in contest.runtimes] == [BASELINE, "bertfast int8 recipe: smoothing 0.7, 4 in float32"]
    assert contest.job.threads == 2 and contest.asked == [("file", 8)] and list(contest.job.others) == [contest.runtimes[1].name]
    row = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    assert row["case"].endswith("recipes for int8, whole file, tokenising out")


def test_an_unknown_name_and_missing_words(capsys, monkeypatch):
    with pytest.raises(SystemExit, match="--only 'OpenVINO': there is no such contender; known: transformers float32;"):
        choose(everybody({}, {}), ["OpenVINO"])
    assert [runtime.name for runtime in choose(everybody({}, {"theirs": "a.onnx"}), ["theirs"])] == [BASELINE, "theirs"]
    assert [runtime.name for runtime in choose(everybody({}, {}), ["CTranslate2 int8*", "ONNX*"])] == [
        *(BASELINE, "CTranslate2 int8, one worker", "CTranslate2 int8, two workers", "ONNX Runtime, quantize_dynamic")
    ]
    monkeypatch.delenv("BERTFAST_DATA", raising=False)
    for words in (["--task", "sst2"], ["--checkpoint", "a"]):
        with pytest.raises(SystemExit):
            main(words)
    assert "--task needs the --checkpoint" in capsys.readouterr().err


def test_examples_of_one_length():
    tokens = Tokens(np.array([101, 7, 102, 101, 8, 9, 102], np.int32), np.zeros(7, np.uint8), np.array([3, 4], np.int32))
    found = of_length(tokens, 16, 3)
    assert len(found) == 3 and set(found.lengths) == {16} and len(found.input_ids) == 48
    rows = found.input_ids.reshape(3, 16)
    assert set(rows[:, 0]) == {101} and set(rows[:, -1]) == {102} and set(rows.ravel()) <= {101, 102, 7, 8, 9}
    assert Texts(["a"], None).second is None
