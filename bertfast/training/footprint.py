"""What a run needs of memory; and what to change where there is not so much."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from bertfast.config import BatchSizes, Config
from bertfast.data import TrainingSet
from bertfast.engine import MemoryEstimate, Precision, activation_bytes, estimate_memory
from bertfast.errors import BertfastError, OutOfMemoryError
from bertfast.machine import out_of_memory
from bertfast.model import BertEncoder
from bertfast.packing import Plan

_SAMPLED_STEPS = 64


class Footprint(NamedTuple):
    """The bytes of one rank, and the tokens of its largest micro-batch, whose activations are among them."""

    estimate: MemoryEstimate
    tokens: int


def footprint_of(config: Config, precision: Precision, model: BertEncoder, plan: Plan, train: TrainingSet) -> Footprint:
    """What a rank of a run needs."""
    zero = config.zero
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tokens = _largest_micro_batch(plan, train.training_lengths(0))
    activations = activation_bytes(model.config, tokens, precision, config.bertfast.model.gradient_checkpointing == "selective")
    offloads = (zero.offloads_optimizer, zero.offloads_parameters)
    return Footprint(estimate_memory(parameters, precision, zero.stage, plan.world_size, *offloads, activations=activations), tokens)


def smaller_training(config: Config, sizes: BatchSizes) -> str:
    """The keys that make training need less memory, with their values of now."""
    source = config.bertfast.train_input
    assert source is not None  # it is trained on
    ways = []
    if source.planner == "tokens":
        ways.append(f"lower bertfast.train_input.tokens_per_batch (now {source.tokens_per_batch})")
    elif sizes.micro_batch > 1:
        ways.append(
            f"make micro-batches smaller with train_micro_batch_size_per_gpu (now {sizes.micro_batch}; with gradient_accumulation_steps left "
            f"out, a global batch of bertfast.train_input.batch_size = {sizes.global_batch} is then done in more of them)"
        )
    ways.append(f"lower bertfast.train_input.max_sequence_length (now {source.max_sequence_length})")
    if config.bertfast.model.gradient_checkpointing != "selective":
        ways.append("set bertfast.model.gradient_checkpointing = selective")
    return ", or ".join(ways)


def smaller_evaluation(config: Config) -> str:
    """The keys that make evaluation and prediction need less memory, with their values of now."""
    source = config.bertfast.eval_input
    if source is None:
        return "give bertfast.eval_input a batch_size, or a max_sequence_length, below the default"
    batch = "batch_size" if source.tokens_per_batch is None else "tokens_per_batch"
    return (
        f"lower bertfast.eval_input.{batch} (now {getattr(source, batch)}), or bertfast.eval_input.max_sequence_length "
        f"(now {source.max_sequence_length})"
    )


@contextmanager
def memory_named(mend: str) -> Iterator[None]:
    """A context in which memory that runs out is an OutOfMemoryError that says what to do."""
    try:
        yield
    except BertfastError:
        raise
    except Exception as error:
        if (fault := out_of_memory(error)) is None:
            raise
        raise OutOfMemoryError(f"{fault}: {mend}") from error


def _largest_micro_batch(plan: Plan, lengths: np.ndarray) -> int:
    """The most tokens of a micro-batch, over steps spread evenly."""
    steps = np.unique(np.linspace(0, len(plan) - 1, _SAMPLED_STEPS, dtype=np.int64)).tolist()
    batches = (part for step in steps for rank in range(plan.world_size) for part in plan.micro_batches(step, rank))
    return max(int(lengths[part[part >= 0]].sum()) for part in batches)
