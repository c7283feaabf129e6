"""Launch heuristics: powers of two, whole rows, and no more threads than elements."""

import pytest

from bertfast_kernels.tiling import next_power_of_2, row_tile


@pytest.mark.parametrize(("n", "power"), [(1, 1), (2, 2), (3, 4), (768, 1024), (1024, 1024), (1025, 2048)])
def test_next_power_of_2(n, power):
    assert next_power_of_2(n) == power


@pytest.mark.parametrize("columns", [1, 3, 16, 100, 128, 312, 384, 768, 1024, 1025, 4096])
def test_a_row_tile_holds_whole_rows(columns):
    tile = row_tile(columns)
    assert columns <= tile.columns and tile.columns == next_power_of_2(tile.columns)
    assert tile.rows == next_power_of_2(tile.rows) and tile.num_warps == next_power_of_2(tile.num_warps)
    assert 1 <= tile.num_warps <= 16
    assert tile.rows * tile.columns >= 32 * tile.num_warps
