from .catalogue import TASKS, get_task
from .metrics import compute_metrics, is_better
from .task import HubSet, Task

__all__ = [
    "TASKS",
    "HubSet",
    "Task",
    "compute_metrics",
    "get_task",
    "is_better",
]
