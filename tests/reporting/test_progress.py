"""The log, the lines where there is no terminal, and a folder that cannot be written."""

import json
import resource

import pytest

from bertfast.errors import BertfastError, ConfigError
from bertfast.reporting.progress import Progress, StartupClock

RECORD = {
    "step": 20,
    "loss": 0.5,
    "learning_rate": 3e-5,
    "samples_per_second": 1234.5,
    "tokens_per_second": 56789.0,
    "real_token_share": 0.998,
    "seconds_left": 3661.0,
}


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    progress = Progress(tmp_path / "run", 100, 0, True)
    progress.record(RECORD)
    progress.evaluation(20, {"dev": {"accuracy": 0.75}})
    progress.close()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "step 20/100  loss 0.5000  lr 3.00e-05  1,234 samples/s  56,789 tokens/s  99.8% real  01:01:01 left",
        "step 20/100  evaluation: dev accuracy 0.7500",
    ]
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [RECORD, {"step": 20, "metrics": {"dev": {"accuracy": 0.75}}}]


def test_the_other_ranks_say_and_write_nothing(tmp_path, capsys):
    progress = Progress(tmp_path / "run", 100, 0, False)
    progress.record(RECORD)
    progress.say("a word")
    progress.close()
    assert capsys.readouterr() == ("", "") and not (tmp_path / "run").exists()


def test_a_resumed_log_drops_the_steps_taken_again_and_a_torn_line(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n{"step": 3')
    Progress(tmp_path, 100, 20, True).close()
    assert log.read_text() == '{"step": 10}\n{"step": 20}\n'
    Progress(tmp_path, 100, 0, True).close()
    assert log.read_text() == ""


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match=rf"model_dir = {folder}: cannot be written .* --model_dir"):
            Progress(folder, 100, 0, True)


def test_where_the_start_went():
    clock = StartupClock()
    clock.mark("data")
    lines = clock.table().splitlines()
    assert lines[0] == "start-up:" and lines[1].endswith("interpreter and first imports") and lines[2].endswith("data")
    total = sum(seconds for _, seconds in clock.stages)
    assert float(lines[-1].split()[0]) == pytest.approx(total, abs=0.01)


def test_an_evaluation_that_is_made_again_is_logged_once(tmp_path):
    log = tmp_path / "log.jsonl"
    first, second = '{"step": 10, "metrics": {}}\n{"step": 20}\n', '{"step": 20, "metrics": {}}\n'
    log.write_text(first + second)
    Progress(tmp_path, 100, 20, True).close()
    assert log.read_text() == first + second
    Progress(tmp_path, 100, 20, True, evaluates_again=True).close()
    assert log.read_text() == first


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    progress = Progress(tmp_path, 100, 0, True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))  # bytes: as if the disk were full
    try:
        with pytest.raises(BertfastError, match=rf"^{tmp_path}/log.jsonl: cannot be written: .* --resume"):
            progress.evaluation(20, {"dev": {"accuracy": 0.75}})
        progress.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
