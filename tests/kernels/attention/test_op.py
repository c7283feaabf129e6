"""The attention kernels against float64, beside torch in the same precision; their masks bit for bit against masks.keyed_mask."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast_kernels import Dropout, use_backend, varlen_attention, varlen_cls_attention
from bertfast_kernels.attention import plan as attention_tiling
from bertfast_kernels.attention import reference
from bertfast_kernels.attention.plan import AttentionPlan, Tile
from bertfast_kernels.primitives.masks import keyed_mask
from tests.support.triton_cases import ON_GPU, assert_within_budget, needs_triton, shapes

pytestmark = needs_triton

# T tokens, B sequences, N heads, H head size

SHORT, GROUPS, MEDIUM, LONG = (
    AttentionPlan(128, None),
    AttentionPlan(128, None, 4),
    AttentionPlan(128, None, medium=True),
    AttentionPlan(0, 0),
)
MIXED = AttentionPlan(64, 65)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def case(lengths, heads=2, size=32, plan=None, tail=0, id=None):
    return pytest.param(lengths, heads, size, plan, tail, id=id)


SMALL = [
    case([1], 1, 16, SHORT, id="one-token"),
    case([2, 1, 15, 16], 4, 32, SHORT, id="up-to-16-four-heads"),
    case([17, 32], 4, 64, SHORT, id="up-to-32-four-heads"),
    case([33, 64], 2, 32, SHORT, id="up-to-64"),
    case([65, 127, 1], 1, 32, SHORT, id="up-to-127-in-blocks"),
    case([128, 97], 1, 64, MEDIUM, id="medium"),
    case([0, 1, 16, 33, 127], 2, 32, MEDIUM, 6, id="medium-with-short-ones-and-a-tail"),
    case([3, 20, 33, 12, 64, 70], 5, 32, GROUPS, 3, id="four-heads-each-of-five"),
    case([0, 3, 0, 0, 40, 0], 2, 32, SHORT, 5, id="sequences-of-no-token-and-a-tail"),
    case([1, 63], 3, 64, SHORT, id="lone-token-beside-a-long-one-and-odd-heads"),
    case([20, 6], 2, 26, SHORT, id="head-size-26"),
    case([12, 40], 1, 128, SHORT, id="head-size-128"),
    case([1, 2, 15, 16, 17], 1, 32, LONG, 3, id="long-kernels-short-sequences-and-a-tail"),
    case([15, 129], 1, 16, LONG, id="long-kernels-beyond-128"),
    case([64, 65, 3], 1, 32, MIXED, 9, id="both-kinds-of-kernel-and-a-tail"),
    case([1, 0] * 60, 1, 16, GROUPS, id="120-sequences"),
    case([511, 1, 512], 1, 16, LONG, id="511-and-512-with-a-lone-token"),
    case([], 2, 16, LONG, 4, id="no-sequence"),
]
FULL = [
    case([1, 2, 15, 16, 17, 127, 128, 129, 511, 512], 12, 64, None, 7, id="every-length"),
    case([1, 512], 16, 64, id="lone-token-beside-512"),
    case([512] * 4, 12, 64, LONG, id="512"),
    case([1000, 513], 4, 64, id="beyond-512"),
    case([39] * 1000, 12, 32, id="1000-sequences"),
    case([128] * 32, 12, 64, id="128"),
    case([300, 20, 5], 8, 128, id="head-size-128-long"),
    case([100, 7], 12, 26, id="head-size-26-long"),
    case([64, 128, 100], 2, 64, SHORT, id="two-heads"),
]


@pytest.fixture(autouse=True)
def large_tiles(monkeypatch):
    """The interpreter is quicker with large tiles than with those that float32 takes on a GPU."""
    if not ON_GPU:
        monkeypatch.setattr(attention_tiling, "long_forward_tile", lambda *_: Tile(64, 32, 4, 1))
        monkeypatch.setattr(attention_tiling, "long_backward_queries_tile", lambda *_: Tile(64, 32, 4, 1))
        monkeypatch.setattr(attention_tiling, "long_backward_keys_tile", lambda *_: Tile(32, 64, 4, 1))


def cu(lengths, device="cpu"):
    return torch.tensor(np.concatenate([[0], np.cumsum(lengths)]), dtype=torch.int32, device=device)


def ids_of(lengths, tail, device="cpu", first=5):
    ids = torch.arange(first, first + len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.long))
    return torch.cat([ids, ids.new_zeros(tail)]).int().to(device)


def plain_attention(qkv, lengths, dropout=None, q_BNH=None):
    """As in a textbook, in the dtype of qkv: [T, N * H], zeros for the tail; with q_BNH, one query a sequence: [B, N * H]."""
    outs, start = [], 0
    for index, length in enumerate(lengths):
        rows = qkv[start : start + length].permute(1, 2, 0, 3)
        q = rows[0] if q_BNH is None else q_BNH[index].unsqueeze(1)
        k, v = rows[-2], rows[-1]
        probs = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), -1)
        if dropout is not None and length:
            heads = torch.arange(q.shape[0], device=qkv.device).view(-1, 1)
            query = torch.arange(q.shape[1], device=qkv.device).view(1, -1)
            mask = keyed_mask(dropout, dropout.example_ids[start].view(1, 1), query, length, plane=heads)
            probs = probs * mask * dropout.scale
        outs.append((probs @ v).transpose(0, 1).flatten(1))
        start += length
    if q_BNH is None:
        outs.append(qkv[start:, 0].flatten(1) * 0)
    return torch.cat(outs)


def inputs_of(lengths, heads, size, tail, dtype, device, p, planes=3):
    torch.manual_seed(sum(lengths) + heads)
    n_tokens = sum(lengths) + tail
    x = torch.randn(n_tokens, planes, heads, size, dtype=torch.float64, device=device).to(dtype)
    dropout = Dropout(p, 3, torch.tensor([7, 11], device=device), ids_of(lengths, tail, device), None) if p else None
    return x, dropout


def check(name, run, plain, tensors, dout):
    """Output and gradients of run(*tensors) against float64, beside plain(*tensors) in the same dtype."""
    results = []
    for function, dtype in ((run, None), (plain, None), (plain, torch.float64)):
        leaves = [x.to(dtype or x.dtype).detach().requires_grad_() for x in tensors]
        out = function(*leaves)
        results.append((out.detach(), *torch.autograd.grad(out, leaves, dout.to(out.dtype))))
    for what, ours, same, truth in zip(("out", "d0", "d1"), *results, strict=False):
        if truth.dim() == 4:  # dq, dk, dv each by its own size
            for plane, of in enumerate("qkv"[-truth.shape[1] :]):
                assert_within_budget(f"{name} d{of}", ours[:, plane], same[:, plane], truth[:, plane])
        else:
            assert_within_budget(f"{name} {what}", ours, same, truth)
    return results[0]


def check_case(lengths, heads, size, plan, tail, dtype, device, p, monkeypatch=None, scale=1.0):
    if plan is not None:
        monkeypatch.setattr(attention_tiling, "attention_plan", lambda *_: plan)
    qkv, dropout = inputs_of(lengths, heads, size, tail, dtype, device, p)
    bounds, longest = cu(lengths, device), max(lengths, default=1)
    dout = torch.randn(qkv.shape[0], heads * size, dtype=torch.float64, device=device).to(dtype)
    ours = check(
        str(lengths),
        lambda x: varlen_attention(x, bounds, longest, dropout),
        lambda x: plain_attention(x, lengths, dropout),
        [qkv * scale],
        dout,
    )
    assert not ours[0][sum(lengths) :].any() and not ours[1][sum(lengths) :].any(), "the tail is not zero"


@pytest.mark.parametrize("p", [0.0, 0.3], ids=["without-dropout", "with-dropout"])
@pytest.mark.parametrize(("lengths", "heads", "size", "plan", "tail"), shapes(SMALL, FULL))
def test_attention_and_its_gradient(device, monkeypatch, lengths, heads, size, plan, tail, p):
    if ON_GPU and size > 32 and plan in (SHORT, GROUPS, MEDIUM):
        pytest.skip("no float32 batch takes these kernels; with such heads the compiler needs up to two minutes for one")
    check_case(lengths, heads, size, plan, tail, torch.float32, device, p, monkeypatch)


@pytest.mark.parametrize("p", [0.0, 0.3], ids=["without-dropout", "with-dropout"])
@pytest.mark.parametrize("tile", [Tile(64, 128, 4, 1), Tile(64, 32, 4, 1), Tile(128, 128, 8, 1)], ids=str)
def test_medium_tiles_of_other_sizes(device, monkeypatch, tile, p):
    """Queries in two blocks, the second of which some sequences do not reach, and all keys at once."""
    monkeypatch.setattr(attention_tiling, "medium_forward_tile", lambda *_: tile)
    check_case([0, 1, 16, 64, 65, 128], 2, 16, MEDIUM, 6, torch.bfloat16, device, p, monkeypatch)
    check_case([64, 33], 2, 16, MEDIUM, 70, torch.bfloat16, device, p, monkeypatch)


@pytest.mark.parametrize("plan", [SHORT, GROUPS], ids=["short", "four-heads-each"])
def test_a_thousand_sequences(device, monkeypatch, plan):
    check_case([1, 0, 2, 0] * 250, 1, 16, plan, 0, torch.float32, device, 0.0, monkeypatch)


@pytest.mark.parametrize("p", [0.0, 0.1], ids=["without-dropout", "with-dropout"])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=["bf16", "fp16"])
@pytest.mark.parametrize(("lengths", "heads", "size", "plan", "tail"), shapes([SMALL[2], SMALL[4], SMALL[5], SMALL[7], SMALL[14]], FULL))
def test_attention_in_16_bits(device, monkeypatch, lengths, heads, size, plan, tail, dtype, p):
    check_case(lengths, heads, size, plan, tail, dtype, device, p, monkeypatch)


@pytest.mark.parametrize("plan", [SHORT, GROUPS, MEDIUM, LONG], ids=["short", "four-heads-each", "medium", "long"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])
def test_large_scores(device, monkeypatch, plan, dtype):
    """Scores of hundreds: the softmax is all but one key, and what exp takes must not overflow."""
    lengths = [5, 33] if plan is SHORT else [70, 20]
    check_case(lengths, 2, 16, plan, 0, dtype, device, 0.0, monkeypatch, scale=12.0)


def test_one_huge_and_one_tiny_activation(device):
    qkv, _ = inputs_of([9, 40], 2, 32, 0, torch.float32, device, 0.0)
    qkv[3, 1, 0, 5], qkv[20, 0, 1, 7] = 1e4, 1e-30
    dout = torch.randn(49, 64, device=device)
    bounds = cu([9, 40], device)
    check("huge", lambda x: varlen_attention(x, bounds, 40), lambda x: plain_attention(x, [9, 40]), [qkv], dout)


def test_fp16_near_overflow(device):
    """Values of V near fp16's 65,504: sums of them stay in float32, and an average of them is finite."""
    qkv, _ = inputs_of([30, 3], 2, 32, 0, torch.float16, device, 0.0)
    qkv[:, 2] = 60000.0
    out = varlen_attention(qkv, cu([30, 3], device), 30)
    assert torch.isfinite(out).all()
    assert (out.double() - 60000.0).abs().max() <= 32


