"""bench.contests.step_contest: one contender ends, the others go on."""

import numpy as np

from bench.cases.workloads import write_model
from bench.contests import step_contest
from bench.contests.peers import BASELINE, peers_for
from tests.support.runs import need_deepspeed


def test_the_others_go_on_where_a_contender_dies(tmp_path, monkeypatch):
    """As it does where memory ends: its process is gone in the third round."""
    need_deepspeed()
    folder = write_model("tiny", tmp_path, seed=3, hidden_size=32, num_attention_heads=2, intermediate_size=64)
    ask, pipes, died = step_contest._ask, [], "its process ended (out of memory?)"

    def asked(pipe, what):
        if pipe not in pipes:
            pipes.append(pipe)
        if what == 2 and pipe is pipes[1]:
            pipe.close()
        return died if pipe.closed else ask(pipe, what)

    monkeypatch.setattr(step_contest, "_ask", asked)
    job = step_contest.Job(folder, np.full(64, 8, dtype=np.int32), 2, 8, 1, "cpu", 0)
    outcome = step_contest.contest(peers_for("cpu", [BASELINE, "bertfast fp32, bare loop"]), job)
    assert list(outcome.seconds) == list(outcome.facts) == [BASELINE] and all(taken > 0 for taken in outcome.seconds[BASELINE])
    assert outcome.faults == {"bertfast fp32, bare loop": died}
