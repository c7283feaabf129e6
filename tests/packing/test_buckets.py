"""Padding up to a bucket: how much of it there is, and that no logit, loss or gradient knows of it."""

import numpy as np
import pytest
import torch

from bertfast.config.blocks import HeadConfig, LossConfig
from bertfast.model.bert import BertClassifier, RandomBits
from bertfast.model.heads import set_head
from bertfast.model.losses import Loss
from bertfast.packing.batch import IGNORE_LABEL, Extent, PackedBatch
from bertfast.packing.buckets import bucket_of, in_common_rows, padded
from bertfast_kernels import use_backend
from tests.model.test_bert import bert_config
from tests.support.tolerances import GRADIENT, LOGITS
from tests.support.triton_cases import needs_triton

KEY = torch.tensor([3, 4])


def packed(lengths, num_labels=3, seed=0):
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    labels = rng.random(len(lengths)).astype(np.float32) if num_labels == 1 else rng.integers(0, num_labels, len(lengths))
    return PackedBatch.from_ragged(rng.integers(1, 200, total), rng.integers(0, 2, total), lengths, labels, 7 + np.arange(len(lengths)))


def outcome(model, batch, loss, key=KEY):
    """Logits, the loss and the gradients by name of one micro-batch."""
    model.zero_grad()
    logits = model(batch, RandomBits(key=key))
    value = loss(logits, batch.labels)
    value.backward()
    return logits.detach(), value.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_padding_counts_nothing(model, batch, bucket, loss, key=KEY):
    (wanted, value, gradients), (ours, our_value, our_gradients) = (
        outcome(model, item, loss, key) for item in (batch, padded(batch, bucket))
    )
    assert ours.shape[0] == bucket.sequences and ours.isfinite().all()
    assert (ours[: len(wanted)] - wanted).abs().max() < LOGITS
    assert abs(our_value - value) <= 1e-6 * max(abs(value), 1)
    for name, gradient in gradients.items():
        # all of it is float32 noise where the true gradient is 0, as for a bias that softmax ignores
        assert (our_gradients[name] - gradient).norm() <= GRADIENT / 10 * max(gradient.norm(), 1e-2), name


CASES = [
    pytest.param([5, 2, 9, 17], Extent(64, 128, 8), id="tokens-and-sequences"),
    pytest.param([5, 2, 9, 17], Extent(64, 17, 4), id="tokens-alone"),
    pytest.param([32, 2, 30], Extent(64, 128, 8), id="sequences-alone-so-that-a-filler-starts-behind-the-last-token"),
    pytest.param([32, 30, 2], Extent(64, 32, 3), id="nothing"),
    pytest.param([1], Extent(128, 128, 8), id="a-lone-token"),
]


@pytest.mark.parametrize("p", [0.0, 0.1], ids=["no-dropout", "dropout"])
@pytest.mark.parametrize(("lengths", "bucket"), CASES)
def test_torch_backend(lengths, bucket, p):
    torch.manual_seed(1)
    model = BertClassifier(bert_config(num_labels=3, hidden_dropout_prob=p, attention_probs_dropout_prob=p)).train()
    with use_backend("torch"):
        assert_padding_counts_nothing(model, packed(lengths), bucket, Loss(LossConfig(), 3, np.array([0, 1, 2])))


LOSSES = [
    pytest.param({}, 1, id="regression"),
    pytest.param({"label_smoothing": 0.1, "class_weights": (1.0, 2.0, 3.0)}, 3, id="smoothed-and-weighted"),
    pytest.param({"focal_gamma": 2.0}, 3, id="focal"),
]


@pytest.mark.parametrize(("options", "num_labels"), LOSSES)
def test_every_loss_ignores_fillers(options, num_labels):
    torch.manual_seed(1)
    model = BertClassifier(bert_config(num_labels=num_labels, num_hidden_layers=1)).train()
    loss = Loss(LossConfig(**options), num_labels, np.array([0, 1, 2]))
    assert_padding_counts_nothing(model, packed([5, 2, 9], num_labels), Extent(64, 128, 8), loss)


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "lengths", "bucket"),
    [pytest.param(torch.float32, *CASES[2].values, id="long-kernels"), pytest.param(torch.float16, *CASES[0].values, id="short-kernels")],
)
def test_triton_backend(device, lengths, bucket, dtype):
    """float32 as the torch backend; in float16, which takes other kernels, what padding changes is rounding."""
    torch.manual_seed(1)
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    config = bert_config(16, num_labels=3, num_hidden_layers=2, **dropout)
    model = BertClassifier(config).to(device).train()
    batch, key = packed(lengths).to(device), KEY.to(device)
    loss = Loss(LossConfig(), 3, np.array([0, 1, 2]), device)
    if dtype == torch.float32:
        assert_padding_counts_nothing(model, batch, bucket, loss, key)
        return
    model.compute_dtype = dtype
    (wanted, _, gradients), (ours, _, our_gradients) = (outcome(model, item, loss, key) for item in (batch, padded(batch, bucket)))
    assert (ours[: len(wanted)] - wanted).abs().max() < 4e-3
    for name, gradient in gradients.items():
        assert (our_gradients[name] - gradient).norm() <= 4e-3 * max(gradient.norm(), 1e-1), name


