from .fused import fused_graph
from .network import portable_graph
from .operators import Network
from .packed import packed_graph
from .quantized import Recipe, Statistics, int8_share, measure, product_names, quantized_graph, round_weights
from .writer import save_model

__all__ = [
    "Network",
    "Recipe",
    "Statistics",
    "fused_graph",
    "int8_share",
    "measure",
    "packed_graph",
    "portable_graph",
    "product_names",
    "quantized_graph",
    "round_weights",
    "save_model",
]
