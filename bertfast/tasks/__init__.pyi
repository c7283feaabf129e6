from .catalogue import TASKS as TASKS
from .catalogue import get_task as get_task
from .metrics import compute_metrics as compute_metrics
from .metrics import is_better as is_better
from .metrics import softmax as softmax
from .task import HubSet as HubSet
from .task import Task as Task
