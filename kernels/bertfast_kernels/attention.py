"""Variable-length softmax attention over packed sequences, forward and backward, with no padding and no T x T matrix.

For each sequence and head, with s = 1/sqrt(H), Z the dropout's keep mask over the chance to keep, and o the elementwise product:

    S = s Q K^T        P = softmax(S)        O = (Z o P) V
    dV = (Z o P)^T dO  dP = Z o (dO V^T)     dS = P o (dP - rowsum(P o dP))     dQ = s dS K     dK = s dS^T Q

(Vaswani et al. 2017; the backward as in FlashAttention, Dao et al. 2022.) The torch form takes runs of neighbouring sequences of one length and
gives each to batched matrix products, so a batch that is sorted by length needs few. Products and statistics are float32 (float64 for float64)
whatever the input's dtype: the conversion rides along with a copy that is needed anyway.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from bertfast_kernels.dropout import Dropout, keyed_mask, stream_mask

# T tokens, B sequences, N heads, H head size; in a run: n sequences of L tokens, Q queries each (L, or 1 for [CLS] alone)

_RUN_ELEMENTS = 2**21  # scores in a run: 8 MiB of float32, so that a run's scores stay in the cache between its products
_RECOMPUTE_LENGTH = 256  # from here on P is recomputed in the backward: stored, it would cost 4 N L bytes a token and layer


class Run(NamedTuple):
    """Neighbouring sequences of one length: their first token and sequence, how many they are, and the length."""

    token: int
    sequence: int
    n: int
    length: int


def length_runs(cu_seqlens: torch.Tensor, n_heads: int) -> list[Run]:
    """The runs of a batch, none with more than 2**21 scores (or one sequence). Brings cu_seqlens [B + 1] to the host, once per tensor."""
    runs = getattr(cu_seqlens, "_length_runs", None)
    if runs is None:
        bounds = cu_seqlens.tolist()
        runs = []
        for sequence, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
            length = end - start
            last = runs[-1] if runs else None
            if last and last.length == length and (last.n + 1) * n_heads * length * length <= _RUN_ELEMENTS:
                runs[-1] = last._replace(n=last.n + 1)
            else:
                runs.append(Run(start, sequence, 1, length))
        cu_seqlens._length_runs = runs  # kept on the tensor: every layer of a step asks for the runs of the same one
    return runs


def varlen_attention(qkv_T3NH: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int, dropout: Dropout | None = None) -> torch.Tensor:
    """Bidirectional attention within each sequence: qkv [T, 3, N, H] -> [T, N * H] of the same dtype. cu_seqlens: int32 [B + 1]."""
    return _PackedAttention.apply(qkv_T3NH, None, cu_seqlens, dropout).flatten(1)


def varlen_cls_attention(
    q_BNH: torch.Tensor, kv_T2NH: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int, dropout: Dropout | None = None
) -> torch.Tensor:
    """The attention of each sequence's first token alone: q [B, N, H] and kv [T, 2, N, H] -> [B, N * H].

    Equal to the rows cu_seqlens[:-1] of `varlen_attention`, with dropout by key as well.
    """
    return _PackedAttention.apply(kv_T2NH, q_BNH, cu_seqlens, dropout).flatten(1)


class _PackedAttention(torch.autograd.Function):
    """x is [T, 3, N, H], or [T, 2, N, H] (keys and values) beside q [B, N, H], one query a sequence."""

    @staticmethod
    def forward(ctx, x_TPNH, q_BNH, cu_seqlens, dropout):
        dropout = dropout if dropout is not None and dropout.p > 0 else None
        n_heads = x_TPNH.shape[2]
        out_XNH = torch.empty_like(x_TPNH[:, 0] if q_BNH is None else q_BNH, memory_format=torch.contiguous_format)
        query_rows = _token_rows if q_BNH is None else _sequence_rows
        ctx.runs = length_runs(cu_seqlens, n_heads)
        ctx.scale = dropout.scale if dropout else 1.0
        ctx.saved = []  # (probabilities, or None where they are recomputed; mask, or None) of each run
        with torch.autocast(x_TPNH.device.type, enabled=False):
            for run in ctx.runs:
                q, k, v = _run_inputs(x_TPNH, q_BNH, run)
                probs = _probabilities(q, k)
                keep = _run_mask(dropout, run, n_heads, q.shape[1]) if dropout else None
                kept = probs if keep is None else probs * keep
                out = torch.baddbmm(v.new_zeros(()), kept, v, beta=0, alpha=ctx.scale)
                query_rows(out_XNH, run).copy_(_split_heads(out, run))
                ctx.saved.append((probs if run.length < _RECOMPUTE_LENGTH else None, keep))
        ctx.save_for_backward(x_TPNH, q_BNH)
        return out_XNH

    @staticmethod
    def backward(ctx, grad_XNH):
        x_TPNH, q_BNH = ctx.saved_tensors
        query_rows = _token_rows if q_BNH is None else _sequence_rows
        dx_TPNH = torch.empty_like(x_TPNH, memory_format=torch.contiguous_format)
        dq_BNH = None if q_BNH is None else torch.empty_like(q_BNH, memory_format=torch.contiguous_format)
        dtype = _compute_dtype(x_TPNH)
        zero = torch.zeros((), dtype=dtype, device=x_TPNH.device)
        for run, (probs, keep) in zip(ctx.runs, ctx.saved, strict=True):
            q, k, v = _run_inputs(x_TPNH, q_BNH, run)
            if probs is None:
                probs = _probabilities(q, k)
            kept = probs if keep is None else probs * keep
            dout = _merge_heads(query_rows(grad_XNH, run), dtype)
            dv = torch.baddbmm(zero, kept.transpose(1, 2), dout, beta=0, alpha=ctx.scale)
            dprobs = torch.baddbmm(zero, dout, v.transpose(1, 2), beta=0, alpha=ctx.scale)
            if keep is not None:
                dprobs.mul_(keep)
            dscores = torch._softmax_backward_data(dprobs, probs, -1, dtype)
            softmax_scale = q.shape[-1] ** -0.5
            dq = torch.baddbmm(zero, dscores, k, beta=0, alpha=softmax_scale)
            dk = torch.baddbmm(zero, dscores.transpose(1, 2), q, beta=0, alpha=softmax_scale)
            planes = _token_rows(dx_TPNH, run)
            planes[:, :, -2].copy_(_split_heads(dk, run))
            planes[:, :, -1].copy_(_split_heads(dv, run))
            (planes[:, :, 0] if q_BNH is None else query_rows(dq_BNH, run)).copy_(_split_heads(dq, run))
        return dx_TPNH, dq_BNH, None, None


def _token_rows(x_T: torch.Tensor, run: Run) -> torch.Tensor:
    """The run's rows of a tensor with a row per token: [n, L, ...]."""
    return x_T[run.token : run.token + run.n * run.length].unflatten(0, (run.n, run.length))


