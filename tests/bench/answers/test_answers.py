"""bench.answers: halves that calibrate each other, and contenders whose answers agree before they are timed."""

import json
import random

from bench.answers import __main__ as answers
from tests.support.runs import need_deepspeed
from tests.support.tiny_bert import WORDS, write_tiny_bert


def test_both_parts_leave_rows(tmp_path, capsys):
    need_deepspeed()
    (tmp_path / "SST-2").mkdir()
    rng = random.Random(0)
    lines = [f"{' '.join(rng.choices(WORDS, k=rng.randint(1, 12)))}\t{rng.randint(0, 1)}" for _ in range(130)]
    (tmp_path / "SST-2" / "dev.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    model = write_tiny_bert(tmp_path / "model", num_labels=2, id2label={0: "negative", 1: "positive"})
    block = {
        "task": "sst2",
        "model": {"checkpoint": str(model)},
        "eval_input": {"data_dir": str(tmp_path / "SST-2"), "cache_dir": str(tmp_path / "cache")},
    }
    (model / "bertfast.json").write_text(json.dumps({"bertfast": block}))
    output = tmp_path / "rows.jsonl"
    assert answers.main(["--data", str(tmp_path), "--checkpoint", str(model), "--quick", "--output", str(output)]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    halves, timed = [row for row in rows if "method" in row], [row for row in rows if "contender" in row]
    assert len(halves) == 2 and all(row["examples"] == 64 and row["unreached"] for row in halves)
    assert [row["contender"] for row in timed][-1] == "bertfast.Classifier" and len(timed) == len(answers.BATCH_SIZES) + 2
    assert all(row["same"] == 1.0 and len(row["samples"]) == 8 for row in timed)
    assert "bertfast.Classifier" in capsys.readouterr().out
