"""How much memory one rank needs to train: parameters, gradients, optimizer states and activations, worked out on paper.

The model states follow Rajbhandari et al. 2020 ("ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", section 3 and
table 1): with P parameters on N ranks, Adam in mixed precision holds 2P bytes of parameters, 2P of gradients, and 12P of optimizer states
(a float32 copy, the mean and the variance). Stage 1 divides the last by N, stage 2 the gradients too, stage 3 the parameters too.
Not counted: the buckets of the collectives, the CUDA context (about 0.5 GB) and what the allocator loses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from transformers import BertConfig

Precision = Literal["fp32", "fp16", "bf16"]
DTYPES: dict[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}  # of each precision
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}  # of one parameter, gradient or activation


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes per rank. `host` is what offloading moves to the CPU's memory; the rest lies on the device."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    host: float

    @property
    def device(self) -> float:
        return self.parameters + self.gradients + self.optimizer + self.activations


def estimate_memory(
    n_parameters: int,
    precision: Precision,
    stage: int = 0,
    world_size: int = 1,
    offload_optimizer: bool = False,
    offload_param: bool = False,
    activations: float = 0.0,
) -> MemoryEstimate:
    """Bytes per rank for `n_parameters` trained with Adam under ZeRO stage 0 to 3 on `world_size` ranks.

    In float32 there is no second copy of the weights, save under stages 1 and 2, where DeepSpeed keeps its own part of them as a float32
    copy whatever the model's precision. Offloading the optimizer moves its states to the host, and under stages 2 and 3 the rank's part of
    the gradients with them (Ren et al. 2021, "ZeRO-Offload"); offloading parameters is for stage 3.
    """
    size = BYTES[precision]
    master_copy = 4 if precision != "fp32" or stage in (1, 2) else 0
    parameters = size * n_parameters / (world_size if stage >= 3 else 1)
    gradients = size * n_parameters / (world_size if stage >= 2 else 1)
    optimizer = (master_copy + 8) * n_parameters / (world_size if stage >= 1 else 1)
    host = 0.0
    if offload_optimizer:
        host, optimizer = host + optimizer, 0.0
        if stage >= 2:
            host, gradients = host + gradients, 0.0
    if offload_param and stage >= 3:
        host, parameters = host + parameters, 0.0
    return MemoryEstimate(parameters, gradients, optimizer, activations, host)


def activation_bytes(config: BertConfig, n_tokens: int, precision: Precision, selective: bool = False) -> float:
    """Bytes that the forward pass of `n_tokens` packed tokens keeps for the backward pass.

    Korthikanti et al. 2022 ("Reducing Activation Recomputation in Large Transformer Models", equation 1) without the attention scores,
    which are recomputed: a token keeps in each layer 8D + 2F numbers (the inputs of the products, of GELU and of both LayerNorms, and the
    queries, keys and values) and 2D bytes of dropout masks; D is the hidden size, F the feed-forward size. With F = 4D in 16 bits: 34D.
    selective: GELU, a LayerNorm and the masks are recomputed (see recompute.py), which leaves 7D + F numbers.
    """
    size, wide = config.hidden_size, config.intermediate_size
    per_layer = BYTES[precision] * (7 * size + wide) if selective else BYTES[precision] * (8 * size + 2 * wide) + 2 * size
    return float(n_tokens) * config.num_hidden_layers * per_layer
