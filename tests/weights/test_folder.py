"""Folders whose tensor files say something out of the ordinary: bertfast computes what transformers does, or refuses by name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForPreTraining, BertForSequenceClassification, modeling_utils, tokenization_utils_base, utils

from bertfast.errors import CheckpointError
from bertfast.model.bert import BertClassifier
from bertfast.model.pretrainer import BertPretrainer
from bertfast.packing import PackedBatch
from bertfast.weights.folder import resolve_folder
from tests.support.tiny_bert import write_tiny_bert

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 440473133\n"
QUERY, NORM = "bert.encoder.layer.1.attention.self.query.weight", "bert.embeddings.LayerNorm.weight"
GAMMA, WORDS = "bert.embeddings.LayerNorm.gamma", "bert.embeddings.word_embeddings.weight"
FEATURES = {
    "input_ids": torch.tensor([[2, 6, 7, 8, 3, 9, 10, 3]]),
    "token_type_ids": torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1]]),
    "attention_mask": torch.ones(1, 8, dtype=torch.long),
}

# Every name of a file that transformers has a constant for, and what becomes of it.
LOOKED_AT = {
    "model.safetensors": "read",
    "model.safetensors.index.json": "read",
    "pytorch_model.bin": "read",
    "pytorch_model.bin.index.json": "read",
    "config.json": "read",
    "tokenizer.json": "read",
    "tokenizer_config.json": "read",
    "special_tokens_map.json": "read",
    "added_tokens.json": "read",
    "adapter_config.json": "refused",
    "adapter_model.safetensors": "refused",
    "adapter_model.bin": "refused",
    "chat_template.jinja": "of no use to a classifier",
    "chat_template.json": "of no use to a classifier",
    "preprocessor_config.json": "of no use to a classifier",
    "video_preprocessor_config.json": "of no use to a classifier",
    "audio_tokenizer_config.json": "of no use to a classifier",
    "processor_config.json": "of no use to a classifier",
    "generation_config.json": "of no use to a classifier",
    "modelcard.json": "of no use to a classifier",
}


def test_every_file_that_transformers_knows_was_looked_at():
    constants = {
        value
        for module in (utils, modeling_utils, tokenization_utils_base)
        for name, value in vars(module).items()
        if name.endswith(("_NAME", "_FILE")) and isinstance(value, str) and "." in value
    }
    assert "model.safetensors" in constants
    assert constants <= set(LOOKED_AT), "a file that transformers reads, and nobody has said what bertfast does with it"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A fine-tuned BERT whose answers tell its weights, and its tensors."""
    folder = write_tiny_bert(tmp_path_factory.mktemp("plain") / "plain", num_labels=3, initializer_range=0.5)
    return folder, load_file(folder / "model.safetensors")


@pytest.fixture
def given(plain, tmp_path):
    """A folder with config and tokenizer, and no weights yet; and the weights."""
    folder = tmp_path / "given"
    shutil.copytree(plain[0], folder, ignore=shutil.ignore_patterns("model.safetensors"))
    return folder, {name: tensor.clone() for name, tensor in plain[1].items()}


def safetensors(change=lambda tensors: tensors, name="model.safetensors"):
    """Writes one safetensors file of the tensors that `change` makes."""
    return lambda folder, tensors: save_file({key: t.contiguous() for key, t in change(tensors).items()}, folder / name, {"format": "pt"})


def binary(change=lambda tensors: tensors, name="pytorch_model.bin"):
    return lambda folder, tensors: torch.save(change(tensors), folder / name)


def text(content, name="model.safetensors"):
    return lambda folder, tensors: (folder / name).write_text(content)


def called(change):
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


def cast(dtype):
    return lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()}


def with_one(name, make):
    """The tensors with one more, or another in its place, made of that tensor or of the queries."""
    return lambda tensors: {**tensors, name: make(tensors.get(name, tensors[QUERY]).clone())}


def spoilt(name, value, dtype=torch.float32):
    def change(tensors):
        tensors = cast(dtype)(tensors)
        tensors[name].view(-1)[1] = value
        return tensors

    return change


def in_turn(*writers):
    return lambda folder, tensors: [write(folder, tensors) for write in writers]


def shards(ending="safetensors", missing=None, lacking=None, change=lambda tensors: tensors):
    """Two shards and their index, without one of the shards, or without a tensor of one."""

    def write(folder, tensors):
        tensors = change(tensors)
        stem, names, weight_map = {"safetensors": "model", "bin": "pytorch_model"}[ending], sorted(tensors), {}
        for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
            file = f"{stem}-{number:05d}-of-00002.{ending}"
            weight_map |= dict.fromkeys(part, file)
            held = {name: tensors[name] for name in part if name != lacking}
            if number != missing:
                save_file(held, folder / file, {"format": "pt"}) if ending == "safetensors" else torch.save(held, folder / file)
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return write


def cut_short(folder, tensors):
    safetensors()(folder, tensors)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def others(tensors):
    return {name: tensor / 2 for name, tensor in tensors.items()}


