from .config import check_config
from .kernels import choose_targets, compile_encoders, encoder_of, print_kernels
from .recipe import optimizer_of
from .table import Found, print_checks
from .validate import run_checks
from .weights import check_checkpoint, check_positions, check_tokenizer

__all__ = [
    "Found",
    "check_checkpoint",
    "check_config",
    "check_positions",
    "check_tokenizer",
    "choose_targets",
    "compile_encoders",
    "encoder_of",
    "optimizer_of",
    "print_checks",
    "print_kernels",
    "run_checks",
]
