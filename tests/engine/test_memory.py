"""Against figures worked out by hand from the papers."""

from types import SimpleNamespace

import pytest

from bertfast.engine import memory
from bertfast.engine.memory import MemoryEstimate, activation_bytes, estimate_memory, shortage

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


@pytest.mark.parametrize(
    "device, host, ranks, total, free, expected",
    [
        pytest.param(4.0, 0.0, 1, 8.0, 6.0, None, id="enough"),
        pytest.param(
            9.0, 0.0, 1, 8.0, 6.0, (True, "1 rank on this machine would need 9.0 GB or more of memory, and there are 8.0 GB"), id="never"
        ),
        pytest.param(
            7.5, 0.0, 1, 8.0, 6.0, (False, "1 rank on this machine would need 7.5 GB or more of memory, and 6.0 GB are free"), id="not-now"
        ),
        pytest.param(3.0, 2.0, 2, 8.0, 6.0, (True, "2 ranks on this machine would need 10.0 GB"), id="ranks-and-what-is-offloaded"),
        pytest.param(99.0, 0.0, 1, None, None, None, id="a-system-that-does-not-tell"),
    ],
)
def test_what_a_machine_lacks(monkeypatch, device, host, ranks, total, free, expected):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.setattr(memory, "memory_total", lambda: total and total * GB)
    monkeypatch.setattr(memory, "memory_available", lambda: free and free * GB)
    found = shortage(MemoryEstimate(1 * GB, 0, 0, (device - 1) * GB, host * GB), "cpu")  # the 1 GB of parameters is there already
    assert found is None if expected is None else (found.is_certain, found.sentence[: len(expected[1])]) == expected


@pytest.mark.parametrize("device, expected", [(7.0, None), (9.0, True), (7.9, False)])
def test_a_gpu_has_its_own(monkeypatch, device, expected):
    monkeypatch.setattr(memory.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(memory.torch.cuda, "mem_get_info", lambda: (6 * GB, 8 * GB))
    found = shortage(MemoryEstimate(1 * GB, 0, 0, (device - 1) * GB, 0.0), "cuda")
    assert (found and found.is_certain) == expected and (found is None or "the GPU's memory" in found.sentence)
