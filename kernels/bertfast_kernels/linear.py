"""Linear layers, x W^T + b, in the dtype of x."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from bertfast_kernels.cpu import products

# T rows, I inputs, O outputs


def linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x weight^T + bias: [..., O] of the dtype of x; parameters of another are cast."""
    if x_TI.dim() == 2 and products.takes_half(x_TI, weight_OI):
        return products.linear(x_TI, weight_OI, bias_O)
    return F.linear(x_TI, weight_OI.to(x_TI.dtype), None if bias_O is None else bias_O.to(x_TI.dtype))


def query_and_keys(x_TI: Tensor, rows_B: Tensor, weight_OI: Tensor, bias_O: Tensor, queries: int) -> tuple[Tensor, Tensor]:
    """The first `queries` outputs of a linear layer for the rows `rows`, int64 [B], and the others for all rows: [B, queries], [T, O - queries]."""
    if products.takes_half(x_TI, weight_OI):
        return products.query_and_keys(x_TI, rows_B, weight_OI, bias_O, queries)
    weight_OI, bias_O = weight_OI.to(x_TI.dtype), bias_O.to(x_TI.dtype)
    return F.linear(x_TI[rows_B], weight_OI[:queries], bias_O[:queries]), F.linear(x_TI, weight_OI[queries:], bias_O[queries:])
