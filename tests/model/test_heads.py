"""Every choice of layers and pooling against a slow reading of transformers' hidden states, however packed; and what is saved of a head."""

import itertools
import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, BertModel

from bertfast.config.blocks import HeadConfig
from bertfast.config.load import load_config
from bertfast.errors import ConfigError
from bertfast.model.bert import BertClassifier, RandomBits, initialise
from bertfast.model.heads import AttentionPooling, head_of, set_head
from bertfast.model.layers import Pack
from bertfast.model.losses import loss_sum
from bertfast.packing.batch import PackedBatch
from bertfast.training.loader import head_to_train
from tests.model.test_bert import bert_config, features
from tests.support.tiny_bert import write_tiny_bert
from tests.support.tolerances import GRADIENT, LOGITS

LAYERS = [
    (None, "concat"),
    ((0,), "concat"),
    ((-1,), "concat"),
    ((1, -1), "concat"),
    ((2, 0, 1), "concat"),
    ((2, 1), "mean"),
    ((-1, -2, -3), "max"),
]
POOLINGS = ["cls", "mean", "max", "mean_max", "attention"]
PACKINGS = {
    "whole": [range(12)],
    "shuffled": [[7, 0, 11, 4, 2, 9, 1, 3, 10, 5, 8, 6]],
    "apart": [[3], [0, 1, 2, 11], [10, 9, 8, 7, 6, 5, 4]],
}


def an_encoder(seed=1):
    torch.manual_seed(seed)
    return BertModel(bert_config()).eval()


def ours_of(encoder, head, num_labels=3):
    """bertfast's model with this head and the encoder's weights."""
    config = bert_config(num_labels=num_labels)
    set_head(config, head)
    model = BertClassifier(config)
    kept = {name: tensor for name, tensor in encoder.state_dict().items() if "pooler" not in name or model.pooler is not None}
    kept = {
        name: tensor
        for name, tensor in kept.items()
        if not name.startswith(tuple(f"encoder.layer.{i}." for i in range(config.num_hidden_layers, 3)))
    }
    assert not model.load_transformers_state(kept, source="test").unexpected
    return model


def slow_logits(encoder, model, batch):
    """The head as its config words it, one example and one layer at a time, from transformers' padded hidden states."""
    head, states = model.head, encoder(**batch, output_hidden_states=True).hidden_states[1:]
    rows = []
    for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
        vectors = []
        for layer in head.layers:
            tokens = states[layer][row, :length]
            if head.pooling == "attention":
                attention = model.features.tokens
                scores = torch.stack(
                    [attention.score.weight[0] @ torch.tanh(attention.inner.weight @ token + attention.inner.bias) for token in tokens]
                )
                parts = [(torch.softmax(scores, 0)[:, None] * tokens).sum(0)]
            else:
                parts = [{"cls": tokens[0], "mean": tokens.mean(0), "max": tokens.max(0).values}[how] for how in head.pooling.split("_")]
            if head.pooler:
                parts = [torch.tanh(encoder.pooler.dense(part)) for part in parts]
            vectors.append(torch.cat(parts))
        stacked = torch.stack(vectors)
        x = {"concat": stacked.flatten(), "mean": stacked.mean(0), "max": stacked.max(0).values}[head.layer_pooling]
        for hidden in model.hidden:
            x = {"tanh": torch.tanh, "relu": torch.relu, "gelu": torch.nn.functional.gelu}[head.activation](hidden.weight @ x + hidden.bias)
        rows.append(model.classifier.weight @ x + model.classifier.bias)
    return torch.stack(rows)


def packed_logits(model, batch, parts):
    logits = {}
    for part in parts:
        packed = PackedBatch.from_features({name: value[list(part)] for name, value in batch.items()})
        logits |= dict(zip(part, model(packed), strict=True))
    return torch.stack([logits[row] for row in range(len(batch["input_ids"]))])


def without_labels(batch):
    return {name: value for name, value in batch.items() if name != "labels"}


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("layers", "layer_pooling"), LAYERS, ids=lambda value: str(value).replace(" ", ""))
def test_layers_and_pooling_equal_a_slow_reading(layers, layer_pooling, pooling):
    encoder, batch = an_encoder(), without_labels(features())
    model = ours_of(encoder, HeadConfig(layers=layers, layer_pooling=layer_pooling, pooling=pooling)).eval()
    with torch.no_grad():
        wanted = slow_logits(encoder, model, batch)
        for name, parts in PACKINGS.items():
            assert (packed_logits(model, batch, parts) - wanted).abs().max() < LOGITS, name


