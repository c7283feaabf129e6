"""What can be told of a config from itself alone."""

from __future__ import annotations

from bertfast.checks.table import Found
from bertfast.config import Config, InputConfig, check_monitors, resolve_batch_sizes, resolve_precision, task_configs
from bertfast.errors import ConfigError
from bertfast.machine import world_size
from bertfast.tasks import get_task
from bertfast.wording import counted

INPUTS = ("train_input", "eval_input")


def input_blocks(config: Config) -> list[tuple[str, InputConfig]]:
    return [(name, part) for name in INPUTS if (part := getattr(config.bertfast, name)) is not None]


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


def check_model_dir(found: Found) -> Found:
    """The same, where the folder of the config's run is none that the run reads from; see `check_places`."""
    from bertfast.training import check_places  # and torch with it, which a bad key is answered without

    check_places(found.value)
    return found


def device_in_use() -> str:
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


def check_precision(config: Config, device: str) -> Found:
    precision = resolve_precision(config.deepspeed, "cpu" if device == "cpu" else "cuda")
    return Found(precision, f"{precision} on {'a CPU' if device == 'cpu' else 'a GPU'}")


def check_batch(config: Config) -> Found:
    sizes = resolve_batch_sizes(config, world_size())
    parts = f"{counted(sizes.world_size, 'rank')} x {counted(sizes.micro_steps, 'micro-step')} x "
    if config.bertfast.train_input is not None and config.bertfast.train_input.planner == "tokens":
        return Found(sizes, f"{parts}{counted(sizes.micro_batch, 'pack')} of {config.bertfast.train_input.tokens_per_batch} tokens")
    return Found(sizes, f"{sizes.global_batch} = {parts}{counted(sizes.micro_batch, 'example')}")
