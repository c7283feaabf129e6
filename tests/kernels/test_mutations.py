"""Deliberate faults in the kernels, each of which the tests' own checks must see."""

import pytest
import torch

from tests.kernels.test_cross_entropy import make as make_logits
from tests.kernels.test_embedding import EPS
from tests.kernels.test_embedding import make as make_tokens
from tests.kernels.test_gelu import make as make_activations
from tests.kernels.test_layer_norm import make as make_rows
from tests.support.mutants import load_mutant
from tests.support.triton_cases import assert_op, needs_triton, row_dropout

pytestmark = needs_triton


def check_layer_norm(module, device, dtype=torch.float32, shift=0.0):
    x, x_bias, residual, weight, bias = make_rows(150, 96, device)
    dropout = row_dropout(0.3, 150, device)
    assert_op(lambda *inputs: module.dropout_add_layer_norm(*inputs, EPS, dropout), [x, x_bias, residual + shift, weight, bias], dtype)


def check_layer_norm_far_from_zero(module, device):
    check_layer_norm(module, device, shift=30.0)


def check_gelu(module, device):
    assert_op(module.bias_gelu, make_activations(300, 20, device), torch.float32)


def check_tanh_gelu(module, device):
    assert_op(lambda x, bias: module.bias_gelu(x, bias, "tanh"), make_activations(9, 64, device), torch.float32)


def check_embedding(module, device):
    ids, inputs = make_tokens(130, 16, 6, device)
    dropout = row_dropout(0.3, 130, device)
    assert_op(lambda *tables: module.embedding_layer_norm(*ids, *tables, EPS, dropout), inputs, torch.float32)


def check_cross_entropy(module, device):
    logits, labels = make_logits(3, 4097, device)
    logits = logits.sort(1).values  # so that the largest comes last
    assert_op(lambda x: module.cross_entropy(x, labels), [logits], torch.float32)


def check_dropout(module, device):
    dropout = row_dropout(0.3, 9, device)
    assert_op(lambda x: module.dropped(x, dropout), [torch.randn(9, 300, dtype=torch.float64, device=device) + 3.0], torch.float32)


FAULTS = [
    pytest.param("layer_norm", "2**32)), dropout.scale", "2**32)), 1.0", check_layer_norm, "primitives.philox", id="no-dropout-scale"),
    pytest.param("layer_norm", "range(10)", "range(9)", check_layer_norm, "primitives.philox", id="philox-with-9-rounds"),
    pytest.param("layer_norm", "a1 >= limit, a3 >= limit", "a3 >= limit, a1 >= limit", check_layer_norm, "primitives.philox", id="mask-columns-swapped"),
    pytest.param("layer_norm", "i * (WIDTH // 4)", "0", check_layer_norm, None, id="every-piece-with-the-first-piece's-mask"),
    pytest.param("layer_norm", "dz *= factor[i]", "dz *= factor[0]", check_layer_norm, None, id="backward-with-another-mask"),
    pytest.param("layer_norm", "- normal[i] * mean_gn", "", check_layer_norm, None, id="layer-norm-backward-without-its-last-term"),
    pytest.param("layer_norm", "total[:, None] / D,", "total[:, None] / (D - 1),", check_layer_norm, None, id="mean-over-one-column-less"),
    pytest.param("layer_norm", "squares += centred * centred", "squares += z[i] * z[i]", check_layer_norm, None, id="variance-not-centred"),
    pytest.param(
        "layer_norm", "mean = tl.sum(total, 1) / D", "mean = (tl.sum(total, 1) / D).to(tl.bfloat16).to(tl.float32)",
        check_layer_norm_far_from_zero, None, id="mean-in-bfloat16",
    ),
    pytest.param("layer_norm", "dbias[i] + dy,", "dy,", check_layer_norm, None, id="bias-gradient-of-the-last-rows-alone"),
    pytest.param("layer_norm", "(column < D)\n", "(column < D - 1)\n", check_layer_norm, None, id="last-column-dropped"),
    pytest.param("dropout", "first // 4, WIDTH", "0, WIDTH", check_dropout, None, id="every-block-of-columns-with-the-first-one's-mask"),
    pytest.param("dropout", "keep, scale, 0.0", "keep, 1.0, 0.0", check_dropout, None, id="rows-kept-and-not-scaled"),
    pytest.param("dropout", "_forward(dy, ctx.p, ctx.site,", "_forward(dy, ctx.p, ctx.site + 1,", check_dropout, None, id="backward-of-another-site"),
    pytest.param("gelu", "power * a - 0.4590702950954437", "power * a - 0.4591", check_gelu, None, id="a-coefficient-in-4-digits"),
    pytest.param("gelu", "below, 1.0 - below", "below, 1.0 + below", check_gelu, None, id="slope-of-the-wrong-sign"),
    pytest.param("gelu", "total += tl.sum(dx, 0)", "total = tl.sum(dx, 0)", check_gelu, None, id="gelu-bias-gradient-of-the-last-rows-alone"),
    pytest.param("gelu", "0.21406444881780075", "0.07135481627260025", check_tanh_gelu, None, id="tanh-slope-of-a-cube-without-its-3"),
    pytest.param("embedding", "stable=True)", "stable=True)\n    order = order.roll(1)", check_embedding, None, id="tokens-of-the-neighbouring-place"),
    pytest.param("embedding", "tl.minimum((chunk + 1) * CHUNK, n_places)", "tl.minimum((chunk + 1) * CHUNK - 1, n_places)", check_embedding, "primitives.tables", id="chunk-end-off-by-one"),
    pytest.param("embedding", "start = chunk + 1\n", "start = chunk + 2\n", check_embedding, "primitives.tables", id="a-chunk-left-out"),
    pytest.param("embedding", "ids[2] + first_position", "ids[2] + first_segment", check_embedding, None, id="positions-into-the-segment-table"),
    pytest.param("cross_entropy", "others * tl.exp(largest - shift)", "others", check_cross_entropy, None, id="old-sums-not-rescaled"),
    pytest.param("cross_entropy", "label[:, None], -unlikely", "label[:, None] + 1, -unlikely", check_cross_entropy, None, id="label-off-by-one"),
    pytest.param("cross_entropy", "gradient * tl.load(grad_ptr).to(tl.float32)", "gradient", check_cross_entropy, None, id="upstream-gradient-forgotten"),
    pytest.param("cross_entropy", "row_mask & (label != ignore_index)", "row_mask & (label != -1)", check_cross_entropy, None, id="fillers-counted"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "check", "inside"), FAULTS)
def test_the_fault_is_seen(device, tmp_path, name, old, new, check, inside):
    module = load_mutant(name, old, new, tmp_path, inside)
    with pytest.raises(AssertionError, match=r"budget"):
        check(module, device)


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("layer_norm", check_layer_norm),
        ("layer_norm", check_layer_norm_far_from_zero),
        ("gelu", check_gelu),
        ("gelu", check_tanh_gelu),
        ("dropout", check_dropout),
        ("embedding", check_embedding),
        ("cross_entropy", check_cross_entropy),
    ],
)
def test_the_same_check_passes_without_a_fault(device, tmp_path, name, check):
    check(load_mutant(name, '"""', '"""', tmp_path), device)
