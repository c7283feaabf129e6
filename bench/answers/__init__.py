"""What a trained classifier's answers are worth, and what they cost: `python -m bench.answers`."""
