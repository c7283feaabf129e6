from .convert import convert_checkpoint
from .folder import OWN_ARCHITECTURE, model_folder, read_config, read_weights, resolve_folder, write_weights
from .names import LoadReport, from_transformers_names, to_transformers_names, without_layers
from .sizes import DEMO, config_of_checkpoint
from .tokenizer import load_tokenizer, task_of_model

__all__ = [
    "DEMO",
    "OWN_ARCHITECTURE",
    "LoadReport",
    "config_of_checkpoint",
    "convert_checkpoint",
    "from_transformers_names",
    "load_tokenizer",
    "model_folder",
    "read_config",
    "read_weights",
    "resolve_folder",
    "task_of_model",
    "to_transformers_names",
    "without_layers",
    "write_weights",
]
