"""The ops against the same maths written plainly, in float64, one sequence at a time."""

import math

import numpy as np
import pytest
import torch

from bertfast_kernels import Dropout, bias_gelu, cross_entropy, dropout_add_layer_norm, varlen_attention, varlen_cls_attention
from bertfast_kernels.primitives.masks import dropped, keyed_mask, philox, stream_mask
from tests.support.tolerances import FLOAT64

LENGTHS = [
    pytest.param([5], id="one-sequence"),
    pytest.param([1, 1, 1], id="lone-tokens"),
    pytest.param([1, 40, 3], id="lone-token-beside-a-long-one"),
    pytest.param([0, 3, 0, 0, 5, 0], id="sequences-of-no-token"),
    pytest.param([4, 4, 7, 7, 7, 9], id="runs-of-equal-length"),
    pytest.param([9, 4, 9, 4], id="unsorted"),
    pytest.param([300, 2], id="probabilities-recomputed"),
    pytest.param([260] * 40, id="run-cut-into-several"),
]


def cu(lengths):
    return torch.tensor(np.concatenate([[0], np.cumsum(lengths)]), dtype=torch.int32)


def plain_attention(qkv, lengths, masks=None, scale=1.0):
    outs, start = [], 0
    for index, length in enumerate(lengths):
        q, k, v = qkv[start : start + length].permute(1, 2, 0, 3)
        probs = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), -1)
        if masks is not None:
            probs = probs * masks[index] * scale
        outs.append((probs @ v).transpose(0, 1).flatten(1))
        start += length
    return torch.cat(outs)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("head_size", [32, 64])
def test_attention_and_its_gradient(lengths, head_size):
    heads = 2 if sum(lengths) < 1000 else 1
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), 3, heads, head_size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(sum(lengths), heads * head_size, dtype=torch.float64)
    ours = varlen_attention(qkv, cu(lengths), max(lengths))
    (gradient,) = torch.autograd.grad((ours * weight).sum(), qkv)
    truth = plain_attention(qkv, lengths)
    (true_gradient,) = torch.autograd.grad((truth * weight).sum(), qkv)
    assert (ours - truth).abs().max() < FLOAT64
    assert (gradient - true_gradient).abs().max() < FLOAT64


@pytest.mark.parametrize("lengths", LENGTHS[:6])
def test_attention_with_keyed_dropout_and_its_gradient(lengths):
    torch.manual_seed(0)
    heads, size = 3, 8
    qkv = torch.randn(sum(lengths), 3, heads, size, dtype=torch.float64, requires_grad=True)
    ids = torch.arange(10, 10 + len(lengths))
    example = ids.repeat_interleave(torch.tensor(lengths))
    dropout = Dropout(0.3, 5, torch.tensor([7, 11]), example, None)
    masks = [
        keyed_mask(dropout, ids[i].view(1, 1), torch.arange(n).view(1, n), n, plane=torch.arange(heads).view(heads, 1))
        for i, n in enumerate(lengths)
    ]
    ours = varlen_attention(qkv, cu(lengths), max(lengths), dropout)
    truth = plain_attention(qkv, lengths, masks, dropout.scale)
    assert (ours - truth).abs().max() < FLOAT64
    weight = torch.randn_like(truth)
    (gradient,) = torch.autograd.grad((ours * weight).sum(), qkv)
    (true_gradient,) = torch.autograd.grad((truth * weight).sum(), qkv)
    assert (gradient - true_gradient).abs().max() < FLOAT64


def test_stream_dropout_gradient_uses_the_forward_mask():
    torch.manual_seed(0)
    qkv = torch.randn(6, 3, 2, 4, dtype=torch.float64, requires_grad=True)

    def attend(x):
        return varlen_attention(x, cu([2, 4]), 4, Dropout(0.4, stream=np.random.Generator(np.random.SFC64(3))))

    assert torch.autograd.gradcheck(attend, qkv)


