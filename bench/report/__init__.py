"""Rows made readable: `python -m bench.report` writes report.md, with its tables and plots."""
