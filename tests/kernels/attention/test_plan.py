"""Which attention kernels a batch takes, and their tiles."""

import itertools

import pytest

from bertfast_kernels.attention.plan import (
    AttentionPlan,
    Tile,
    attention_plan,
    cls_keys,
    head_block,
    long_backward_keys_tile,
    long_backward_queries_tile,
    long_forward_tile,
    medium_backward_tile,
    medium_forward_tile,
)

FOURS, ONES, MEDIUM, LONG = AttentionPlan(128, None, 4), AttentionPlan(128, None, 1), AttentionPlan(128, None, 1, True), AttentionPlan(0, 0)


@pytest.mark.parametrize(
    ("tokens", "sequences", "longest", "element_size", "head_size", "wgmma", "plan"),
    [
        pytest.param(13 * 32, 32, 60, 2, 64, True, FOURS, id="sentences"),
        pytest.param(39 * 32, 32, 98, 2, 64, True, ONES, id="pairs"),
        pytest.param(39 * 32, 32, 237, 2, 64, True, AttentionPlan(128, 129, 1), id="pairs-and-a-long-one"),
        pytest.param(128 * 32, 32, 128, 2, 64, True, MEDIUM, id="all-of-128"),
        pytest.param(90 * 32, 32, 200, 2, 64, True, LONG, id="long-on-the-whole"),
        pytest.param(39 * 32, 32, 98, 4, 64, True, LONG, id="float32"),
        pytest.param(39 * 32, 32, 98, 2, 128, True, MEDIUM, id="wide-heads"),
        pytest.param(39 * 32, 32, 98, 2, 128, False, LONG, id="wide-heads-in-registers"),
        pytest.param(7, 0, 0, 2, 64, True, MEDIUM, id="a-tail-alone"),
    ],
)
def test_the_plan_of_a_batch(tokens, sequences, longest, element_size, head_size, wgmma, plan):
    assert attention_plan(tokens, sequences, longest, element_size, head_size, wgmma) == plan


@pytest.mark.parametrize("longest", [1, 64, 128, 129, 512])
@pytest.mark.parametrize("mean", [1, 24, 25, 64, 65, 128])
def test_every_length_has_its_kernel(longest, mean):
    plan = attention_plan(32 * mean, 32, longest, 2, 64, True)
    assert plan.longest >= longest or plan.shortest == (plan.longest + 1 if plan.longest else 0)


@pytest.mark.parametrize("head_size", [16, 26, 32, 64, 80, 128])
def test_tiles_are_powers_of_two(head_size):
    assert head_block(head_size) >= head_size
    for size, dropout, wgmma in itertools.product((2, 4), (False, True), (False, True)):
        tiles = [function(size, head_size, dropout, wgmma) for function in (long_forward_tile, long_backward_queries_tile)]
        for tile in [*tiles, long_backward_keys_tile(size, head_size, wgmma)]:
            assert all(n & (n - 1) == 0 for n in (tile.M, tile.L, tile.num_warps)) and min(tile.M, tile.L) >= 16
    assert cls_keys(head_size) >= 16


@pytest.mark.parametrize(
    ("wgmma", "warp_size", "tile"),
    [
        pytest.param(True, 32, Tile(128, 32, 8, 2), id="sm_90-and-sm_100"),
        pytest.param(False, 32, Tile(128, 32, 8, 1), id="sm_80"),
        pytest.param(False, 64, Tile(128, 32, 4, 1), id="gfx942"),
    ],
)
def test_the_medium_backward_has_256_threads(wgmma, warp_size, tile):
    assert medium_backward_tile(wgmma, warp_size) == tile and tile.num_warps * warp_size == 256
    assert tile.M == 128, "all of a sequence's queries"
    assert medium_forward_tile(wgmma).M in (64, 128)
