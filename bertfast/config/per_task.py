"""A config of several tasks, as one config for each of them: what loads, describes, checks and exports a task then need not know of the others."""

from __future__ import annotations

from pathlib import Path

from bertfast.config.blocks import InputConfig
from bertfast.config.multitask import SharedTask, TaskInput
from bertfast.config.schema import BertfastConfig, Config
from bertfast.errors import ConfigError

_HELD_FOR_ALL = ("multitask", "loss")  # the loss of a task among others is the mixture's business


def task_configs(config: Config) -> dict[str, Config]:
    """The config of each task by its name, in order: the shared blocks, with the task and its own inputs; the model is the same."""
    block = config.bertfast
    assert block.multitask is not None, "asked of a config of several tasks"
    return {task.name: Config(config.deepspeed, _block_of(block, task), config.path) for task in block.multitask.tasks}


def configs_of(config: Config) -> list[Config]:
    """The config of each task; of a lone one the config itself."""
    return [config] if config.bertfast.multitask is None else list(task_configs(config).values())


def refuse_several(config: Config, command: str) -> None:
    """Raise ConfigError for a config of several tasks where a command (predict, export, verify) takes the model of one."""
    if config.bertfast.multitask is None:
        return
    tasks = config.bertfast.multitask.tasks
    folder = Path(config.bertfast.run.model_dir) / "model" / tasks[0].name
    flag = "--checkpoint_path " if command == "predict" else ""
    raise ConfigError(
        f"{config.path or 'config'}: there is a model for each of {len(tasks)} tasks ({', '.join(task.name for task in tasks)}); {command} "
        f"one at a time, without --config: {f'{flag}{folder}' if command != 'verify' else 'the bundle knows its task'}"
    )


def exported_blocks(block: BertfastConfig) -> list[BertfastConfig]:
    """The blocks that the exporter is to be asked about: that of a lone task itself, or each task's, its model and its bundle's place in run
    and export."""
    if block.multitask is None:
        return [block]
    assert block.export is not None, "asked of a config that exports"
    folder, found = Path(block.run.model_dir), []
    for task in block.multitask.tasks:
        run = block.run.model_copy(update={"model_dir": str(folder / "model" / task.name)})
        export = block.export.model_copy(update={"output": str(Path(block.export.output or folder / "onnx") / task.name)})
        found.append(_block_of(block, task).model_copy(update={"run": run, "export": export}))
    return found


def _block_of(block: BertfastConfig, task: SharedTask) -> BertfastConfig:
    inputs = {
        "train_input": _merged(block.train_input, task.train_input),
        "eval_input": None if task.eval_input is None else _merged(block.eval_input, task.eval_input),
    }
    return BertfastConfig.model_validate({**_given(block), "task": task.task, **inputs})


def _given(block: BertfastConfig) -> dict:
    return {name: value for name, value in block if name not in _HELD_FOR_ALL}


def _merged(shared: InputConfig | None, own: TaskInput) -> InputConfig:
    """The shared input with one task's data; validated anew, so that its rules hold (one source, a budget that holds the longest)."""
    assert shared is not None, "a config of several tasks gets each input that one of its tasks has"
    return InputConfig.model_validate({**shared.model_dump(exclude_unset=True), **own.model_dump(exclude_unset=True, exclude_none=True)})