def _sequence_rows(x_B: torch.Tensor, run: Run) -> torch.Tensor:
    """The run's rows of a tensor with a row per sequence: [n, 1, ...]."""
    return x_B[run.sequence : run.sequence + run.n].unsqueeze(1)


def _run_inputs(x_TPNH, q_BNH, run: Run) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q [nN, Q, H] and k, v [nN, L, H] of a run, contiguous and in the dtype of the products: one copy for all that lies in x."""
    dtype = _compute_dtype(x_TPNH)
    planes = _token_rows(x_TPNH, run).permute(2, 0, 3, 1, 4).to(dtype, memory_format=torch.contiguous_format).flatten(1, 2)
    if q_BNH is None:
        return planes[0], planes[1], planes[2]
    return _merge_heads(_sequence_rows(q_BNH, run), dtype), planes[0], planes[1]


def _merge_heads(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[n, Q, N, H] -> [nN, Q, H] of `dtype`."""
    return x.transpose(1, 2).to(dtype, memory_format=torch.contiguous_format).flatten(0, 1)


def _split_heads(x: torch.Tensor, run: Run) -> torch.Tensor:
    """[nN, Q, H] -> [n, Q, N, H]."""
    return x.unflatten(0, (run.n, -1)).transpose(1, 2)


def _probabilities(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(H)): [nN, Q, H] and [nN, L, H] -> [nN, Q, L]."""
    scores = torch.baddbmm(q.new_zeros(()), q, k.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5)
    return torch.softmax(scores, dim=-1)


def _run_mask(dropout: Dropout, run: Run, n_heads: int, queries: int) -> torch.Tensor:
    """The keep mask of a run, bool [nN, Q, L]."""
    if dropout.key is None:
        return stream_mask(dropout.p, dropout.stream, (run.n * n_heads, queries, run.length))
    device = dropout.key.device
    example = dropout.example_ids[run.token : run.token + run.n * run.length : run.length].view(run.n, 1, 1)
    head = torch.arange(n_heads, device=device).view(1, n_heads, 1)
    query = torch.arange(queries, device=device).view(1, 1, queries)
    return keyed_mask(dropout, example, query, run.length, plane=head).flatten(0, 1)


def _compute_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
