"""The ops that go row by row, with their gradients: embeddings, LayerNorm with dropout and residual, bias and GELU. See source/rows.cpp."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bertfast_kernels.cpu.calls import blocks, is_half, plain, pointer, run
from bertfast_kernels.primitives.masks import Dropout, row_mask

# T tokens, D hidden, F feed-forward, V rows of a table


def dropout_add_layer_norm(
    x_TD: Tensor, x_bias_D: Tensor, residual_TD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, dropout: Dropout | None
) -> Tensor:
    return _Norm.apply(x_TD, x_bias_D, residual_TD, weight_D, bias_D, eps, dropout)


def bias_gelu(x_TF: Tensor, bias_F: Tensor, approximate: str) -> Tensor:
    return _Gelu.apply(x_TF, bias_F, approximate)


def embedding_layer_norm(
    ids: tuple[Tensor, ...], tables: tuple[Tensor, ...], weight_D: Tensor, bias_D: Tensor, eps: float, dropout: Dropout | None, dtype: torch.dtype,
    sparse: bool,
) -> Tensor:  # fmt: skip
    return _Embedding.apply(*ids, *tables, weight_D, bias_D, eps, dropout, dtype, sparse)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, x_bias, residual, weight, bias, eps, dropout):
        x, residual = x.contiguous(), residual.contiguous()
        rows, columns = x.shape
        keep, ctx.scale = _mask(x, dropout)
        y, z = torch.empty_like(x), torch.empty_like(x)
        mean, rstd = x.new_empty(2, rows, dtype=torch.float32)
        of_columns = [plain(parameter) for parameter in (x_bias, weight, bias)]
        run(
            "norm_forward",
            is_half(x), pointer(x), pointer(of_columns[0]), pointer(residual), pointer(of_columns[1]), pointer(of_columns[2]), pointer(keep),
            ctx.scale, eps, rows, columns, pointer(y), pointer(z), pointer(mean), pointer(rstd), torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(z, weight, mean, rstd, keep)
        return y

    @staticmethod
    @once_differentiable  # else a gradient of gradients would lack this op's share without a word
    def backward(ctx, dy):
        z, weight, mean, rstd, keep = ctx.saved_tensors
        dy, of_columns = dy.contiguous(), plain(weight)
        rows, columns = z.shape
        dz = torch.empty_like(z)
        dx = dz if keep is None else torch.empty_like(z)
        partial, sums = z.new_empty(blocks(rows), 3, columns, dtype=torch.float32), z.new_empty(3, columns, dtype=torch.float32)
        run(
            "norm_backward",
            is_half(z), pointer(dy), pointer(z), pointer(of_columns), pointer(mean), pointer(rstd), pointer(keep), ctx.scale, rows, columns,
            pointer(dz), pointer(dx), pointer(partial), pointer(sums), torch.get_num_threads(),
        )  # fmt: skip
        dx_bias, dweight, dbias = sums.to(weight.dtype).unbind()
        return dx, dx_bias, dz, dweight, dbias, None, None


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, approximate):
        x, ctx.tanh, of_columns = x.contiguous(), approximate == "tanh", plain(bias)
        y = torch.empty_like(x)
        run("gelu_forward", is_half(x), ctx.tanh, pointer(x), pointer(of_columns), *x.shape, pointer(y), torch.get_num_threads())
        ctx.save_for_backward(x, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, bias = ctx.saved_tensors
        dy, dx, of_columns = dy.contiguous(), torch.empty_like(x), plain(bias)
        partial, dbias = x.new_empty(blocks(len(x)), x.shape[1], dtype=torch.float32), x.new_empty(x.shape[1], dtype=torch.float32)
        run(
            "gelu_backward",
            is_half(x), ctx.tanh, pointer(dy), pointer(x), pointer(of_columns), *x.shape, pointer(dx), pointer(partial), pointer(dbias),
            torch.get_num_threads(),
        )  # fmt: skip
        return dx, dbias.to(bias.dtype), None


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, word_ids, segment_ids, position_ids, word, segment, position, weight, bias, eps, dropout, dtype, sparse):
        ctx.sparse = sparse
        ids = [ids.to(torch.int32).contiguous() for ids in (word_ids, segment_ids, position_ids)]
        tables = [table.detach().contiguous() for table in (word, segment, position)]
        rows, columns = len(word_ids), word.shape[1]
        y, statistics = word.new_empty(rows, columns, dtype=dtype), word.new_empty(2, rows)
        keep, ctx.scale = _mask(y, dropout)
        sizes = (ctypes.c_long * 3)(*(len(table) for table in tables))
        outside = run(
            "embedding_forward",
            is_half(y), _pointers(ids), _pointers(tables), sizes, pointer(weight.detach()), pointer(bias.detach()), pointer(keep), ctx.scale, eps,
            rows, columns, pointer(y), *map(pointer, statistics), torch.get_num_threads(),
        )  # fmt: skip
        if outside >= 0:
            raise IndexError(f"token {outside} has an id outside its table: {[int(each[outside]) for each in ids]} of {list(sizes)} rows")
        ctx.save_for_backward(*ids, *tables, weight, statistics, keep)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        *ids, word, segment, position, weight, statistics, keep = ctx.saved_tensors
        tables, dy = (word, segment, position), dy.contiguous()
        rows, columns = dy.shape
        de = word.new_empty(rows, columns)
        partial, sums = word.new_empty(blocks(rows), 2, columns), word.new_empty(2, columns)
        threads = torch.get_num_threads()
        run(
            "embedding_backward",
            is_half(dy), pointer(dy), _pointers(ids), _pointers(tables), pointer(weight.detach()), *map(pointer, statistics), pointer(keep), ctx.scale,
            rows, columns, pointer(de), pointer(partial), pointer(sums), threads,
        )  # fmt: skip
        grads = []
        for table_ids, table in zip(ids, tables, strict=True):
            is_sparse = ctx.sparse and table is word
            if is_sparse:
                present, table_ids = torch.unique(table_ids, return_inverse=True)
                table_ids = table_ids.to(torch.int32)
            grad = word.new_zeros(len(present) if is_sparse else len(table), columns)
            run("add_rows", pointer(de), pointer(table_ids), rows, columns, pointer(grad), threads)
            grads.append(
                torch.sparse_coo_tensor(present[None].long(), grad, table.shape, is_coalesced=True, check_invariants=False)
                if is_sparse
                else grad
            )
        return None, None, None, *grads, *sums.unbind(), None, None, None, None


def _mask(x_TD: Tensor, dropout: Dropout | None) -> tuple[Tensor | None, float]:
    """The mask of an op on these rows, bool [T, D], and what is kept is multiplied with."""
    if dropout is None or dropout.p == 0.0:
        return None, 1.0
    return row_mask(x_TD, dropout, torch.bool), dropout.scale


def _pointers(tensors: list[Tensor] | tuple[Tensor, ...]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
