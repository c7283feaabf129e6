"""The classes of a trained model, held against those of a task."""

from __future__ import annotations

from collections.abc import Sequence

from bertfast.errors import CheckpointError
from bertfast.tasks.task import Task


def task_of_classes(task: Task, names: tuple[str, ...] | None, source: str, several: bool | None = None) -> Task:
    """`task`, its classes taken from those of a trained model where they are not known.

    Args:
        names: the model's classes, in order; None of a regression.
        source: the model's folder, for the errors.
        several: whether the model gives each of them a probability of its own; None where it does not say.

    Raises:
        CheckpointError: a model with another number of classes than the task, with others, or with the same in another order; or one of several labels a
            text where the task has one, or the other way round.
    """
    task = _task_of_kind(task, several, source)
    if not task.is_complete:
        return task.with_labels(names)
    count = 1 if names is None else len(names)
    if task.num_labels != count:
        raise CheckpointError(
            f"{source}: the model has {count} labels, but task {task.name} has {task.num_labels}; was it fine-tuned on another task?"
        )
    if not task.is_regression and names is not None:
        check_same_classes(names, task.class_names, source, f"those of task {task.name}")
    return task


def _task_of_kind(task: Task, several: bool | None, source: str) -> Task:
    is_open = task.labels is None and task.layout.kind == "own" and not task.is_regression and task.kind != "regression"
    if several and is_open:
        return task.of_several()
    if several is not None and several != task.is_multilabel:
        model, other = ("several labels", "one") if several else ("one label", "several")
        raise CheckpointError(
            f"{source}: the model gives a text {model}, and task {task.name} is of {other}; was it fine-tuned on another task?"
        )
    return task


def check_same_classes(names: Sequence[str], wanted: Sequence[str], source: str, whose: str) -> None:
    """Hold the classes of a trained model against as many others, of a task say (`whose` in words); capitals are as good as small letters.

    Raises:
        CheckpointError: every answer would get the name of a class that it does not mean. Classes that have but numbers fit any.
    """
    ours, theirs = ([name.casefold() for name in order] for order in (wanted, names))
    if ours == theirs or _are_numbers(ours) or _are_numbers(theirs):
        return
    if sorted(ours) == sorted(theirs):
        raise CheckpointError(
            f"{source}: the model's classes are in the order {', '.join(names)}, {whose} in the order "
            f"{', '.join(wanted)}; give a task block of your own, with label_names in the model's order"
        )
    raise CheckpointError(
        f"{source}: the model's classes are {', '.join(names)}, {whose} are {', '.join(wanted)}; was it fine-tuned on another task? "
        "If they mean the same, write the task's into id2label of its config.json"
    )


def _are_numbers(names: list[str]) -> bool:
    """Whether classes are called by their place alone, as transformers calls them where nobody says more."""
    return all(name in (str(index), f"label_{index}") for index, name in enumerate(names))
