"""Two runs of the suites side by side: `python -m bench.compare OLD NEW` says what got slower."""
