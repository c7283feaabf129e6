"""Contenders side by side, each in a process of its own: training steps, and steps of pre-training."""
