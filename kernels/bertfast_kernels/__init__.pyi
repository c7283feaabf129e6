from .attention import varlen_attention, varlen_cls_attention
from .compile import TARGETS, CompiledKernel, Target, compile_kernels, local_target
from .cross_entropy import cross_entropy
from .dispatch import use_backend
from .dropout import Dropout, dropped
from .embedding import embedding_layer_norm
from .gelu import bias_gelu
from .layer_norm import dropout_add_layer_norm
from .primitives.lazy_triton import HAS_TRITON
from .shapes import EncoderShape

__all__ = [
    "HAS_TRITON",
    "TARGETS",
    "CompiledKernel",
    "Dropout",
    "EncoderShape",
    "Target",
    "bias_gelu",
    "compile_kernels",
    "cross_entropy",
    "dropout_add_layer_norm",
    "dropped",
    "embedding_layer_norm",
    "local_target",
    "use_backend",
    "varlen_attention",
    "varlen_cls_attention",
]
