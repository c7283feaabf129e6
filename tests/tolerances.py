"""The one table of error budgets."""

LOGITS = 1e-5  # largest difference of logits from transformers', float32
GRADIENT = 1e-5  # norm of the difference of a gradient over the norm of the gradient, float32
LOSSES_50_STEPS = 1e-4  # largest difference of losses over 50 optimizer steps, float32
LOSSES_ZERO_STAGES = 1e-5  # between ZeRO stages over 20 steps, float32
FLOAT64 = 1e-12  # against a float64 computation of the same thing, largest difference
