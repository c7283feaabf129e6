"""The log, the lines where there is no terminal, and a folder that cannot be written."""

import io
import json
import re
import resource
import sys

import pytest
from rich.console import Console

from bertfast.errors import BertfastError, ConfigError
from bertfast.reporting import progress as progress_module
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


def test_more_than_a_day_is_left(tmp_path, capsys):
    Progress(tmp_path, 100, 0, True).record({**RECORD, "seconds_left": 100 * 3600 + 61.9})
    assert capsys.readouterr().err.rstrip().endswith("  100:01:01 left")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines_on(width, monkeypatch, tmp_path, work):
    """What a terminal of so many columns shows at the end, line by line."""
    terminal = Terminal()
    console = Console(file=terminal, force_terminal=True, width=width, color_system=None, legacy_windows=False)
    monkeypatch.setattr(progress_module, "_stderr_console", lambda: console)
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress(tmp_path / str(width), 123_456, 0, True)
    work(progress)
    progress.close()
    return [line.rstrip() for line in re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", terminal.getvalue()) if line.strip()]


@pytest.mark.parametrize(
    "width, facts",
    [
        (120, "loss 0.5000  lr 3.00e-05  1,234 samples/s  56,789 tokens/s  99.8% real"),
        (80, "loss 0.5000  lr 3.00e-05  1,234 samples/s"),
        (60, "loss 0.5000  lr 3.00e-05"),
        (40, ""),
    ],
)
def test_the_time_left_is_whole_however_narrow_the_terminal(tmp_path, monkeypatch, width, facts):
    monkeypatch.setattr("rich.progress.Task.time_remaining", property(lambda task: 30 * 3600 + 61.0))

    def work(progress):
        progress.record({**RECORD, "step": 61_728})
        progress.step(61_728)

    last = lines_on(width, monkeypatch, tmp_path, work)[-1]
    assert re.fullmatch(rf"[━╸╺ ]+ 61728/123456 {facts} 30:01:01", last), last
    assert len(last) <= width and "━" * 4 in last


def test_a_line_beside_the_bar_is_shown_as_it_is(tmp_path, monkeypatch):
    text = "[CLS] is read from /a/long/path/[bold]/and/on/and/on/and/on/and/on/model.safetensors :smile:"
    assert text in lines_on(40, monkeypatch, tmp_path, lambda progress: progress.say(text))


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
