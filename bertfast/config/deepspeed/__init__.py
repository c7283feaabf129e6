"""DeepSpeed's own keys: which there are, what they may hold, and what becomes of each. Nothing here imports DeepSpeed."""
