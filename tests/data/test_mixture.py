"""Drawing from several tasks: shares, coverage, chance, and the batches that hold examples of all of them."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from bertfast.config.blocks import InputConfig
from bertfast.config.resolve import BatchSizes
from bertfast.data.mixture import MixtureSet, quotas, shares
from bertfast.engine.ranks import Ranks
from bertfast.packing.batch import IGNORE_LABEL
from bertfast.training.batches import TrainingBatches
from tests.data.test_encoded import build

ROWS = [[101, word, 102] for word in range(5)] + [[101, *range(4, 4 + length), 102] for length in (1, 7, 3)]


def encoded(folder):
    folder.mkdir(exist_ok=True)
    return build(folder, ROWS, np.arange(len(ROWS), dtype=np.int32) % 3)


class Made:
    """A data set of which the mixture reads no more than the lengths."""

    max_sequence_length = 32

    def __init__(self, n):
        self.lengths = np.random.default_rng(n).integers(2, 32, size=n).astype(np.int32)

    def __len__(self):
        return len(self.lengths)


@pytest.mark.parametrize(
    ("sampling", "epoch", "alpha"),
    [
        pytest.param("proportional", 0, 1.0, id="proportional"),
        pytest.param("square_root", 0, 0.5, id="square-root"),
        pytest.param("uniform", 0, 0.0, id="uniform"),
        pytest.param("annealed", 0, 1.0, id="annealed-first"),
        pytest.param("annealed", 2, 0.6, id="annealed-middle"),
        pytest.param("annealed", 4, 0.2, id="annealed-last"),
        pytest.param("annealed", 9, 0.2, id="annealed-beyond-the-last"),
    ],
)
def test_shares(sampling, epoch, alpha):
    sizes = [900, 100, 25]
    wanted = [size**alpha / (900**alpha + 100**alpha + 25**alpha) for size in sizes]
    assert shares(sizes, sampling, epoch, 5) == pytest.approx(wanted, rel=1e-12)
    counts = quotas(sizes, sampling, epoch, 5)
    assert counts.sum() == 1025 and np.abs(counts - 1025 * np.array(wanted)).max() < 1
    if alpha == 1:
        assert counts.tolist() == sizes


@pytest.mark.parametrize("sampling", ["proportional", "square_root", "uniform", "annealed"])
def test_no_example_is_met_twice_before_all_are_met_once(sampling):
    sizes = [60, 7, 20]
    mixture = MixtureSet([Made(size) for size in sizes], sampling, seed=3, epochs=4)
    met = Counter()
    for epoch in range(4):
        draws = mixture.draws(epoch)
        assert len(draws) == sum(sizes) and (mixture.training_lengths(epoch) == mixture.lengths[draws]).all()
        met.update(draws.tolist())
        for begin, size in zip(mixture.starts, sizes, strict=False):
            times = [met[index] for index in range(begin, begin + size)]
            assert max(times) - min(times) <= 1, (sampling, epoch)
    other = MixtureSet([Made(size) for size in sizes], sampling, seed=3, epochs=4)
    assert (other.draws(3) == mixture.draws(3)).all(), "an epoch does not depend on which were asked for before"
    assert (MixtureSet([Made(size) for size in sizes], sampling, seed=4, epochs=4).draws(3) != mixture.draws(3)).any()


@pytest.mark.parametrize("sampling", ["proportional", "square_root", "uniform"])
@pytest.mark.parametrize("planner", ["examples", "tokens"])
def test_every_task_has_its_share_of_the_steps(sampling, planner):
    """Of `size` draws without replacement from N, k of the task, the number is hypergeometric: mean size k / N."""
    sizes = [3000, 700, 300]
    mixture = MixtureSet([Made(size) for size in sizes], sampling, seed=1)
    source = InputConfig(batch_size=32, max_sequence_length=32, planner=planner, tokens_per_batch=512 if planner == "tokens" else None)
    ranks = Ranks(0, 1, torch.device("cpu"))
    plan = TrainingBatches(mixture, source, BatchSizes(32, 32, 1, 1), 1, ranks).plan
    tasks = np.searchsorted(mixture.starts, mixture.draws(0), side="right") - 1
    half = np.concatenate([plan.micro_batches(step, 0)[0] for step in range(len(plan) // 2)])
    n, drawn = len(half), 4000
    for task, share in enumerate(shares(sizes, sampling)):
        sigma = np.sqrt(n * share * (1 - share) * (drawn - n) / (drawn - 1))
        assert abs((tasks[half] == task).sum() - n * share) < 3 * sigma, task
    if planner == "examples":
        counts = np.array([(tasks[plan.micro_batches(step, 0)[0]] == 0).sum() for step in range(len(plan))])
        share = shares(sizes, sampling)[0]
        variance = 32 * share * (1 - share)
        assert abs(counts.var() / variance - 1) < 3 * np.sqrt(2 / len(counts)), "steps mix as chance mixes them"


def test_a_batch_holds_each_example_as_its_task_has_it(tmp_path):
    first, second = encoded(tmp_path / "a"), encoded(tmp_path / "b")
    second.labels = np.linspace(0, 1, len(second), dtype=np.float32)
    mixture = MixtureSet([first, second], "uniform", seed=0)
    asked = np.array([5, 0, len(ROWS) + 1, 2, len(ROWS)])
    batch, draws = mixture.training_batch(asked, 0), mixture.draws(0)[asked]
    assert batch.example_ids.tolist() == draws.tolist() and batch.piece_ids.tolist() == asked.tolist()
    tasks = []
    for row, index in enumerate(draws.tolist()):
        task = int(index >= len(first))
        alone = (first, second)[task].batch(np.array([index - task * len(first)]))
        begin, end = batch.cu_seqlens[row], batch.cu_seqlens[row + 1]
        for name in ("input_ids", "token_type_ids", "position_ids"):
            assert torch.equal(getattr(batch, name)[begin:end], getattr(alone, name)), (row, name)
        assert batch.labels[row] == alone.labels[0].float()
        assert mixture.where(index) == (first, second)[task].where(index - task * len(first))
        tasks.append(task)
    assert batch.task_counts == (tasks.count(0), tasks.count(1))
    parted = [part.tolist() for part in batch.by_task(batch.example_ids)]
    assert parted == [[index for index, task in zip(draws.tolist(), tasks, strict=True) if task == number] for number in (0, 1)]


def test_a_filler_counts_for_nothing(tmp_path):
    data = encoded(tmp_path)
    for labels, nothing in ((data.labels, IGNORE_LABEL), (data.labels.astype(np.float32), None)):
        data.labels = labels
        batch = MixtureSet([data, encoded(tmp_path / "b")], "proportional", 0).training_batch(np.array([-1]), 0)
        assert batch.example_ids.tolist() == [-1] and batch.task_counts == (1, 0)
        assert batch.labels.isnan().all() if nothing is None else batch.labels.tolist() == [nothing]


def test_the_second_half_of_each_task_is_the_first_again(tmp_path):
    mixture = MixtureSet([encoded(tmp_path / "a"), encoded(tmp_path / "b")], "proportional", 0)
    batch = mixture.training_batch(np.arange(len(mixture)), 0)
    twice = replace(batch).twice()
    for once, both in zip(batch.by_task(batch.example_ids), twice.by_task(twice.example_ids), strict=True):
        assert both.tolist() == [*once.tolist(), *once.tolist()]
    assert sorted(twice.task_order.tolist()) == list(range(2 * len(mixture)))
    assert len(set(twice.piece_ids.tolist())) == 2 * len(mixture), "dropout meets the second half as other examples"
