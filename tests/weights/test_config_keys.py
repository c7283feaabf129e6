"""Every key of a model's config.json: bertfast computes what transformers computes, or refuses the folder by the key's name."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertForMultipleChoice, BertForSequenceClassification, BertForTokenClassification

from bertfast.cli.entry import main
from bertfast.errors import CheckpointError
from bertfast.model.bert import BertClassifier
from bertfast.model.loading import check_trained
from bertfast.model.pretrainer import BertPretrainer
from bertfast.packing.batch import PackedBatch
from bertfast.weights.config_keys import FOLDER, NETWORK
from bertfast.weights.convert import convert_checkpoint
from bertfast.weights.folder import read_config
from bertfast_export.judge.reference import Eager
from tests.support.tiny_bert import write_tiny_bert

SAME, REFUSED = "the same logits", "refused"
LIMIT = 1e-5

# Key -> values that change the shape of the weights: the folder is made with them.
BUILT = {
    "vocab_size": [30],
    "hidden_size": [32],
    "num_hidden_layers": [3],
    "num_attention_heads": [1],
    "intermediate_size": [20],
    "max_position_embeddings": [9],
    "type_vocab_size": [3],
    "num_labels": [1, 5],
    "dtype": ["float16", "bfloat16", "float64"],
}

# Key -> values written into the config.json of a classifier of three classes, 2 layers, 2 heads, hidden 16; and what is made of each.
WRITTEN = {
    "vocab_size": {0: REFUSED, "24": REFUSED, 24.0: REFUSED},
    "hidden_size": {-16: REFUSED, None: REFUSED},
    "num_hidden_layers": {0: REFUSED},
    "num_attention_heads": {3: REFUSED, 0: REFUSED, -2: REFUSED, 4: SAME, True: REFUSED},
    "intermediate_size": {0: REFUSED},
    "max_position_embeddings": {0: REFUSED},
    "type_vocab_size": {0: REFUSED},
    "hidden_act": {
        "gelu_new": SAME, "gelu_pytorch_tanh": SAME, "relu": REFUSED, "quick_gelu": REFUSED, "gelu_10": REFUSED, None: REFUSED,
    },
    "hidden_dropout_prob": {0.5: SAME, 1.5: REFUSED, "0.1": REFUSED},
    "attention_probs_dropout_prob": {0: SAME, -0.1: REFUSED},
    "classifier_dropout": {0.5: SAME, 2: REFUSED},
    "initializer_range": {0.5: SAME, -1.0: REFUSED},
    "layer_norm_eps": {0.5: SAME, -1.0: REFUSED, float("nan"): REFUSED, "1e-12": REFUSED},
    "pad_token_id": {5: SAME, None: SAME, -1: SAME, 24: REFUSED, "0": REFUSED},
    "position_embedding_type": {"absolute": SAME, "relative_key": REFUSED, "relative_key_query": REFUSED},
    "is_decoder": {True: REFUSED},
    "is_causal": {False: SAME, True: REFUSED},
    "add_cross_attention": {True: REFUSED},
    "per_layer_config": {'{"1": {"layer_norm_eps": 0.5}}': REFUSED},
    "pruned_heads": {'{"0": [1]}': REFUSED},
    "chunk_size_feed_forward": {3: SAME},
    "is_encoder_decoder": {True: SAME},
    "use_cache": {False: SAME},
    "bos_token_id": {1: SAME},
    "eos_token_id": {1: SAME},
    "tie_word_embeddings": {False: SAME},
    "output_hidden_states": {True: SAME},
    "output_attentions": {True: SAME},
    "return_dict": {False: SAME},
    "transformers_version": {"4.0.0": SAME},
    "model_type": {"bert": SAME, "distilbert": REFUSED, None: REFUSED},
    "architectures": {None: SAME, '["TFBertForSequenceClassification"]': SAME, "BertModel": REFUSED},
    "id2label": {
        '{"2": "c", "0": "a", "1": "b"}': SAME,
        '{"1": "a", "2": "b", "3": "c"}': REFUSED,
        '{"0": "a", "1": "b", "3": "c"}': REFUSED,
        '{"0": "a", "1": "b", "2": "a"}': REFUSED,
        '{"a": 0, "b": 1, "c": 2}': REFUSED,
        '["a", "b", "c"]': REFUSED,
        "{}": REFUSED,
    },
    "num_labels": {3: SAME, 2: REFUSED, 0: REFUSED, None: REFUSED},  # beside three names
    "label2id": {'{"no": 0}': SAME, '{"LABEL_0": 1, "LABEL_1": 0, "LABEL_2": 2}': REFUSED},
    "problem_type": {
        "single_label_classification": SAME,
        "multi_label_classification": SAME,
        "regression": REFUSED,  # of three numbers
        "ranking": REFUSED,
    },
    "dtype": {"int8": REFUSED, "float8_e4m3fn": REFUSED, "number": REFUSED},
    "torch_dtype": {"bfloat16": SAME, "int8": REFUSED},
    "quantization_config": {'{"quant_method": "bitsandbytes", "load_in_8bit": true}': REFUSED, "{}": REFUSED},
    "compression_config": {'{"quant_method": "compressed-tensors"}': REFUSED},
    "auto_map": {"{}": SAME, '{"AutoModelForSequenceClassification": "model.Mine"}': REFUSED},
    "transformers_weights": {"model.safetensors": SAME, "other.safetensors": REFUSED},
    "configuration_files": {"[]": SAME, '["config.4.0.0.json"]': REFUSED},
    "bertfast_head": {'{"pooling": "sum"}': REFUSED, "{}": SAME},
    "gradient_checkpointing": {True: SAME},  # a key that stands in no table
}  # fmt: skip
CASES = [(key, value, outcome) for key, outcomes in WRITTEN.items() for value, outcome in outcomes.items()]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = write_tiny_bert(tmp_path_factory.mktemp("models") / "tiny", num_labels=3, initializer_range=0.5)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: value for key, value in values.items() if key not in ("id2label", "label2id")}))
    return folder


def changed(tiny, folder, **changes):
    """A copy of the tiny folder with other values in its config.json; id2label and label2id are there unless they are changed."""
    shutil.copytree(tiny, folder)
    names = {} if changes.keys() & {"id2label", "label2id"} else {"id2label": {"0": "a", "1": "b", "2": "c"}}
    if "label2id" in changes:
        names = {"id2label": {str(index): f"LABEL_{index}" for index in range(3)}}
    values = json.loads((folder / "config.json").read_text()) | names | changes
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def a_batch(positions=9):
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(positions) < torch.tensor([positions, 4, 6])[:, None]).long()
    ids = torch.randint(2, 24, (3, positions), generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": (torch.arange(positions) >= 3).long() * mask}


def logits_of_transformers(folder):
    """Of transformers' own model in float32, in one piece: a chunk must divide the length."""
    usual = {"dtype": torch.float32, "chunk_size_feed_forward": 0}
    model = BertForSequenceClassification.from_pretrained(folder, **usual).eval()
    with torch.no_grad():
        return model(**a_batch(), return_dict=True).logits


