"""Heads of bertfast's own as ONNX graphs: every pooling and several layers against transformers' hidden states in float64, holes in the mask included."""

import json

import numpy as np
import pytest

from tests.export.graphs.test_network import MASKS, features, onnx_logits
from tests.support import tolerances
from tests.support.exported import LABELS, write_classifier, write_config, write_data

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import torch  # noqa: E402

from bertfast.cli.entry import main  # noqa: E402
from bertfast.config.blocks import HEAD_KEY, HeadConfig  # noqa: E402
from bertfast.errors import ConfigError, VerificationError  # noqa: E402
from bertfast.model.bert import BertClassifier  # noqa: E402
from bertfast.packing.batch import PackedBatch  # noqa: E402
from bertfast_export.bundle.export import export_bundle  # noqa: E402
from bertfast_export.bundle.source import Candidate  # noqa: E402
from bertfast_export.bundle.verify import verify_bundle  # noqa: E402
from bertfast_export.contract import VARIANTS, Options  # noqa: E402
from bertfast_export.graphs.fused import fused_graph  # noqa: E402
from bertfast_export.graphs.network import portable_graph  # noqa: E402
from bertfast_export.graphs.operators import Network  # noqa: E402
from bertfast_export.graphs.stream import stream_graph  # noqa: E402
from bertfast_export.judge.audit import CheckpointWeights  # noqa: E402
from bertfast_export.judge.reference import EagerHead  # noqa: E402

HEADS = [
    pytest.param(HeadConfig(pooling="mean"), id="mean"),
    pytest.param(HeadConfig(pooling="max"), id="max"),
    pytest.param(HeadConfig(pooling="mean_max"), id="mean-and-max"),
    pytest.param(HeadConfig(pooling="attention"), id="attention"),
    pytest.param(HeadConfig(pooler=False), id="cls-without-pooler"),
    pytest.param(HeadConfig(layers=(-1, 0)), id="cls-of-two-layers"),
    pytest.param(HeadConfig(layers=(0, 2, 1), pooling="mean_max", layer_pooling="mean"), id="mean-of-three-layers"),
    pytest.param(HeadConfig(layers=(1, 2), pooling="attention", layer_pooling="max"), id="largest-of-two-attentions"),
    pytest.param(HeadConfig(layers=(0, 1), pooling="max", pooler=True), id="below-the-top-through-the-pooler"),
    pytest.param(HeadConfig(hidden_sizes=(8, 6), activation="gelu", pooling="mean"), id="gelu"),
    pytest.param(HeadConfig(hidden_sizes=(8,), activation="relu"), id="relu"),
    pytest.param(HeadConfig(hidden_sizes=(8,), activation="tanh", layers=(0, -1), pooling="mean_max"), id="tanh"),
]
BUILDS = [pytest.param(portable_graph, id="portable"), pytest.param(fused_graph, id="fused"), pytest.param(stream_graph, id="stream")]


def write_head(folder, head, seed=2):
    """A classifier of three layers whose every weight matters, with this head."""
    write_classifier(folder / "plain", num_hidden_layers=3)
    torch.manual_seed(seed)
    model = BertClassifier.from_pretrained(str(folder / "plain"), label_names=LABELS, new_head=True, head=head)
    for name, parameter in model.named_parameters():
        if name.startswith(("features.", "hidden.", "classifier.", "pooler.")):
            torch.nn.init.normal_(parameter, std=0.3)
    (folder / "own").mkdir()
    model.save_pretrained(str(folder / "own"))
    for file in (folder / "plain").glob("*"):
        if file.name.startswith(("tokenizer", "vocab")):
            (folder / "own" / file.name).write_bytes(file.read_bytes())
    return folder / "own"


@pytest.fixture(params=HEADS)
def own(request, tmp_path):
    return write_head(tmp_path, request.param)


def test_logits_are_those_of_transformers_hidden_states(own):
    network = Network.of(BertClassifier.from_pretrained(str(own)))
    batch = features(network.config.vocab_size)
    expected, weights = EagerHead(own, torch.float64).logits(batch), CheckpointWeights.of(own)
    for opset in (18, 20):
        for build in (portable_graph, fused_graph, stream_graph):
            graph = build(network, opset)
            apart = dict(zip(MASKS, np.abs(onnx_logits(graph, batch) - expected).max(axis=1), strict=True))
            assert apart == pytest.approx(dict.fromkeys(MASKS, 0), abs=tolerances.ONNX_LOGITS), (build, opset)
            assert weights.audit(graph, False).fault is None
    onnx.checker.check_model(portable_graph(network), full_check=True)
    assert {node.domain for node in portable_graph(network).graph.node} == {""}


