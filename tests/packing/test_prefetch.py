"""Batches made ahead: in order, a bounded way ahead, with errors where they belong, the same after a resume, and unharmed by their way through one buffer."""

import dataclasses
import threading
import traceback

import numpy as np
import pytest
import torch

from bertfast.config.blocks import InputConfig
from bertfast.config.resolve import BatchSizes
from bertfast.engine.ranks import Ranks
from bertfast.model.layers import RandomBits
from bertfast.packing.batch import PackedBatch
from bertfast.packing.buckets import bucket_of, padded
from bertfast.packing.masking import MaskedBatch
from bertfast.packing.prefetch import ahead, layout_of, prefetched, read_from, write_into
from bertfast.training.batches import TrainingBatches
from tests.packing.test_buckets import packed

CPU = torch.device("cpu")


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("bertfast-ahead")]


def test_in_order_and_a_bounded_way_ahead():
    made = []
    for item in prefetched(lambda item: made.append(item) or [item], range(20), CPU):
        assert max(made) <= item[0] + 4
    assert made == list(range(20)) and not threads()


def test_an_error_comes_when_its_turn_comes_and_names_its_place():
    def make_or_fail(item):
        if item == 2:
            raise ValueError("row 2 is torn")
        return [item]

    taken = []
    with pytest.raises(ValueError, match="row 2 is torn") as caught:
        for item in prefetched(make_or_fail, range(10), CPU):
            taken.append(item)
    assert taken == [[0], [1]]
    assert "make_or_fail" in {frame.name for frame in traceback.extract_tb(caught.value.__traceback__)}
    assert not threads()


def test_whoever_stops_taking_ends_the_thread():
    steps = ahead(lambda item: item, range(10**9))
    assert [next(steps), next(steps)] == [0, 1] and threads()
    steps.close()
    assert not threads()


def masked():
    batch = packed([5, 2, 9])
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return MaskedBatch(**fields, masked_rows=torch.tensor([1, 7]), masked_labels=torch.tensor([11, 12]))


BATCHES = [
    pytest.param([packed([5, 2, 9])], id="one"),
    pytest.param([packed([1]), packed([30, 64], seed=3)], id="two-micro-steps"),
    pytest.param([packed([5, 2], num_labels=1)], id="float-labels"),
    pytest.param([padded(packed([5, 2]), bucket_of(packed([5, 2]).extent))], id="padded"),
    pytest.param([packed([5, 2, 9]).with_pieces([0, 2, 3], [4, 5, 6])], id="pieces"),
    pytest.param([masked()], id="masked"),
    pytest.param([dataclasses.replace(packed([5, 2]), labels=None)], id="no-labels"),
    pytest.param([PackedBatch.from_ragged([], [], [], np.zeros(0, dtype=np.int64))], id="empty"),
]


@pytest.mark.parametrize("batches", BATCHES)
def test_one_buffer_holds_all_tensors(batches):
    """What goes to a GPU in one copy: every field comes out as it went in, aligned, and no two overlap."""
    places, size = layout_of(batches)
    arrived = read_from(write_into(torch.empty(size, dtype=torch.uint8), batches, places).clone(), batches, places)
    for batch, other in zip(batches, arrived, strict=True):
        assert type(other) is type(batch)
        for field in dataclasses.fields(batch):
            mine, theirs = getattr(batch, field.name), getattr(other, field.name)
            if isinstance(mine, torch.Tensor):
                assert mine.dtype == theirs.dtype and torch.equal(mine, theirs) and theirs.storage_offset() * mine.element_size() % 512 == 0
            else:
                assert mine == theirs


class Lengths:
    """A data set of which only lengths matter; its batches tell the epoch they were made in."""

    def __init__(self, n=70):
        self.lengths = np.random.default_rng(0).integers(2, 40, n).astype(np.int32)

    def training_lengths(self, epoch):
        return self.lengths

    def training_batch(self, indices, epoch):
        return PackedBatch.from_ragged(*2 * [np.full(self.lengths[indices].sum(), epoch)], self.lengths[indices], None, indices)


def taken(source, sizes, first, in_buckets):
    batches = TrainingBatches(Lengths(), source, sizes, 7, Ranks(0, 1, CPU))
    found = []
    for step, parts, examples in batches.steps(first, 17, in_buckets):
        facts = [(part.example_ids.tolist(), int(part.input_ids.max()), part.unpadded) for part in parts]
        found.append((step, examples, facts))
    return found


PLANS = [
    pytest.param(InputConfig(batch_size=16), BatchSizes(16, 8, 2, 1), id="examples"),
    pytest.param(InputConfig(planner="tokens", tokens_per_batch=350, max_sequence_length=64), BatchSizes(1, 1, 1, 1), id="tokens"),
]


@pytest.mark.parametrize("in_buckets", [False, True])
@pytest.mark.parametrize(("source", "sizes"), PLANS)
def test_a_resumed_run_gets_the_same_batches(source, sizes, in_buckets):
    """Over three epochs of some 5 steps, with the number of examples of each step's own epoch."""
    whole = taken(source, sizes, 0, in_buckets)
    assert [step for step, _, _ in whole] == list(range(17))
    assert [examples for _, examples, _ in whole] == [
        sum(np.array(ids) >= 0) for _, _, parts in whole for ids in [sum((part[0] for part in parts), [])]
    ]
    assert {parts[0][1] for _, _, parts in whole} >= {0, 1, 2}
    for first in (1, 5, 12):
        assert taken(source, sizes, first, in_buckets) == whole[first:]
    assert all((part[2] is not None) == in_buckets for _, _, parts in whole for part in parts)


def test_dropout_by_key_needs_nothing_of_the_host():
    assert RandomBits.of_step(2**32 - 1, 5, CPU).key.tolist() == [2**32 - 1, 5]
    streams = [RandomBits.of_step(1, 5, CPU, place).stream.integers(2**62) for place in ((0, 0), (0, 0), (1, 0), (0, 1))]
    assert streams[0] == streams[1] and len(set(streams)) == 3