VARIANTS = [
    pytest.param(HeadConfig(pooler=False), id="cls-without-pooler"),
    pytest.param(HeadConfig(layers=(-1, -2), pooler=True), id="two-layers-through-the-pooler"),
    pytest.param(HeadConfig(pooling="mean_max", pooler=True), id="mean-and-max-through-the-pooler"),
    pytest.param(HeadConfig(hidden_sizes=(24, 8)), id="two-hidden-layers"),
    pytest.param(HeadConfig(hidden_sizes=(8,), activation="gelu", pooling="mean"), id="gelu"),
    pytest.param(HeadConfig(hidden_sizes=(8,), activation="relu", layers=(0, 2), pooling="attention"), id="relu"),
]


@pytest.mark.parametrize("head", VARIANTS)
def test_poolers_and_hidden_layers_equal_a_slow_reading(head):
    encoder, batch = an_encoder(), without_labels(features())
    model = ours_of(encoder, head).eval()
    with torch.no_grad():
        assert (packed_logits(model, batch, PACKINGS["apart"]) - slow_logits(encoder, model, batch)).abs().max() < LOGITS


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layers", [None, (0, 2)], ids=["last", "two"])
def test_gradients_equal_a_slow_reading(layers, pooling):
    encoder, batch = an_encoder(2), features(num_labels=3)
    labels = batch.pop("labels")
    model = ours_of(encoder, HeadConfig(layers=layers, pooling=pooling)).train()
    torch.nn.functional.cross_entropy(slow_logits(encoder, model, batch), labels, reduction="sum").backward()
    head = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    loss_sum(model(PackedBatch.from_features(batch)), labels.int()).backward()
    for name, gradient in head.items():
        assert (dict(model.named_parameters())[name].grad - gradient).norm() <= GRADIENT * gradient.norm(), name
    word = encoder.embeddings.word_embeddings.weight.grad
    assert (model.embeddings.word.grad - word).norm() <= GRADIENT * word.norm()


@pytest.mark.parametrize("head", [*VARIANTS, pytest.param(HeadConfig(layers=(1,), pooling="attention"), id="attention")])
def test_dropout_by_key_does_not_depend_on_the_packing(head):
    config = bert_config(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.1)
    set_head(config, head)
    torch.manual_seed(3)
    model, batch = BertClassifier(config).double().train(), features()

    def gradients(parts, step):
        model.zero_grad()
        for part in parts:
            packed = PackedBatch.from_features({name: value[list(part)] for name, value in batch.items()})
            packed.example_ids = torch.tensor(list(part), dtype=torch.int32)
            loss_sum(model(packed, RandomBits(key=torch.tensor((1, step)))), packed.labels).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    whole = gradients(PACKINGS["whole"], 5)
    for name in ("shuffled", "apart"):
        assert (gradients(PACKINGS[name], 5) - whole).norm() <= GRADIENT * whole.norm(), name
    assert (gradients(PACKINGS["whole"], 6) - whole).norm() > 0.01 * whole.norm()


def test_a_trained_head_is_kept_or_another_is_refused(tmp_path):
    head = HeadConfig(pooling="mean")
    model = ours_of(an_encoder(), head)
    model.save_pretrained(str(tmp_path))
    settings = {"task": "sst2", "model": {"checkpoint": str(tmp_path), "load_checkpoint_states": "model"}}

    def loaded(**changes):
        block = load_config({"bertfast": {**settings, **changes}}).bertfast
        new_head, asked = head_to_train(block)
        return BertClassifier.from_pretrained(str(tmp_path), 3, new_head=new_head, head=asked)

    for changes in ({}, {"head": {"pooling": "mean", "dropout": 0.3}}):
        kept = loaded(**changes)
        assert kept.head.pooling == "mean" and not kept.load_report.missing
        assert torch.equal(kept.classifier.weight, model.classifier.weight)
    with pytest.raises(ConfigError, match=r"bertfast\.head\.pooling = 'max', but the head of .* was trained with 'mean'"):
        loaded(head={"pooling": "max"})
    anew = loaded(model=settings["model"] | {"is_pretrained_checkpoint": True})
    assert anew.head.is_plain and set(anew.load_report.missing) == {"classifier.weight", "classifier.bias", "pooler.weight", "pooler.bias"}


