"""`bertfast validate`: everything that can be wrong before a run, checked without DeepSpeed and without training, and shown as one table.

Every check is made that can be: one that fails names its fault and lets the others go on, save those that need what it would have given.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from bertfast.checks.config import check_batch, check_config, check_model_dir, check_precision, device_in_use
from bertfast.checks.table import Check, Checks, Found
from bertfast.config import Config, exported_blocks
from bertfast.tasks import get_task

if TYPE_CHECKING:
    from bertfast.data import TrainingSet


def run_checks(load: Callable[[], Config], device: str | None = None, export: Callable[..., Found] | None = None) -> list[Check]:
    """Every check of a config, in the order of the table. load: reads the config; device: "cpu", "gpu" or None (whichever there is); export: what
    looks at an export block, given the config and the checkpoint."""
    checks = Checks()
    config = checks.make("config", lambda: check_model_dir(check_config(load())))
    if config is None:  # nothing else can be checked, and a bad key is answered without the heavy imports
        checks.make("everything else", check_config, None)
        return checks.rows
    device = device or device_in_use()
    precision = checks.make("precision", lambda: check_precision(config, device))
    sizes = checks.make("batch size", lambda: check_batch(config))

    from bertfast.checks import pretraining, weights

    checkpoint = checks.make("checkpoint", weights.check_checkpoint, config)
    checks.make("sequence length", weights.check_positions, config, checkpoint)
    tokenizer = checks.make("tokenizer", weights.check_tokenizer, config, checkpoint)
    if config.bertfast.pretrain is not None:
        pretraining.check_pretraining(checks, config, device, precision, sizes, checkpoint, tokenizer)
    else:
        _check_training(checks, config, device, precision, sizes, checkpoint, tokenizer)
    if config.bertfast.export is not None and export is not None:
        for block in exported_blocks(config.bertfast):
            several = config.bertfast.multitask is not None
            name = f"export: {get_task(block.task).name}" if several else "export"
            checks.make(name, export, Config(config.deepspeed, block, config.path), checkpoint)
    return checks.rows


def _check_training(checks: Checks, config: Config, device: str, precision: Any, sizes: Any, checkpoint: Any, tokenizer: Any) -> None:
    """What the training of a classifier, or of several tasks, needs: data, weights, loss, batches, optimizer, memory."""
    from bertfast.checks import data, multitask, recipe, step, weights

    several = config.bertfast.multitask is not None
    train: TrainingSet | None
    if several:
        train, model, losses = multitask.check_tasks(checks, config, tokenizer, checkpoint)
    else:
        train, task = data.check_inputs(checks, config, tokenizer, checkpoint)
        model = checks.make("weights", weights.check_weights, config, checkpoint, task)
    if config.bertfast.train_input is not None:
        if not several:
            loss = checks.make("loss", recipe.check_loss, config.bertfast.loss, task, train)
        plan = checks.make("packing", step.check_plan, config, sizes, train)
        checks.make("optimizer", partial(recipe.check_optimizer, config, device), precision, sizes, plan, model)
        if several:
            checks.make("one step", partial(multitask.check_step, config), model, plan, train, *losses)
        else:
            checks.make("one step", step.check_step, model, plan, train, loss)
        checks.make("memory per rank", partial(step.check_memory, config, device), precision, sizes, model, plan, train)
