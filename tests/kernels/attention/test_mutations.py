"""Deliberate faults in the attention kernels, each of which the tests' own checks must see."""

import pytest
import torch

from bertfast_kernels.attention import plan as attention_tiling
from tests.kernels.attention.test_op import LONG, MEDIUM, SHORT, Tile, check, cu, inputs_of, plain_attention
from tests.support.mutants import load_mutant
from tests.support.triton_cases import ON_GPU, needs_triton

pytestmark = needs_triton

# T tokens, B sequences, N heads, H head size

LENGTHS = {SHORT: [5, 40, 70], MEDIUM: [33, 5], LONG: [65, 3]}
TAIL = 2


def check_attention(module, plan, device, monkeypatch):
    lengths = LENGTHS[plan]
    monkeypatch.setattr(attention_tiling, "attention_plan", lambda *_: plan)
    if not ON_GPU:
        for name in ("long_forward_tile", "long_backward_queries_tile", "long_backward_keys_tile"):
            monkeypatch.setattr(attention_tiling, name, lambda *_: Tile(32, 32, 4, 1))
    qkv, dropout = inputs_of(lengths, 3, 16, TAIL, torch.float32, device, 0.3)
    dout = torch.randn(qkv.shape[0], 48, device=device)
    out, grad = check(
        "attention",
        lambda x: module.varlen_attention(x, cu(lengths, device), max(lengths), dropout),
        lambda x: plain_attention(x, lengths, dropout),
        [qkv],
        dout,
    )
    assert not out[-TAIL:].any() and not grad[-TAIL:].any(), "beyond the budget: the tail is not zero"


def check_cls(module, plan, device, monkeypatch):
    lengths = [5, 300]
    kv, dropout = inputs_of(lengths, 2, 16, TAIL, torch.float32, device, 0.3, planes=2)
    q, dout = torch.randn(2, 2, 16, device=device), torch.randn(2, 32, device=device)
    kv[300, 0] = q[1]  # the largest score comes with the last block of keys
    check(
        "cls",
        lambda q, kv: module.varlen_cls_attention(q, kv, cu(lengths, device), 300, dropout),
        lambda q, kv: plain_attention(kv, lengths, dropout, q),
        [q, kv],
        dout,
    )


END = "tl.load(cu_seqlens_ptr + sequence + 1) - start"
FAULTS = [
    pytest.param(None, "math.sqrt(head_size)", "math.sqrt(head_size + 1)", check_attention, SHORT, id="scale-of-another-head-size"),
    pytest.param("attention.short", "(dprobs - delta[:, None])", "dprobs", check_attention, SHORT, id="no-delta"),
    pytest.param("attention.short", "(keep_scale * one_over)", "one_over", check_attention, SHORT, id="no-dropout-scale"),
    pytest.param("attention.short", END, f"{END} - 1", check_attention, SHORT, id="a-sequence-ends-one-token-early"),
    pytest.param("attention.short", "tl.where(key < length, key_place, -1)", "key_place", check_attention, SHORT, id="keys-that-are-not-there"),
    pytest.param("attention.short", "of_place[None, :] == place[:, None]", "of_place[None, :] >= 0", check_attention, SHORT, id="another-head's-keys"),
    pytest.param("attention.short", "((head + place) << 16)", "(head << 16)", check_attention, SHORT, id="one-mask-for-the-heads-of-a-tile"),
    pytest.param(
        "attention.short", "total = tl.sum(probs, 1)", "total = tl.sum(probs, 1).to(tl.bfloat16).to(tl.float32)", check_attention, SHORT,
        id="softmax-statistic-in-bfloat16",
    ),
    pytest.param("attention.short", "(first == 0, delta0, delta1)", "(first == 0, delta1, delta0)", check_attention, SHORT, id="another-block's-delta"),
    pytest.param("attention.medium", "dq = dot(dscores, k, dq)", "dq = dot(dscores, k)", check_attention, MEDIUM, id="dq-of-the-last-keys-alone"),
    pytest.param("attention.medium", "dout.to(tl.float32), 1) / keep_scale", "dout.to(tl.float32), 1)", check_attention, MEDIUM, id="delta-off-by-the-dropout-scale"),
    pytest.param("attention.medium", "first_key, length, score_scale,\n                    seed, step, example", "first_key, length, score_scale,\n                    step, seed, example", check_attention, MEDIUM, id="backward-with-another-mask"),
    pytest.param("attention.long", "if whole < length:", "if whole < length - 1:", check_attention, LONG, id="last-key-left-out"),
    pytest.param("attention.long", "delta += tl.sum(probs * dprobs, 1)", "delta = tl.sum(probs * dprobs, 1)", check_attention, LONG, id="delta-of-the-last-keys-alone"),
    pytest.param("attention.long", "dv, H_BLOCK) * keep_scale", "dv, H_BLOCK)", check_attention, LONG, id="dv-without-dropout-scale"),
    pytest.param("attention.cls", "tl.exp2(top - higher)", "tl.exp2(top - top)", check_cls, None, id="old-sums-not-rescaled"),
]  # fmt: skip


@pytest.mark.parametrize(("inside", "old", "new", "check_op", "plan"), FAULTS)
def test_the_fault_is_seen(device, tmp_path, monkeypatch, inside, old, new, check_op, plan):
    module = load_mutant("attention.op", old, new, tmp_path, inside)
    with pytest.raises(AssertionError, match="budget"):
        check_op(module, plan, device, monkeypatch)


@pytest.mark.parametrize(
    ("check_op", "plan"), [(check_attention, SHORT), (check_attention, MEDIUM), (check_attention, LONG), (check_cls, None)]
)
def test_the_same_check_passes_without_a_fault(device, tmp_path, monkeypatch, check_op, plan):
    check_op(load_mutant("attention.op", '"""', '"""', tmp_path), plan, device, monkeypatch)
