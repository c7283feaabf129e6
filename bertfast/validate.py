"""`bertfast validate`: everything that can be wrong before a run, checked without DeepSpeed and without training, and shown as one table.

Every check is made that can be: one that fails names its fault and lets the others go on, save those that need what it would have given.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from bertfast.config import Config
from bertfast.deepspeed_keys import check_monitors
from bertfast.errors import BertfastError, ConfigError
from bertfast.multitask_config import exported_blocks, task_configs
from bertfast.progress import counted
from bertfast.resolve import resolve_batch_sizes, resolve_precision
from bertfast.tasks import get_task

INPUTS = ("train_input", "eval_input")
_TABLE_WIDTH = 140  # characters, where there is no terminal to fill


@dataclass(frozen=True)
class Check:
    """One row of the table."""

    name: str
    result: Literal["ok", "warning", "failed", "skipped"]
    detail: str


class Found(NamedTuple):
    """What a check found out: a value that later checks need, a line for the table, and what is odd but no fault."""

    value: Any
    detail: str
    warning: str = ""


class Checks:
    """The checks made so far."""

    def __init__(self) -> None:
        self.rows: list[Check] = []

    def make(self, name: str, function: Callable[..., Found], *needs: Any) -> Any:
        """Make one check and return its value; None where it failed, or where one of `needs` is None and it could not be made."""
        if any(need is None for need in needs):
            self.rows.append(Check(name, "skipped", "needs a check that failed"))
            return None
        try:
            found = function(*needs)
        except BertfastError as error:
            self.rows.append(Check(name, "failed", str(error)))
            return None
        detail = f"{found.detail}; {found.warning}" if found.warning else found.detail
        self.rows.append(Check(name, "warning" if found.warning else "ok", detail))
        return found.value


def run_checks(load: Callable[[], Config], device: str | None = None, export: Callable[..., Found] | None = None) -> list[Check]:
    """Every check of a config, in the order of the table. load: reads the config; device: "cpu", "gpu" or None (whichever there is); export: what
    looks at an export block, given the config and the checkpoint."""
    checks = Checks()
    config = checks.make("config", lambda: check_config(load()))
    if config is None:  # nothing else can be checked, and a bad key is answered without the heavy imports
        checks.make("everything else", check_config, None)
        return checks.rows
    device = device or _device()
    precision = checks.make("precision", lambda: _check_precision(config, device))
    sizes = checks.make("batch size", lambda: _check_batch(config))

    from bertfast import preflight, recipe_checks

    checkpoint = checks.make("checkpoint", preflight.check_checkpoint, config)
    checks.make("sequence length", preflight.check_positions, config, checkpoint)
    tokenizer = checks.make("tokenizer", preflight.check_tokenizer, config, checkpoint)
    if config.bertfast.pretrain is not None:
        recipe_checks.check_pretraining(checks, config, device, precision, sizes, checkpoint, tokenizer)
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
    from bertfast import multitask_preflight, preflight, recipe_checks

    several = config.bertfast.multitask is not None
    if several:
        train, model, losses = multitask_preflight.check_tasks(checks, config, tokenizer, checkpoint)
    else:
        train, task = preflight.check_inputs(checks, config, tokenizer, checkpoint)
        model = checks.make("weights", preflight.check_weights, config, checkpoint, task)
    if config.bertfast.train_input is not None:
        if not several:
            loss = checks.make("loss", recipe_checks.check_loss, config.bertfast.loss, task, train)
        plan = checks.make("packing", preflight.check_plan, config, sizes, train)
        checks.make("optimizer", partial(recipe_checks.check_optimizer, config, device), precision, sizes, plan, model)
        if several:
            checks.make("one step", partial(multitask_preflight.check_step, config), model, plan, train, *losses)
        else:
            checks.make("one step", preflight.check_step, model, plan, train, loss)
        checks.make("memory per rank", preflight.check_memory, config, precision, model, plan, train)


def print_checks(checks: list[Check]) -> None:
    """Print the table on standard output, and how many checks failed."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}
    table = Table("check", "result", "detail", show_lines=True)
    for check in checks:
        table.add_row(check.name, Text(check.result, colours[check.result]), Text(check.detail))  # Text: brackets are no markup here
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _TABLE_WIDTH)
    console.print(table)
    failed = [check.name for check in checks if check.result == "failed"]
    console.print(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}" if failed else "Nothing failed.")


def check_config(config: Config) -> Found:
    """What can be told of a config from itself alone.

    Raises:
        ConfigError: naming the block at fault.
    """
    if config.bertfast.multitask is not None:
        for name, part in task_configs(config).items():
            if not get_task(part.bertfast.task).train_splits:
                raise ConfigError(
                    f"bertfast.multitask.tasks: task {name} has no training data; it is for eval and predict, by a model of mnli"
                )
        check_monitors(config.deepspeed)
        return Found(
            config, f"{config.path or 'a dictionary'}: tasks {', '.join(task_configs(config))}, {config.bertfast.multitask.sampling}"
        )
    task, block = get_task(config.bertfast.task), config.bertfast
    inputs = [name for name in INPUTS if getattr(block, name) is not None]
    if block.pretrain is not None and block.train_input is None:
        raise ConfigError(
            "there is no bertfast.train_input; it says how long the examples of the pre-training are, and how they are packed"
        )
    if not inputs:
        raise ConfigError(f"{config.path or 'config'}: there is neither a bertfast.train_input nor an eval_input, so there is no data")
    if block.train_input is not None and not task.train_splits:
        raise ConfigError(f"bertfast.train_input: task {task.name} has no training data; it is for eval and predict, by a model of mnli")
    check_monitors(config.deepspeed)
    return Found(config, f"{config.path or 'a dictionary'}: task {task.name}, {' and '.join(inputs)}")


def _device() -> str:
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


def _check_precision(config: Config, device: str) -> Found:
    precision = resolve_precision(config.deepspeed, "cpu" if device == "cpu" else "cuda")
    return Found(precision, f"{precision} on {'a CPU' if device == 'cpu' else 'a GPU'}")


def _check_batch(config: Config) -> Found:
    sizes = resolve_batch_sizes(config, _world_size())
    parts = f"{counted(sizes.world_size, 'rank')} x {counted(sizes.micro_steps, 'micro-step')} x "
    if config.bertfast.train_input is not None and config.bertfast.train_input.planner == "tokens":
        return Found(sizes, f"{parts}{counted(sizes.micro_batch, 'pack')} of {config.bertfast.train_input.tokens_per_batch} tokens")
    return Found(sizes, f"{sizes.global_batch} = {parts}{counted(sizes.micro_batch, 'example')}")


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE") or 1)