@given(
    lengths=st.lists(st.integers(0, 130), min_size=1, max_size=2),
    heads=st.integers(1, 5 if ON_GPU else 2),
    size=st.sampled_from([8, 16, 20]),
    tail=st.integers(0, 3),
)
@settings(max_examples=60 if ON_GPU else 3, deadline=None, derandomize=True)
def test_any_lengths(lengths, heads, size, tail):
    device = "cuda" if ON_GPU else "cpu"
    with use_backend("triton"):
        check_case(lengths, heads, size, None, tail, torch.float32, device, 0.2)
        for plan in (SHORT, MEDIUM) if max(lengths) <= 128 else (MIXED,):
            with pytest.MonkeyPatch.context() as patch:
                check_case(lengths, heads, size, plan, tail, torch.float32, device, 0.2, patch)


@pytest.mark.parametrize("plan", [SHORT, MEDIUM, LONG], ids=["short", "medium", "long"])
def test_what_lies_beside_a_sequence_does_not_leak_into_it(device, monkeypatch, plan):
    """Infinities and NaN in a neighbour and in the tail: the other sequences are what they are without them."""
    monkeypatch.setattr(attention_tiling, "attention_plan", lambda *_: plan)
    lengths, tail = [20, 37, 9], 4
    qkv, _ = inputs_of(lengths, 2, 16, tail, torch.float32, device, 0.0)
    dout = torch.randn(qkv.shape[0], 32, device=device)
    clean, dirty = qkv.clone().requires_grad_(), qkv.clone()
    dirty[20:57, :, :, 1] = math.inf
    dirty[20:57, :, :, 2] = math.nan
    dirty[66:] = math.nan
    dirty.requires_grad_()
    others = [*range(20), *range(57, 70)]
    results = []
    for x, upstream in ((clean, dout), (dirty, dout.index_fill(0, torch.arange(66, 70, device=device), math.nan))):
        out = varlen_attention(x, cu(lengths, device), 37)
        (grad,) = torch.autograd.grad(out, x, upstream)
        results.append((out.detach()[others], grad[others]))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("plan", [SHORT, MEDIUM, LONG, MIXED], ids=["short", "medium", "long", "both"])
