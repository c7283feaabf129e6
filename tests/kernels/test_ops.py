"""What is true of every op on the Triton backend."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bertfast_kernels import cross_entropy, dropout_add_layer_norm, embedding_layer_norm, varlen_attention, varlen_cls_attention
from tests.support.triton_cases import needs_triton, row_dropout

pytestmark = needs_triton

ROWS, COLUMNS = 6, 32


class Zeros(TorchDispatchMode):
    """Counts the tensors of zeros that are made."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "zeros" in func.__name__:
            self.made.append((func, args[0]))
        return func(*args, **(kwargs or {}))


def leaf(*shape, device):
    return torch.randn(shape, device=device, requires_grad=True)


def layer_norm(device):
    x, residual = leaf(ROWS, COLUMNS, device=device), leaf(ROWS, COLUMNS, device=device)
    vectors = [leaf(COLUMNS, device=device) for _ in range(3)]
    return dropout_add_layer_norm(x, vectors[0], residual, *vectors[1:], 1e-12, row_dropout(0.1, ROWS, device))


def attention(device):
    bounds = torch.tensor([0, 2, ROWS], dtype=torch.int32, device=device)
    return varlen_attention(leaf(ROWS, 3, 2, 16, device=device), bounds, 4, row_dropout(0.1, ROWS, device))


def cls_attention(device):
    bounds = torch.tensor([0, 2, ROWS], dtype=torch.int32, device=device)
    return varlen_cls_attention(leaf(2, 2, 16, device=device), leaf(ROWS, 2, 2, 16, device=device), bounds, 4)


def loss(device):
    return cross_entropy(leaf(ROWS, 3, device=device), torch.zeros(ROWS, dtype=torch.int64, device=device))


def embedding(device):
    ids = [torch.arange(ROWS, device=device, dtype=torch.int32) % 2 for _ in range(3)]
    tables = [leaf(rows, COLUMNS, device=device) for rows in (5, 2, 4)]
    return embedding_layer_norm(*ids, *tables, leaf(COLUMNS, device=device), leaf(COLUMNS, device=device), 1e-12)


@pytest.mark.parametrize("op", [layer_norm, attention, cls_attention, loss, embedding])
def test_no_zeros_are_made_for_gradients_that_nobody_reads(device, op):
    """Of the statistics that a forward keeps; 66 launches in a step of BERT-base. What an op does inside is not seen here."""
    out = op(device)
    with Zeros() as zeros:
        out.sum().backward()
    assert not zeros.made
