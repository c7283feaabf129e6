"""Model -> ONNX graph, written directly from the weights.

A BERT classifier is one page of operators, so the graph is written, not traced: it is the same, byte for byte, whatever version of torch or
transformers is installed; nothing has to be found again by a pattern matcher that may miss it; and one skeleton carries the portable, the
fused and the quantized graph, which differ in the operators of `Operators` alone. Whether it is right is not taken on trust: the judge holds
every file against transformers' own model.

A head of bertfast's own is written by `heads`. Otherwise, what the graph computes is what transformers' BertForSequenceClassification computes with eager attention, for any mask: the position of a
token is its column, the pooled token is column 0, a column whose mask is 0 is attended to by nobody. A row with no token at all attends to
all its columns equally, as it does there: its logits are finite, mean nothing, and depend on how wide the row is.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from bertfast_export.contract import DEFAULT_OPSET, INPUTS
from bertfast_export.graphs.operators import Network, Operators

# B batch, S sequence, N heads, H head size, D hidden, F feed-forward, C classes


def write_network(operators: Operators, integers: str = "int64", metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """The whole network, written with these operators. integers: "int64" or "int32", the type of the inputs."""
    from bertfast_export.graphs.heads import write_own_head

    input_ids, mask, token_type_ids = INPUTS
    mask = operators.mask(mask)
    x = operators.embeddings(input_ids, token_type_ids)
    last, head, head_layers = operators.network.num_layers - 1, operators.network.head, operators.network.head_layers
    read: dict[int, str] = {}
    cls_only = last if head.pooling == "cls" else None
    for index in range(last + 1):
        layer = f"layers.{index}"
        first_alone = index == cls_only and operators.attends_first_alone
        heads, x = operators.last_attention(x, f"{layer}.qkv") if first_alone else (operators.attention(x, mask, f"{layer}.qkv"), x)
        x = operators.add_norm(operators.product(heads, f"{layer}.attention_out"), x, f"{layer}.attention_norm")
        if index == cls_only and not first_alone:
            x = operators.first_token(x)  # nothing reads the other columns of the last feed-forward block
        wide = operators.bias_gelu(operators.product(x, f"{layer}.ffn_up"), f"{layer}.gelu")
        x = operators.add_norm(operators.product(wide, f"{layer}.ffn_down"), x, f"{layer}.ffn_norm")
        if index in head_layers:
            read[index] = x if index == cls_only else operators.columns(x)
    logits = operators.head(x) if head.is_plain else write_own_head(operators, read, cls_only)
    kinds = dict.fromkeys(INPUTS, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(integers)))
    return operators.graph.model(kinds, logits, operators.network.num_labels, metadata or {})


def portable_graph(
    network: Network, opset: int = DEFAULT_OPSET, integers: str = "int64", metadata: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """model.onnx: standard operators alone."""
    return write_network(Operators(network, opset), integers, metadata)
