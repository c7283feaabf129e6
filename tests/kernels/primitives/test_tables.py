"""Sums into the rows of a table, by both kernels, against torch's index_add in float64."""

import pytest
import torch

from bertfast_kernels.primitives import tables
from bertfast_kernels.tiling import SumTile
from tests.support.mutants import load_mutant
from tests.support.triton_cases import needs_triton

pytestmark = needs_triton

RUNS, WALK = SumTile(4, 16, 1, 8), SumTile(4, 16, 1, 8, walks=True)
TILES = [RUNS, SumTile(8, 64, 2, 32), WALK, SumTile(2, 64, 2, 4, walks=True, num_stages=2)]
IDS = {
    "one-row": [3] * 29,  # longer than three chunks
    "rows-of-their-own": list(range(30)),
    "runs-that-end-with-a-chunk": [0] * 8 + [1] * 16 + [2] * 7 + [3] * 2,
    "a-run-over-two-ends-between-others": [1, 2, 2, 2, 2, 2, 5] + [6] * 14 + [8, 9],
    "one-place": [7],
    "ids-outside": [-3, -3, 0, 4, 4, 99, 99],
}


def check(module, ids, tile, device):
    torch.manual_seed(0)
    de = torch.randn(len(ids), 20, device=device)
    sorted_rows, order = torch.sort(torch.tensor(ids, device=device), stable=True)
    table = torch.full((32, 20), 7.0, device=device)
    module.sum_into_table(sorted_rows, order, de, table, tile)
    truth = torch.full((32, 20), 7.0, dtype=torch.float64, device=device)
    there = torch.tensor([0 <= i < 32 for i in ids], device=device)
    known = torch.tensor(ids, device=device)[there]
    truth[known] = 0.0
    truth.index_add_(0, known, de.double()[there])
    assert (table.double() - truth).abs().max() < 1e-5, "sums beyond the budget"


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("name", IDS)
def test_each_row_gets_the_sum_of_its_places(device, name, tile):
    check(tables, IDS[name], tile, device)


@pytest.mark.parametrize(
    ("old", "new", "tile"),
    [
        pytest.param("total = tl.where(ends, 0.0, total)", "total += 0.0", WALK, id="a-run-that-keeps-the-one-before"),
        pytest.param("tl.where(came_in, 0, D)", "D", WALK, id="what-comes-in-and-goes-on-taken-for-a-head"),
        pytest.param("came_in = came_in & (ends == 0)", "came_in = came_in", WALK, id="later-runs-taken-for-the-one-that-came-in"),
        pytest.param("is_head & (goes_on == 0)", "is_head", RUNS, id="a-run-that-goes-on-written-at-once"),
    ],
)
def test_the_fault_is_seen(device, tmp_path, old, new, tile):
    mutant = load_mutant("primitives.tables", old, new, tmp_path)
    with pytest.raises(AssertionError, match="budget"):
        for ids in IDS.values():
            check(mutant, ids, tile, device)
