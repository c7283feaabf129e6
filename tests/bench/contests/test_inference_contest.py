"""bench.contests.inference_contest: answers are compared before anything is timed, and one that dies is a fault of its own row."""

import numpy as np
import pytest

from bench.contests import inference_contest
from bench.contests.inference_contest import Case, Contest, Job, agreement
from bench.contests.roster import BASELINE, Runtime
from bench.harness.processes import DIED, Fault

KNOWN = Case("whole file", {"kind": "file", "tokens": "tokens.npz"}, 1)
ONE = Case("one text", {"kind": "one", "tokens": "one.npz"}, 4)
LOGITS = [[1.0, 0.0], [0.0, 1.0], [2.0, -1.0], [-1.0, 2.0]]


class FakeProgram:
    """Answers as a contender's process does; `asked` holds what all of them were asked, in order."""

    asked: list = []  # noqa: RUF012

    def __init__(self, module):
        self.name, self.timed = None, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.asked.append((self.name, "end"))

    def ask(self, question):
        ((what, given),) = question.items()
        self.name = given["name"] if what == "load" else self.name
        self.asked.append((self.name, what))
        if what == "load":
            if self.name == "cannot load":
                raise Fault("RuntimeError: no such instruction")
            return {"resident_bytes": 10}
        if what == "answer":
            logits = np.array(LOGITS)
            logits[0] -= [1.5, 0] if self.name == "off" else [0, 0]
            return (logits + 0.25 * (self.name == "off" and given["kind"] == "one")).tolist()
        self.timed += what == "time"
        if self.name == "dies" and self.timed > 3:
            raise Fault(DIED)
        return {"peak": 20, "time": 4.0 if self.name == "off" else 8.0}[what]


@pytest.fixture
def found(monkeypatch, tmp_path):
    monkeypatch.setattr(inference_contest, "Program", FakeProgram)
    monkeypatch.setattr(FakeProgram, "asked", [])
    job = Job(tmp_path, tmp_path, tmp_path, 2, 128, (), {})
    runtimes = [Runtime(name, None) for name in (BASELINE, "off", "cannot load", "dies", "bertfast int8")]
    with Contest(runtimes, job, KNOWN) as contest:
        rows = [row for case in (KNOWN, ONE) for row in contest.rows(case, 8, {"suite": "inference", "case": "tiny"})]
    return contest, rows


def test_answers_come_before_times(found):
    asked = FakeProgram.asked
    first = asked.index((BASELINE, "time"))
    assert "answer" not in {what for _, what in asked[first:]} and ("off", "answer") in asked[:first]
    assert [what for name, what in asked if name == BASELINE][:3] == ["load", "peak", "answer"]  # the peak of a file, before anything else
    assert asked.count((BASELINE, "end")) == 1


def test_answers_that_are_off_are_shown_and_not_hidden(found):
    contest, rows = found
    off = next(row for row in rows if row["contender"] == "off")
    assert off["same"] == 0.75 and off["largest_difference"] == 1.5 and off["alone_difference"] == 0.25 and off["alone_changed"] == 0
    assert off["case"] == "tiny, whole file" and off["milliseconds"][1] == 4000 and off["peak_bytes"] == 20
    assert contest.facts[BASELINE]["same"] == 1


def test_a_ratio_is_to_the_fastest_peer_and_to_that_whose_answers_are_right(found):
    """ "off" is the fastest, but keeps 75 % of the answers; a call's time is a round's over its calls."""
    _, rows = found
    ours = [row for row in rows if row["contender"] == "bertfast int8"]
    assert [[ratio["to"] for ratio in row["ratios"]] for row in ours] == [[BASELINE, "off"], [BASELINE, "off"]]
    assert [row["seconds"][1] for row in ours] == [8.0, 2.0]


def test_a_fault_ends_in_its_own_row(found):
    contest, rows = found
    assert contest.faults == {"cannot load": "RuntimeError: no such instruction", "dies": DIED}
    assert {row["contender"] for row in rows} == {BASELINE, "off", "bertfast int8"}


def test_without_eager_answers_nothing_is_timed(monkeypatch, tmp_path):
    monkeypatch.setattr(inference_contest, "Program", FakeProgram)
    monkeypatch.setattr(FakeProgram, "asked", [])
    with pytest.raises(SystemExit, match="cannot load: RuntimeError: no such instruction; without its answers nothing is timed"):
        Contest([Runtime(name, None) for name in ("cannot load", "off")], Job(tmp_path, tmp_path, tmp_path, 2, 128, (), {}), KNOWN)
    assert FakeProgram.asked == [("cannot load", "load"), ("cannot load", "end")]


def test_no_answer_is_no_same_answer():
    logits = np.array([[0.0, 1.0], [0.0, np.nan]])
    assert agreement(logits, np.array([[0.0, 1.0], [0.0, 1.0]]))["same"] == 0.5
