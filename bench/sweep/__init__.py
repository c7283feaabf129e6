"""Which launch of a kernel is the quickest on this GPU: `python -m bench.sweep`."""
