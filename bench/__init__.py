"""Comparisons: bertfast beside what a user would take instead. Each bench_* is one suite, and a command: `python -m bench.bench_step`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the repository
