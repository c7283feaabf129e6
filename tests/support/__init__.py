"""What tests share: small models and data, whole runs, budgets of error."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
