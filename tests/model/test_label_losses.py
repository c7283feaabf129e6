"""The loss of several labels a text: against transformers' with problem_type "multi_label_classification", torch's own and slow readings of the formulas."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli, kl_divergence
from transformers import BertForSequenceClassification

from bertfast.config.blocks import LossConfig
from bertfast.errors import ConfigError
from bertfast.model.bert import BertClassifier
from bertfast.model.losses import Loss
from bertfast.packing.batch import PackedBatch
from bertfast.packing.buckets import bucket_of, padded
from tests.model.test_bert import assert_gradients_equal, bert_config, features
from tests.support.tolerances import FLOAT64, GRADIENT, LOGITS

NAMES = ("art", "music", "sport", "war")
LABELS = (np.random.default_rng(0).random((40, 4)) < [0.2, 0.5, 0.1, 0.7]).astype(np.uint8)


def loss_of(**options):
    return Loss(LossConfig(**options), 4, LABELS, names=NAMES)


def logits_and_labels(dtype=torch.float64):
    logits = torch.randn(8, 4, generator=torch.Generator().manual_seed(1), dtype=dtype, requires_grad=True)
    labels = torch.tensor(LABELS[:8], dtype=torch.float32)
    labels[3] = torch.nan  # a filler
    return logits, labels


def slow(logits, labels, weights=(1, 1, 1, 1), pos_weights=(1, 1, 1, 1), smoothing=0.0, gamma=0.0):
    """Label by label, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for row, marks in zip(logits.double(), labels.tolist(), strict=True):
        if np.isnan(marks[0]):
            continue
        for logit, mark, weight, pos_weight in zip(row, marks, weights, pos_weights, strict=True):
            p, wanted = torch.sigmoid(logit), mark * (1 - smoothing) + smoothing / 2
            term = -(pos_weight * wanted * p.log() + (1 - wanted) * (1 - p).log())
            total = total + weight * (1 - (p if mark else 1 - p)) ** gamma * term / len(marks)
    return total


COUNTS = LABELS.sum(axis=0)
BALANCED = ((len(LABELS) - COUNTS) / COUNTS).tolist()
OPTIONS = [
    pytest.param({}, {}, id="plain"),
    pytest.param({"label_smoothing": 0.2}, {"smoothing": 0.2}, id="smoothing"),
    pytest.param({"focal_gamma": 2.0}, {"gamma": 2.0}, id="focal"),
    pytest.param({"class_weights": (1, 2, 0, 4)}, {"weights": (1, 2, 0, 4)}, id="weights"),
    pytest.param({"class_weights": {"music": 3.0}}, {"weights": (1, 3, 1, 1)}, id="weights-by-name"),
    pytest.param({"pos_weight": 5}, {"pos_weights": (5, 5, 5, 5)}, id="one-weight-of-what-holds"),
    pytest.param({"pos_weight": (1, 2, 3, 4)}, {"pos_weights": (1, 2, 3, 4)}, id="weights-of-what-holds"),
    pytest.param({"pos_weight": {"war": 0.5, "art": 7}}, {"pos_weights": (7, 1, 1, 0.5)}, id="weights-of-what-holds-by-name"),
    pytest.param({"pos_weight": "balanced"}, {"pos_weights": BALANCED}, id="balanced"),
    pytest.param(
        {"pos_weight": "balanced", "class_weights": (1, 2, 3, 4), "focal_gamma": 0.5},
        {"pos_weights": BALANCED, "weights": (1, 2, 3, 4), "gamma": 0.5},
        id="all-together",
    ),
]


