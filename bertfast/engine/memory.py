"""How much memory one rank needs to train: parameters, gradients, optimizer states and activations, worked out on paper; and what there is.

The model states follow Rajbhandari et al. 2020 ("ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", section 3 and
table 1): with P parameters on N ranks, Adam in mixed precision holds 2P bytes of parameters, 2P of gradients, and 12P of optimizer states
(a float32 copy, the mean and the variance). Stage 1 divides the last by N, stage 2 the gradients too, stage 3 the parameters too.
Not counted: the buckets of the collectives, the CUDA context (about 0.5 GB) and what the allocator loses. So a run needs more than this: MiniLM
on a CPU, with 64 texts of 128 tokens, 2.5 GB in float32 where 1.6 are worked out, and 1.9 in bf16 where it is 1.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from bertfast.machine import local_world_size, memory_available, memory_total
from bertfast.wording import counted

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


@dataclass(frozen=True)
class Shortage:
    """What is wanting. `is_certain`: there is not that much memory, whoever else may have some of it. The sentence ends with no full stop."""

    is_certain: bool
    sentence: str


def shortage(estimate: MemoryEstimate, device_type: str) -> Shortage | None:
    """What this machine lacks for the estimate, all of its ranks together; None where there is enough, or where the system does not tell.

    device_type: "cpu" or "cuda". The parameters may be there already, be it in this process, and so count as free.
    """
    ranks = local_world_size()
    host = (estimate.host + (estimate.device if device_type == "cpu" else 0.0)) * ranks
    own = estimate.parameters * ranks if device_type == "cpu" else 0.0
    wanting = _wanting(host, memory_total(), memory_available(), own, f"{counted(ranks, 'rank')} on this machine", "memory")
    if device_type == "cuda" and wanting is None and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        wanting = _wanting(estimate.device, total, free, estimate.parameters, "a rank", "the GPU's memory")
    return wanting


def _wanting(needed: float, total: int | None, free: int | None, own: float, who: str, what: str) -> Shortage | None:
    if total is not None and needed > total:
        return Shortage(True, f"{who} would need {needed / 1e9:,.1f} GB or more of {what}, and there are {total / 1e9:,.1f} GB")
    if free is not None and needed > free + own:
        return Shortage(False, f"{who} would need {needed / 1e9:,.1f} GB or more of {what}, and {free / 1e9:,.1f} GB are free")
    return None
