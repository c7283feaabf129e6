"""The packed network against transformers' BertForSequenceClassification: same weights, same text."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from bertfast.engine.optimizer import adamw, linear_schedule, parameter_groups
from bertfast.errors import CheckpointError
from bertfast.model.bert import BertClassifier, RandomBits
from bertfast.model.losses import loss_sum
from bertfast.packing.batch import PackedBatch
from bertfast.weights.names import from_transformers_names
from tests.support.tolerances import GRADIENT, LOGITS, LOSSES_50_STEPS


def bert_config(head_size=32, num_labels=2, **changes):
    sizes = {"hidden_size": 2 * head_size, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 96, "vocab_size": 200}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertConfig(
        **{**sizes, **no_dropout, "max_position_embeddings": 64, "initializer_range": 0.1, "num_labels": num_labels, **changes}
    )


def features(n=12, num_labels=2, longest=40, pair=True, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest, n)
    mask = np.arange(longest) < lengths[:, None]
    second = (np.arange(longest) >= lengths[:, None] // 2) & mask & pair
    labels = rng.random(n).astype(np.float32) * 5 if num_labels == 1 else rng.integers(0, num_labels, n)
    batch = {"input_ids": rng.integers(1, 200, (n, longest)) * mask, "attention_mask": mask, "token_type_ids": second, "labels": labels}
    return {name: torch.tensor(value, dtype=torch.float32 if value.dtype == np.float32 else torch.long) for name, value in batch.items()}


def assert_gradients_equal(ours, theirs):
    wanted, _ = from_transformers_names({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - wanted[name]).norm() <= GRADIENT * wanted[name].norm(), name


@pytest.mark.parametrize("head_size", [32, 64, 128])
@pytest.mark.parametrize("num_labels", [1, 2, 3, 28])
@pytest.mark.parametrize("pair", [False, True], ids=["single", "pair"])
def test_logits_loss_and_gradients(head_size, num_labels, pair):
    torch.manual_seed(1)
    theirs = BertForSequenceClassification(bert_config(head_size, num_labels))
    ours = BertClassifier.from_transformers(theirs).train()
    batch = features(num_labels=num_labels, pair=pair)
    packed = PackedBatch.from_features(batch)
    output = theirs(**batch)
    logits = ours(packed)
    assert (logits - output.logits).abs().max() < LOGITS
    output.loss.backward()
    (loss_sum(logits, packed.labels) / len(batch["labels"])).backward()
    assert_gradients_equal(ours, theirs)


def fifty_losses(ours, theirs, batches):
    """The losses of 50 optimizer steps by each, on the same batches."""
    losses = {"ours": [], "theirs": []}
    for name, model in (("theirs", theirs), ("ours", ours)):
        optimizer = adamw(parameter_groups(model, 0.01), {"lr": 1e-4})
        schedule = linear_schedule(5, 50)(optimizer)
        for batch in batches:
            packed = PackedBatch.from_features(batch)
            loss = loss_sum(model(packed), packed.labels) / len(packed.labels) if name == "ours" else model(**batch).loss
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses[name].append(loss.item())
    return losses["ours"], losses["theirs"]


def test_fifty_steps_follow_transformers():
    torch.manual_seed(2)
    theirs = BertForSequenceClassification(bert_config())
    losses = fifty_losses(BertClassifier.from_transformers(theirs).train(), theirs, [features(seed=step) for step in range(50)])
    assert np.abs(np.subtract(*losses)).max() < LOSSES_50_STEPS


needs_data_and_models = pytest.mark.skipif(
    "BERTFAST_DATA" not in os.environ or "BERTFAST_MODELS" not in os.environ, reason="needs BERTFAST_DATA and BERTFAST_MODELS"
)


def real_batches(task, n, size):
    """n batches of `size` rows of a task's dev set, tokenized by transformers, with the rows' own labels."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(os.environ["BERTFAST_MODELS"]) / "all-MiniLM-L6-v2")
    lines = (Path(os.environ["BERTFAST_DATA"]) / "glue" / task / "dev.tsv").read_text(encoding="utf-8").splitlines()[1 : n * size + 1]
    for start in range(0, n * size, size):
        rows = [line.split("\t") for line in lines[start : start + size]]
        texts = [[row[0] for row in rows]] if task == "SST-2" else [[row[1] for row in rows], [row[2] for row in rows]]
        batch = dict(tokenizer(*texts, padding=True, truncation=True, max_length=128, return_tensors="pt"))
        # Made-up labels in balance make the head's gradients cancel, to sums that float32 itself holds to 1e-5 only.
        batch["labels"] = torch.tensor([row[-1] in ("1", "entailment") for row in rows]).long()
        yield batch


