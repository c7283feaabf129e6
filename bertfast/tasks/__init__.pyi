from .catalogue import TASKS, get_task
from .metrics import compute_metrics, is_better
from .task import Task

__all__ = [
    "TASKS",
    "Task",
    "compute_metrics",
    "get_task",
    "is_better",
]
