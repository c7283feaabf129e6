"""What every suite measures with: where a number comes from, turns and their intervals, how a GPU is timed, and whether a result is right."""
