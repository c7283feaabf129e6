"""Attention as bench_kernels times it: packed sequences by our kernels and by torch's varlen_attn, and the same sequences padded to their longest.

What the others get is what is best for them: queries, keys and values as three leaves, whose gradients nobody brings together, where ours come packed.
Padded contenders attend from padding too, as they do in a model; their mask is left out where no sequence is padded.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases.kernel_cases import DTYPE, Call, Case, Maker
from bench.cases.lengths import SUMMARIES, synthetic_histogram
from bertfast_kernels import Dropout, varlen_attention

# T tokens, B sequences, S the longest of them, N heads, H head size

LONGEST = 128  # where MNLI's sequences are cut, as in the configs


def attention_cases(make: Maker) -> Iterator[Case]:
    """12 heads of 64: MNLI's lengths (a micro-batch of 32, and some 16,384 tokens), and 16,384 tokens of fixed lengths; with dropout and without."""
    heads, size = (2, 16) if make.tiny else (12, 64)
    mnli = mnli_lengths(make.seed)
    if make.tiny:
        batches = {"MNLI, 3 sequences": mnli[:3] // 8 + 1, "fixed 9": np.full(2, 9)}
    else:
        batches = {"MNLI, 32 sequences": mnli[:32], "MNLI, 420 sequences": mnli[:420]}
        batches |= {"fixed 128": np.full(128, 128), "fixed 512": np.full(32, 512)}
    for name, lengths in batches.items():
        for p in (0.0, 0.1):
            yield attention_case(make, name, np.sort(lengths), heads, size, p)


def mnli_lengths(seed: int, count: int = 4096) -> np.ndarray:
    """Lengths of MNLI pairs, cut at 128: of the histogram in BERTFAST_DATA, or drawn to fit it (mean 39)."""
    data = os.environ.get("BERTFAST_DATA")
    if data:
        file = Path(data) / "length_histograms" / "measured_wordpiece_lengths.json"
        counts = np.array([0, *json.loads(file.read_text())["mnli_dev_matched"]["hist_1_to_512"]])
    else:
        counts = synthetic_histogram(SUMMARIES["mnli_dev_matched"])
    draws = np.random.default_rng(seed).choice(len(counts), size=count, p=counts / counts.sum())
    return np.minimum(draws, LONGEST)


def attention_case(make: Maker, name: str, lengths: np.ndarray, heads: int, size: int, p: float) -> Case:
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    tokens, longest, width = int(bounds[-1]), int(lengths.max()), heads * size
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=make.device)
    example = torch.from_numpy(np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)).to(make.device)
    position = torch.from_numpy(np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])).to(make.device)
    dropout = Dropout(p, 4, torch.tensor([make.seed, 7], device=make.device), example, position) if p else None
    is_real = torch.arange(longest, device=make.device) < torch.from_numpy(lengths).to(make.device)[:, None]
    mask = None if is_real.all() else is_real[:, None, None, :]
    packed = make.keep(lambda: (make.normal(tokens, 3, heads, size, grad=False), make.normal(tokens, width, grad=False)))

    def ours(qkv: Tensor) -> Tensor:
        return varlen_attention(qkv, cu_seqlens, longest, dropout)

    def ours_on(index: int) -> Call:
        qkv, upstream = packed(index)
        return Call(ours, [qkv.detach().requires_grad_()], upstream)

    def padded(function: Callable[..., Tensor]) -> Callable[[int], Call]:
        def on(index: int) -> Call:
            qkv, upstream = packed(index)
            wide = qkv.new_zeros((*is_real.shape, 3, heads, size))
            wide[is_real] = qkv
            wide_upstream = upstream.new_zeros((*is_real.shape, width))
            wide_upstream[is_real] = upstream
            return Call(function, [x.detach().requires_grad_() for x in wide.permute(2, 0, 3, 1, 4)], wide_upstream)

        return on

    def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.mT * (1 / math.sqrt(size))
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return _joined(F.dropout(torch.softmax(scores, -1), p) @ v)

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _joined(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p))

    contenders = {
        "bertfast": ours_on,
        "torch eager": padded(eager),
        "torch.compile": padded(make.compiled(eager)),
        "torch SDPA": padded(sdpa),
    }
    if p == 0.0 and (varlen := _torch_varlen()) and make.device.type == "cuda":  # it has no dropout, and no CPU form
        contenders["torch varlen_attn"] = lambda index: Call(
            lambda q, k, v: varlen(q, k, v, cu_seqlens, cu_seqlens, longest, longest).flatten(1),
            [x.detach().requires_grad_() for x in packed(index)[0].unbind(1)],
            packed(index)[1],
        )
    one = tokens * width * DTYPE.itemsize
    flops = 4 * width * int((lengths.astype(np.int64) ** 2).sum())
    facts = {"sequences": len(lengths), "tokens": tokens, "mean_length": round(float(lengths.mean()), 2), "longest": longest}
    return Case(
        "varlen_attention", f"{name}, {heads} heads of {size}", p, contenders, (4 * one, 8 * one), 4 * one, lambda: (ours, [packed(0)[0]]),
        (flops, 5 * flops // 2), {**facts, "heads": heads, "head_size": size},
    )  # fmt: skip


def _joined(x_BNSH: Tensor) -> Tensor:
    """[B, N, S, H] -> [B, S, N H], as the next product reads it."""
    return x_BNSH.transpose(1, 2).flatten(2)


def _torch_varlen() -> Callable[..., Tensor] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn
