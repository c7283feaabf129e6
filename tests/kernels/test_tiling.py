"""Launch heuristics: powers of two, whole rows, and no more threads than elements."""

import pytest

from bertfast_kernels.tiling import (
    block_grad_tile,
    block_tile,
    cdiv,
    class_tile,
    embedding_sum_tile,
    next_power_of_2,
    row_grad_tile,
    row_tile,
    vector_columns,
    walking_blocks,
    walking_programs,
)

COLUMNS = [1, 3, 16, 20, 64, 96, 100, 128, 312, 384, 768, 1024, 1025, 2048, 3072, 4096, 8192]


def is_power_of_2(n):
    return n > 0 and n & (n - 1) == 0


@pytest.mark.parametrize(("n", "power"), [(1, 1), (2, 2), (3, 4), (768, 1024), (1024, 1024), (1025, 2048)])
def test_next_power_of_2(n, power):
    assert next_power_of_2(n) == power


def test_cdiv():
    assert [cdiv(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


def few_rows(columns):
    return row_grad_tile(columns, 1216)


def many_rows(columns):
    return row_grad_tile(columns, 16384)


@pytest.mark.parametrize("heuristic", [row_tile, few_rows, many_rows])
@pytest.mark.parametrize("columns", COLUMNS)
def test_a_row_tile_holds_whole_rows(heuristic, columns):
    tile = heuristic(columns)
    assert all(map(is_power_of_2, (tile.rows, tile.columns, tile.num_warps))) and tile.num_warps <= 16
    assert columns <= tile.columns * tile.pieces
    assert tile.columns >= 16  # a piece is a whole number of Philox calls for any dtype
    assert tile.columns * (tile.pieces - 1) < max(columns, 16)  # no piece is empty
    elements = tile.rows * tile.columns * tile.pieces // (32 * tile.num_warps)
    assert 1 <= elements <= (32 if columns <= 4096 else 64)


@pytest.mark.parametrize("columns", [96, 312, 384, 768, 3072])
def test_a_row_of_three_quarters_wastes_nothing_on_the_fourth(columns):
    assert row_tile(columns).pieces == few_rows(columns).pieces == 3


def test_the_shipped_sizes():
    assert row_tile(768) == (4, 256, 3, 4) and row_tile(1024) == (4, 1024, 1, 4)
    assert few_rows(768) == (1, 256, 3, 1, 4, 1, None) and few_rows(1024) == (1, 512, 2, 2, 2, 1, None)
    assert many_rows(768) == (1, 256, 3, 1, 8, 2, None) and many_rows(1024) == (1, 512, 2, 2, 4, 2, None)
    assert block_tile(3072) == block_tile(4096) == (4, 1024, 4)
    assert class_tile(3) == (64, 4, 1) and class_tile(30522) == (1, 4096, 8)


@pytest.mark.parametrize("heuristic", [block_tile, block_grad_tile, class_tile, embedding_sum_tile])
@pytest.mark.parametrize("columns", COLUMNS)
def test_a_block_tile_gives_every_warp_work(heuristic, columns):
    tile = heuristic(columns)
    assert all(map(is_power_of_2, (tile.rows, tile.columns, tile.num_warps))) and tile.num_warps <= 8
    assert tile.rows * tile.columns >= 32 * tile.num_warps


def test_block_tiles_waste_no_column_of_a_shipped_model():
    assert all(columns % block_tile(columns).columns == 0 for columns in (512, 1536, 3072, 4096))


def test_programs_fill_the_multiprocessors_and_are_no_more_than_tiles():
    assert walking_programs(16384, many_rows(768), 132) == 8 * 132
    assert walking_programs(1216, few_rows(768), 132) == 4 * 132
    assert walking_programs(9, few_rows(768), 132) == 9
    wide = block_grad_tile(3072)
    assert walking_blocks(16384, 3072, wide, 132) * 3 == 132 * 8
    assert walking_blocks(5, 3072, wide, 132) == 3


def test_a_limit_on_registers_is_named_only_where_there_is_one():
    tile = few_rows(768)
    assert tile.options() == {"num_warps": 1}
    assert tile._replace(maxnreg=128).options() == {"num_warps": 1, "maxnreg": 128}


def test_a_vector_is_16_bytes():
    assert (vector_columns(2), vector_columns(4)) == (8, 4)
