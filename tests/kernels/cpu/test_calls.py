"""What holds for every op that runs its C++ kernels."""

import pytest
import torch

from bertfast.reporting.profiling import parts_of, shares_of, step_profiler
from bertfast_kernels import bias_gelu, dropout_add_layer_norm, embedding_layer_norm, linear, query_and_keys, varlen_attention
from tests.support.cpp_cases import needs_cpp

pytestmark = needs_cpp
BOUNDS = torch.tensor([0, 3, 8], dtype=torch.int32)
IDS, ROW, BIAS = torch.arange(8) % 3, torch.ones(16), torch.zeros(16)
OPS = {
    "attention": ((8, 3, 2, 8), lambda qkv: varlen_attention(qkv, BOUNDS, 5, None)),
    "norm": ((8, 16), lambda x: dropout_add_layer_norm(x, BIAS, x, ROW, BIAS, 1e-12)),
    "gelu": ((8, 16), lambda x: bias_gelu(x, BIAS)),
    "embeddings": ((3, 16), lambda table: embedding_layer_norm(IDS, IDS, IDS, table, table, table, ROW, BIAS, 1e-12)),
    "linear": ((8, 16), lambda x: linear(x.bfloat16(), torch.ones(16, 16))),
    "query-and-keys": ((8, 16), lambda x: query_and_keys(x.bfloat16(), IDS[:2], torch.ones(48, 16), torch.ones(48), 16)[0]),
}


@pytest.mark.parametrize("name", OPS)
def test_a_gradient_of_gradients_is_refused(name):
    """Autograd does not see into the kernels: it would leave out their share without a word."""
    shape, op = OPS[name]
    x = torch.randn(shape).requires_grad_()
    (gradient,) = torch.autograd.grad(op(x).float().square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        (gradient + x).square().sum().backward()


def test_a_profiler_sees_them():
    """Calls of ctypes are no operators of torch's: unmarked, a step's time would count as Python's."""
    qkv = torch.randn(8192, 3, 4, 32, requires_grad=True)
    bounds = torch.arange(0, 8193, 512, dtype=torch.int32)
    with step_profiler(False) as profiler:
        for _ in range(3):
            varlen_attention(qkv, bounds, 512, None).sum().backward()
    calls = {part.name: part.calls for part in parts_of(profiler)}
    assert calls["bertfast::attention_forward"] == calls["bertfast::attention_backward"] == 3
    assert shares_of(profiler)["attention"] > 0.5
