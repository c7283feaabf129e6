"""Checkpoints between formats: Google's and the first PyTorch releases' names, round trips, and the same outputs in transformers."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertForPreTraining, BertForSequenceClassification, BertModel

from bertfast.cli.entry import main
from bertfast.errors import CheckpointError
from bertfast.model.bert import BertClassifier
from bertfast.packing.batch import PackedBatch
from bertfast.weights.convert import convert_checkpoint
from bertfast.weights.tensor_bundle import TensorBundle, write_bundle
from tests.support.tiny_bert import write_tiny_bert
from tests.support.tolerances import LOGITS
from tests.weights.test_tensor_bundle import read_without_the_index


@pytest.fixture
def google(data_dir):
    return data_dir / "tf_checkpoint_tiny"


def a_batch(vocabulary=15, longest=12, rows=5):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, longest, (rows,), generator=generator)
    mask = (torch.arange(longest) < lengths[:, None]).long()
    ids = torch.randint(0, vocabulary, (rows, longest), generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": (torch.arange(longest) >= 3).long() * mask}


def hand_written_state(google):
    """Google's weights in transformers' model, each put in its place by hand."""
    values = {name: torch.tensor(value) for name, value in read_without_the_index(google).items()}
    model = BertForPreTraining(BertConfig.from_json_file(google / "bert_config.json")).eval()
    bert, cls = model.bert, model.cls

    def dense(layer, name):
        layer.weight.data, layer.bias.data = values[f"{name}/kernel"].T.contiguous(), values[f"{name}/bias"]

    def norm(layer, name):
        layer.weight.data, layer.bias.data = values[f"{name}/LayerNorm/gamma"], values[f"{name}/LayerNorm/beta"]

    bert.embeddings.word_embeddings.weight.data.copy_(values["bert/embeddings/word_embeddings"])
    bert.embeddings.position_embeddings.weight.data = values["bert/embeddings/position_embeddings"]
    bert.embeddings.token_type_embeddings.weight.data = values["bert/embeddings/token_type_embeddings"]
    norm(bert.embeddings.LayerNorm, "bert/embeddings")
    for index, layer in enumerate(bert.encoder.layer):
        name = f"bert/encoder/layer_{index}"
        for part in ("query", "key", "value"):
            dense(getattr(layer.attention.self, part), f"{name}/attention/self/{part}")
        dense(layer.attention.output.dense, f"{name}/attention/output/dense")
        norm(layer.attention.output.LayerNorm, f"{name}/attention/output")
        dense(layer.intermediate.dense, f"{name}/intermediate/dense")
        dense(layer.output.dense, f"{name}/output/dense")
        norm(layer.output.LayerNorm, f"{name}/output")
    dense(bert.pooler.dense, "bert/pooler/dense")
    dense(cls.predictions.transform.dense, "cls/predictions/transform/dense")
    norm(cls.predictions.transform.LayerNorm, "cls/predictions/transform")
    cls.predictions.bias.data.copy_(values["cls/predictions/output_bias"])
    cls.seq_relationship.weight.data = values["cls/seq_relationship/output_weights"]
    cls.seq_relationship.bias.data = values["cls/seq_relationship/output_bias"]
    return model


def test_google_s_checkpoint_gives_transformers_outputs(google, tmp_path):
    assert main(["convert", str(google), str(tmp_path / "out")]) == 0
    model, report = BertForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    wanted = hand_written_state(google)
    theirs = dict(wanted.named_parameters())
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in model.named_parameters())
    batch = a_batch()
    with torch.no_grad():
        ours, truth = model.eval()(**batch), wanted(**batch)
    assert torch.equal(ours.prediction_logits, truth.prediction_logits)
    assert torch.equal(ours.seq_relationship_logits, truth.seq_relationship_logits)
    assert model.config.architectures == ["BertForPreTraining"]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()["[MASK]"] == 4


def test_there_and_back_keeps_every_tensor(google, tmp_path):
    convert_checkpoint(str(google), tmp_path / "torch")
    assert main(["convert", str(tmp_path / "torch"), str(tmp_path / "google"), "--to", "tensorflow"]) == 0
    ours, wanted = TensorBundle(tmp_path / "google" / "bert_model.ckpt"), read_without_the_index(google)
    weights = [name for name in wanted if not name.endswith(("adam_m", "adam_v")) and name != "global_step"]
    assert sorted(ours.names) == sorted(weights)
    assert all((ours.tensor(name) == wanted[name]).all() for name in weights)
    assert (
        json.loads((google / "bert_config.json").read_text()).items()
        >= json.loads((tmp_path / "google" / "bert_config.json").read_text()).items()
    )
    assert (tmp_path / "google" / "vocab.txt").read_text().split() == (google / "vocab.txt").read_text().split()
    convert_checkpoint(str(tmp_path / "google"), tmp_path / "again")
    first, again = (load_file(tmp_path / name / "model.safetensors") for name in ("torch", "again"))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)


def test_fine_tuning_starts_from_google_s_folder(google):
    model = BertClassifier.from_pretrained(str(google), num_labels=3).eval()
    assert model.load_report.missing == ["classifier.weight", "classifier.bias"] and not model.load_report.unexpected
    batch, theirs = a_batch(), hand_written_state(google)
    with torch.no_grad():
        pooled = theirs.bert(**batch).pooler_output
        wanted = torch.nn.functional.linear(pooled, model.classifier.weight, model.classifier.bias)
        assert (model(PackedBatch.from_features(batch)) - wanted).abs().max() < LOGITS


def test_a_classifier_survives(tmp_path):
    write_tiny_bert(tmp_path / "torch", num_labels=3)
    convert_checkpoint(str(tmp_path / "torch"), tmp_path / "google", "tensorflow")
    assert TensorBundle(tmp_path / "google" / "bert_model.ckpt").shape("output_weights") == (3, 16)
    model = BertClassifier.from_pretrained(str(tmp_path / "google")).eval()
    theirs = BertForSequenceClassification.from_pretrained(tmp_path / "torch").eval()
    batch = a_batch()
    with torch.no_grad():
        assert (model(PackedBatch.from_features(batch)) - theirs(**batch).logits).abs().max() < LOGITS


def test_names_of_the_first_releases(tmp_path):
    """pytorch_model.bin with bert_config.json, gamma and beta, as pytorch-pretrained-bert kept them."""
    torch.manual_seed(0)
    write_tiny_bert(tmp_path / "new")
    theirs = BertForPreTraining.from_pretrained(tmp_path / "new")
    old = tmp_path / "old"
    old.mkdir()
    (old / "bert_config.json").write_text(json.dumps(theirs.config.to_dict()))
    shutil.copyfile(tmp_path / "new" / "vocab.txt", old / "vocab.txt")
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in theirs.state_dict().items()
    }
    torch.save(renamed, old / "pytorch_model.bin")
    convert_checkpoint(str(old), tmp_path / "out")
    again, report = BertForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize(("words", "lower"), [(["film", "fine"], True), (["film", "Fine"], False)], ids=["uncased", "cased"])
def test_a_vocabulary_without_capitals_is_an_uncased_model_s(tmp_path, google, words, lower):
    for file in google.glob("bert_*"):
        shutil.copyfile(file, tmp_path / file.name)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    convert_checkpoint(str(tmp_path), tmp_path / "out")
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("Fine")["input_ids"]
    assert ids == [2, 6, 3], ids
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("FILM")["input_ids"] == ([2, 5, 3] if lower else [2, 1, 3])


def test_an_encoder_alone_becomes_a_bert_model(tmp_path):
    write_tiny_bert(tmp_path / "torch")
    assert convert_checkpoint(str(tmp_path / "torch"), tmp_path / "google", "tensorflow").endswith("no head")
    convert_checkpoint(str(tmp_path / "google"), tmp_path / "again")
    _, report = BertModel.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


def test_what_cannot_be_converted_is_refused_and_leaves_nothing(google, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"there: is there already"):
        convert_checkpoint(str(google), tmp_path / "there")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copyfile(google / "bert_config.json", other / "bert_config.json")
    write_bundle(other / "bert_model.ckpt", {"model/layer/kernel": torch.zeros(2, 2).numpy()})
    with pytest.raises(CheckpointError, match=r"bert_model.ckpt.index: has no bert/embeddings/word_embeddings"):
        convert_checkpoint(str(other), tmp_path / "out")
    write_tiny_bert(tmp_path / "torch")
    weights = load_file(tmp_path / "torch" / "model.safetensors")
    torch.save({**weights, "lstm.weight": torch.zeros(2)}, tmp_path / "torch" / "pytorch_model.bin")
    (tmp_path / "torch" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lstm.weight"):
        convert_checkpoint(str(tmp_path / "torch"), tmp_path / "out", "tensorflow")
    assert not (tmp_path / "out").exists()
