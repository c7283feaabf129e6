"""Variable-length softmax attention over packed sequences, forward and backward, with no padding and no T x T matrix.

For each sequence and head, with s = 1/sqrt(H), Z the dropout's keep mask over the chance to keep, and o the elementwise product:

    S = s Q K^T        P = softmax(S)        O = (Z o P) V
    dV = (Z o P)^T dO  dP = Z o (dO V^T)     dS = P o (dP - rowsum(P o dP))     dQ = s dS K     dK = s dS^T Q

(Vaswani et al. 2017; the backward as in FlashAttention, Dao et al. 2022.) The torch form takes runs of neighbouring sequences of one length and
gives each to batched matrix products, so a batch that is sorted by length needs few. One gather brings the rows of all runs into the order of
their products, and what knows no length (dropout) is done for many runs at once: at 40 tokens a sequence, calls cost more than arithmetic.
Products and statistics are float32 (float64 for float64) whatever the input's dtype.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from bertfast_kernels.primitives.masks import Dropout, keyed_mask, stream_mask

# T tokens, B sequences, N heads, H head size, P planes (queries, keys, values); R rows of all runs, in the order sequence, head, position;
# in a run: n sequences of L tokens, with Q queries each (L, or 1 for [CLS] alone); S scores of a chunk of runs

_CHUNK_SCORES = 2**21  # 8 MiB of float32, so that a chunk's scores stay in the cache between its products
_RECOMPUTE_LENGTH = 256  # from here on P is recomputed in the backward: stored, it would cost 4 N L bytes a token and layer


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


class Run(NamedTuple):
    """Neighbouring sequences of one length: their first token and sequence, how many they are, and the length."""

    token: int
    sequence: int
    n: int
    length: int


class Products:
    """The batched products of a batch: how rows and scores are cut into runs, with one query a sequence (`cls_only`) or one a token."""

    def __init__(self, chunks: list[list[Run]], n_heads: int, cls_only: bool):
        runs = [run for chunk in chunks for run in chunk]
        self.query_shapes = [(run.n * n_heads, 1 if cls_only else run.length) for run in runs]
        self.key_shapes = [(run.n * n_heads, run.length) for run in runs]
        self.score_shapes = [(batch, queries, keys) for (batch, queries), (_, keys) in zip(self.query_shapes, self.key_shapes, strict=True)]
        self.query_rows = [batch * queries for batch, queries in self.query_shapes]
        self.key_rows = [batch * keys for batch, keys in self.key_shapes]

    def queries(self, x_RH: torch.Tensor) -> list[torch.Tensor]:
        """[R, H], a row a query -> [nN, Q, H] of each run, views all."""
        return [part.view(*shape, part.shape[1]) for part, shape in zip(x_RH.split(self.query_rows), self.query_shapes, strict=True)]

    def keys(self, x_RH: torch.Tensor) -> list[torch.Tensor]:
        """[R, H], a row a key -> [nN, L, H] of each run, views all."""
        return [part.view(*shape, part.shape[1]) for part, shape in zip(x_RH.split(self.key_rows), self.key_shapes, strict=True)]

    def scores(self, x_S: torch.Tensor, runs: slice) -> list[torch.Tensor]:
        """[S] of a chunk -> [nN, Q, L] of each of its runs, views all."""
        shapes = self.score_shapes[runs]
        return [part.view(shape) for part, shape in zip(x_S.split([a * b * c for a, b, c in shapes]), shapes, strict=True)]


class Layout:
    """How a batch is worked through: its runs, in chunks of at most 2**21 scores (or one sequence), and the order of their rows.

    Brings cu_seqlens [B + 1] to the host; ask `of` for it, which does so once for all layers of a step.
    """

    def __init__(self, cu_seqlens: torch.Tensor, n_heads: int):
        self.n_heads, self.device = n_heads, cu_seqlens.device
        self._bounds = cu_seqlens.cpu().numpy().astype(np.int64)
        self.chunks = _chunks(self._bounds.tolist(), n_heads)
        self._products: dict[bool, Products] = {}
        self._offsets: dict[bool, torch.Tensor] = {}
        self._orders: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @classmethod
    def of(cls, cu_seqlens: torch.Tensor, n_heads: int) -> Layout:
        """The layout of a batch, kept on its tensor."""
        layout = getattr(cu_seqlens, "_attention_layout", None)
        if layout is None or layout.n_heads != n_heads:
            layout = cls(cu_seqlens, n_heads)
            cu_seqlens._attention_layout = layout  # type: ignore[attr-defined]  # a tensor takes attributes of anyone's
        return layout

    def products(self, cls_only: bool) -> Products:
        """The runs' products, made once."""
        if cls_only not in self._products:
            self._products[cls_only] = Products(self.chunks, self.n_heads, cls_only)
        return self._products[cls_only]

    def offsets(self, cls_only: bool) -> torch.Tensor:
        """Where the scores of each sequence begin among those of the batch: int64 [B]."""
        if cls_only not in self._offsets:
            lengths = np.diff(self._bounds)
            scores = self.n_heads * lengths * (1 if cls_only else lengths)
            self._offsets[cls_only] = torch.from_numpy(np.cumsum(scores) - scores)
        return self._offsets[cls_only]

    def gather(self, x_TPNH: torch.Tensor) -> torch.Tensor:
        """Every plane's rows in the order of the runs, in the dtype of the products: [T, P, N, H] -> [P, R, H]."""
        planes, size = x_TPNH.shape[1], x_TPNH.shape[3]
        rows = x_TPNH.reshape(-1, size).index_select(0, self._order(planes)[0])
        return rows.to(_compute_dtype(x_TPNH)).view(planes, -1, size)

    def scatter(self, rows_PRH: torch.Tensor, x_TPNH: torch.Tensor) -> torch.Tensor:
        """What `gather` did, undone: [P, R, H] -> [T, P, N, H] in the dtype of x, with zeros for tokens that no sequence holds."""
        planes, _, size = rows_PRH.shape
        rows = rows_PRH.view(-1, size).to(x_TPNH.dtype).index_select(0, self._order(planes)[1])
        x = rows.view(-1, planes, self.n_heads, size)
        idle = x_TPNH.shape[0] - x.shape[0]
        return torch.cat((x, x.new_zeros(idle, *x.shape[1:]))) if idle else x

    def _order(self, planes: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which row of [T P N, H] each row of [P R, H] is; and the other way round."""
        if planes not in self._orders:
            # Of each sequence and head: its rows' number, their first row in [T P N, H], and their first in [R, H].
            rows = np.repeat(np.diff(self._bounds), self.n_heads)
            first = np.add.outer(self._bounds[:-1] * planes * self.n_heads, np.arange(self.n_heads)).ravel()
            stride = planes * self.n_heads
            plane_order = np.repeat(first - stride * (np.cumsum(rows) - rows), rows) + stride * np.arange(rows.sum())
            order = torch.from_numpy(np.concatenate([plane_order + plane * self.n_heads for plane in range(planes)])).to(self.device)
            inverse = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=self.device))
            self._orders[planes] = order, inverse
        return self._orders[planes]


class _PackedAttention(torch.autograd.Function):
    """x is [T, 3, N, H], or [T, 2, N, H] (keys and values) beside q [B, N, H], one query a sequence."""

    @staticmethod
    def forward(ctx, x_TPNH, q_BNH, cu_seqlens, dropout):
        dropout = dropout if dropout is not None and dropout.p > 0 else None
        ctx.layout = layout = Layout.of(cu_seqlens, x_TPNH.shape[2])
        ctx.scale = dropout.scale if dropout else 1.0
        ctx.saved = []  # of each chunk: its probabilities, signed (see _signed), or None where they are recomputed; then its mask
        products = layout.products(q_BNH is not None)
        with torch.autocast(x_TPNH.device.type, enabled=False):
            rows_PRH, q_RH = _rows(layout, x_TPNH, q_BNH)
            out_RH = torch.empty_like(q_RH)
            q, k, v, out = products.queries(q_RH), products.keys(rows_PRH[-2]), products.keys(rows_PRH[-1]), products.queries(out_RH)
            for runs, is_long in _run_slices(layout.chunks):
                probs_S = _probabilities(products, runs, q, k)
                mask_S = _mask(dropout, layout, runs, products.score_shapes[runs], probs_S.dtype) if dropout else None
                kept_S = probs_S if mask_S is None else probs_S * mask_S
                for weights, v_run, out_run in zip(products.scores(kept_S, runs), v[runs], out[runs], strict=True):
                    _product(weights, v_run, ctx.scale, out_run)
                if is_long:
                    ctx.saved.append((None, mask_S if mask_S is None else mask_S.bool()))
                else:
                    ctx.saved.append((probs_S if mask_S is None else _signed(probs_S, kept_S), None))
        ctx.save_for_backward(x_TPNH, q_BNH)
        if q_BNH is not None:
            return out_RH.to(q_BNH.dtype).view(q_BNH.shape)
        return layout.scatter(out_RH.unsqueeze(0), x_TPNH).squeeze(1)

    @staticmethod
    def backward(ctx, grad_XNH):
        x_TPNH, q_BNH = ctx.saved_tensors
        layout, cls_only = ctx.layout, q_BNH is not None
        products = layout.products(cls_only)
        rows_PRH, q_RH = _rows(layout, x_TPNH, q_BNH)
        dout_RH = grad_XNH.to(q_RH.dtype).reshape(q_RH.shape) if cls_only else layout.gather(grad_XNH.unsqueeze(1))[0]
        grads_PRH = torch.empty_like(rows_PRH)
        dq_RH = torch.empty_like(q_RH) if cls_only else grads_PRH[0]
        q, dq, dout = (products.queries(x_RH) for x_RH in (q_RH, dq_RH, dout_RH))
        k, v, dk, dv = (products.keys(x_RH) for x_RH in (rows_PRH[-2], rows_PRH[-1], grads_PRH[-2], grads_PRH[-1]))
        softmax_scale = q_RH.shape[-1] ** -0.5
        for (runs, _), (signed_S, mask_S) in zip(_run_slices(layout.chunks), ctx.saved, strict=True):
            probs_S = _probabilities(products, runs, q, k) if signed_S is None else signed_S.abs()
            if signed_S is not None and ctx.scale > 1:
                mask_S = torch.gt(signed_S, 0, out=torch.empty_like(signed_S))
            kept_S = probs_S if mask_S is None else probs_S * mask_S
            dprobs_S = torch.empty_like(probs_S)
            for i, weights, dprobs in _numbered(runs, products.scores(kept_S, runs), products.scores(dprobs_S, runs)):
                _product(weights.mT, dout[i], ctx.scale, dv[i])
                _product(dout[i], v[i].mT, ctx.scale, dprobs)
            if mask_S is not None:
                dprobs_S.mul_(mask_S)
            for i, probs, dprobs in _numbered(runs, products.scores(probs_S, runs), products.scores(dprobs_S, runs)):
                dscores = torch._softmax_backward_data(dprobs, probs, -1, probs.dtype)
                _product(dscores, k[i], softmax_scale, dq[i])
                _product(dscores.mT, q[i], softmax_scale, dk[i])
        return layout.scatter(grads_PRH, x_TPNH), dq_RH.to(q_BNH.dtype).view(q_BNH.shape) if cls_only else None, None, None


def _chunks(bounds: list[int], n_heads: int) -> list[list[Run]]:
    """The runs of a batch, in chunks that hold long runs or short ones, and at most 2**21 scores (or one sequence)."""
    chunks: list[list[Run]] = []
    room = 0
    for sequence, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        length = end - start
        scores = n_heads * length * length
        last = chunks[-1][-1] if chunks else None
        if last is None or scores > room or (last.length < _RECOMPUTE_LENGTH) != (length < _RECOMPUTE_LENGTH):
            chunks.append([Run(start, sequence, 1, length)])
            room = _CHUNK_SCORES
        elif last.length == length:
            chunks[-1][-1] = last._replace(n=last.n + 1)
        else:
            chunks[-1].append(Run(start, sequence, 1, length))
        room -= scores
    return chunks


def _run_slices(chunks: list[list[Run]]) -> list[tuple[slice, bool]]:
    """Of each chunk: which of all runs it holds, and whether they are long."""
    slices, first = [], 0
    for chunk in chunks:
        slices.append((slice(first, first + len(chunk)), chunk[0].length >= _RECOMPUTE_LENGTH))
        first += len(chunk)
    return slices


def _rows(layout: Layout, x_TPNH: torch.Tensor, q_BNH: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """All planes' rows [P, R, H] and the queries' rows [R, H], in the dtype of the products."""
    rows_PRH = layout.gather(x_TPNH)
    return rows_PRH, rows_PRH[0] if q_BNH is None else q_BNH.to(rows_PRH.dtype).flatten(0, 1)


def _probabilities(products: Products, runs: slice, q: list[torch.Tensor], k: list[torch.Tensor]) -> torch.Tensor:
    """softmax(q k^T / sqrt(H)) of a chunk's runs: [S]."""
    shapes = products.score_shapes[runs]
    sizes = [batch * queries * keys for batch, queries, keys in shapes]
    probs_S, scores_S = q[0].new_empty(sum(sizes)), q[0].new_empty(max(sizes))
    for q_run, k_run, probs, size in zip(q[runs], k[runs], products.scores(probs_S, runs), sizes, strict=True):
        scores = scores_S[:size].view(probs.shape)
        _product(q_run, k_run.mT, q_run.shape[-1] ** -0.5, scores)
        torch.softmax(scores, -1, out=probs)
    return probs_S


def _product(a: torch.Tensor, b: torch.Tensor, factor: float, out: torch.Tensor) -> None:
    """out = factor * a b, of batches of matrices."""
    torch.baddbmm(out, a, b, beta=0, alpha=factor, out=out)


def _signed(probs_S: torch.Tensor, kept_S: torch.Tensor) -> torch.Tensor:
    """Probabilities and mask in one tensor: negative where dropped. A probability of 0 reads as dropped, and counts nothing either way."""
    return probs_S.neg().add_(kept_S, alpha=2)


def attention_mask(dropout: Dropout, cu_seqlens: torch.Tensor, n_heads: int, cls_only: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(The keep mask of all scores, bool [S]: by sequence, head, query and key; int64 [B], where each sequence's begins.)"""
    layout = Layout.of(cu_seqlens, n_heads)
    shapes = layout.products(cls_only).score_shapes
    masks = [_mask(dropout, layout, runs, shapes[runs], torch.bool) for runs, _ in _run_slices(layout.chunks)]
    return masks[0] if len(masks) == 1 else torch.cat([torch.empty(0, dtype=torch.bool), *masks]), layout.offsets(cls_only)


def _mask(dropout: Dropout, layout: Layout, runs: slice, shapes: list[tuple[int, int, int]], dtype: torch.dtype) -> torch.Tensor:
    """The keep mask of a chunk's scores: [S], 1 where kept."""
    if dropout.key is None:
        assert dropout.stream is not None, "a Dropout without a key has a stream"
        return stream_mask(dropout.p, dropout.stream, (sum(batch * queries * keys for batch, queries, keys in shapes),), dtype)
    assert dropout.example_ids is not None, "a Dropout with a key has ids"
    arange = lambda n, *shape: torch.arange(n, device=layout.device).view(shape)  # noqa: E731
    all_runs = [run for chunk in layout.chunks for run in chunk]
    masks = []
    for run, (_, queries, keys) in zip(all_runs[runs], shapes, strict=True):
        if keys == 0:
            continue
        example = dropout.example_ids[run.token : run.token + run.n * keys : keys].view(run.n, 1, 1)
        head, query = arange(layout.n_heads, 1, -1, 1), arange(queries, 1, 1, -1)
        masks.append(keyed_mask(dropout, example, query, keys, plane=head).flatten())
    return torch.cat(masks).to(dtype) if masks else torch.empty(0, dtype=dtype, device=layout.device)


def _numbered(runs: slice, *views: list[torch.Tensor]):
    """(number of the run, its view of each list), over a chunk's runs."""
    return zip(range(runs.start, runs.stop), *views, strict=True)


def _compute_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
