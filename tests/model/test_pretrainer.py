"""MLM and NSP against transformers' BertForPreTraining and BertForMaskedLM on the same masked batch."""

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM, BertForPreTraining

from bertfast.model.bert import BertClassifier, RandomBits
from bertfast.model.pretrainer import BertPretrainer
from bertfast.packing.batch import PackedBatch
from bertfast.packing.masking import MaskedBatch, Masking
from bertfast.training.objectives.masked_words import pretraining_loss
from bertfast.weights.names import from_transformers_names
from tests.model.test_bert import bert_config
from tests.support.tolerances import GRADIENT, LOGITS


def a_packed_batch(n=10, longest=40, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, longest, n)
    ids = rng.integers(5, 200, lengths.sum())
    ends = np.cumsum(lengths)
    ids[ends - lengths], ids[ends - 1] = 2, 3
    segments = np.concatenate([np.arange(length) >= length // 2 for length in lengths])
    return PackedBatch.from_ragged(ids, segments, lengths, rng.integers(0, 2, n))


def masked(batch, epoch=0):
    return MaskedBatch.of(batch, Masking(0.15, None, 4, np.arange(200) < 5), (1, epoch))


def theirs_of(next_sentence, **changes):
    torch.manual_seed(1)
    return (BertForPreTraining if next_sentence else BertForMaskedLM)(bert_config(**changes)).train()


def ours_of(theirs, next_sentence):
    model = BertPretrainer(theirs.config, next_sentence).train()
    report = model.load_transformers_state(theirs.state_dict(), "test")
    assert not report.unexpected and set(report.missing) <= ({"pooler.weight", "pooler.bias"} if not next_sentence else set())
    return model


def padded(batch):
    """The batch as transformers takes it: features, among them the labels of next sentences, and of words, -100 where nothing is masked."""
    features = {name: tensor.long() for name, tensor in batch.to_features().items()}
    flat = torch.full((batch.num_tokens,), -100)
    flat[batch.masked_rows] = batch.masked_labels
    labels = torch.full(features["input_ids"].shape, -100)
    labels[features["attention_mask"].bool()] = flat
    return features, labels


def our_loss(model, batch, n_masked, n_examples, bits=None):
    """The trainer's."""
    return pretraining_loss(*model(batch, bits), batch, n_masked, n_examples)[0]


@pytest.mark.parametrize("act", ["gelu", "gelu_new"])
@pytest.mark.parametrize("next_sentence", [True, False], ids=["mlm-and-nsp", "mlm"])
def test_logits_loss_and_gradients_equal_transformers(next_sentence, act):
    theirs = theirs_of(next_sentence, hidden_act=act)
    ours, batch = ours_of(theirs, next_sentence), masked(a_packed_batch())
    features, labels = padded(batch)
    nsp = {"next_sentence_label": features.pop("labels")} if next_sentence else {}
    features.pop("labels", None)
    output = theirs(**features, labels=labels, **nsp)
    scores = output.prediction_logits if next_sentence else output.logits
    logits_MV, nsp_BC = ours(batch)
    wanted = scores[features["attention_mask"].bool()][batch.masked_rows]
    assert (logits_MV - wanted).abs().max() < LOGITS
    if next_sentence:
        assert (nsp_BC - output.seq_relationship_logits).abs().max() < LOGITS
    loss, losses_M = pretraining_loss(logits_MV, nsp_BC, batch, len(batch.masked_rows), 10)
    assert (losses_M - torch.nn.functional.cross_entropy(wanted, batch.masked_labels, reduction="none")).abs().max() < LOGITS
    assert abs(loss.item() - output.loss.item()) < LOGITS
    output.loss.backward()
    loss.backward()
    gradients, _ = from_transformers_names({name: parameter.grad for name, parameter in theirs.named_parameters()}, pretraining=True)
    found = {name: parameter.grad for name, parameter in ours.named_parameters() if parameter.grad is not None}
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (found[name] - gradient).norm() <= GRADIENT * gradient.norm(), name


@pytest.mark.parametrize("p", [0.0, 0.2], ids=["without-dropout", "with-dropout"])
def test_packing_changes_no_gradient(p):
    torch.manual_seed(2)
    model = BertPretrainer(bert_config(hidden_dropout_prob=p, attention_probs_dropout_prob=p)).double().train()
    whole = a_packed_batch()
    lengths = whole.cu_seqlens.diff().tolist()
    columns = [whole.input_ids.split(lengths), whole.token_type_ids.split(lengths)]

    def gradients(parts):
        model.zero_grad()
        batches = []
        for part in parts:
            ids, types = (torch.cat([column[index] for index in part]).numpy() for column in columns)
            picked = PackedBatch.from_ragged(ids, types, [lengths[index] for index in part], whole.labels.numpy()[part], part)
            batches.append(masked(picked))
        n_masked = sum(len(batch.masked_rows) for batch in batches)
        for batch in batches:
            our_loss(model, batch, n_masked, 10, RandomBits(key=torch.tensor((1, 2)))).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    truth = gradients([list(range(10))])
    for parts in ([[9, 1, 5], [0, 2, 3, 4, 6, 7, 8]], [[index] for index in range(10)]):
        assert (gradients(parts) - truth).norm() <= GRADIENT * truth.norm()


def test_the_decoder_sees_the_masked_tokens_alone():
    model, batch, shapes = BertPretrainer(bert_config()), masked(a_packed_batch()), []
    model.predictions.register_forward_hook(lambda module, arguments, output: shapes.append(tuple(output.shape)))
    logits, _ = model(batch)
    m = len(batch.masked_rows)
    assert shapes == [(m, 64)] and logits.shape == (m, 200) and m < 0.25 * batch.num_tokens


def test_fillers_are_not_masked():
    batch = a_packed_batch()
    batch.example_ids[3] = -1
    found = masked(batch)
    begin, end = batch.cu_seqlens[3:5].tolist()
    assert torch.equal(found.input_ids[begin:end], batch.input_ids[begin:end])
    assert not ((found.masked_rows >= begin) & (found.masked_rows < end)).any()
    assert torch.equal(found.masked_labels, batch.input_ids[found.masked_rows].long())


@pytest.mark.parametrize("next_sentence", [True, False], ids=["mlm-and-nsp", "mlm"])
def test_what_is_saved_loads_in_transformers_and_feeds_fine_tuning(tmp_path, next_sentence):
    theirs = theirs_of(next_sentence)
    model = ours_of(theirs, next_sentence)
    model.save_pretrained(tmp_path)
    again, report = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and set(report["unexpected_keys"]) <= {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in again.state_dict().items())
    ours = BertPretrainer.from_pretrained(str(tmp_path), next_sentence)
    assert not ours.load_report.missing and not ours.load_report.unexpected
    classifier = BertClassifier.from_pretrained(str(tmp_path), num_labels=3)
    assert classifier.load_report.missing == ["classifier.weight", "classifier.bias"] and not classifier.load_report.unexpected


def test_an_encoder_without_heads_gets_new_ones(tmp_path):
    BertClassifier(bert_config()).save_pretrained(tmp_path)
    report = BertPretrainer.from_pretrained(str(tmp_path)).load_report
    assert not report.unexpected and set(report.missing) == set(report.made_anew) == {
        "embeddings.decoder_bias",
        *(f"predictions.{name}" for name in ("weight", "dense_bias", "norm_weight", "norm_bias")),
        "seq_relationship.weight",
        "seq_relationship.bias",
    }


@pytest.mark.parametrize("next_sentence", [True, False], ids=["mlm-and-nsp", "mlm"])
def test_the_last_layer_computes_the_rows_that_are_looked_at(next_sentence):
    model, batch, rows = BertPretrainer(bert_config(), next_sentence), masked(a_packed_batch()), []
    for layer in model.layers:
        layer.ffn_norm.register_forward_hook(lambda module, arguments, output: rows.append(len(output)))
    model(batch)
    assert rows == [batch.num_tokens] * (len(rows) - 1) + [len(batch.masked_rows) + batch.num_sequences]


def test_a_batch_of_fillers_alone():
    """Some rank's micro-batch may hold no example: nothing is masked, and the gradients of every parameter are 0."""
    batch = a_packed_batch(n=2)
    batch.example_ids[:] = -1
    batch.labels[:] = -100
    batch = masked(batch)
    model = BertPretrainer(bert_config()).train()
    loss = our_loss(model, batch, 1, 1)
    loss.backward()
    assert len(batch.masked_rows) == 0 and loss.item() == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())
