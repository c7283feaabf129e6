from .card import write_model_card
from .predictions import choose_format, clean_stdout, is_folder, output_name, prediction_lines, write_lines, write_predictions
from .profiling import RunProfiler
from .progress import LOG_FILE, Progress, StartupClock
from .results import MODEL_CONFIG_FILE, RECIPE_BLOCKS, RESULTS_FILE, changed, run_facts, write_model_config, write_results

__all__ = [
    "LOG_FILE",
    "MODEL_CONFIG_FILE",
    "RECIPE_BLOCKS",
    "RESULTS_FILE",
    "Progress",
    "RunProfiler",
    "StartupClock",
    "changed",
    "choose_format",
    "clean_stdout",
    "is_folder",
    "output_name",
    "prediction_lines",
    "run_facts",
    "write_lines",
    "write_model_card",
    "write_model_config",
    "write_predictions",
    "write_results",
]
