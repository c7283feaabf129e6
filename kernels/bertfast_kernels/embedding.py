"""y = Z o LayerNorm(e), e = word[input_id] + segment[token_type_id] + position[position_id], in one pass forward (Devlin et al. 2019, figure 2).

Z is the keep mask over the chance to keep, or 1. With LayerNorm as in layer_norm.py:

    dn = Z o dy      de = LayerNorm's dz for dn      dweight, dbias = the sums over rows of dn o n, dn
    dword[v] = the sum of de over the tokens whose input_id is v; dsegment and dposition likewise

Backward, with no atomics. One pass over the tokens gathers e again (to store it would cost a write and a read of T x D, the gather the read alone) and
writes de. Then the three tables are one: table row v of word, V + s of segment, V + S + p of position. A stable sort brings the tokens of each table row
together, and their de are added up in chunks of 128 sorted places: a row whose tokens lie in one chunk is finished there; what crosses a chunk's end
leaves a partial sum, and a last kernel adds those. So the two rows of the segment table, with half of all tokens each, are as quick as rare words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bertfast_kernels import reference, tiling
from bertfast_kernels.cpu import CPP_DTYPES, takes_cpp
from bertfast_kernels.cpu import rows as cpp
from bertfast_kernels.dispatch import takes_triton
from bertfast_kernels.layer_norm import parameter_tile, piece_columns, row_gradient_means, row_statistics
from bertfast_kernels.primitives.lazy_triton import Launch, jit, launch, multiprocessors, record_launches, tl
from bertfast_kernels.primitives.masks import Dropout
from bertfast_kernels.primitives.partials import sum_partials
from bertfast_kernels.primitives.philox import dropout_numbers, keep_tile, load_key
from bertfast_kernels.primitives.tables import sum_into_table

if TYPE_CHECKING:
    from bertfast_kernels.shapes import EncoderShape

# T tokens, D hidden, V vocabulary, S segments, P positions, R = V + S + P table rows; in a kernel: ROWS tokens, each in PIECES pieces of WIDTH columns


@jit
def _gather(table_ptr, ids_ptr, row, row_mask, column, SIZE: tl.constexpr, D: tl.constexpr):
    """table[ids[row]], float32 [ROWS, WIDTH]; an id outside the table gives a row of NaN, and reads nothing."""
    index = tl.load(ids_ptr + row, mask=row_mask, other=0)
    inside = (index >= 0) & (index < SIZE)
    offset = index.to(tl.int64)[:, None] * D + column
    values = tl.load(table_ptr + offset, mask=(row_mask & inside)[:, None] & (column < D), other=0.0).to(tl.float32)
    return tl.where(inside[:, None] | (column >= D), values, float("nan"))


@jit(do_not_specialize=["n_rows", "site", "threshold", "eps", "scale"])
def _embedding_forward_kernel(
    input_ptr, segment_id_ptr, position_id_ptr, word_ptr, segment_ptr, position_ptr, weight_ptr, bias_ptr, y_ptr, mean_ptr, rstd_ptr,
    key_ptr, example_ptr, place_ptr, n_rows, eps, site, threshold, scale,
    V: tl.constexpr, S: tl.constexpr, P: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr,
    VECTOR: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_mask = row < n_rows
    e = ()
    for i in tl.static_range(PIECES):
        column = piece_columns(i, WIDTH)
        piece = _gather(word_ptr, input_ptr, row, row_mask, column, V, D)
        piece += _gather(segment_ptr, segment_id_ptr, row, row_mask, column, S, D)
        piece += _gather(position_ptr, position_id_ptr, row, row_mask, column, P, D)
        e = e + (piece,)  # noqa: RUF005
    mean, rstd = row_statistics(e, eps, D, WIDTH, PIECES)
    if DROPOUT:
        seed, step = load_key(key_ptr)
        place = tl.load(place_ptr + row, mask=row_mask, other=0)
        example = tl.load(example_ptr + row, mask=row_mask, other=0)
    for i in tl.static_range(PIECES):
        column = piece_columns(i, WIDTH)
        weight = parameter_tile(weight_ptr, i, D, ROWS, WIDTH)
        bias = parameter_tile(bias_ptr, i, D, ROWS, WIDTH)
        y = (e[i] - mean[:, None]) * rstd[:, None] * weight + bias
        if DROPOUT:
            y *= tl.where(keep_tile(seed, step, place, example, site, threshold, i * (WIDTH // 4), WIDTH, VECTOR), scale, 0.0)
        offset = row[:, None].to(tl.int64) * D + column
        tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=row_mask[:, None] & (column < D))
    tl.store(mean_ptr + row, mean, mask=row_mask)
    tl.store(rstd_ptr + row, rstd, mask=row_mask)


@jit(do_not_specialize=["n_rows", "site", "threshold", "scale"])
def _embedding_backward_kernel(
    dy_ptr, input_ptr, segment_id_ptr, position_id_ptr, word_ptr, segment_ptr, position_ptr, weight_ptr, mean_ptr, rstd_ptr,
    key_ptr, example_ptr, place_ptr, de_ptr, partial_ptr, n_rows, site, threshold, scale,
    V: tl.constexpr, S: tl.constexpr, P: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr,
    VECTOR: tl.constexpr, DROPOUT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    zeros = ()
    for _ in tl.static_range(PIECES):
        zeros = zeros + (tl.zeros([ROWS, WIDTH], tl.float32),)  # noqa: RUF005
    dweight, dbias = zeros, zeros
    if DROPOUT:
        seed, step = load_key(key_ptr)
    for first in tl.range(tl.program_id(0) * ROWS, n_rows, tl.num_programs(0) * ROWS, num_stages=STAGES):
        row = first + tl.arange(0, ROWS)
        row_mask = row < n_rows
        start = row[:, None].to(tl.int64) * D
        mean = tl.load(mean_ptr + row, mask=row_mask, other=0.0)[:, None]
        rstd = tl.load(rstd_ptr + row, mask=row_mask, other=0.0)[:, None]
        if DROPOUT:
            place = tl.load(place_ptr + row, mask=row_mask, other=0)
            example = tl.load(example_ptr + row, mask=row_mask, other=0)
        g, normal, dweight_sums, dbias_sums = (), (), (), ()
        for i in tl.static_range(PIECES):
            column = piece_columns(i, WIDTH)
            dn = tl.load(dy_ptr + start + column, mask=row_mask[:, None] & (column < D), other=0.0).to(tl.float32)
            e = _gather(word_ptr, input_ptr, row, row_mask, column, V, D)
            e += _gather(segment_ptr, segment_id_ptr, row, row_mask, column, S, D)
            e += _gather(position_ptr, position_id_ptr, row, row_mask, column, P, D)
            if DROPOUT:
                dn *= tl.where(keep_tile(seed, step, place, example, site, threshold, i * (WIDTH // 4), WIDTH, VECTOR), scale, 0.0)
            n = (e - mean) * rstd
            g = g + (dn * parameter_tile(weight_ptr, i, D, ROWS, WIDTH),)  # noqa: RUF005
            normal = normal + (n,)  # noqa: RUF005
            dweight_sums = dweight_sums + (dweight[i] + dn * n,)  # noqa: RUF005
            dbias_sums = dbias_sums + (dbias[i] + dn,)  # noqa: RUF005
        dweight, dbias = dweight_sums, dbias_sums
        mean_g, mean_gn = row_gradient_means(normal, g, D, PIECES)
        for i in tl.static_range(PIECES):
            column = piece_columns(i, WIDTH)
            de = rstd * (g[i] - mean_g - normal[i] * mean_gn)
            tl.store(de_ptr + start + column, de.to(de_ptr.dtype.element_ty), mask=row_mask[:, None] & (column < D))
    partial = partial_ptr + tl.program_id(0) * (2 * D)
    for i in tl.static_range(PIECES):
        column = i * WIDTH + tl.arange(0, WIDTH)
        tl.store(partial + column, tl.sum(dweight[i], 0), mask=column < D)
        tl.store(partial + D + column, tl.sum(dbias[i], 0), mask=column < D)


def _launch_forward(
    ids: tuple[Tensor, ...], tables: tuple[Tensor, ...], weight_D: Tensor, bias_D: Tensor, eps: float, p: float, site: int,
    key: Tensor | None, example_ids_T: Tensor | None, place_ids_T: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(y, mean, rstd); ids and tables: of word, segment, position."""
    n_rows, columns = ids[0].shape[0], weight_D.shape[0]
    y_TD = tables[0].new_empty((n_rows, columns))
    mean_T, rstd_T = (y_TD.new_empty(n_rows, dtype=torch.float32) for _ in range(2))
    if n_rows > 0:
        _, threshold, scale = dropout_numbers(Dropout(p, key=key))
        tile = tiling.row_tile(columns)
        launch(
            _embedding_forward_kernel, (tiling.cdiv(n_rows, tile.rows),),
            *ids, *tables, weight_D, bias_D, y_TD, mean_T, rstd_T, key, example_ids_T, place_ids_T, n_rows, eps, site, threshold, scale,
            **_constants(tables, tile, p), num_warps=tile.num_warps,
        )  # fmt: skip
    return y_TD, mean_T, rstd_T