def test_the_reference_reads_what_was_trained(own):
    """The model that trains, on packed tokens, and the judge's reading of its folder share no code."""
    batch = features(24)
    rows = [MASKS.index(name) for name in ("full", "right", "first-alone")]
    some = {name: values[rows] for name, values in batch.items()}
    with torch.no_grad():
        packed = BertClassifier.from_pretrained(str(own)).double().eval()(PackedBatch.from_features(some))
    assert np.abs(packed.numpy() - EagerHead(own, torch.float64).logits(some)).max() < tolerances.FLOAT64


@pytest.mark.parametrize("build", BUILDS)
def test_int32_inputs_and_other_shapes(build, tmp_path):
    folder = write_head(tmp_path, HeadConfig(layers=(0, -1), pooling="mean_max"))
    network, eager = Network.of(BertClassifier.from_pretrained(str(folder))), EagerHead(folder, torch.float64)
    for rows, width in ((1, 1), (1, 2), (9, 40)):
        batch = {name: np.resize(values[:, :width], (rows, width)) for name, values in features(24, 40).items()}
        narrow = {name: values.astype(np.int32) for name, values in batch.items()}
        assert np.abs(onnx_logits(build(network, integers="int32"), narrow) - eager.logits(batch)).max() <= tolerances.ONNX_LOGITS


def test_a_bundle_holds_the_float32_files_and_says_what_it_has_not(tmp_path):
    folder = write_head(tmp_path, HeadConfig(layers=(-1, -2), pooling="mean_max", hidden_sizes=(8,)))
    data, bundle, said = write_data(tmp_path / "dev.tsv"), tmp_path / "bundle", []
    config = write_config(tmp_path, data, folder)
    variants = ",".join((*VARIANTS, "openvino"))
    arguments = ["export", "cpu", str(folder), "--output", str(bundle), "--config", str(config), "--packed", "--variants", variants]
    assert main(arguments) == 0
    record = json.loads((bundle / "verification.json").read_text())
    assert set(record["verdicts"]) == {"model.onnx", "model_optimized.onnx", "model_packed_cpu.onnx"}
    assert set(record["skipped"]) == {"model_fp16.onnx", "model_quantized.onnx", "model_packed.onnx", "openvino/openvino_model.xml"}
    assert all(verdict["passed"] and verdict["data"]["dev"]["agreement"] == 1 for verdict in record["verdicts"].values())
    assert "model_fp16.onnx: not written; a head of bertfast's own is written in float32 alone." in (bundle / "verification.md").read_text()
    verify_bundle(str(bundle), str(folder), say=said.append)
    assert any(line.startswith("model_optimized.onnx: passed") for line in said)
    metadata = {entry.key: entry.value for entry in onnx.load(bundle / "model.onnx").metadata_props}
    assert "the mean and the maximum of the tokens of encoder layers 2, 1 (concat)" in json.loads(metadata["preprocessing"])["padding"]

    from bertfast_export.classifier import OnnxClassifier

    text = "the dog runs and the cat sleeps"
    packed = PackedBatch.from_features(dict(Candidate(str(folder), Options()).tokenizer([text], return_tensors="np")))
    with torch.no_grad():
        expected = BertClassifier.from_pretrained(str(folder)).eval()(packed).numpy()
    found = OnnxClassifier.from_bundle(bundle).logits([text, f"{text} {text}"])
    assert np.abs(found[0] - expected[0]).max() <= tolerances.ONNX_LOGITS


def test_a_graph_of_another_head_is_rejected(tmp_path, monkeypatch):
    """The judge reads the head from the checkpoint, not from the graph's writer."""
    folder = write_head(tmp_path, HeadConfig(pooling="mean"))
    wrong = HeadConfig(pooling="max", layers=(2,), pooler=False)
    monkeypatch.setattr(Network, "head", property(lambda network: wrong))
    with pytest.raises(VerificationError, match=r"model\.onnx: batch .* should be"):
        export_bundle(str(folder), str(tmp_path / "bundle"), Options(("portable",)), say=lambda line: None)


def test_variants_and_pieces_that_cannot_be(tmp_path):
    folder = write_head(tmp_path, HeadConfig(pooling="mean"))
    with pytest.raises(
        ConfigError, match=r"variants fp16, int8: a head of bertfast's own is written in float32 alone; ask for one of portable"
    ):
        Candidate(str(folder), Options(("fp16", "int8")))
    values = json.loads((folder / "config.json").read_text())
    values[HEAD_KEY]["pieces"] = "attention"
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"own: bertfast_head.pieces is 'attention'"):
        Candidate(str(folder), Options())
