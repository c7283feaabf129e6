"""Against figures worked out by hand from the papers."""

from types import SimpleNamespace

import pytest

from bertfast.engine.memory import activation_bytes, estimate_memory

GB = 1e9


@pytest.mark.parametrize(
    "stage, ranks, gigabytes",
    [
        # Table 1 of the ZeRO paper: 7.5 billion parameters, mixed precision
        pytest.param(0, 64, 120.0, id="paper-baseline"),
        pytest.param(1, 64, 31.4, id="paper-stage-1-on-64"),
        pytest.param(2, 64, 16.6, id="paper-stage-2-on-64"),
        pytest.param(3, 64, 1.88, id="paper-stage-3-on-64"),
        pytest.param(1, 4, 52.5, id="paper-stage-1-on-4"),
        pytest.param(2, 4, 41.3, id="paper-stage-2-on-4"),
        pytest.param(3, 4, 30.0, id="paper-stage-3-on-4"),
        pytest.param(3, 1, 120.0, id="one-rank-has-nobody-to-share-with"),
    ],
)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_mixed_precision_is_the_papers_table(stage, ranks, gigabytes, precision):
    estimate = estimate_memory(7_500_000_000, precision, stage, ranks)
    assert estimate.device / GB == pytest.approx(gigabytes, rel=5e-3)
    assert estimate.host == 0


@pytest.mark.parametrize(
    "stage, ranks, expected",
    [
        # parameters, gradients, optimizer of 1,000 parameters, in bytes
        pytest.param(0, 2, (4000, 4000, 8000), id="no-copy-without-zero"),
        pytest.param(1, 2, (4000, 4000, 6000), id="stage-1-keeps-a-copy"),
        pytest.param(2, 2, (4000, 2000, 6000), id="stage-2-keeps-a-copy"),
        pytest.param(3, 2, (2000, 2000, 4000), id="stage-3-shares-its-part"),
    ],
)
def test_float32(stage, ranks, expected):
    estimate = estimate_memory(1000, "fp32", stage, ranks)
    assert (estimate.parameters, estimate.gradients, estimate.optimizer) == expected


@pytest.mark.parametrize(
    "stage, offload_param, device, host",
    [
        pytest.param(1, False, (2000, 2000, 0), 3000, id="stage-1-optimizer"),
        pytest.param(2, False, (2000, 0, 0), 3500, id="stage-2-gradients-follow"),
        pytest.param(3, False, (500, 0, 0), 3500, id="stage-3-optimizer"),
        pytest.param(3, True, (0, 0, 0), 4000, id="stage-3-parameters-too"),
        pytest.param(2, True, (2000, 0, 0), 3500, id="parameters-stay-before-stage-3"),
    ],
)
def test_offloading_moves_bytes_to_the_host(stage, offload_param, device, host):
    estimate = estimate_memory(1000, "fp16", stage, 4, offload_optimizer=True, offload_param=offload_param)
    assert (estimate.parameters, estimate.gradients, estimate.optimizer) == device
    assert estimate.host == host


def test_activations_of_bert_base():
    base = SimpleNamespace(hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
    assert activation_bytes(base, 1000, "fp16") == 34 * 768 * 12 * 1000
    assert activation_bytes(base, 1000, "fp32") == (4 * 16 + 2) * 768 * 12 * 1000
    assert estimate_memory(1000, "fp16", activations=5.0).device == 16 * 1000 + 5.0