def both_minilms():
    """MiniLM with a new head and no dropout: bertfast's and transformers', in training mode."""
    torch.manual_seed(0)
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 2}
    folder = Path(os.environ["BERTFAST_MODELS"]) / "all-MiniLM-L6-v2"
    theirs = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, **quiet).train()
    return BertClassifier.from_transformers(theirs).train(), theirs


@needs_data_and_models
@pytest.mark.parametrize("task", ["SST-2", "RTE"], ids=["single", "pair"])
def test_real_text_and_weights(task):
    ours, theirs = both_minilms()
    (batch,) = real_batches(task, 1, 16)
    packed = PackedBatch.from_features(batch)
    output, logits = theirs(**batch), ours(packed)
    assert (logits - output.logits).abs().max() < LOGITS
    output.loss.backward()
    (loss_sum(logits, packed.labels) / 16).backward()
    assert_gradients_equal(ours, theirs)


@needs_data_and_models
@pytest.mark.runs
def test_fifty_steps_on_real_text():
    ours, theirs = fifty_losses(*both_minilms(), list(real_batches("SST-2", 50, 8)))
    assert np.abs(np.subtract(ours, theirs)).max() < LOSSES_50_STEPS
    assert np.mean(ours[-10:]) < np.mean(ours[:10]) - 0.1  # it learned something


@pytest.mark.parametrize("act", ["gelu", "gelu_new"])
def test_tanh_or_exact_gelu_as_the_config_says(act):
    theirs = BertForSequenceClassification(bert_config(hidden_act=act)).eval()
    batch = features()
    labels = batch.pop("labels")
    ours = BertClassifier.from_transformers(theirs).eval()
    assert labels is not None
    assert (ours(PackedBatch.from_features(batch)) - theirs(**batch).logits).abs().max() < LOGITS


def gradients(model, batch, parts, key):
    model.zero_grad()
    for part in parts:
        packed = PackedBatch.from_features({name: value[part] for name, value in batch.items()})
        packed.example_ids = torch.tensor(part, dtype=torch.int32)
        (loss_sum(model(packed, RandomBits(key=torch.tensor(key))), packed.labels) / len(batch["labels"])).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("p", [0.0, 0.1], ids=["without-dropout", "with-dropout"])
@pytest.mark.parametrize(
    "parts",
    [[[3, 1, 0, 2, 5, 4, 7, 6]], [[0, 1], [2, 3], [7, 6], [4, 5]], [[7], [0, 1, 2, 3, 4, 5, 6]]],
    ids=["shuffled", "four", "uneven"],
)
def test_packing_changes_no_gradient(p, parts):
    torch.manual_seed(3)
    changes = {"hidden_dropout_prob": p, "attention_probs_dropout_prob": p}
    model = BertClassifier(bert_config(**changes)).double().train()
    batch = features(8)
    whole = gradients(model, batch, [list(range(8))], (1, 2))
    packed = gradients(model, batch, parts, (1, 2))
    for name, gradient in whole.items():
        assert (gradient - packed[name]).norm() <= GRADIENT * gradient.norm() + 1e-12, name
    if p:
        other = gradients(model, batch, parts, (1, 3))
        assert any((whole[name] - other[name]).norm() > 0.01 * whole[name].norm() for name in whole)


