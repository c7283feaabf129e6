"""The batches of a run: which examples each step takes, packed ahead of need; and a model's answers over a whole dataset."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from bertfast.config import BatchSizes, InputConfig
from bertfast.data import EncodedDataset, TrainingSet
from bertfast.engine import Ranks
from bertfast.packing import PackedBatch, Plan, bucket_of, padded, plan_examples, plan_sequential, plan_tokens, prefetched


class TrainingBatches:
    """The optimizer steps of a run, epoch after epoch, each as this rank's micro-batches."""

    def __init__(self, dataset: TrainingSet, source: InputConfig, sizes: BatchSizes, seed: int, ranks: Ranks):
        self._dataset, self._source, self._sizes, self._seed, self._ranks = dataset, source, sizes, seed, ranks
        self.plan = self._plan(epoch=0)
        self.steps_per_epoch = len(self.plan)

    def steps(self, first: int, total: int, in_buckets: bool = False) -> Iterator[tuple[int, list[PackedBatch], int]]:
        """(step, counted from 0 over the run; this rank's micro-batches, padded to their buckets where asked; examples of the global batch), made
        ahead of need on a thread of their own. `plan` is that of the step that was last handed out."""
        plans = {0: self.plan}  # of the epochs that batches are being made of, and of the one that is handed out

        def pack(step: int) -> list[PackedBatch]:
            epoch, index = self._place(step)
            if epoch not in plans:
                plans[epoch] = self._plan(epoch)
            plan = plans[epoch]
            # An epoch of tasks that are sampled may pack into a step more or less than the first: so many are left out, or taken twice.
            parts = plan.micro_batches(index % len(plan), self._ranks.rank)
            batches = [self._dataset.training_batch(part, epoch) for part in parts]
            return [padded(batch, bucket_of(batch.extent)) for batch in batches] if in_buckets else batches

        steps = range(first, total)
        for step, batches in zip(steps, prefetched(pack, steps, self._ranks.device), strict=False):
            epoch, index = self._place(step)
            self.plan = plans[epoch]
            for past in [number for number in list(plans) if number < epoch]:
                del plans[past]
            yield step, batches, self.plan.num_examples(index % len(self.plan))

    def _place(self, step: int) -> tuple[int, int]:
        """The epoch of a step, and which of its steps it is."""
        return divmod(step, self.steps_per_epoch)

    def _plan(self, epoch: int) -> Plan:
        return plan_of(self._dataset, self._source, self._sizes, self._seed, epoch)


def plan_of(dataset: TrainingSet, source: InputConfig, sizes: BatchSizes, seed: int, epoch: int = 0) -> Plan:
    """How an epoch is cut into the micro-batches of all ranks.

    Raises:
        ConfigError, DataError: as the planner that `source` names.
    """
    lengths = dataset.training_lengths(epoch)
    if source.planner == "tokens":
        assert source.tokens_per_batch is not None  # InputConfig refuses the planner without it
        plan = partial(plan_tokens, lengths, source.tokens_per_batch)
    else:
        plan = partial(plan_examples, lengths, sizes.global_batch)
    return plan(world_size=sizes.world_size, micro_steps=sizes.micro_steps, seed=seed, epoch=epoch, shuffle=source.shuffle)


def compute_logits(model, dataset: EncodedDataset, source: InputConfig, num_labels: int, ranks: Ranks) -> np.ndarray:
    """Logits [n, C], float32, of all examples in their order, on every rank: each rank takes its share, and every example counts once."""
    plan = plan_sequential(dataset.lengths, source.batch_size, tokens_per_batch=source.tokens_per_batch, world_size=ranks.world_size)
    model.eval()

    def pack(step: int) -> list[PackedBatch]:
        return [dataset.batch(part) for part in plan.micro_batches(step, ranks.rank)]

    ids, rows = [torch.zeros(0, dtype=torch.int32, device=ranks.device)], [torch.zeros(0, num_labels, device=ranks.device)]
    with torch.inference_mode():
        for batches in prefetched(pack, range(len(plan)), ranks.device):
            for batch in batches:
                rows.append(model(batch).float())
                ids.append(batch.example_ids)
    logits = np.full((len(dataset), num_labels), np.nan, dtype=np.float32)
    for ids_B, logits_BC in ranks.gather((torch.cat(ids).cpu().numpy(), torch.cat(rows).cpu().numpy())):
        logits[ids_B[ids_B >= 0]] = logits_BC[ids_B >= 0]
    return logits
