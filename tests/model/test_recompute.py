"""What is computed again in the backward: no gradient changes, and the memory that a forward leaves behind shrinks as worked out on paper."""

import numpy as np
import pytest
import torch

from bertfast.config.load import load_config
from bertfast.engine.memory import activation_bytes
from bertfast.errors import ConfigError
from bertfast.model.bert import BertClassifier, RandomBits
from bertfast.model.losses import loss_sum
from bertfast_kernels import use_backend
from tests.model.test_bert import bert_config
from tests.packing.test_buckets import packed
from tests.support.runs import losses, write_task
from tests.support.triton_cases import ON_GPU, needs_triton


def model_of(recomputes, p=0.1, head_size=16, **changes):
    torch.manual_seed(1)
    config = bert_config(head_size, num_labels=3, hidden_dropout_prob=p, attention_probs_dropout_prob=p, **changes)
    model = BertClassifier(config).train()
    for layer in model.layers:
        layer.recomputes = recomputes
    return model


def by_key(device="cpu"):
    return RandomBits(key=torch.tensor([3, 4], device=device))


def by_stream():
    return RandomBits(stream=np.random.Generator(np.random.SFC64(7)))


def gradients(model, batch, bits):
    logits = model(batch, bits)
    loss_sum(logits, batch.labels).backward()
    return logits, [parameter.grad for parameter in model.parameters()]


BITS = [
    pytest.param(by_key, 0.1, id="dropout-by-key"),
    pytest.param(by_stream, 0.1, id="dropout-by-stream"),
    pytest.param(by_key, 0.0, id="none"),
]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("bits", "p"), BITS)
def test_gradients_have_the_same_bits(bits, p, dtype):
    batch, results = packed([5, 2, 9, 30]), []
    for recomputes in (False, True):
        model = model_of(recomputes, p)
        model.compute_dtype = dtype
        results.append(gradients(model, batch, bits()))
    (wanted, truth), (logits, found) = results
    assert torch.equal(logits, wanted)
    assert all(torch.equal(a, b) for a, b in zip(truth, found, strict=True))


def test_a_run_with_it_has_the_losses_of_one_without(tmp_path, monkeypatch):
    from bertfast.engine.build import build_engine
    from bertfast.training import preparation
    from bertfast.training.trainer import Trainer

    config = write_task(tmp_path)
    del config["bertfast"]["eval_input"]
    for name, value in (("plain", False), ("selective", "selective")):
        config["bertfast"]["model"]["gradient_checkpointing"] = value
        config["bertfast"]["run"]["model_dir"] = str(tmp_path / name)
        engines = []
        monkeypatch.setattr(preparation, "build_engine", lambda *given, engines=engines: engines.append(build_engine(*given)) or engines[0])
        Trainer(load_config(config), device="cpu").fit()
        assert {layer.recomputes for layer in engines[0].module.layers} == {bool(value)}
    assert losses(tmp_path, "plain") == losses(tmp_path, "selective")


def test_another_kind_is_refused():
    with pytest.raises(ConfigError, match=r"gradient_checkpointing = \"all\": it must be false or 'selective'"):
        load_config({"bertfast": {"task": "sst2", "model": {"checkpoint": "bert", "gradient_checkpointing": "all"}}})


def test_a_stream_goes_on_where_the_forward_left_it():
    streams = []
    for recomputes in (False, True):
        bits = by_stream()
        gradients(model_of(recomputes), packed([5, 9]), bits)
        streams.append(bits.stream.integers(2**62))
    assert streams[0] == streams[1]


def kept_bytes(model, batch, device):
    """Bytes that a forward leaves allocated, as torch's allocator counts them."""
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CPU, activity.CUDA][: 1 + ON_GPU], profile_memory=True) as profiler:
        logits = model(batch, by_key(device))
    found = sum(event.self_device_memory_usage if ON_GPU else event.self_cpu_memory_usage for event in profiler.key_averages())
    del logits
    return found


@needs_triton
def test_the_kept_bytes_shrink_by_what_they_do_on_paper(device):
    """Two layers more, all but the last of which recompute: what each of them keeps, on the kernels, which keep what the paper counts."""
    batch = packed([30, 34]).to(device)
    found = {}
    with use_backend("triton"):
        for recomputes in (False, True):
            few, many = (model_of(recomputes, num_hidden_layers=n, head_size=32, intermediate_size=256).to(device) for n in (2, 4))
            kept_bytes(few, batch, device)
            found[recomputes] = (kept_bytes(many, batch, device) - kept_bytes(few, batch, device)) / 2
    size, wide, heads = 64, 256, 2
    statistics = 4 * 64 * (2 * heads + 2)  # attention's of a head and token, and those of a LayerNorm, which the numbers below leave out
    masks = 2 * size * 64  # the kernels store none
    config = bert_config(32, num_hidden_layers=1, intermediate_size=wide)
    assert found[False] == pytest.approx(activation_bytes(config, 64, "fp32") - masks + statistics, rel=0.03)
    assert found[True] == pytest.approx(activation_bytes(config, 64, "fp32", selective=True) + statistics, rel=0.03)
    assert found[True] / found[False] == pytest.approx(11 / 16, abs=0.02)