def test_same_bits_from_run_to_run_and_wherever_packed(device, monkeypatch, plan):
    """An example's output and gradient, dropout included, do not change a bit with its place in the batch or with its neighbours."""
    monkeypatch.setattr(attention_tiling, "attention_plan", lambda *_: plan)
    lengths = [10, 30, 66]
    qkv, dropout = inputs_of(lengths, 2, 16, 0, torch.float32, device, 0.2)
    dout = torch.randn(106, 32, device=device)

    def attend(order):
        bounds = cu(lengths).tolist()
        rows = torch.cat([torch.arange(bounds[i], bounds[i + 1]) for i in order]).to(device)
        moved = dropout._replace(example_ids=dropout.example_ids[rows])
        x = qkv[rows].requires_grad_()
        out = varlen_attention(x, cu([lengths[i] for i in order], device), 66, moved)
        (grad,) = torch.autograd.grad(out, x, dout[rows])
        back = torch.argsort(rows)
        return out.detach()[back], grad[back]

    first = attend([0, 1, 2])
    for other in (attend([0, 1, 2]), attend([2, 0, 1])):
        assert torch.equal(first[0], other[0]) and torch.equal(first[1], other[1])


def masks_of_the_kernels(length, heads, p, device, key=(7, 11), site=3):
    """(forward's mask, mask of dV, mask of dP), bool [N, length, length], read off outputs and gradients.

    With V = I the output is the dropped P itself, and with dO = I so is dV's transpose. For dP: q = k = 0 make P uniform, and V = e_0 (the first unit
    vector) for one key j at a time is too slow; instead dO_i = 1 and V = 1 make dP_ij = Z_ij, and dS = P (Z - mean Z) tells Z by its sign. dS is read
    from dQ with K = I.
    """
    size = attention_tiling.head_block(length)
    eye = torch.eye(length, size, device=device).view(length, 1, size).expand(length, heads, size)
    zero = torch.zeros_like(eye)
    ids = torch.full((length,), 5, dtype=torch.int32, device=device)
    dropout = Dropout(p, site, torch.tensor(key, device=device), ids, None)
    qkv = torch.stack([zero, eye, eye], 1).requires_grad_()
    out = varlen_attention(qkv, cu([length], device), length, dropout).view(length, heads, size)
    (grad,) = torch.autograd.grad(out, qkv, eye.contiguous(), retain_graph=True)
    forward = out.detach().transpose(0, 1)[:, :, :length] != 0
    of_dv = grad[:, 2].permute(1, 2, 0)[:, :length] != 0
    qkv = torch.stack([zero, eye, torch.ones_like(eye)], 1).requires_grad_()
    out = varlen_attention(qkv, cu([length], device), length, dropout)
    (grad,) = torch.autograd.grad(out, qkv, torch.ones_like(out))
    of_dp = grad[:, 0].transpose(0, 1)[:, :, :length] > 0
    return forward, of_dv, of_dp, dropout


