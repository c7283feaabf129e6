from .build import build_engine, join_ranks, rates_by_part
from .capture import Capture
from .cuda_graphs import GraphedForward, graphs_for
from .memory import DTYPES, Precision, activation_bytes, estimate_memory
from .optimizer import thaw_step, trained_groups
from .ranks import Ranks, start_ranks
from .state import load_training_state, save_training_state, saved_facts, whole_state

__all__ = [
    "DTYPES",
    "Capture",
    "GraphedForward",
    "Precision",
    "Ranks",
    "activation_bytes",
    "build_engine",
    "estimate_memory",
    "graphs_for",
    "join_ranks",
    "load_training_state",
    "rates_by_part",
    "save_training_state",
    "saved_facts",
    "start_ranks",
    "thaw_step",
    "trained_groups",
    "whole_state",
]
