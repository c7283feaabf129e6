from .blocks import (
    HEAD_KEY,
    VARIANTS,
    WHOLE_HEAD,
    Block,
    ExportConfig,
    HeadConfig,
    InputConfig,
    LossConfig,
    ModelConfig,
    OptimizationConfig,
    PretrainConfig,
    RunConfig,
    TaskConfig,
    TextInput,
    TruncationConfig,
)
from .deepspeed_keys import check_monitors
from .files import read_json_or_yaml
from .load import load_config
from .multitask import MultitaskConfig
from .per_task import configs_of, exported_blocks, refuse_several, task_configs
from .resolve import (
    BatchSizes,
    resolve_batch_sizes,
    resolve_deepspeed,
    resolve_optimizer,
    resolve_precision,
    resolve_total_steps,
    resolve_warmup_steps,
)
from .schema import BertfastConfig, Config, Zero

__all__ = [
    "HEAD_KEY",
    "VARIANTS",
    "WHOLE_HEAD",
    "BatchSizes",
    "BertfastConfig",
    "Block",
    "Config",
    "ExportConfig",
    "HeadConfig",
    "InputConfig",
    "LossConfig",
    "ModelConfig",
    "MultitaskConfig",
    "OptimizationConfig",
    "PretrainConfig",
    "RunConfig",
    "TaskConfig",
    "TextInput",
    "TruncationConfig",
    "Zero",
    "check_monitors",
    "configs_of",
    "exported_blocks",
    "load_config",
    "read_json_or_yaml",
    "refuse_several",
    "resolve_batch_sizes",
    "resolve_deepspeed",
    "resolve_optimizer",
    "resolve_precision",
    "resolve_total_steps",
    "resolve_warmup_steps",
    "task_configs",
]