@pytest.mark.parametrize(
    ("length", "plan"),
    [*((length, SHORT) for length in (16, 21, 50)), (100, SHORT), (100, MEDIUM), (100, LONG)],
)
def test_every_mask_is_that_of_keyed_mask(device, monkeypatch, length, plan):
    monkeypatch.setattr(attention_tiling, "attention_plan", lambda *_: plan)
    heads = 2 if length > 64 else 4
    forward, of_dv, of_dp, dropout = masks_of_the_kernels(length, heads, 0.4, device)
    query = torch.arange(length, device=device).view(1, -1)
    truth = keyed_mask(dropout, torch.full((1, 1), 5, device=device), query, length, plane=torch.arange(heads, device=device).view(-1, 1))
    assert torch.equal(forward, truth)
    assert torch.equal(of_dv, truth)
    mixed = truth.any(-1, keepdim=True) & ~truth.all(-1, keepdim=True)  # a row all kept or all dropped has no sign to read
    assert torch.equal(of_dp & mixed, truth & mixed)


def test_dropout_keeps_its_share_and_masks_do_not_correlate(device, monkeypatch):
    """Keep rate within 4 sigma; between heads, rows, columns, sites (layers), seeds and steps correlations within 4 / sqrt(n)."""
    monkeypatch.setattr(attention_tiling, "attention_plan", lambda *_: SHORT)
    p, length = 0.1, 64
    masks = [
        masks_of_the_kernels(length, 4, p, device, key, site)[0] for key, site in (((7, 11), 3), ((7, 12), 3), ((7, 11), 4), ((8, 11), 3))
    ]
    for mask in masks:
        assert abs(mask.double().mean().item() - (1 - p)) < 4 * math.sqrt(p * (1 - p) / mask.numel())

    def correlation(a, b):
        a, b = a.double().flatten() - (1 - p), b.double().flatten() - (1 - p)
        return abs((a * b).mean().item()) / (p * (1 - p)) * math.sqrt(a.numel())

    first = masks[0]
    pairs = [(first, other) for other in masks[1:]]
    pairs += [(first[0], first[1]), (first[2], first[3]), (first[:, 1:], first[:, :-1]), (first[:, :, 1:], first[:, :, :-1])]
    assert max(correlation(a, b) for a, b in pairs) < 4