def test_the_rows_of_padding_get_zeros_as_gradients():
    torch.manual_seed(1)
    model = BertClassifier(bert_config(num_labels=3)).train()
    rows = {}
    for index, layer in enumerate(model.layers):
        layer.register_full_backward_hook(lambda module, grad_in, grad_out, index=index: rows.__setitem__(index, grad_in[0]))
    outcome(model, padded(packed([5, 2, 9]), Extent(64, 128, 8)), Loss(LossConfig(), 3, np.array([0, 1, 2])))
    for gradient in rows.values():
        assert gradient[:16].abs().max() > 0 and not gradient[16:].any()


def test_padding_of_a_bucket_is_bounded():
    tokens = np.arange(1, 40_000)
    sizes = np.array([bucket_of(Extent(int(n), 128, 8)).tokens for n in tokens])
    assert (sizes % 64 == 0).all() and (sizes >= tokens).all()
    assert (sizes - tokens <= np.maximum(64, 0.06 * tokens)).all() and (sizes / tokens)[1088:].mean() < 1.025
    assert len(set(sizes.tolist())) < 200


def test_the_lengths_of_mnli_need_few_buckets():
    rng = np.random.default_rng(0)
    batches = np.clip(rng.gamma(4.0, 10.0, (2000, 32)), 3, 128).astype(int)
    buckets = [bucket_of(Extent(int(batch.sum()), int(batch.max()), 32)) for batch in batches]
    assert {bucket.max_seqlen for bucket in buckets} == {128} and {bucket.sequences for bucket in buckets} == {32}
    assert len(set(buckets)) < 24


@pytest.mark.parametrize(
    ("extent", "bucket"),
    [
        pytest.param((64, 128, 8), (64, 128, 8), id="whole-steps"),
        pytest.param((65, 129, 9), (128, 256, 16), id="one-more"),
        pytest.param((0, 0, 0), (64, 128, 8), id="empty"),
        pytest.param((5000, 512, 100), (5120, 512, 112), id="coarse-steps"),
    ],
)
def test_buckets(extent, bucket):
    assert bucket_of(Extent(*extent)) == bucket == bucket_of(Extent(*bucket))


def test_a_padded_batch_tells_what_it_was():
    batch = padded(packed([5, 2, 9]), Extent(64, 128, 8))
    assert batch.unpadded == (16, 9, 3) and batch.extent == (64, 128, 8)
    assert batch.cu_seqlens.tolist() == [0, 5, 7] + [16] * 6
    assert batch.labels[3:].tolist() == [IGNORE_LABEL] * 5 and batch.example_ids.tolist() == [7, 8, 9] + [-1] * 5
    assert padded(batch, Extent(128, 128, 8)).unpadded == (16, 9, 3)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        padded(packed([5, 2, 9]), Extent(15, 128, 8))
    with pytest.raises(ValueError, match="pieces"):
        padded(packed([5, 2, 9]).with_pieces([0, 2, 3], [0, 1, 2]), Extent(64, 128, 8))


def test_common_rows_are_few_and_near():
    rows = {n: in_common_rows(packed([n])).num_tokens for n in range(1, 2100)}
    assert all(n <= padded_n < n + max(8, n / 16) for n, padded_n in rows.items())
    assert len(set(rows.values())) < 100


@pytest.mark.parametrize("pieces", [False, True], ids=["examples", "pieces"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "attention"])
def test_16_bits_on_a_cpu_meet_common_rows_and_answer_the_same(pooling, pieces):
    torch.manual_seed(1)
    config = bert_config(num_labels=3, num_hidden_layers=2)
    set_head(config, HeadConfig(pooling=pooling))
    model, batch = BertClassifier(config).train(), packed([5, 2, 9, 17])
    if pieces:
        batch = batch.with_pieces([0, 1, 4], [0, 1, 2, 3])
    met = []
    model.layers[0].register_forward_pre_hook(lambda module, args: met.append(args[0].shape[0]))
    wanted = model(batch)
    model.compute_dtype = torch.bfloat16
    found = model(batch)
    assert met == [33, 40]
    assert found.shape == wanted.shape and (found - wanted).abs().max() < 0.02 * wanted.abs().max()
