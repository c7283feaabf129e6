"""Planners: which examples share a micro-batch, on which rank and in which micro-step, for a whole epoch.

`plan_examples` cuts global batches of so many random examples, `plan_tokens` packs micro-batches of so many tokens, and `plan_sequential`
visits every example once, for evaluation. Each returns a `Plan`: the same on every rank, and readable at any step, in any order.

Only lengths are looked at. A part is one micro-batch of a global batch, which has world_size * micro_steps of them. A filler is the index
-1, alone in a part for which no example is left: it counts for nothing, and lets every rank take the same number of steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise

import numpy as np

from bertfast.errors import ConfigError, DataError
from bertfast.packing.partition import (
    Group,
    cut_sorted,
    group_by_key,
    num_bins,
    pack_histogram,
    random_order,
    ranges,
    shuffle_stretches,
    split_evenly,
)

FILLER = -1
MAX_LENGTH = 2**20  # tokens of an example, all its pieces together: planning counts the examples of every length

_MIXING_LOSS = 0.001  # share of more micro-batches that is paid for mixing lengths within them
_BALANCE_SAMPLE = 64  # steps that describe() looks at


class Plan(ABC):
    """An epoch as a sequence of global batches; `len(plan)` is the number of optimizer steps.

    planner: its name. world_size, micro_steps: as asked for. examples, tokens: of the whole epoch. fill: the share of real tokens in what
    is computed: 1.0 where nothing is padded; tokens / (micro-batches * budget) for `plan_tokens`, fillers not counted.
    """

    planner: str
    fill = 1.0

    def __init__(self, lengths: np.ndarray, world_size: int, micro_steps: int, num_micro_batches: int):
        self.world_size = world_size
        self.micro_steps = micro_steps
        self.examples = len(lengths)
        self.tokens = int(lengths.sum(dtype=np.int64))
        self._lengths = lengths
        self._parts = world_size * micro_steps
        self._num_steps = -(-num_micro_batches // self._parts)

    def __len__(self) -> int:
        return self._num_steps

    def micro_batches(self, step: int, rank: int) -> list[np.ndarray]:
        """The micro-batches of one rank in global batch `step`: micro_steps arrays of example indices, int64, none of them empty.

        Within a micro-batch the indices rise by length, and by index among equal lengths: CPU attention runs over stretches of one length.

        Raises:
            IndexError: a step or rank that the plan does not have.
        """
        if not 0 <= rank < self.world_size:
            raise IndexError(f"rank {rank} of a plan for {self.world_size} ranks")
        self._check(step)
        return [self._by_length(self._part(step, part)) for part in self._deal(step)[:, rank].tolist()]

    def num_examples(self, step: int) -> int:
        """The real examples of a global batch, over all ranks and micro-steps: what its summed loss is divided by."""
        self._check(step)
        return self._count_examples(step)

    def num_tokens(self, step: int) -> int:
        """The real tokens of a global batch, over all ranks and micro-steps."""
        self._check(step)
        return int(self._part_tokens(step).sum())

    def describe(self) -> dict[str, str | int | float]:
        """The plan in figures. balance is (tokens of the largest part) / (mean tokens of a part), over up to 64 steps spread evenly."""
        steps = np.unique(np.linspace(0, len(self) - 1, _BALANCE_SAMPLE, dtype=np.int64)).tolist()
        tokens = np.stack([self._part_tokens(step) for step in steps])
        return {
            "planner": self.planner,
            "steps": len(self),
            "world_size": self.world_size,
            "micro_steps": self.micro_steps,
            "examples": self.examples,
            "tokens": self.tokens,
            "fill": self.fill,
            "balance": float(tokens.max(axis=1).sum() / tokens.mean(axis=1).sum()),
        }

    def _check(self, step: int) -> None:
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of a plan of {len(self)} steps")

    def _deal(self, step: int) -> np.ndarray:
        """Part numbers [micro_steps, world_size]: parts of like cost side by side, in turning order, so that the ranks' sums are alike."""
        if self._parts == 1:
            return np.zeros((1, 1), dtype=np.int64)
        table = np.argsort(-self._part_costs(step), kind="stable").reshape(self.micro_steps, self.world_size)
        table[1::2] = table[1::2, ::-1].copy()
        return table

    def _by_length(self, indices: np.ndarray) -> np.ndarray:
        if len(indices) == 1:
            return indices.astype(np.int64)
        keys = self._lengths[indices].astype(np.int64) << 32 | indices  # length and index in one key, so one sort will do
        keys.sort()
        return keys & 0xFFFFFFFF

    def _part_costs(self, step: int) -> np.ndarray:
        return self._part_tokens(step)

    @abstractmethod
    def _count_examples(self, step: int) -> int: ...

    @abstractmethod
    def _part_tokens(self, step: int) -> np.ndarray:
        """Real tokens of each part, int64 [parts]."""

    @abstractmethod
    def _part(self, step: int, part: int) -> np.ndarray:
        """Example indices of one part, in any order; [FILLER] for an empty one."""