CLS_CASES = shapes(
    [
        pytest.param([1, 5, 0, 12], 2, 32, 3, id="short-and-a-tail"),
        pytest.param([70, 130, 2], 1, 64, 0, id="several-blocks-of-keys"),
        pytest.param([9, 4], 3, 26, 1, id="head-size-26"),
    ],
    [pytest.param([1, 512, 39, 128], 12, 64, 5, id="base"), pytest.param([300, 17], 4, 128, 0, id="head-size-128")],
)


@pytest.mark.parametrize("p", [0.0, 0.3], ids=["without-dropout", "with-dropout"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("lengths", "heads", "size", "tail"), CLS_CASES)
def test_cls_attention_and_its_gradient(device, lengths, heads, size, tail, dtype, p):
    kv, dropout = inputs_of(lengths, heads, size, tail, dtype, device, p, planes=2)
    q = torch.randn(len(lengths), heads, size, device=device).to(dtype)
    dout = torch.randn(len(lengths), heads * size, device=device).to(dtype)
    bounds = cu(lengths, device)
    ours = check(
        str(lengths),
        lambda q, kv: varlen_cls_attention(q, kv, bounds, max(lengths), dropout),
        lambda q, kv: plain_attention(kv, lengths, dropout, q),
        [q, kv],
        dout,
    )
    assert not ours[2][sum(lengths) :].any(), "the tail is not zero"


@pytest.mark.parametrize("p", [0.0, 0.25], ids=["without-dropout", "with-dropout"])
def test_cls_attention_equals_the_first_rows(device, p):
    lengths = [1, 5, 5, 70]
    bounds = cu(lengths, device)
    qkv, dropout = inputs_of(lengths, 2, 16, 0, torch.float32, device, p)
    first = bounds[:-1].long()
    ours = varlen_cls_attention(qkv[first, 0], qkv[:, 1:], bounds, 70, dropout)
    torch.testing.assert_close(ours, varlen_attention(qkv, bounds, 70, dropout)[first], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("p", [0.0, 0.2], ids=["without-dropout", "with-dropout"])
def test_opcheck(device, p):
    lengths = [3, 20]
    qkv, dropout = inputs_of(lengths, 2, 16, 0, torch.float32, device, p)
    bits = (p, 3, dropout.key, dropout.example_ids) if dropout else (0.0, 0, None, None)
    bounds = cu(lengths, device)
    ops = torch.ops.bertfast
    out, stats = ops.varlen_attention(qkv, bounds, 20, *bits)
    torch.library.opcheck(ops.varlen_attention, (qkv.clone().requires_grad_(), bounds, 20, *bits))
    torch.library.opcheck(ops.varlen_attention_backward, (torch.ones_like(out), qkv, out, stats, bounds, 20, *bits))
    q, kv = qkv[:2, 0].contiguous(), qkv[:, 1:].contiguous()
    out, stats = ops.varlen_cls_attention(q, kv, bounds, *bits)
    torch.library.opcheck(ops.varlen_cls_attention, (q.clone().requires_grad_(), kv.clone().requires_grad_(), bounds, *bits))
    torch.library.opcheck(ops.varlen_cls_attention_backward, (torch.ones_like(out), q, kv, out, stats, bounds, *bits))


def test_gradcheck_of_the_twin():
    """What the kernels are held against has the gradient of its own output, dropout, an empty sequence and a tail included."""
    lengths, tail = [3, 0, 5], 2
    dropout = Dropout(0.3, 1, torch.tensor([3, 4]), ids_of(lengths, tail), None)
    qkv = torch.randn(10, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: reference.varlen_attention(x, cu(lengths), 5, dropout), qkv)
    q = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, x: reference.varlen_cls_attention(q, x[:, 1:], cu(lengths), 5, dropout), (q, qkv))


def test_inputs_that_do_not_lie_together(device):
    """A slice of a wider tensor, an expanded gradient, int64 ids."""
    lengths = [6, 11]
    wide, dropout = inputs_of(lengths, 3, 16, 0, torch.float32, device, 0.2)
    dropout = dropout._replace(example_ids=dropout.example_ids.long())
    x = wide[:, :, 1:].requires_grad_()
    out = varlen_attention(x, cu(lengths, device), 11, dropout)
    (grad,) = torch.autograd.grad(out.sum(), x)
    same = wide[:, :, 1:].contiguous().double().requires_grad_()
    truth = plain_attention(same, lengths, dropout)
    (true_grad,) = torch.autograd.grad(truth.sum(), same)
    torch.testing.assert_close(out.double(), truth, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad.double(), true_grad, rtol=1e-5, atol=1e-5)


def test_no_tokens_at_all(device):
    qkv = torch.empty(0, 3, 2, 16, device=device, requires_grad=True)
    out = varlen_attention(qkv, torch.zeros(3, dtype=torch.int32, device=device), 0)
    assert out.shape == (0, 32) and torch.autograd.grad(out.sum(), qkv)[0].shape == qkv.shape


def test_more_sequences_than_a_launch_holds(device):
    with pytest.raises(ValueError, match="70,000 sequences"):
        varlen_attention(torch.zeros(4, 3, 1, 16, device=device), torch.zeros(70001, dtype=torch.int32, device=device), 4)
