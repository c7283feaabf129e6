"""The torch form of the row-wise ops: their definition, and their path on a CPU and in an export.

Every op takes packed tokens, T rows of them. Statistics are float32 inside torch's own layer_norm and cross_entropy, whatever the input's dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bertfast_kernels.primitives.masks import Dropout, add_dropped, dropped

# T tokens, B sequences, D hidden, F feed-forward, C classes, V vocabulary, P positions, S segments


def embedding_layer_norm(
    input_ids_T: torch.Tensor,
    token_type_ids_T: torch.Tensor,
    position_ids_T: torch.Tensor,
    word_VD: torch.Tensor,
    segment_SD: torch.Tensor,
    position_PD: torch.Tensor,
    weight_D: torch.Tensor,
    bias_D: torch.Tensor,
    eps: float,
    dropout: Dropout | None = None,
) -> torch.Tensor:
    """dropout(LayerNorm(word[input_ids] + segment[token_type_ids] + position[position_ids])): [T, D] (Devlin et al. 2019, figure 2).

    Ids are int32 or int64 [T]; the tables are of one floating dtype, which is the result's.
    """
    x_TD = F.embedding(input_ids_T, word_VD) + F.embedding(token_type_ids_T, segment_SD) + F.embedding(position_ids_T, position_PD)
    return dropped(F.layer_norm(x_TD, weight_D.shape, weight_D, bias_D, eps), dropout)


def dropout_add_layer_norm(
    x_TD: torch.Tensor,
    x_bias_D: torch.Tensor,
    residual_TD: torch.Tensor,
    weight_D: torch.Tensor,
    bias_D: torch.Tensor,
    eps: float,
    dropout: Dropout | None = None,
) -> torch.Tensor:
    """LayerNorm(residual + dropout(x + x_bias)): [T, D], x being the output of a matrix product and x_bias its bias (Ba et al. 2016)."""
    return F.layer_norm(add_dropped(residual_TD, x_TD + x_bias_D, dropout), weight_D.shape, weight_D, bias_D, eps)


def bias_gelu(x_TF: torch.Tensor, bias_F: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """gelu(x + bias): [T, F]; approximate "none" is the exact x * Phi(x), "tanh" its approximation (Hendrycks and Gimpel 2016)."""
    return F.gelu(x_TF + bias_F, approximate=approximate)


def cross_entropy(logits_BC: torch.Tensor, labels_B: torch.Tensor, ignore_index: int = -100) -> torch.Tensor:
    """The sum (not the mean) over B of -log softmax(logits)[label]; rows labelled ignore_index count nothing. A float32 scalar (float64 for float64)."""
    logits_BC = logits_BC.to(torch.promote_types(logits_BC.dtype, torch.float32))
    return F.cross_entropy(logits_BC, labels_B.long(), ignore_index=ignore_index, reduction="sum")
