"""The whole network on the Triton backend against the same network on its torch twins, and against transformers."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from bertfast.model.bert import BertClassifier, RandomBits
from bertfast.model.losses import loss_sum
from bertfast.packing.batch import PackedBatch
from bertfast_kernels import use_backend
from tests.model.test_bert import bert_config, features
from tests.support.tolerances import GRADIENT, LOGITS, TRITON_LOGITS
from tests.support.triton_cases import DTYPES, ON_GPU, needs_triton

pytestmark = needs_triton


@pytest.mark.parametrize("p", [0.0, 0.1], ids=["no-dropout", "dropout"])
@pytest.mark.parametrize("act", ["gelu", "gelu_new"])
def test_logits_and_gradients(device, p, act):
    torch.manual_seed(1)
    config = bert_config(num_labels=3, hidden_dropout_prob=p, attention_probs_dropout_prob=p, hidden_act=act, num_hidden_layers=2)
    model = BertClassifier(config).to(device).train()
    batch = PackedBatch.from_features(features(n=5, num_labels=3, longest=14)).to(device)
    results = []
    for backend in ("torch", "triton"):
        model.zero_grad()
        with use_backend(backend):
            logits = model(batch, RandomBits(key=torch.tensor([3, 4], device=device)))
            loss_sum(logits, batch.labels).backward()
        results.append((logits.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}))
    (wanted, gradients), (ours, our_gradients) = results
    assert (ours - wanted).abs().max() < LOGITS
    for name, gradient in gradients.items():
        # all of it is float32 noise where the true gradient is 0, as for a bias that softmax ignores
        assert (our_gradients[name] - gradient).norm() <= GRADIENT * max(gradient.norm(), 1e-2), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_farther_from_float64_than_transformers(device, dtype):
    """A base-size model on a GPU, a small one under the interpreter: the same random weights and features for all three."""
    torch.manual_seed(2)
    config = BertConfig(num_labels=3) if ON_GPU else bert_config(num_labels=3)
    theirs = BertForSequenceClassification(config).eval().to(device)
    batch = features(n=64 if ON_GPU else 8, num_labels=3, longest=40 if ON_GPU else 20)
    del batch["labels"]
    packed, batch = PackedBatch.from_features(batch).to(device), {name: value.to(device) for name, value in batch.items()}
    ours = BertClassifier.from_transformers(theirs).eval().to(device, dtype)
    with torch.inference_mode():
        truth = theirs.double()(**batch).logits
        their_logits = theirs.to(dtype)(**batch).logits
        our_logits = ours(packed)
    error, their_error = ((logits.double() - truth).square().mean().sqrt().item() for logits in (our_logits, their_logits))
    if dtype == torch.float32:
        assert (our_logits - truth).abs().max() < TRITON_LOGITS
    else:
        assert error <= 1.1 * their_error, (
            f"{error:.3g} from float64, transformers {their_error:.3g}"
        )  # a tenth: both are noise, of few logits
