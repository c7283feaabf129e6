"""Every example once, equal parts, budgets kept, the same plan everywhere, and the fill of real data."""

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast.errors import ConfigError, DataError
from bertfast.packing.plans import FILLER, plan_examples, plan_sequential, plan_tokens

PLANNERS = [
    pytest.param(lambda lengths, **options: plan_examples(lengths, 24, **options), id="examples"),
    pytest.param(lambda lengths, **options: plan_tokens(lengths, 128, **options), id="tokens"),
    pytest.param(lambda lengths, **options: plan_tokens(lengths, 512, **options), id="tokens-of-several-bins"),
]
SPLITS = [(1, 1), (2, 1), (1, 4), (2, 2), (3, 2)]  # ranks, micro-steps

lengths_strategy = st.lists(st.integers(2, 64) | st.sampled_from([3, 20, 33]), min_size=1, max_size=300).map(
    lambda values: np.array(values, dtype=np.int32)
)


def some_lengths(n=1000, seed=0, longest=66):
    return np.clip(np.random.default_rng(seed).lognormal(2.3, 0.7, n), 2, longest).astype(np.int32)


def histogram(file, name, key=None):
    """Counts by length, from the folder of real data."""
    data = os.environ.get("BERTFAST_DATA")
    if not data:
        pytest.skip("BERTFAST_DATA is not set: it names the folder of real data sets")
    content = json.loads((Path(data) / "length_histograms" / file).read_text())[name]
    return np.array([0, *(content[key] if key else content)])


def steps_of(plan):
    """Of each step, the micro-batches of all ranks: [rank][micro-step] arrays."""
    return [[plan.micro_batches(step, rank) for rank in range(plan.world_size)] for step in range(len(plan))]


def real(micro_batches):
    """The example indices of nested micro-batches, without fillers."""
    flat = np.concatenate([micro_batch for rank in micro_batches for micro_batch in rank])
    return flat[flat != FILLER]


def check_plan(plan, lengths):
    """What every plan promises."""
    steps = steps_of(plan)
    seen = np.concatenate([real(step) for step in steps])
    np.testing.assert_array_equal(np.sort(seen), np.arange(len(lengths)))
    for number, step in enumerate(steps):
        assert plan.num_examples(number) == len(real(step)) > 0
        assert plan.num_tokens(number) == lengths[real(step)].sum()
        for rank in step:
            assert len(rank) == plan.micro_steps
            for micro_batch in rank:
                assert micro_batch.dtype == np.int64 and len(micro_batch)
                if FILLER in micro_batch:
                    assert micro_batch.tolist() == [FILLER]
                else:
                    pairs = list(zip(lengths[micro_batch].tolist(), micro_batch.tolist(), strict=True))
                    assert pairs == sorted(pairs)
    facts = plan.describe()
    assert (facts["steps"], facts["examples"], facts["tokens"]) == (len(plan), len(lengths), lengths.sum())
    assert facts["balance"] >= 1 and 0 < facts["fill"] == plan.fill <= 1
    return steps