@pytest.mark.parametrize("keyed", [False, True], ids=["without-dropout", "with-keyed-dropout"])
def test_cls_attention_equals_the_first_rows(keyed):
    torch.manual_seed(0)
    lengths = [1, 5, 5, 12]
    bounds = cu(lengths)
    example = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    dropout = Dropout(0.25, 1, torch.tensor([1, 2]), example, None) if keyed else None
    qkv = torch.randn(sum(lengths), 3, 2, 8, dtype=torch.float64, requires_grad=True)
    first = bounds[:-1].long()
    ours = varlen_cls_attention(qkv[first, 0], qkv[:, 1:], bounds, 12, dropout)
    truth = varlen_attention(qkv, bounds, 12, dropout)[first]
    assert (ours - truth).abs().max() < FLOAT64
    gradients = [torch.autograd.grad(out.square().sum(), qkv)[0] for out in (ours, truth)]
    assert (gradients[0] - gradients[1]).abs().max() < FLOAT64


def test_tokens_of_no_sequence_get_zeros_and_give_nothing():
    torch.manual_seed(0)
    lengths, tail = [3, 0, 5], 2
    example = torch.tensor([0, 0, 0, 2, 2, 2, 2, 2, 9, 9])
    dropout = Dropout(0.3, 1, torch.tensor([3, 4]), example, None)
    qkv = torch.randn(sum(lengths) + tail, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    q = torch.randn(len(lengths), 2, 4, dtype=torch.float64, requires_grad=True)
    out = varlen_attention(qkv, cu(lengths), 5, dropout)
    cls = varlen_cls_attention(q, qkv[:, 1:], cu(lengths), 5, dropout)
    assert (out[-tail:] == 0).all() and (cls[1] == 0).all() and torch.isfinite(out).all()
    assert (torch.autograd.grad(out.sum() + cls.sum(), qkv)[0][-tail:] == 0).all()
    assert torch.autograd.gradcheck(lambda x: varlen_attention(x, cu(lengths), 5, dropout), qkv)
    assert torch.autograd.gradcheck(lambda q, x: varlen_cls_attention(q, x[:, 1:], cu(lengths), 5, dropout), (q, qkv))


def test_philox_gives_the_published_numbers():
    """Known answers of Random123 (Salmon et al. 2011), philox4x32 with 10 rounds."""
    zeros = philox(torch.tensor([0, 0]), (0, 0, 0, 0)).tolist()
    assert zeros == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = philox(torch.tensor([0xFFFFFFFF, 0xFFFFFFFF]), (0xFFFFFFFF,) * 4).tolist()
    assert ones == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = philox(torch.tensor([0xA4093822, 0x299F31D0]), (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)).tolist()
    assert pi == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@pytest.mark.parametrize("source", ["key", "stream"])
def test_dropout_keeps_its_share_and_its_mean(source):
    n, p = 400, 0.1
    ids = torch.arange(n)
    stream = np.random.Generator(np.random.SFC64(1)) if source == "stream" else None
    dropout = Dropout(p, 0, torch.tensor([3, 4]) if source == "key" else None, ids, ids, stream)
    out = dropped(torch.ones(n, n), dropout)
    kept = (out != 0).double().mean().item()
    assert abs(kept - (1 - p)) < 4 * math.sqrt(p * (1 - p) / n**2)
    assert out.max().item() == pytest.approx(1 / (1 - p), rel=1e-4)


def test_streams_do_not_repeat():
    stream = np.random.Generator(np.random.SFC64(1))
    assert not torch.equal(stream_mask(0.5, stream, (64, 64)), stream_mask(0.5, stream, (64, 64)))


def test_row_ops_in_float64():
    torch.manual_seed(0)
    x, residual = torch.randn(2, 7, 16, dtype=torch.float64)
    x_bias, weight, bias = torch.randn(3, 16, dtype=torch.float64)
    z = residual + x + x_bias
    normal = (z - z.mean(1, keepdim=True)) / torch.sqrt(z.var(1, unbiased=False, keepdim=True) + 1e-12)
    assert (dropout_add_layer_norm(x, x_bias, residual, weight, bias, 1e-12) - (normal * weight + bias)).abs().max() < FLOAT64
    y = x + x_bias
    assert (bias_gelu(x, x_bias) - y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))).abs().max() < FLOAT64
    tanh = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    assert (bias_gelu(x, x_bias, "tanh") - tanh).abs().max() < FLOAT64


def test_cross_entropy_is_a_sum_that_skips_fillers():
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.1, 0.2, 0.3], [9.0, 9.0, 9.0]])
    truth = -torch.log_softmax(logits, 1)[[0, 1], [2, 0]].sum()
    torch.testing.assert_close(cross_entropy(logits, torch.tensor([2, 0, -100], dtype=torch.int32)), truth)
