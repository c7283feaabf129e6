"""Losses against torch's own, scikit-learn's weights and a slow reading of their formulas, each with its gradient."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from sklearn.utils.class_weight import compute_class_weight

from bertfast.config.blocks import LossConfig
from bertfast.errors import ConfigError
from bertfast.model.bert import BertClassifier, RandomBits
from bertfast.model.losses import Loss, loss_sum
from bertfast.packing.batch import IGNORE_LABEL, PackedBatch, doubled
from tests.model.test_bert import bert_config, features
from tests.support.tolerances import FLOAT64, GRADIENT

WEIGHTS = [0.2, 1.0, 3.0]
LABELS = np.array([0, 2, 1, 1, 0, 2, 2, 1])


def logits_and_labels(seed=0, filler=True):
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    labels = torch.tensor(LABELS, dtype=torch.int32)
    if filler:
        labels[3] = IGNORE_LABEL
    return logits, labels


def slow(logits, labels, config):
    """Example by example, in float64."""
    weights = {None: [1.0] * 3, "balanced": compute_class_weight("balanced", classes=np.arange(3), y=LABELS).tolist()}.get(
        config.class_weights, config.class_weights
    )
    total = torch.zeros((), dtype=torch.float64)
    for row, label in zip(logits.double(), labels.tolist(), strict=True):
        if label == IGNORE_LABEL:
            continue
        log_p, share = row.log_softmax(0), config.label_smoothing
        hard = -(1 - share) * weights[label] * log_p[label] - share / 3 * sum(weights[c] * log_p[c] for c in range(3))
        total = total + (1 - log_p[label].exp()) ** config.focal_gamma * hard
    return total


OPTIONS = [
    pytest.param({}, id="plain"),
    pytest.param({"label_smoothing": 0.1}, id="smoothing"),
    pytest.param({"class_weights": tuple(WEIGHTS)}, id="weights"),
    pytest.param({"class_weights": "balanced"}, id="balanced"),
    pytest.param({"label_smoothing": 0.2, "class_weights": tuple(WEIGHTS)}, id="smoothing-and-weights"),
    pytest.param({"focal_gamma": 2.0}, id="focal"),
    pytest.param({"focal_gamma": 0.5, "class_weights": tuple(WEIGHTS)}, id="focal-and-weights"),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_losses_and_gradients_equal_a_slow_reading(options):
    config = LossConfig(**options)
    logits, labels = logits_and_labels()
    loss = Loss(config, 3, LABELS)(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    wanted = slow(logits, labels, config)
    (slope,) = torch.autograd.grad(wanted, logits)
    assert loss.dtype == torch.float32 and abs(loss.item() - wanted.item()) < 1e-5 * wanted.item()
    assert (gradient - slope).norm() <= GRADIENT * slope.norm()


def test_smoothed_and_weighted_loss_is_torch_s():
    logits, labels = logits_and_labels()
    loss = Loss(LossConfig(label_smoothing=0.2, class_weights=WEIGHTS), 3, LABELS)(logits, labels)
    theirs = F.cross_entropy(logits, labels.long(), torch.tensor(WEIGHTS), label_smoothing=0.2, reduction="sum")
    assert torch.equal(loss, theirs)


def test_an_example_that_is_certain_has_a_finite_focal_gradient():
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    Loss(LossConfig(focal_gamma=0.5), 3, LABELS)(logits, torch.tensor([0])).backward()
    assert logits.grad.isfinite().all()


def test_r_drop_is_half_of_each_pass_and_their_divergence():
    (first, labels), (second, _) = logits_and_labels(1), logits_and_labels(2)
    loss = Loss(LossConfig(r_drop=0.7), 3, LABELS)(torch.cat((first, second)), torch.cat((labels, labels)))
    kept = labels != IGNORE_LABEL
    p, q = first[kept].double().log_softmax(-1), second[kept].double().log_softmax(-1)
    divergence = (F.kl_div(q, p, log_target=True, reduction="sum") + F.kl_div(p, q, log_target=True, reduction="sum")) / 2
    wanted = (loss_sum(first, labels) + loss_sum(second, labels)) / 2 + 0.7 * divergence
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_r_drop_of_a_regression_is_the_squared_difference():
    first, second = torch.tensor([[1.0], [2.0], [5.0]]), torch.tensor([[1.5], [2.0], [9.0]])
    labels = torch.tensor([1.0, 4.0, float("nan")])
    loss = Loss(LossConfig(r_drop=2.0), 1, np.zeros(3, np.float32))(torch.cat((first, second)), torch.cat((labels, labels)))
    assert loss.item() == pytest.approx((0 + 4 + 0.25 + 4) / 2 + 2 * 0.25)


@pytest.mark.parametrize("p", [0.0, 0.3], ids=["without-dropout", "with-dropout"])
def test_the_two_passes_of_r_drop_meet_other_dropout_by_key(p):
    torch.manual_seed(0)
    model = BertClassifier(bert_config(hidden_dropout_prob=p)).double().train()
    batch = PackedBatch.from_features(features(6))
    twice = Loss(LossConfig(r_drop=1.0), 2, np.array([0, 1])).prepared(batch)
    bits = RandomBits(key=torch.tensor((1, 2)))
    logits = model(twice, bits)
    once = model(batch, bits)
    assert (logits[:6] - once).abs().max() < FLOAT64
    assert ((logits[6:] - once).abs().max() > 1e-3) == (p > 0)
    assert twice.labels.tolist() == batch.labels.tolist() * 2 and twice.example_ids.tolist() == batch.example_ids.tolist() * 2


def test_documents_in_pieces_are_doubled_piece_by_piece():
    batch = PackedBatch.from_ragged(np.arange(9), np.zeros(9), [4, 2, 3], np.array([1, 0])).with_pieces([0, 2, 3], [5, 6, 0])
    twice = doubled(batch)
    assert twice.cu_seqlens.tolist() == [0, 4, 6, 9, 13, 15, 18] and twice.cu_pieces.tolist() == [0, 2, 3, 5, 6]
    assert twice.piece_ids.tolist() == [5, 6, 0, 2**30 + 5, 2**30 + 6, 2**30]


def test_without_r_drop_the_batch_is_the_same_object():
    batch = PackedBatch.from_features(features(3))
    assert Loss(LossConfig(label_smoothing=0.1), 2, LABELS).prepared(batch) is batch


@pytest.mark.parametrize(
    ("options", "num_labels", "labels", "message"),
    [
        ({"class_weights": [1.0, 2.0]}, 3, LABELS, "holds 2 weights, but the task has 3 classes"),
        ({"class_weights": "balanced"}, 4, LABELS, "class 3 has no training example"),
        ({"label_smoothing": 0.1}, 1, LABELS, "this task is a regression"),
        ({"focal_gamma": 1.0}, 1, LABELS, "this task is a regression"),
    ],
    ids=["too-few", "an-empty-class", "smoothing-a-regression", "focal-regression"],
)
def test_options_that_do_not_fit_the_task_are_named(options, num_labels, labels, message):
    with pytest.raises(ConfigError, match=message):
        Loss(LossConfig(**options), num_labels, labels)


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(ValidationError, match="contradict each other"):
        LossConfig(label_smoothing=0.1, focal_gamma=2.0)
    with pytest.raises(ValidationError, match="0 or more"):
        LossConfig(class_weights=[-1.0, 1.0])
