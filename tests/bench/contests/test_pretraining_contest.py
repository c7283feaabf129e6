"""bench.contests.pretraining_contest: the same examples on both sides, and blocks without loss."""

import os
import sys

import numpy as np
import pytest

from bench.contests.pretraining_contest import Job, blocks_of, contest, examples_of, transformers_steps
from tests.support.runs import need_deepspeed
from tests.support.tiny_bert import write_tiny_bert

TEXT = "".join(f"the film is {'very ' * (n % 7)}good\na dog sleeps and {'the cat ' * (n % 5)}runs\n\n" for n in range(40))


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setenv("BERTFAST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(TEXT)
    return Job(str(tmp_path / "text.txt"), str(write_tiny_bert(tmp_path / "tiny")), 16, 4, 2, 1, 1)


def test_the_examples_are_those_of_the_text(job, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.checkpoint)
    examples = examples_of(job, str(tmp_path))
    words = tokenizer(TEXT.replace("\n", " "), add_special_tokens=False)["input_ids"]
    assert np.concatenate([ids[1:-1] for ids in examples]).tolist() == words  # no mask is left in them, and nothing is lost
    assert all(ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id and len(ids) <= 16 for ids in examples)
    blocks = blocks_of(examples, 16)
    assert {len(block) for block in blocks} == {16} and len(words) - 14 * len(blocks) in range(14)
    assert np.concatenate([block[1:-1] for block in blocks]).tolist() == words[: 14 * len(blocks)]


def test_real_tokens_are_counted(job, tmp_path):
    steps = transformers_steps(job, False, False, str(tmp_path))
    examples = examples_of(job, str(tmp_path))
    epoch = sum(next(steps).tokens for _ in range(-(-len(examples) // 4)))
    assert epoch == sum(map(len, examples))
    steps = transformers_steps(job, True, True, str(tmp_path))
    assert next(steps).tokens == 4 * 16
    assert np.isfinite(next(steps).take())


def test_a_contender_in_its_own_process_and_one_that_cannot_run(job, monkeypatch):
    need_deepspeed()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    seconds, facts, faults = contest(["bertfast fp32"], job)
    found = facts["bertfast fp32"]
    assert len(seconds["bertfast fp32"]) == 2 and faults == {}
    assert found["peak_bytes"] > 1e7 and found["tokens"] > 4 * 4 and 2 < found["last_loss"] < 4  # guessing one of 24 is ln 24 = 3.2
    _, _, faults = contest(["transformers fp32"], job._replace(text="nowhere.txt"))
    assert "nowhere.txt: cannot be read" in faults["transformers fp32"]