def assert_the_same(folder):
    wanted = logits_of_transformers(folder)
    with torch.no_grad():
        found = BertClassifier.from_pretrained(str(folder)).eval()(PackedBatch.from_features(a_batch()))
    assert found.shape == wanted.shape and (found - wanted).abs().max() < LIMIT


def test_the_judge_of_an_export_computes_in_the_usual_way(tiny, tmp_path):
    changes = {"chunk_size_feed_forward": 2, "return_dict": False, "output_attentions": True, "dtype": "float16"}
    folder = changed(tiny, tmp_path / "m", **changes)
    features = {name: tensor.numpy() for name, tensor in a_batch().items()}
    assert abs(Eager(folder).logits(features) - logits_of_transformers(folder).numpy()).max() < LIMIT


@pytest.mark.parametrize("key, value", [(key, value) for key, values in BUILT.items() for value in values])
def test_a_folder_made_with_a_value(key, value, tmp_path):
    n_labels = value if key == "num_labels" else 3
    changes = {} if key == "num_labels" else {key: value}
    folder = write_tiny_bert(tmp_path / "m", num_labels=n_labels, initializer_range=0.5, **changes)
    if key == "dtype":  # the tiny model is made in float32, whatever its config says
        model = BertForSequenceClassification.from_pretrained(folder, dtype=torch.float32).to(getattr(torch, value))
        model.save_pretrained(folder)
    assert_the_same(folder)


@pytest.mark.parametrize("key, value, outcome", CASES, ids=[f"{key}={value}" for key, value, _ in CASES])
def test_a_value_in_config_json(key, value, outcome, tiny, tmp_path):
    is_json = isinstance(value, str) and value[0] in "{["
    folder = changed(tiny, tmp_path / "m", **{key: json.loads(value) if is_json else value})
    if outcome == SAME:
        assert_the_same(folder)
        return
    with pytest.raises(CheckpointError, match=f"config.json: {key} is "):
        read_config(folder)


def test_every_field_of_this_transformers_is_looked_at():
    """Fails with a transformers whose BertConfig, or its base class, has a field that stands in neither table: see what it does, and add it."""
    fields = {field.name for field in dataclasses.fields(BertConfig)} | set(BertConfig().to_dict())
    fields = {name for name in fields if not name.startswith("_")}
    assert len(fields) > 30
    assert fields <= NETWORK.keys() | FOLDER.keys()
    assert NETWORK.keys() | FOLDER.keys() <= WRITTEN.keys()


@pytest.mark.parametrize("content", ["[1, 2]", "null", '"bert"'])
def test_a_config_json_that_holds_no_object(content, tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "m")
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json: holds no JSON object; give the config"):
        read_config(folder)


def test_what_transformers_itself_refuses(tiny, tmp_path):
    with pytest.raises(CheckpointError, match="config.json: transformers cannot use it .*use_cache.*correct that value"):
        read_config(changed(tiny, tmp_path / "m", use_cache="yes"))


def test_an_adapter_beside_the_weights(tiny, tmp_path):
    folder = changed(tiny, tmp_path / "m")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="adapter_config.json: bertfast reads no adapters; give a folder with the adapter merged"):
        read_config(folder)


