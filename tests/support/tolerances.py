"""The one table of error budgets."""

import torch

LOGITS = 1e-5  # largest difference of logits from transformers', float32
GRADIENT = 1e-5  # norm of the difference of a gradient over the norm of the gradient, float32
LOSSES_50_STEPS = 1e-4  # largest difference of losses over 50 optimizer steps, float32
LOSSES_ZERO_STAGES = 1e-5  # between ZeRO stages over 20 steps, float32
FLOAT64 = 1e-12  # against a float64 computation of the same thing, largest difference

# Triton kernels: err(ours, float64) <= 2 * err(torch in the same precision, float64) + floor, each the largest difference over the largest value.
# A floor is about one rounding of the dtype: what two right answers may differ by where torch's happens to be exact.
TRITON_FLOORS = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}
INTERPRETED_BFLOAT16_FLOOR = 8e-3  # Triton's interpreter cuts float32 to bfloat16, where a GPU rounds to nearest
TRITON_LOGITS = 1e-4  # largest difference of float32 logits on the Triton backend from float64, with TF32 off
ONNX_LOGITS = 5e-5  # largest difference of an exported float32 graph's logits from transformers' in float64
ONNX_HALF_LOGITS = 5e-3  # the same of a float16 graph, of a tiny model