@settings(max_examples=100, deadline=None)
@given(lengths=lengths_strategy, each=st.integers(1, 9), world_size=st.integers(1, 4), micro_steps=st.integers(1, 3), shuffle=st.booleans())
def test_examples_counts_each_once_in_parts_of_equal_size(lengths, each, world_size, micro_steps, shuffle):
    parts = world_size * micro_steps
    plan = plan_examples(lengths, each * parts, world_size=world_size, micro_steps=micro_steps, shuffle=shuffle)
    steps = check_plan(plan, lengths)
    assert len(plan) == -(-len(lengths) // (each * parts))
    for number, step in enumerate(steps):
        sizes = [0 if FILLER in micro_batch else len(micro_batch) for rank in step for micro_batch in rank]
        if number < len(lengths) // (each * parts):
            assert sizes == [each] * parts
        else:
            assert max(sizes) - min(sizes) <= 1


@settings(max_examples=100, deadline=None)
@given(
    lengths=lengths_strategy,
    budget=st.integers(64, 700),
    world_size=st.integers(1, 4),
    micro_steps=st.integers(1, 3),
    shuffle=st.booleans(),
)
def test_tokens_counts_each_once_within_the_budget(lengths, budget, world_size, micro_steps, shuffle):
    plan = plan_tokens(lengths, budget, world_size=world_size, micro_steps=micro_steps, shuffle=shuffle)
    micro_batches = [micro_batch for step in check_plan(plan, lengths) for rank in step for micro_batch in rank]
    filled = [micro_batch for micro_batch in micro_batches if FILLER not in micro_batch]
    assert max(lengths[micro_batch].sum() for micro_batch in filled) <= budget
    assert plan.fill == pytest.approx(lengths.sum() / (len(filled) * budget), rel=1e-12)
    assert len(plan) == -(-len(filled) // (world_size * micro_steps))


@settings(max_examples=100, deadline=None)
@given(
    lengths=lengths_strategy,
    batch_size=st.integers(1, 50),
    budget=st.none() | st.integers(64, 700),
    world_size=st.integers(1, 5),
)
def test_sequential_counts_each_once_within_both_limits(lengths, batch_size, budget, world_size):
    plan = plan_sequential(lengths, batch_size, tokens_per_batch=budget, world_size=world_size)
    steps = check_plan(plan, lengths)
    micro_batches = [rank[0] for step in steps for rank in step]
    filled = [micro_batch for micro_batch in micro_batches if FILLER not in micro_batch]
    assert max(map(len, filled)) <= batch_size
    assert budget is None or max(lengths[micro_batch].sum() for micro_batch in filled) <= budget
    assert all(FILLER not in rank[0] for step in steps[:-1] for rank in step)
    longest = [lengths[real(step)].max() for step in steps]
    assert longest == sorted(longest, reverse=True)


@pytest.mark.parametrize("plan_with", PLANNERS)
def test_a_plan_is_the_same_on_every_rank_and_at_every_reading(plan_with):
    lengths = some_lengths()
    options = {"world_size": 2, "micro_steps": 3, "seed": 5, "epoch": 2}
    first, second = plan_with(lengths, **options), plan_with(lengths.copy(), **options)
    expected = steps_of(first)
    rng = np.random.default_rng(0)
    for step in rng.permutation(len(second)).tolist():
        second.num_tokens(int(rng.integers(len(second))))  # another step in between
        for rank in (1, 0):
            for ours, theirs in zip(second.micro_batches(step, rank), expected[step][rank], strict=True):
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("plan_with", PLANNERS)
@pytest.mark.parametrize("changed", [{"seed": 6}, {"epoch": 3}], ids=["seed", "epoch"])
def test_another_seed_or_epoch_shuffles_anew(plan_with, changed):
    lengths = some_lengths()
    options = {"seed": 5, "epoch": 2}
    plans = plan_with(lengths, **options), plan_with(lengths, **{**options, **changed})
    first, other = (real([plan.micro_batches(0, 0)]) for plan in plans)
    assert len(np.intersect1d(first, other)) < len(first) / 2


def test_seed_and_epoch_do_not_stand_for_each_other():
    lengths = some_lengths()
    first, other = (plan_examples(lengths, 32, seed=seed, epoch=epoch).micro_batches(0, 0)[0] for seed, epoch in ((1, 2), (2, 1)))
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("plan_with", PLANNERS)
def test_without_shuffling_every_epoch_is_alike(plan_with):
    lengths = some_lengths()
    first, other = (steps_of(plan_with(lengths, shuffle=False, epoch=epoch)) for epoch in (0, 1))
    np.testing.assert_array_equal(np.concatenate(list(map(real, first))), np.concatenate(list(map(real, other))))


def test_examples_without_shuffling_come_in_their_order():
    plan = plan_examples(some_lengths(100), 24, world_size=2, shuffle=False)
    assert [sorted(real(step).tolist()) for step in steps_of(plan)] == [list(range(at, min(at + 24, 100))) for at in range(0, 100, 24)]


def test_examples_share_a_global_batch_on_any_number_of_ranks_and_micro_steps():
    lengths = some_lengths(1000)
    plans = [plan_examples(lengths, 24, world_size=ranks, micro_steps=micro, seed=1, epoch=4) for ranks, micro in SPLITS]
    for batches in zip(*map(steps_of, plans), strict=True):
        for batch in batches[1:]:
            np.testing.assert_array_equal(np.sort(real(batch)), np.sort(real(batches[0])))


@pytest.mark.parametrize("budget", [128, 512])
def test_tokens_share_a_global_batch_where_ranks_times_micro_steps_is_the_same(budget):
    lengths = some_lengths(1000)
    plans = [plan_tokens(lengths, budget, world_size=ranks, micro_steps=micro) for ranks, micro in ((1, 4), (2, 2), (4, 1))]
    for batches in zip(*map(steps_of, plans), strict=True):
        for batch in batches[1:]:
            np.testing.assert_array_equal(np.sort(real(batch)), np.sort(real(batches[0])))


@pytest.mark.parametrize(
    ("n", "batch_size", "expected"),
    [
        pytest.param(1, 8, [1, 0, 0, 0], id="one-example-for-four-parts"),
        pytest.param(11, 8, [1, 1, 1, 0], id="a-part-without-any"),
        pytest.param(13, 8, [2, 1, 1, 1], id="a-part-with-one-more"),
        pytest.param(16, 8, [2, 2, 2, 2], id="nothing-left-over"),
    ],
)
def test_examples_left_over(n, batch_size, expected):
    plan = plan_examples(some_lengths(n), batch_size, world_size=2, micro_steps=2)
    last = [part for rank in steps_of(plan)[-1] for part in rank]
    assert sorted((np.count_nonzero(part >= 0) for part in last), reverse=True) == expected


def test_ranks_without_examples_wait_in_the_last_micro_steps():
    plan = plan_examples(np.array([9, 8, 7, 6, 5, 4], dtype=np.int32), 6, world_size=2, micro_steps=3)
    last = plan_examples(np.array([9, 8], dtype=np.int32), 6, world_size=2, micro_steps=3)
    assert [[part.tolist() for part in plan.micro_batches(0, rank)] for rank in range(2)] == [[[0], [3], [4]], [[1], [2], [5]]]
    assert [[part.tolist() for part in last.micro_batches(0, rank)] for rank in range(2)] == [[[0], [-1], [-1]], [[1], [-1], [-1]]]


@pytest.mark.parametrize(
    ("planned", "balance"),
    [
        pytest.param(lambda lengths: plan_examples(lengths, 32, world_size=2), 1.003, id="examples-16-in-a-part"),
        pytest.param(lambda lengths: plan_examples(lengths, 32, world_size=2, micro_steps=2), 1.01, id="examples-8-in-a-part"),
        pytest.param(lambda lengths: plan_examples(lengths, 1024, world_size=8), 1.01, id="examples-128-in-a-part"),
        pytest.param(lambda lengths: plan_tokens(lengths, 512, world_size=2, micro_steps=2), 1.01, id="tokens"),
        pytest.param(lambda lengths: plan_sequential(lengths, 64, world_size=2), 1.03, id="sequential"),
    ],
)
def test_parts_of_a_global_batch_are_balanced(planned, balance):
    plan = planned(some_lengths(8192))
    assert plan.describe()["balance"] <= balance


def test_balance_is_the_largest_part_over_the_mean():
    plan = plan_examples(np.array([10, 4, 2, 2], dtype=np.int32), 4, world_size=2)
    assert [plan.micro_batches(0, rank)[0].tolist() for rank in range(2)] == [[3, 0], [2, 1]]
    assert plan.describe()["balance"] == pytest.approx(12 / 9)


def test_bins_of_like_attention_cost_run_side_by_side():
    lengths = np.array([100] * 4 + [10] * 40, dtype=np.int32)  # four bins of one long example, four of ten short ones
    plan = plan_tokens(lengths, 100, world_size=2, micro_steps=4)
    sizes = [[len(micro_batch) for micro_batch in plan.micro_batches(0, rank)] for rank in range(2)]
    assert sizes == [[1, 1, 10, 10], [1, 1, 10, 10]]


def test_a_large_budget_mixes_lengths():
    lengths = np.repeat(np.arange(4, 68, dtype=np.int32), 64)
    plan = plan_tokens(lengths, 2048)
    kinds = [len(np.unique(lengths[plan.micro_batches(step, 0)[0]])) for step in range(len(plan) - 1)]
    assert plan.fill > 0.97
    assert min(kinds) > 10


def test_mixing_lengths_does_not_cost_fill():
    plan = plan_tokens(np.full(300, 50, dtype=np.int32), 150)  # two bins of 75 would hold one example each, and leave 50 tokens empty
    assert plan.fill == 1


def test_many_equal_bins_of_several_examples_each():
    lengths = np.tile(np.array([40, 20, 20, 20, 5, 5, 5], dtype=np.int32), 100)
    check_plan(plan_tokens(lengths, 70, world_size=2), lengths)


def test_tokens_hands_out_the_examples_of_a_length_at_random():
    lengths = np.repeat(np.array([8, 24], dtype=np.int32), 2000)
    plan = plan_tokens(lengths, 32)
    short, long = np.array([plan.micro_batches(step, 0)[0] for step in range(len(plan))]).T
    for one, other in ((short, long), (np.arange(2000), short), (np.arange(2000), long)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.1


def test_sequential_gives_every_rank_as_much():
    lengths = some_lengths(1000)
    plan = plan_sequential(lengths, 300, world_size=8)  # 4 micro-batches would do for one rank
    assert len(plan) == 1
    tokens = [lengths[plan.micro_batches(0, rank)[0]].sum() for rank in range(8)]
    assert max(tokens) < 1.05 * np.mean(tokens)


@pytest.mark.parametrize(
    ("file", "name", "key", "budget"),
    [
        pytest.param("measured_wordpiece_lengths.json", "sst2_train", "hist_1_to_512", 128, id="sst2-128"),
        pytest.param("graphcore_packedbert_histograms.json", "wikipedia_512", None, 512, id="wikipedia-512"),
    ],
)
def test_real_lengths_leave_next_to_nothing_empty(file, name, key, budget):
    counts = histogram(file, name, key)
    lengths = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    plan = plan_tokens(lengths, budget)
    assert plan.fill >= 0.997
    for step in np.linspace(0, len(plan) - 1, 200, dtype=np.int64).tolist():
        assert lengths[plan.micro_batches(step, 0)[0]].sum() <= budget


@pytest.mark.parametrize(
    ("planned", "kept", "peak"),
    [
        pytest.param(lambda lengths: plan_examples(lengths, 32), 4, 6, id="examples"),
        pytest.param(lambda lengths: plan_tokens(lengths, 64), 8, 13, id="tokens"),
        pytest.param(lambda lengths: plan_sequential(lengths, 32), 4.5, 6, id="sequential"),
    ],
)
def test_memory_is_a_few_bytes_an_example(planned, kept, peak):
    lengths = np.full(2_000_000, 64, dtype=np.int32)  # the worst case: one length, one example to a bin
    tracemalloc.start()
    try:
        plan = planned(lengths)
        current, highest = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    slack = 8e6  # of the chunks that are sorted
    assert plan.examples == len(lengths)
    assert current < kept * len(lengths) + slack
    assert highest < peak * len(lengths) + slack


@pytest.mark.parametrize("planned", [lambda n: plan_tokens(n, 128), lambda n: plan_sequential(n, 8, tokens_per_batch=128)])
def test_an_example_over_the_budget_is_named(planned):
    lengths = np.array([5, 128, 129, 7], dtype=np.int32)
    with pytest.raises(DataError, match=r"example 2 has 129 tokens, more than tokens_per_batch 128; raise tokens_per_batch or lower"):
        planned(lengths)


@pytest.mark.parametrize("planned", [lambda n: plan_examples(n, 8), lambda n: plan_tokens(n, 10**7), lambda n: plan_sequential(n, 8)])
@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        pytest.param([], "there are no examples to plan", id="none"),
        pytest.param([3, 0, 2], "example 1 has 0 tokens; an example has at least 1", id="empty"),
        pytest.param([3, 2**20 + 1], "example 1 has 1048577 tokens; a planner takes at most 1048576", id="too-long"),
    ],
)
def test_lengths_that_cannot_be_planned(planned, lengths, message):
    with pytest.raises(DataError, match=message):
        planned(np.array(lengths, dtype=np.int32))


def test_documents_of_more_tokens_than_16_bits_hold():
    lengths = np.array([70_000, 5, 65_536, 70_000, 4], dtype=np.int32)
    for plan in (plan_examples(lengths, 2), plan_tokens(lengths, 70_010), plan_sequential(lengths, 2)):
        met = [row for step in range(len(plan)) for batch in plan.micro_batches(step, 0) for row in batch.tolist() if row >= 0]
        assert sorted(met) == [0, 1, 2, 3, 4]
    plan = plan_sequential(lengths, 2)  # examples of like length share a batch
    assert [sorted(plan.micro_batches(step, 0)[0].tolist()) for step in range(3)] == [[0, 3], [1, 2], [4]]


@pytest.mark.parametrize(
    ("planned", "message"),
    [
        pytest.param(
            lambda n: plan_examples(n, 32, world_size=3, micro_steps=2),
            "batch_size 32 does not divide by 3 ranks x 2 micro-steps = 6; use 30 or 36",
            id="does-not-divide",
        ),
        pytest.param(lambda n: plan_examples(n, 2, world_size=4), "use 4$", id="fewer-than-ranks"),
        pytest.param(lambda n: plan_examples(n, 0), "batch_size is 0; it must be at least 1", id="batch-size"),
        pytest.param(lambda n: plan_examples(n, 8, world_size=0), "world_size is 0", id="world-size"),
        pytest.param(lambda n: plan_tokens(n, 128, micro_steps=0), "micro_steps is 0", id="micro-steps"),
        pytest.param(lambda n: plan_tokens(n, 0), "tokens_per_batch is 0", id="budget"),
        pytest.param(lambda n: plan_sequential(n, 8, tokens_per_batch=0), "tokens_per_batch is 0", id="sequential-budget"),
    ],
)
def test_numbers_that_cannot_be_planned(planned, message):
    with pytest.raises(ConfigError, match=message):
        planned(some_lengths(10))


@pytest.mark.parametrize("plan_with", PLANNERS)
def test_steps_and_ranks_that_are_not_there(plan_with):
    plan = plan_with(some_lengths(100), world_size=2)
    for read in (lambda: plan.micro_batches(len(plan), 0), lambda: plan.micro_batches(-1, 0), lambda: plan.num_examples(len(plan))):
        with pytest.raises(IndexError, match=f"of a plan of {len(plan)} steps"):
            read()
    with pytest.raises(IndexError, match="rank 2 of a plan for 2 ranks"):
        plan.micro_batches(0, 2)