def plan_examples(
    lengths: np.ndarray,
    batch_size: int,
    *,
    world_size: int = 1,
    micro_steps: int = 1,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
) -> Plan:
    """Global batches of `batch_size` random examples, split into parts of equally many examples and nearly equally many tokens.

    The examples of a global batch depend on (seed, epoch) alone, never on the ranks and micro-steps that share them. The last global batch
    holds what is left: its parts differ by at most one example. A global batch is split when it is asked for. Memory: 4 bytes an example
    beside the lengths (5 while it shuffles).

    Args:
        lengths: tokens of each example, integers [n], 1 to 65,535; kept, not copied.
        batch_size: examples in a global batch, over all ranks and micro-steps.

    Raises:
        ConfigError: batch_size does not divide by world_size * micro_steps, or a number is below 1.
        DataError: no examples, or a length out of range.
    """
    _check_positive(batch_size=batch_size, world_size=world_size, micro_steps=micro_steps)
    parts = world_size * micro_steps
    if batch_size % parts:
        near = [size for size in (batch_size // parts * parts, -(-batch_size // parts) * parts) if size]
        raise ConfigError(
            f"batch_size {batch_size} does not divide by {world_size} ranks x {micro_steps} micro-steps = {parts}; "
            f"use {' or '.join(map(str, near))}"
        )
    lengths = _check_lengths(lengths)
    n = len(lengths)
    order = random_order(np.random.default_rng([seed, epoch]), n) if shuffle else np.arange(n, dtype=np.int32)
    return _ExamplesPlan(lengths, order, batch_size, world_size, micro_steps)


class _ExamplesPlan(Plan):
    planner = "examples"

    def __init__(self, lengths: np.ndarray, order: np.ndarray, batch_size: int, world_size: int, micro_steps: int):
        super().__init__(lengths, world_size, micro_steps, -(-len(order) // batch_size) * world_size * micro_steps)
        self._order = order
        self._batch_size = batch_size
        self._latest: tuple[int, np.ndarray] | None = None  # a step is asked for several things in a row

    def _global_batch(self, step: int) -> np.ndarray:
        return self._order[step * self._batch_size : (step + 1) * self._batch_size]

    def _split(self, step: int) -> np.ndarray:
        """Example indices [parts, examples of the largest part]; FILLER where a part has one less."""
        batch, latest = self._global_batch(step), self._latest
        if self._parts == 1:
            return batch[None]
        if latest is None or latest[0] != step:
            places = split_evenly(self._lengths[batch], self._parts)
            latest = self._latest = (step, np.where(places < 0, FILLER, batch[places]))
        return latest[1]

    def _count_examples(self, step: int) -> int:
        return len(self._global_batch(step))

    def _part_tokens(self, step: int) -> np.ndarray:
        indices = self._split(step)
        return np.where(indices < 0, 0, self._lengths[indices]).sum(axis=1, dtype=np.int64)

    def _part(self, step: int, part: int) -> np.ndarray:
        indices = self._split(step)[part]
        return indices[: max(1, np.count_nonzero(indices >= 0))]


def plan_tokens(
    lengths: np.ndarray,
    tokens_per_batch: int,
    *,
    world_size: int = 1,
    micro_steps: int = 1,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
) -> Plan:
    """Micro-batches of at most `tokens_per_batch` tokens, nearly full, by best-fit packing of the histogram of lengths.

    Which lengths share a bin follows from the histogram; which examples of a length go where, and the order of the bins, are random. A
    large budget is filled with several small bins drawn at random, so that a micro-batch mixes lengths. world_size * micro_steps
    micro-batches make a global batch; the last is made up with fillers. Memory: 4 bytes an example and 4 a bin beside the lengths (at most
    12 an example while it plans).

    Args:
        lengths: tokens of each example, integers [n], 1 to 65,535; kept, not copied.
        tokens_per_batch: the budget of one micro-batch of one rank.
        shuffle: False hands out the examples in their order, and keeps the bins in the order of the packing.

    Raises:
        ConfigError: a number below 1.
        DataError: no examples, or a length out of range; one over the budget, too.
    """
    _check_positive(tokens_per_batch=tokens_per_batch, world_size=world_size, micro_steps=micro_steps)
    lengths = _check_lengths(lengths, tokens_per_batch)
    indices, counts = group_by_key(lengths, int(lengths.max()) + 1)
    groups, bins_per_micro_batch = _pack(counts, tokens_per_batch)
    if shuffle:
        rng = np.random.default_rng([seed, epoch])
        shuffle_stretches(rng, indices, counts)
        bins = random_order(rng, num_bins(groups))
    else:
        bins = np.arange(num_bins(groups), dtype=np.int32)
    fill = counts @ np.arange(len(counts)) / (-(-len(bins) // bins_per_micro_batch) * tokens_per_batch)
    return _TokensPlan(lengths, indices, bins, groups, bins_per_micro_batch, float(fill), world_size, micro_steps)


def _pack(counts: np.ndarray, budget: int) -> tuple[list[Group], int]:
    """Bins of budget // m tokens, m of which make a micro-batch: m is the largest power of two that costs next to no fill.

    With one bin to a micro-batch, best-fit would fill a large budget with examples of a single length.
    """
    fewest = -(-int(counts @ np.arange(len(counts))) // budget)
    m = 1 << (budget // (len(counts) - 1)).bit_length() - 1
    tried = []
    while m:
        groups = pack_histogram(counts, budget // m)
        micro_batches = -(-num_bins(groups) // m)
        tried.append((micro_batches, m, groups))
        if micro_batches <= fewest * (1 + _MIXING_LOSS):
            break
        m //= 2
    limit = min(micro_batches for micro_batches, _, _ in tried) * (1 + _MIXING_LOSS)
    return next((groups, m) for micro_batches, m, groups in tried if micro_batches <= limit)


class _TokensPlan(Plan):
    planner = "tokens"

    def __init__(
        self,
        lengths: np.ndarray,
        indices: np.ndarray,
        bins: np.ndarray,
        groups: list[Group],
        bins_per_micro_batch: int,
        fill: float,
        world_size: int,
        micro_steps: int,
    ):
        """indices: examples, one stretch for each length. bins: their numbers, in the order in which micro-batches take them."""
        super().__init__(lengths, world_size, micro_steps, -(-len(bins) // bins_per_micro_batch))
        self.fill = fill
        self._indices = indices
        self._bins = bins
        self._bins_per_micro_batch = bins_per_micro_batch
        sizes = np.array([count for count, _ in groups])
        self._first_bin = np.cumsum(sizes) - sizes  # of each group
        # A recipe says what the bins of a group take: `taken` examples of a length, from the stretch of indices that starts at `stretch`.
        group, length, self._taken = np.array([(g, *item) for g, (_, items) in enumerate(groups) for item in items]).T
        self._recipe_size = np.bincount(group)
        self._recipe_start = np.cumsum(self._recipe_size) - self._recipe_size
        by_length = np.argsort(length, kind="stable")
        used = (sizes[group] * self._taken)[by_length]
        self._stretch = np.empty_like(used)
        self._stretch[by_length] = np.cumsum(used) - used
        self._group_examples, self._group_tokens, self._group_costs = (
            np.bincount(group, self._taken * weight).astype(np.int64) for weight in (np.ones_like(length), length, length**2)
        )

    def _group_of(self, bins: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._first_bin, bins, side="right") - 1

    def _sum_parts(self, step: int, per_group: np.ndarray) -> np.ndarray:
        size = self._parts * self._bins_per_micro_batch
        bins = self._bins[step * size : (step + 1) * size]
        values = np.zeros(size, dtype=np.int64)
        values[: len(bins)] = per_group[self._group_of(bins)]
        return values.reshape(self._parts, -1).sum(axis=1)

    def _count_examples(self, step: int) -> int:
        return int(self._sum_parts(step, self._group_examples).sum())

    def _part_tokens(self, step: int) -> np.ndarray:
        return self._sum_parts(step, self._group_tokens)

    def _part_costs(self, step: int) -> np.ndarray:
        return self._sum_parts(step, self._group_costs)  # of attention, which grows with length squared: in tokens the parts are alike

    def _part(self, step: int, part: int) -> np.ndarray:
        first = (step * self._parts + part) * self._bins_per_micro_batch
        bins = self._bins[first : first + self._bins_per_micro_batch]
        if not len(bins):
            return np.array([FILLER])
        group = self._group_of(bins)
        item = ranges(self._recipe_start[group], self._recipe_size[group])
        number = np.repeat(bins - self._first_bin[group], self._recipe_size[group])  # of the bin within its group
        return self._indices[ranges(self._stretch[item] + number * self._taken[item], self._taken[item])]


def plan_sequential(lengths: np.ndarray, batch_size: int, *, tokens_per_batch: int | None = None, world_size: int = 1) -> Plan:
    """Every example exactly once, for evaluation and prediction: micro-batches of like lengths, the longest first, one a rank and step.

    A micro-batch holds at most `batch_size` examples and, where it is given, `tokens_per_batch` tokens. Micro-batches are cut smaller where
    the ranks would otherwise not all have the same number of them. Memory: 4 bytes an example beside the lengths.

    Raises:
        ConfigError: a number below 1.
        DataError: no examples, or a length out of range; one over the budget, too.
    """
    _check_positive(batch_size=batch_size, world_size=world_size)
    if tokens_per_batch is not None:
        _check_positive(tokens_per_batch=tokens_per_batch)
    lengths = _check_lengths(lengths, tokens_per_batch)
    indices, counts = group_by_key(lengths, int(lengths.max()) + 1)
    longest = len(counts) - 1
    budget = batch_size * longest if tokens_per_batch is None else min(tokens_per_batch, batch_size * longest)
    bounds = cut_sorted(counts, batch_size, budget)
    wanted = -(-(len(bounds) - 1) // world_size) * world_size
    if world_size > 1 and wanted <= 100 * world_size:  # of more than 100 steps, one that is not shared evenly costs less than a percent
        low, high = longest, budget  # the smallest budget that needs no more micro-batches than wanted makes them most alike
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if len(cut_sorted(counts, batch_size, middle)) - 1 <= wanted else (middle + 1, high)
        bounds = cut_sorted(counts, batch_size, low)
    return _SequentialPlan(lengths, indices[::-1], bounds, world_size)


class _SequentialPlan(Plan):
    planner = "sequential"

    def __init__(self, lengths: np.ndarray, order: np.ndarray, bounds: list[int], world_size: int):
        super().__init__(lengths, world_size, 1, len(bounds) - 1)
        self._order = order
        self._bounds = bounds + [bounds[-1]] * (len(self) * world_size + 1 - len(bounds))

    def _slices(self, step: int) -> list[np.ndarray]:
        bounds = self._bounds[step * self.world_size : (step + 1) * self.world_size + 1]
        return [self._order[start:end] for start, end in pairwise(bounds)]

    def _count_examples(self, step: int) -> int:
        return sum(len(part) for part in self._slices(step))

    def _part_tokens(self, step: int) -> np.ndarray:
        return np.array([self._lengths[part].sum(dtype=np.int64) for part in self._slices(step)])

    def _part(self, step: int, part: int) -> np.ndarray:
        indices = self._slices(step)[part]
        return indices if len(indices) else np.array([FILLER])


def _check_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f"{name} is {number}; it must be at least 1")


def _check_lengths(lengths: np.ndarray, budget: int | None = None) -> np.ndarray:
    lengths = np.asarray(lengths)
    if not lengths.size:
        raise DataError("there are no examples to plan: the data set is empty")
    shortest, longest = lengths.min(), lengths.max()
    if shortest < 1:
        raise DataError(f"example {lengths.argmin()} has {shortest} tokens; an example has at least 1")
    if budget is not None and longest > budget:
        raise DataError(
            f"example {lengths.argmax()} has {longest} tokens, more than tokens_per_batch {budget}; "
            "raise tokens_per_batch or lower max_sequence_length"
        )
    if longest > MAX_LENGTH:
        raise DataError(
            f"example {lengths.argmax()} has {longest} tokens; a planner takes at most {MAX_LENGTH}: cut it, or set truncation.max_pieces"
        )
    return lengths