def test_one_class_is_none(tiny, tmp_path):
    one = changed(tiny, tmp_path / "m", id2label={"0": "score"}, problem_type="single_label_classification")
    with pytest.raises(CheckpointError, match="problem_type is 'single_label_classification': there is one class in id2label"):
        read_config(one)


def test_a_model_made_in_python_is_held_to_the_same(tiny):
    model = BertForSequenceClassification(BertConfig(**{**read_config(tiny).to_dict(), "is_decoder": True}))
    with pytest.raises(CheckpointError, match="is_decoder is True: in it a token attends to those before it alone"):
        BertClassifier.from_transformers(model)


def test_pre_training_needs_the_tied_decoder(tmp_path):
    write_tiny_bert(tmp_path / "m", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match="tie_word_embeddings is False: bertfast's pre-training decodes with the word embeddings"):
        BertPretrainer.from_pretrained(str(tmp_path / "m"))


@pytest.fixture(params=[BertForTokenClassification, BertForMultipleChoice, BertForMaskedLM], ids=lambda kind: kind.__name__)
def of_another(request, tiny, tmp_path):
    """A folder whose head answers something else: with a classifier and no pooler, with both, and with neither."""
    folder = shutil.copytree(tiny, tmp_path / request.param.__name__)
    request.param(BertConfig(**{**read_config(tiny).to_dict(), "num_labels": 3})).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("command", ["predict", "eval", "export"])
def test_a_head_of_another_answers_nothing(of_another, command, tmp_path, capfd):
    rows = {"data_file": str(tmp_path / "t.tsv")}
    settings = {"task": {"text_columns": ["text"]}, "model": {"checkpoint": str(of_another)}, "eval_input": rows}
    (tmp_path / "c.json").write_text(json.dumps({"bertfast": settings}))
    (tmp_path / "t.txt").write_text("a good film\n")
    (tmp_path / "t.tsv").write_text("text\tlabel\na good film\tLABEL_0\n")
    model = ["CPU", "--config", str(tmp_path / "c.json"), "--checkpoint_path", str(of_another)]
    flags = {
        "predict": [*model, "--input", str(tmp_path / "t.txt")],
        "eval": model,
        "export": ["CPU", str(of_another), "-o", str(tmp_path / "out"), "--grid_only", "--variants", "portable"],
    }
    assert main([command, *flags[command]]) == 2
    said = capfd.readouterr()
    assert f"has no classification head (its config.json says {of_another.name}); train it first" in said.err and not said.out


def test_training_starts_from_it_with_a_new_head(of_another):
    model = BertClassifier.from_pretrained(str(of_another), 3, ("a", "b", "c"))
    assert {"classifier.weight", "classifier.bias"} <= set(model.loaded.made_anew)
    assert "made anew: " in model.loaded.summary() and "classifier.weight" in model.loaded.summary()


@pytest.mark.parametrize("kind", [BertForTokenClassification, BertForMultipleChoice], ids=lambda kind: kind.__name__)
def test_converting_makes_no_classifier_of_texts_of_it(kind, tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "from")
    kind(BertConfig(**{**read_config(tiny).to_dict(), "num_labels": 3})).save_pretrained(folder)
    convert_checkpoint(str(folder), tmp_path / "to")
    assert json.loads((tmp_path / "to" / "config.json").read_text())["architectures"] == [kind.__name__]
    with pytest.raises(CheckpointError, match=f"is a {kind.__name__}, and TensorFlow's checkpoints do not tell its head"):
        convert_checkpoint(str(folder), tmp_path / "google", "tensorflow")


def test_a_kept_head_has_the_classes_of_the_task(tiny, tmp_path):
    folder = changed(tiny, tmp_path / "m")
    assert BertClassifier.from_pretrained(str(folder), 3, ("A", "b", "c")).num_labels == 3
    assert BertClassifier.from_pretrained(str(folder), 3, ("0", "1", "2")).num_labels == 3
    with pytest.raises(CheckpointError, match="classes are in the order a, b, c, those of the task in the order b, a, c"):
        BertClassifier.from_pretrained(str(folder), 3, ("b", "a", "c"))
    with pytest.raises(CheckpointError, match="classes are a, b, c, those of the task are a, b, d; was it fine-tuned on another task"):
        BertClassifier.from_pretrained(str(folder), 3, ("a", "b", "d"))
    assert BertClassifier.from_pretrained(str(folder), 3, ("a", "b", "d"), new_head=True).num_labels == 3


@pytest.mark.parametrize("name", ["classifier.bias", "bert.pooler.dense.weight", "bert.encoder.layer.0.output.dense.weight"])
def test_no_answer_comes_from_random_weights(name, tiny, tmp_path):
    """Not even where loading passes over what is missing, as --disable_strict_checkpoint_loading asks for."""
    folder = changed(tiny, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    model = BertClassifier.from_pretrained(str(folder), strict=False)
    with pytest.raises(CheckpointError, match="is missing.*train it first"):
        check_trained(model.loaded, model.config)
