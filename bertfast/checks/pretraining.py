"""A config with a pretrain block: its text, its weights and a step."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bertfast.checks.recipe import check_optimizer
from bertfast.checks.step import STEP_EXAMPLES, check_memory, check_plan, step_facts
from bertfast.checks.table import Checks, Found
from bertfast.checks.weights import weights_found
from bertfast.config import BatchSizes, Config, HeadConfig, LossConfig, TruncationConfig
from bertfast.data import PretrainingSet
from bertfast.engine import Precision, Ranks
from bertfast.model import BertPretrainer
from bertfast.packing import Plan
from bertfast.training import MaskedWords, pretraining_loss
from bertfast.wording import counted

if TYPE_CHECKING:
    from transformers import BertConfig

_NOT_OF_PRETRAINING = {"head": HeadConfig(), "truncation": TruncationConfig(), "loss": LossConfig()}


def check_pretraining(
    checks: Checks,
    config: Config,
    device: str,
    precision: Precision | None,
    sizes: BatchSizes | None,
    checkpoint: tuple[Path, BertConfig] | None,
    tokenizer: Any,
) -> None:
    """All checks of a config with a `pretrain` block that come after its tokenizer's."""
    objective = MaskedWords(config, Ranks(0, 1, torch.device("cpu")))
    train = checks.make("text: train", partial(_check_text, config, objective.training_set), tokenizer, checkpoint)
    checks.make("text: held out", partial(_check_held_out, config, objective), tokenizer, checkpoint)
    model = checks.make("weights", partial(_check_weights, config, objective), checkpoint)
    plan = checks.make("packing", check_plan, config, sizes, train)
    checks.make("optimizer", partial(check_optimizer, config, device), precision, sizes, plan, model)
    checks.make("one step", _check_step, model, plan, train)
    checks.make("memory per rank", partial(check_memory, config, device), precision, sizes, model, plan, train)


def _check_text(config: Config, load: Any, tokenizer: Any, checkpoint: tuple[Path, BertConfig]) -> Found:
    data = load(tokenizer)
    data.check_vocabulary(checkpoint[1].vocab_size, checkpoint[1].type_vocab_size)
    unused = [name for name, default in _NOT_OF_PRETRAINING.items() if getattr(config.bertfast, name) != default]
    warnings = [f"bertfast.{' and '.join(unused)}: not for pre-training, and not used"] if unused else []
    return Found(data, _describe(data), "; ".join(filter(None, [*warnings, data.next_sentence_fault])))


def _check_held_out(config: Config, objective: MaskedWords, tokenizer: Any, checkpoint: tuple[Path, BertConfig]) -> Found:
    datasets = objective.evaluation_sets(tokenizer)
    if datasets:
        return Found(datasets, "; ".join(_describe(data) for data in datasets.values()))
    wanted = config.bertfast.eval_input is not None
    return Found(datasets, "none", "bertfast.eval_input is there, but pretrain.eval_text_files are not" if wanted else "")


def _describe(data: PretrainingSet) -> str:
    lengths = data.lengths
    return f"{data.source}: {counted(len(data), 'example')}; tokens: mean {lengths.mean():.1f}, longest {lengths.max()}"


def _check_weights(config: Config, objective: MaskedWords, checkpoint: tuple[Path, BertConfig]) -> Found:
    torch.manual_seed(config.bertfast.run.seed)
    return weights_found(objective.model(str(checkpoint[0])))


def _check_step(model: BertPretrainer, plan: Plan, train: PretrainingSet) -> Found:
    indices = plan.micro_batches(0, 0)[0][:STEP_EXAMPLES]
    batch = train.batch(indices)
    assert batch.masked_rows is not None  # see MaskedBatch.of
    n_masked = len(batch.masked_rows)
    model.train()
    logits_MV, nsp_BC = model(batch)
    loss, _ = pretraining_loss(logits_MV, nsp_BC, batch, max(n_masked, 1), len(indices))
    shown = step_facts(model, loss, ", ".join(train.where(int(index)) for index in indices))
    words = f"{counted(len(indices), 'example')}, {batch.num_tokens} tokens, {n_masked} of them masked"
    return Found(loss.item(), f"{words}: loss {loss.item():.3f}, {shown}")