def _launch_backward(
    dy_TD: Tensor, ids: tuple[Tensor, ...], tables: tuple[Tensor, ...], weight_D: Tensor, mean_T: Tensor, rstd_T: Tensor, p: float, site: int,
    key: Tensor | None, example_ids_T: Tensor | None, place_ids_T: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(dtables [V + S + P, D], [2, D]: dweight and dbias)."""
    n_rows, columns = dy_TD.shape
    dtables_RD = tables[0].new_zeros((sum(table.shape[0] for table in tables), columns))
    if n_rows == 0:
        return dtables_RD, weight_D.new_zeros((2, columns))
    de_TD = torch.empty_like(dy_TD)
    _, threshold, scale = dropout_numbers(Dropout(p, key=key))
    # With loads ahead 1,024 columns in fp16 spill 8 bytes on sm_100.
    tile = tiling.row_grad_tile(columns, n_rows)._replace(num_stages=1)
    programs = tiling.walking_programs(n_rows, tile, multiprocessors(dy_TD.device))
    partial_P2D = dy_TD.new_empty((programs, 2, columns), dtype=torch.float32)
    launch(
        _embedding_backward_kernel, (programs,),
        dy_TD, *ids, *tables, weight_D, mean_T, rstd_T, key, example_ids_T, place_ids_T, de_TD, partial_P2D, n_rows, site, threshold, scale,
        **_constants(tables, tile, p), STAGES=tile.num_stages, **tile.options(),
    )  # fmt: skip
    _sum_into_tables(de_TD, ids, tables, dtables_RD)
    return dtables_RD, sum_partials(partial_P2D, weight_D.dtype)


def _constants(tables: tuple[Tensor, ...], tile: tiling.RowTile | tiling.WalkTile, p: float) -> dict[str, int | bool]:
    sizes = dict(zip("VSP", (table.shape[0] for table in tables), strict=True))
    vector = tiling.vector_columns(tables[0].element_size())
    return {
        **sizes,
        "D": tables[0].shape[1],
        "ROWS": tile.rows,
        "WIDTH": tile.columns,
        "PIECES": tile.pieces,
        "VECTOR": vector,
        "DROPOUT": p > 0,
    }


def _sum_into_tables(de_TD: Tensor, ids: tuple[Tensor, ...], tables: tuple[Tensor, ...], dtables_RD: Tensor) -> None:
    """dtables[r] = the sum of de over the tokens that read table row r; rows that none read stay 0."""
    first_segment = tables[0].shape[0]
    first_position = first_segment + tables[1].shape[0]
    table_rows = torch.cat((ids[0], ids[1] + first_segment, ids[2] + first_position))
    sorted_rows, order = torch.sort(table_rows, stable=True)
    sum_into_table(sorted_rows, order, de_TD, dtables_RD)


@torch.library.custom_op("bertfast::embedding_layer_norm", mutates_args=())
def _forward(
    input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor, word: Tensor, segment: Tensor, position: Tensor, weight: Tensor, bias: Tensor,
    eps: float, p: float, site: int, key: Tensor | None, example_ids: Tensor | None, place_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    ids, tables = (input_ids, token_type_ids, position_ids), (word, segment, position)
    return _launch_forward(_dense(ids), _dense(tables), weight, bias, eps, p, site, key, example_ids, place_ids)


@_forward.register_fake
def _(input_ids, token_type_ids, position_ids, word, segment, position, weight, bias, eps, p, site, key, example_ids, place_ids):
    statistics = word.new_empty(input_ids.shape[0], dtype=torch.float32)
    return word.new_empty((input_ids.shape[0], word.shape[1])), statistics, torch.empty_like(statistics)


@torch.library.custom_op("bertfast::embedding_layer_norm_backward", mutates_args=())
def _backward(
    dy: Tensor, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor, word: Tensor, segment: Tensor, position: Tensor,
    weight: Tensor, mean: Tensor, rstd: Tensor, p: float, site: int, key: Tensor | None, example_ids: Tensor | None, place_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    ids, tables = (input_ids, token_type_ids, position_ids), (word, segment, position)
    return _launch_backward(dy.contiguous(), _dense(ids), _dense(tables), weight, mean, rstd, p, site, key, example_ids, place_ids)


@_backward.register_fake
def _(dy, input_ids, token_type_ids, position_ids, word, segment, position, weight, mean, rstd, p, site, key, example_ids, place_ids):
    rows = word.shape[0] + segment.shape[0] + position.shape[0]
    return word.new_empty((rows, word.shape[1])), weight.new_empty((2, word.shape[1]))


def _dense(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in tensors)


def _setup_context(ctx, inputs, output):
    ctx.set_materialize_grads(False)  # nobody reads the gradient of the statistics: no zeros are made for it
    *tensors, _bias, _eps, ctx.p, ctx.site, key, example_ids, place_ids = inputs
    ctx.save_for_backward(*tensors, output[1], output[2], key, example_ids, place_ids)


def _autograd(ctx, dy, _dmean, _drstd):
    *tensors, key, example_ids, place_ids = ctx.saved_tensors
    dtables, sums = _backward(dy, *tensors, ctx.p, ctx.site, key, example_ids, place_ids)
    dword, dsegment, dposition = dtables.split([table.shape[0] for table in tensors[3:6]])
    dweight, dbias = sums.unbind()
    return None, None, None, dword, dsegment, dposition, dweight, dbias, *[None] * 6


_forward.register_autograd(_autograd, setup_context=_setup_context)


def variants(shape: EncoderShape) -> list[Launch]:
    """What a training step of an encoder of this shape launches."""
    size = shape.hidden_size
    tables = tuple(shape.tensor(rows, size) for rows in (shape.vocab, shape.segments, shape.positions))
    ids = tuple(shape.tensor(64, dtype=torch.int32) for _ in range(3))
    dy_TD, d_D, mean_T = shape.tensor(64, size), shape.tensor(size), shape.tensor(64, dtype=torch.float32)
    with record_launches() as launches:
        for dropout in shape.dropouts():
            bits = (dropout.p, 0, dropout.key, dropout.example_ids, dropout.position_ids)
            _launch_forward(ids, tables, d_D, d_D, 1e-12, *bits)
            _launch_backward(dy_TD, ids, tables, d_D, mean_T, mean_T, *bits)
    return launches


def embedding_layer_norm(
    input_ids_T: Tensor,
    token_type_ids_T: Tensor,
    position_ids_T: Tensor,
    word_VD: Tensor,
    segment_SD: Tensor,
    position_PD: Tensor,
    weight_D: Tensor,
    bias_D: Tensor,
    eps: float,
    dropout: Dropout | None = None,
    dtype: torch.dtype | None = None,
    sparse: bool = False,
) -> Tensor:
    """dropout(LayerNorm(word[input_ids] + segment[token_type_ids] + position[position_ids])): [T, D] of `dtype`; None is that of the tables.

    sparse: the gradient of `word` may be a sparse tensor (COO, coalesced) of the rows that were read; it is where the C++ kernels run.

    Ids are int32 or int64 [T]; the tables are of one floating dtype. The Triton kernels give a token with an id outside its table a
    row of NaN (an error would need the GPU's answer); on a CPU it is an IndexError.
    """
    ids, tables = (input_ids_T, token_type_ids_T, position_ids_T), (word_VD, segment_SD, position_PD)
    wanted = dtype or word_VD.dtype
    if all(parameter.dtype == torch.float32 for parameter in (*tables, weight_D, bias_D)) and wanted in CPP_DTYPES and takes_cpp(word_VD):
        return cpp.embedding_layer_norm(ids, tables, weight_D, bias_D, eps, dropout, wanted, sparse)
    if not takes_triton(word_VD, dropout):
        return reference.embedding_layer_norm(*ids, *tables, weight_D, bias_D, eps, dropout).to(wanted)
    dropout = dropout if dropout is not None and dropout.p > 0 else Dropout(0.0)
    bits = (dropout.p, dropout.site, dropout.key, dropout.example_ids, dropout.position_ids)
    return _forward(*ids, *tables, weight_D, bias_D, eps, *bits)[0].to(wanted)