EQUAL = {
    "safetensors": safetensors(),
    "bin": binary(),
    "bin-of-the-old-form": lambda folder, tensors: torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False),
    "bin-of-parameters": binary(lambda tensors: {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}),
    "both-and-safetensors-is-read": in_turn(safetensors(), binary(others)),
    "shards-beside-a-bin": in_turn(shards(), binary(others)),
    "one-file-beside-shards": in_turn(shards(), safetensors(others)),
    "a-variant-beside": in_turn(safetensors(), safetensors(others, "model.fp16.safetensors")),
    "a-pointer-that-is-not-read": in_turn(safetensors(), text(POINTER, "pytorch_model.bin"), text(POINTER, "tf_model.h5")),
    "shards": shards(),
    "shards-bin": shards("bin"),
    "no-bert-before-the-names": safetensors(called(lambda name: name.removeprefix("bert."))),
    "gamma-and-beta": safetensors(called(lambda name: name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"))),
    "gamma-beside-an-equal-weight": safetensors(with_one(GAMMA, lambda _: torch.ones(16))),
    "float16": safetensors(cast(torch.float16)),
    "bfloat16": safetensors(cast(torch.bfloat16)),
    "float64": safetensors(cast(torch.float64)),
    "a-layer-too-many": safetensors(
        lambda tensors: {**others(called(lambda name: name.replace("layer.1.", "layer.2."))(tensors)), **tensors}
    ),
    "position-ids": safetensors(with_one("bert.embeddings.position_ids", lambda _: torch.arange(128).flip(0)[None])),
    "a-tensor-of-nobody-s": safetensors(with_one("steps_done", lambda _: torch.tensor([7]))),
}

REFUSED = {
    "no-weights": (lambda folder, tensors: None, "no model.safetensors, no pytorch_model.bin and no bert_model.ckpt there; give"),
    "a-variant": (safetensors(name="model.fp16.safetensors"), "but model.fp16.safetensors, .*rename it to model.safetensors"),
    "a-variant-bin": (binary(name="pytorch_model.fp16.bin"), "but pytorch_model.fp16.bin, .*rename it to pytorch_model.bin"),
    "a-shard-alone": (safetensors(name="model-00001-of-00002.safetensors"), "without model.safetensors.index.json: fetch that too"),
    "tensorflow": (text("x", "tf_model.h5"), "but tf_model.h5, TensorFlow's: transformers 4 reads it"),
    "flax": (text("x", "flax_model.msgpack"), "but flax_model.msgpack, Flax's"),
    "gguf": (text("GGUF", "model.gguf"), "but model.gguf, GGUF's"),
    "onnx": (text("x", "model.onnx"), "but model.onnx, an ONNX graph"),
    "an-adapter": (safetensors(name="adapter_model.safetensors"), r"but adapter_model.safetensors, .*merge it .*\(merge_and_unload\)"),
    "pointer": (text(POINTER), "model.safetensors: is a Git LFS pointer, .*run `git lfs pull` in "),
    "pointer-bin": (text(POINTER, "pytorch_model.bin"), "pytorch_model.bin: is a Git LFS pointer"),
    "pointer-shard": (in_turn(shards(), text(POINTER, "model-00002-of-00002.safetensors")), "00002-of-00002.safetensors: is a Git LFS"),
    "pointer-index": (in_turn(shards(), text(POINTER, "model.safetensors.index.json")), "index.json: is a Git LFS pointer"),
    "pointer-config": (in_turn(safetensors(), text(POINTER, "config.json")), "config.json: is a Git LFS pointer"),
    "empty": (text(""), "model.safetensors: is empty; fetch it again"),
    "cut-short": (cut_short, "model.safetensors: cannot be read .*it may be cut short"),
    "no-index": (text("{}", "model.safetensors.index.json"), "index.json: is no index of shards"),
    "torn-index": (text("{", "pytorch_model.bin.index.json"), "index.json: is no index of shards"),
    "shard-missing": (shards(missing=2), "00002-of-00002.safetensors: model.safetensors.index.json names it, but it is not there"),
    "shard-missing-bin": (shards("bin", missing=1), "00001-of-00002.bin: pytorch_model.bin.index.json names it, but it is not there"),
    "shard-lacks": (shards(lacking="classifier.weight"), "safetensors: lacks classifier.weight .*they do not belong together"),
    "a-whole-model": (lambda folder, tensors: torch.save(torch.nn.Linear(1, 1), folder / "pytorch_model.bin"), "safe loading refuses it"),
    "a-training-state": (binary(lambda tensors: {"state_dict": tensors, "epoch": 3}), r"state_dict is a dict, .*save the model's"),
    "a-list": (binary(lambda tensors: list(tensors.values())), "its whole content is a list"),
    "sparse": (binary(with_one(QUERY, torch.Tensor.to_sparse)), rf"{QUERY} is a sparse tensor"),
    **{f"prefix-{prefix}": (safetensors(called(lambda name, prefix=prefix: prefix + name)), f"'{prefix}' is of a module around it")
       for prefix in ("module.", "model.", "_orig_mod.", "encoder.", "bert.")},
    "prefix-of-the-encoder": (safetensors(called(lambda name: name.replace("bert.", "model.bert."))), "'model.' is of a module around it"),
    "two-names": (safetensors(with_one(GAMMA, lambda _: torch.zeros(16))), r"LayerNorm.gamma and .*LayerNorm.weight are"),
    "two-prefixes": (safetensors(with_one(QUERY.removeprefix("bert."), torch.zeros_like)), "are one tensor by two names, and differ"),
    **{f"holds-{kind}": (binary(with_one(QUERY, lambda t, kind=kind: t.to(getattr(torch, kind)))), f"{QUERY} holds {kind} numbers")
       for kind in ("int8", "uint8", "int32", "bool", "float8_e4m3fn", "float8_e5m2", "complex64")},
    **{f"beside-{name}": (safetensors(with_one(QUERY.removesuffix("weight") + name, torch.ones_like)), f"{name} is of a quantized")
       for name in ("SCB", "weight_scale", "weight_scale_inv", "input_scale", "weight_zero_point", "weight.absmax", "qweight",
                    "weight.quant_state.bitsandbytes__nf4", "weight_fake_quant.scale", "weight_packed")},
    **{f"adapter-{name}": (safetensors(with_one(QUERY.removesuffix("weight") + name, torch.ones_like)), f"{name} is an adapter's")
       for name in ("lora_A.default.weight", "lora_B", "base_layer.weight", "adapters.x.adapter_down.0.weight", "ia3_l.default")},
    "nan": (safetensors(spoilt(QUERY, float("nan"))), rf"{QUERY}\[0, 1\] is nan; not finite in float32: 1 of its 256 weights"),
    "inf": (safetensors(spoilt("classifier.bias", float("-inf"))), r"classifier.bias\[1\] is -inf"),
    "nan-16": (binary(spoilt(NORM, float("nan"), torch.float16)), r"LayerNorm.weight\[1\] is nan"),
    "inf-bf16-shards": (shards(change=spoilt(NORM, float("inf"), torch.bfloat16)), r"weight\[1\] is inf"),
    "too-large-for-float32": (safetensors(spoilt(NORM, 1e300, torch.float64)), r"weight\[1\] is 1e\+300; not finite in float32"),
    "uneven": (safetensors(with_one(QUERY, lambda t: t[:8])), rf"{QUERY} is \[8, 16\], but .*key.weight \[16, 16\]"),
    "uneven-but-48-rows": (
        safetensors(lambda tensors: {**tensors, QUERY: tensors[QUERY][:8], QUERY.replace("query", "key"): torch.ones(24, 16)}),
        rf"{QUERY} is \[8, 16\], but .*key.weight \[24, 16\]",
    ),
    "misshapen": (safetensors(with_one(WORDS, lambda t: torch.cat([t, t]))), r"embeddings.word: \[48, 16\]"),
    "a-layer-too-few": (safetensors(lambda tensors: {n: t for n, t in tensors.items() if "layer.1." not in n}), "missing: layers.1"),
}  # fmt: skip


@pytest.mark.parametrize("write", EQUAL.values(), ids=EQUAL)
def test_answers_are_those_of_transformers(given, write):
    folder, tensors = given
    write(folder, tensors)
    theirs, report = BertForSequenceClassification.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    ours = BertClassifier.from_pretrained(str(folder)).eval()
    with torch.no_grad():
        assert torch.allclose(ours(PackedBatch.from_features(FEATURES)), theirs.eval()(**FEATURES).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("write", "words"), REFUSED.values(), ids=REFUSED)
def test_other_weights_are_refused_by_name(given, write, words):
    folder, tensors = given
    write(folder, tensors)
    with pytest.raises(CheckpointError, match=words) as refusal:
        BertClassifier.from_pretrained(str(resolve_folder(str(folder))))
    assert str(folder) in str(refusal.value)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"cls.predictions.decoder.weight": 1.0}, None),
        ({"cls.predictions.decoder.weight": 3.0}, "decoder.weight is not bert.embeddings.word_embeddings.weight"),
        ({"cls.predictions.decoder.bias": 3.0}, "decoder.bias is not cls.predictions.bias"),
    ],
    ids=["tied", "weight", "bias"],
)
def test_a_decoder_of_its_own_is_refused_by_pre_training(tmp_path, extra, words):
    folder = write_tiny_bert(tmp_path / "bert")
    config = BertForSequenceClassification.from_pretrained(folder).config
    BertForPreTraining(config).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["cls.predictions.bias"] += 1
    originals = {"weight": tensors[WORDS], "bias": tensors["cls.predictions.bias"]}
    safetensors()(folder, tensors | {name: originals[name.rpartition(".")[2]] * factor for name, factor in extra.items()})
    theirs = BertForPreTraining.from_pretrained(folder).cls.predictions.decoder
    tied = torch.equal(theirs.weight, originals["weight"]) and torch.equal(theirs.bias, originals["bias"])
    assert tied == (words is None), "transformers unties what is not equal"
    if tied:
        assert not BertPretrainer.from_pretrained(str(folder)).loaded.made_anew
    else:
        with pytest.raises(CheckpointError, match=words):
            BertPretrainer.from_pretrained(str(folder))
