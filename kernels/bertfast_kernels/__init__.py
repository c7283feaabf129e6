"""The ops of a packed BERT encoder. They know tensors only: no config, no model, no trainer."""

from bertfast_kernels.attention import varlen_attention, varlen_cls_attention
from bertfast_kernels.cross_entropy import cross_entropy
from bertfast_kernels.dispatch import use_backend
from bertfast_kernels.dropout import Dropout
from bertfast_kernels.embedding import embedding_layer_norm
from bertfast_kernels.gelu import bias_gelu
from bertfast_kernels.layer_norm import dropout_add_layer_norm

__all__ = [
    "Dropout",
    "bias_gelu",
    "cross_entropy",
    "dropout_add_layer_norm",
    "embedding_layer_norm",
    "use_backend",
    "varlen_attention",
    "varlen_cls_attention",
]
