"""The plan, one step and the memory."""

from __future__ import annotations

import math

import torch

from bertfast.checks.table import Found
from bertfast.config import BatchSizes, Config, resolve_total_steps
from bertfast.data import EncodedDataset, TrainingSet
from bertfast.engine import Precision, shortage
from bertfast.errors import NonFiniteLossError, OutOfMemoryError
from bertfast.model import BertClassifier, BertEncoder, Loss
from bertfast.packing import Plan
from bertfast.training import footprint_of, plan_of, smaller_training
from bertfast.wording import counted

STEP_EXAMPLES = 8  # of the first micro-batch: enough to see a loss, few enough for a large model on a CPU


def check_plan(config: Config, sizes: BatchSizes, train: TrainingSet) -> Found:
    part = config.bertfast.train_input
    assert part is not None  # the examples are its own
    plan = plan_of(train, part, sizes, config.bertfast.run.seed)
    facts = plan.describe()
    steps = resolve_total_steps(config.bertfast, len(plan))
    return Found(
        plan,
        f"{facts['planner']}: {counted(len(plan), 'step')} an epoch, {steps:,} in all; {facts['fill']:.1%} of each batch is real tokens; "
        f"the fullest part of a step holds {facts['balance']:.2f} times the mean",
    )


def check_step(model: BertClassifier, plan: Plan, train: EncodedDataset, loss_of: Loss) -> Found:
    """One forward and backward pass of a few examples of the first micro-batch, packed, in float32 on the CPU."""
    indices = plan.micro_batches(0, 0)[0][:STEP_EXAMPLES]
    batch = loss_of.prepared(train.batch(indices))
    assert batch.labels is not None
    model.train()
    loss = loss_of(model(batch), batch.labels) / len(indices)
    shown = step_facts(model, loss, ", ".join(train.where(int(index)) for index in indices))
    chance = "" if loss_of.chance is None else f" (guessing: {loss_of.chance:.3f})"
    return Found(loss.item(), f"{counted(len(indices), 'example')}, {batch.num_tokens} tokens: loss {loss.item():.3f}{chance}, {shown}")


def step_facts(model: torch.nn.Module, loss: torch.Tensor, examples: str) -> str:
    """Take the gradients of a loss, and tell their norm.

    Raises:
        NonFiniteLossError: naming the examples.
    """
    loss.backward()
    norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.stack(norms).norm().item()
    model.zero_grad(set_to_none=True)
    if not math.isfinite(loss.item()) or not math.isfinite(norm):
        raise NonFiniteLossError(f"the loss is {loss.item()} and the gradient's norm {norm}; the examples: {examples}")
    return f"gradient norm {norm:.3f}"


def check_memory(
    config: Config, device: str, precision: Precision, sizes: BatchSizes, model: BertEncoder, plan: Plan, train: TrainingSet
) -> Found:
    """What a rank needs, held against what this machine has: a warning where it is not free now, a fault where it is not there at all.

    Raises:
        OutOfMemoryError: naming the keys that make a run need less.
    """
    estimate, tokens = footprint_of(config, precision, model, plan, train)
    parts = {
        "parameters": estimate.parameters,
        "gradients": estimate.gradients,
        "optimizer": estimate.optimizer,
        f"activations of {tokens:,} tokens": estimate.activations,
    }
    shown = " + ".join(f"{name} {_megabytes(size)}" for name, size in parts.items() if size)
    host = f"; offloaded to the host: {_megabytes(estimate.host)}" if estimate.host else ""
    wanting = shortage(estimate, "cpu" if device == "cpu" else "cuda")
    advice = f"{wanting.sentence}: {smaller_training(config, sizes)}" if wanting else ""
    if wanting and wanting.is_certain:
        raise OutOfMemoryError(advice)
    return Found(
        estimate,
        f"about {_megabytes(estimate.device)}: {shown}{host} (ZeRO stage {config.zero.stage}, {counted(plan.world_size, 'rank')}, {precision})",
        advice,
    )


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"