def test_each_dropout_has_a_site_of_its_own(monkeypatch):
    config = bert_config(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.1)
    set_head(config, HeadConfig(hidden_sizes=(8, 8)))
    sites, dropout = [], Pack.dropout
    monkeypatch.setattr(Pack, "dropout", lambda pack, p, site: (sites.append(site), dropout(pack, p, site))[1])
    BertClassifier(config).train()(PackedBatch.from_features(features()))
    assert sorted(sites) == list(range(1 + 3 * 3 + 3))


def test_attention_over_large_scores_is_finite():
    torch.manual_seed(0)
    initialise(attention := AttentionPooling(8), 0.5)
    attention.score.weight.data.mul_(1e5)
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    pooled = attention(x, torch.tensor([0, 2, 6]))
    scores = attention.score(torch.tanh(attention.inner(x)))[:, 0]
    assert torch.equal(pooled, torch.stack([x[scores[:2].argmax()], x[2 + scores[2:].argmax()]]))


def test_only_the_layers_that_are_read_are_kept_and_computed():
    config = bert_config()
    set_head(config, HeadConfig(layers=(0, 1)))
    model = BertClassifier(config)
    assert len(model.layers) == config.num_hidden_layers == 2 and model.pooler is None
    rows = []
    model.layers[-1].register_forward_hook(lambda module, arguments, output: rows.append(len(output)))
    model(PackedBatch.from_features(features(5)))
    assert rows == [5], "the last layer is computed for the [CLS] rows alone"


@pytest.mark.parametrize(
    ("layers", "message"),
    [((3,), "holds 3, but the checkpoint has 3 layers: 0 to 2"), ((-4,), "holds -4"), ((2, -1), "names layer 2 twice")],
    ids=["too-high", "too-low", "twice"],
)
def test_layers_that_cannot_be_are_named(layers, message):
    with pytest.raises(ConfigError, match=message):
        set_head(bert_config(), HeadConfig(layers=layers))


@pytest.mark.parametrize(
    "head",
    [HeadConfig(), HeadConfig(layers=(-1,), pooler=True), HeadConfig(layers=(0,), pooler=True)],
    ids=["default", "spelt-out", "one-layer"],
)
def test_a_head_like_transformers_own_loads_there(tmp_path, head):
    model = ours_of(an_encoder(), head).eval()
    model.save_pretrained(tmp_path)
    theirs, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    batch = without_labels(features())
    with torch.no_grad():
        assert (theirs.eval()(**batch).logits - model(PackedBatch.from_features(batch))).abs().max() < LOGITS


@pytest.mark.parametrize(("layers", "pooling"), list(itertools.product([None, (0, -1)], POOLINGS[1:])))
def test_another_head_is_read_again_and_never_taken_for_transformers_own(tmp_path, layers, pooling):
    model = ours_of(an_encoder(), HeadConfig(layers=layers, pooling=pooling, hidden_sizes=(8,), activation="gelu")).eval()
    model.save_pretrained(tmp_path)
    again = BertClassifier.from_pretrained(str(tmp_path)).eval()
    assert again.head == model.head and not again.load_report.missing and not again.load_report.unexpected
    batch = PackedBatch.from_features(without_labels(features()))
    assert torch.equal(again(batch), model(batch))
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["architectures"] == ["BertfastClassifier"] and values["bertfast_head"]["pooling"] == pooling
    _, report = BertForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert {"classifier.weight", "classifier.bias"} <= set(report["missing_keys"])


def test_a_new_head_replaces_the_checkpoint_s(tmp_path):
    ours_of(an_encoder(), HeadConfig(pooling="mean", hidden_sizes=(8,))).save_pretrained(tmp_path)
    model = BertClassifier.from_pretrained(str(tmp_path), num_labels=5, new_head=True, head=HeadConfig())
    assert head_of(model.config) == model.head and model.head.pooling == "cls" and not hasattr(model.config, "bertfast_head")
    assert not model.load_report.unexpected and model.load_report.missing == [
        "pooler.weight",
        "pooler.bias",
        "classifier.weight",
        "classifier.bias",
    ]


def test_a_google_or_hub_checkpoint_loses_only_what_the_head_does_not_read(tmp_path):
    write_tiny_bert(tmp_path)
    model = BertClassifier.from_pretrained(str(tmp_path), num_labels=2, head=HeadConfig(layers=(0,), pooling="mean"))
    report = model.load_report
    assert not report.unexpected and report.missing == report.made_anew == ["classifier.weight", "classifier.bias"]