@pytest.mark.parametrize("options, values", OPTIONS)
def test_losses_and_gradients_equal_a_slow_reading(options, values):
    logits, labels = logits_and_labels()
    loss = loss_of(**options)(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    wanted = slow(logits, labels, **values)
    (wanted_gradient,) = torch.autograd.grad(wanted, logits)
    assert abs(loss - wanted) < 1e-6  # weights are float32
    assert (gradient - wanted_gradient).norm() < GRADIENT * wanted_gradient.norm()
    assert not gradient[3].any()  # of a filler


def test_a_logit_far_out_has_a_loss_and_a_gradient():
    logits = torch.tensor([[800.0, -800.0, 800.0, -800.0]], requires_grad=True)
    for gamma in (0.0, 2.0):
        loss = loss_of(focal_gamma=gamma)(logits, torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
        assert loss.item() == pytest.approx(400)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.isfinite().all() and gradient[0].tolist() == pytest.approx([0, 0, 0.25, -0.25])


def test_r_drop_is_half_of_both_divergences():
    first, labels = logits_and_labels()
    second = first.detach() + torch.randn(8, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    loss = loss_of(r_drop=0.7)(torch.cat((first, second)).float(), torch.cat((labels, labels)))
    p, q = (Bernoulli(logits=logits.double()) for logits in (first, second))
    both = ((kl_divergence(p, q) + kl_divergence(q, p)) / 2).mean(dim=1)[~labels[:, 0].isnan()].sum()
    wanted = (slow(first, labels) + slow(second, labels)) / 2 + 0.7 * both
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)


def several(n=12, count=5, **options):
    """A batch with `count` labels an example."""
    batch = features(n, num_labels=2, **options)
    batch["labels"] = (torch.rand(n, count, generator=torch.Generator().manual_seed(3)) < 0.4).float()
    return batch


@pytest.mark.parametrize("count", [2, 5, 28])
def test_logits_loss_and_gradients_equal_transformers(count):
    torch.manual_seed(1)
    theirs = BertForSequenceClassification(bert_config(num_labels=count, problem_type="multi_label_classification"))
    ours, batch = BertClassifier.from_transformers(theirs).train(), several(count=count)
    packed = PackedBatch.from_features(batch)
    output, logits = theirs(**batch), ours(packed)
    assert (logits - output.logits).abs().max() < LOGITS
    loss = Loss(LossConfig(), count, batch["labels"].numpy())(logits, packed.labels) / 12
    assert abs(loss - output.loss) < LOGITS
    output.loss.backward()
    loss.backward()
    assert_gradients_equal(ours, theirs)


def test_packed_in_any_way_the_gradients_are_the_same():
    torch.manual_seed(1)
    model = BertClassifier(bert_config(num_labels=5)).double().train()
    batch, loss_of_batch = several(), Loss(LossConfig(), 5, np.zeros((1, 5)))

    def outcome(parts):
        model.zero_grad()
        losses = [loss_of_batch(model(part), part.labels) for part in parts]
        sum(losses).backward()
        return sum(loss.item() for loss in losses), torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()])

    def part(rows):
        return PackedBatch.from_features({name: values[rows] for name, values in batch.items()})

    whole = part(torch.arange(12))
    truth = outcome([whole])
    for parts in (
        [part(torch.tensor([7, 3, 11])), part(torch.tensor([0, 1, 2, 4, 5, 6, 8, 9, 10]))],
        [padded(whole, bucket_of(whole.extent))],
    ):
        loss, gradient = outcome(parts)
        assert abs(loss - truth[0]) < FLOAT64 * 100 and (gradient - truth[1]).norm() < 1e-12 * truth[1].norm()


@pytest.mark.parametrize(
    "options, message",
    [
        pytest.param(
            {"class_weights": "balanced"}, "'balanced' is for one label a text; of several, pos_weight = 'balanced'", id="balanced"
        ),
        pytest.param({"pos_weight": (1, 2)}, "loss.pos_weight holds 2 weights, but the task has 4 classes", id="too-few"),
        pytest.param({"pos_weight": {"musik": 2}}, "loss.pos_weight: there is no class 'musik'; did you mean 'music'", id="misspelt"),
        pytest.param(
            {"class_weights": {"x": 2}}, "loss.class_weights: there is no class 'x'; the classes are 'art', 'music'", id="unknown"
        ),
    ],
)
def test_weights_that_do_not_fit(options, message):
    with pytest.raises(ConfigError, match=message):
        loss_of(**options)


def test_a_label_that_never_holds_cannot_be_balanced():
    with pytest.raises(ConfigError, match="label sport holds of no training example"):
        Loss(LossConfig(pos_weight="balanced"), 4, LABELS * [1, 1, 0, 1], names=NAMES)
    with pytest.raises(ConfigError, match="label war holds of every training example"):
        Loss(LossConfig(pos_weight="balanced"), 4, np.maximum(LABELS, [0, 0, 0, 1]), names=NAMES)


def test_pos_weight_is_for_several_labels():
    with pytest.raises(ConfigError, match="pos_weight is for several labels a text, and this task has one"):
        Loss(LossConfig(pos_weight=2.0), 3, np.array([0, 1, 2]))


def test_class_weights_by_name_of_one_label_a_text():
    logits, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 2, 1, 0])
    loss = Loss(LossConfig(class_weights={"b": 4.0}), 3, labels.numpy(), names=("a", "b", "c"))(logits, labels.int())
    assert loss.item() == pytest.approx(F.cross_entropy(logits, labels, torch.tensor([1.0, 4.0, 1.0]), reduction="sum").item(), rel=1e-6)


def test_what_guessing_costs():
    assert loss_of().chance == pytest.approx(np.log(2)) and loss_of(pos_weight=2.0).chance is None
    assert Loss(LossConfig(), 3, np.array([0, 1, 2])).chance == pytest.approx(np.log(3))