def test_save_and_load_through_transformers(tmp_path):
    torch.manual_seed(4)
    ours = BertClassifier(bert_config(num_labels=3)).eval()
    ours.config.id2label = {0: "no", 1: "maybe", 2: "yes"}
    ours.save_pretrained(tmp_path)
    theirs, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert theirs.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    batch = features(num_labels=3)
    batch.pop("labels")
    logits = ours(PackedBatch.from_features(batch))
    assert (theirs.eval()(**batch).logits - logits).abs().max() < LOGITS
    again = BertClassifier.from_pretrained(str(tmp_path)).eval()
    assert torch.equal(again(PackedBatch.from_features(batch)), logits)


def test_old_names_and_safe_bin_loading(tmp_path):
    theirs = BertForSequenceClassification(bert_config())
    theirs.config.save_pretrained(tmp_path)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for name, t in theirs.state_dict().items()
    }
    torch.save(old, tmp_path / "pytorch_model.bin")
    ours = BertClassifier.from_pretrained(str(tmp_path))
    assert not ours.load_report.missing and not ours.load_report.unexpected
    assert torch.equal(ours.embeddings.weight, theirs.bert.embeddings.LayerNorm.weight)


def test_a_bin_file_that_would_run_code_is_refused(tmp_path):
    bert_config().save_pretrained(tmp_path)
    torch.save({"bert.pooler.dense.weight": Path("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pytorch_model.bin"):
        BertClassifier.from_pretrained(str(tmp_path))


def test_a_checkpoint_that_does_not_fit_names_the_tensors(tmp_path):
    BertClassifier(bert_config()).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"embeddings.position: \[64, 64\], the model wants \[32, 64\]"):
        BertClassifier.from_pretrained(str(tmp_path), overrides={"max_position_embeddings": 32})
    model = BertClassifier.from_pretrained(str(tmp_path), overrides={"max_position_embeddings": 32}, strict=False)
    assert "embeddings.position" in model.load_report.summary()


@pytest.fixture
def memory_of_nan():
    """What nobody has filled is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def test_what_a_checkpoint_lacks_is_made_as_bert_makes_it(tmp_path, memory_of_nan):
    """And what it holds is left alone: a matrix beside a bias that is missing, too."""
    BertForSequenceClassification(bert_config()).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    layer = "bert.encoder.layer.1."
    lacks = ("output.dense.weight", "output.LayerNorm.weight", "attention.self.query.bias")
    kept = {name: tensor for name, tensor in state.items() if not name.endswith(tuple(layer + part for part in lacks))}
    kept = {name: tensor for name, tensor in kept.items() if "pooler" not in name and "classifier" not in name}
    del kept["bert.embeddings.position_embeddings.weight"]
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    model = BertClassifier.from_pretrained(str(tmp_path), strict=False)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    made = model.layers[1].ffn_down.weight, model.pooler.weight, model.classifier.weight, model.embeddings.position
    assert all(matrix.std().item() == pytest.approx(0.1, rel=0.2) for matrix in made)
    assert model.layers[1].ffn_norm.weight.eq(1).all() and model.layers[1].qkv.bias.eq(0).all() and model.pooler.bias.eq(0).all()
    theirs = [state[f"{layer}attention.self.{part}.weight"] for part in ("query", "key", "value")]
    assert model.layers[1].qkv.weight.equal(torch.cat(theirs)) and model.embeddings.word.equal(
        state["bert.embeddings.word_embeddings.weight"]
    )
    assert all(parameter.isfinite().all() for parameter in BertClassifier(bert_config()).parameters())


def test_another_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    with pytest.raises(CheckpointError, match="roberta"):
        BertClassifier.from_pretrained(str(tmp_path))
