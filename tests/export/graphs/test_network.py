"""The graphs against transformers' eager attention in float64, for every kind of mask."""

import numpy as np
import pytest

from tests.support import tolerances
from tests.support.tiny_bert import write_tiny_bert

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

import torch  # noqa: E402

from bertfast.errors import ConfigError, ExportError  # noqa: E402
from bertfast.model.bert import BertClassifier  # noqa: E402
from bertfast_export.contract import INPUTS, IR_VERSIONS  # noqa: E402
from bertfast_export.graphs.fused import check_fusion, fused_graph  # noqa: E402
from bertfast_export.graphs.network import portable_graph  # noqa: E402
from bertfast_export.graphs.operators import Network  # noqa: E402
from bertfast_export.graphs.writer import count_operators, save_model  # noqa: E402

HIGHEST_IR = 13  # of ONNX Runtime 1.31
MASKS = ("full", "right", "left", "holed", "random", "first-alone", "empty")


def features(vocabulary: int, width: int = 23, seed: int = 0) -> dict[str, np.ndarray]:
    """One row for each kind of mask."""
    rng = np.random.default_rng(seed)
    rows = len(MASKS)
    mask = np.ones((rows, width), dtype=np.int64)
    mask[MASKS.index("right"), width // 2 :] = 0
    mask[MASKS.index("left"), : width // 3] = 0
    mask[MASKS.index("holed"), 2:5] = 0
    mask[MASKS.index("random")] = rng.integers(0, 2, width)
    mask[MASKS.index("first-alone"), 1:] = 0
    mask[MASKS.index("empty")] = 0
    ids, segments = rng.integers(0, vocabulary, (rows, width)), rng.integers(0, 2, (rows, width))
    return dict(zip(INPUTS, (ids, mask, segments), strict=True))


def eager_logits(folder, batch) -> np.ndarray:
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64).eval()
    with torch.inference_mode():
        return model(**{name: torch.from_numpy(values) for name, values in batch.items()}).logits.numpy()


def onnx_logits(graph, batch, **options) -> np.ndarray:
    settings = ort.SessionOptions()
    for name, value in options.items():
        setattr(settings, name, value)
    return ort.InferenceSession(graph.SerializeToString(), settings, providers=["CPUExecutionProvider"]).run(["logits"], batch)[0]


def network_of(folder) -> Network:
    return Network.of(BertClassifier.from_pretrained(str(folder)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights larger than a fresh model's, so that attention is sharp and a mask that is not heeded shows."""
    return write_tiny_bert(tmp_path_factory.mktemp("tiny"), num_labels=3, initializer_range=0.5)


@pytest.fixture(scope="module")
def network(folder):
    return network_of(folder)


@pytest.fixture(scope="module")
def batch(network):
    return features(network.config.vocab_size)


@pytest.fixture(scope="module")
def expected(folder, batch):
    return eager_logits(folder, batch)


@pytest.mark.parametrize("opset", sorted(IR_VERSIONS))
@pytest.mark.parametrize("build", [pytest.param(portable_graph, id="portable"), pytest.param(fused_graph, id="fused")])
def test_logits_are_those_of_transformers(build, opset, network, batch, expected):
    graph = build(network, opset)
    assert graph.ir_version == IR_VERSIONS[opset] <= HIGHEST_IR and graph.opset_import[0].version == opset
    difference = np.abs(onnx_logits(graph, batch) - expected).max(axis=1)
    assert dict(zip(MASKS, difference, strict=True)) == pytest.approx(dict.fromkeys(MASKS, 0), abs=tolerances.ONNX_LOGITS)


def test_float16(network, batch, expected):
    graph = fused_graph(network, half=True)
    weights = {tensor.data_type for tensor in graph.graph.initializer if len(tensor.dims) == 2}
    assert weights == {onnx.TensorProto.FLOAT16}
    assert np.abs(onnx_logits(graph, batch) - expected).max() <= tolerances.ONNX_HALF_LOGITS * np.abs(expected).max()


@pytest.mark.parametrize("build", [pytest.param(portable_graph, id="portable"), pytest.param(fused_graph, id="fused")])
def test_int32_inputs(build, network, batch, expected):
    graph = build(network, integers="int32")
    narrow = {name: values.astype(np.int32) for name, values in batch.items()}
    assert np.abs(onnx_logits(graph, narrow) - expected).max() <= tolerances.ONNX_LOGITS
    assert "Cast" not in count_operators(fused_graph(network, integers="int32"))


@pytest.mark.parametrize("build", [pytest.param(portable_graph, id="portable"), pytest.param(fused_graph, id="fused")])
@pytest.mark.parametrize("rows, width", [(1, 1), (1, 2), (33, 1), (3, 128)])
def test_any_batch_and_width(build, rows, width, folder, network):
    wide = features(network.config.vocab_size, max(width, 16))
    batch = {name: np.resize(values[:, :width], (rows, width)) for name, values in wide.items()}
    assert np.abs(onnx_logits(build(network), batch) - eager_logits(folder, batch)).max() <= tolerances.ONNX_LOGITS


@pytest.mark.parametrize("build", [pytest.param(portable_graph, id="portable"), pytest.param(fused_graph, id="fused")])
def test_a_row_longer_than_the_positions_is_refused(build, network):
    batch = features(network.config.vocab_size, network.config.max_position_embeddings + 1)
    with pytest.raises(Exception, match=r"(?i)broadcast|dimension|out of range"):
        onnx_logits(build(network), batch, log_severity_level=4)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({"num_labels": 1}, id="regression"),
        pytest.param({"num_labels": 2, "hidden_act": "gelu_new"}, id="tanh-gelu"),
        pytest.param({"num_labels": 2, "layer_norm_eps": 0.1}, id="another-eps"),
        pytest.param({"num_labels": 2, "num_hidden_layers": 1, "num_attention_heads": 1}, id="one-layer-one-head"),
        pytest.param({"num_labels": 5, "hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 40}, id="odd-sizes"),
    ],
)
@pytest.mark.parametrize("opset", [18, 20])
def test_other_architectures(config, opset, tmp_path):
    folder = write_tiny_bert(tmp_path, initializer_range=0.3, **config)
    network = network_of(folder)
    batch = features(network.config.vocab_size)
    expected = eager_logits(folder, batch)
    for build in (portable_graph, fused_graph):
        logits = onnx_logits(build(network, opset), batch)
        assert logits.shape == expected.shape and np.abs(logits - expected).max() <= tolerances.ONNX_LOGITS


def test_every_layer_of_a_base_model_is_fused(tmp_path):
    graph = fused_graph(network_of(write_tiny_bert(tmp_path, num_labels=2, num_hidden_layers=12)))
    counts = count_operators(graph)
    assert [counts[name] for name in ("Attention", "SkipLayerNormalization", "BiasGelu", "EmbedLayerNormalization")] == [12, 24, 12, 1]
    assert len(graph.graph.node) <= 92


def test_a_fusion_that_is_missing_is_noticed(network):
    graph = fused_graph(network)
    graph.graph.node.remove(next(node for node in graph.graph.node if node.op_type == "BiasGelu"))
    with pytest.raises(ExportError, match=r"'BiasGelu': 1"):
        check_fusion(graph, network)


def test_the_portable_graph_is_standard_and_named(network):
    graph = portable_graph(network, metadata={"labels": "a"})
    onnx.checker.check_model(graph, full_check=True)
    assert [domain.domain for domain in graph.opset_import] == [""]
    assert {node.domain for node in graph.graph.node} == {""}
    assert [value.name for value in graph.graph.input] == list(INPUTS) and [value.name for value in graph.graph.output] == ["logits"]
    dims = [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.graph.input]
    assert dims == [["batch", "sequence"]] * 3 and {entry.key: entry.value for entry in graph.metadata_props} == {"labels": "a"}


@pytest.mark.parametrize("build", [pytest.param(portable_graph, id="portable"), pytest.param(fused_graph, id="fused")])
def test_the_same_weights_give_the_same_bytes(build, folder, network):
    assert build(network).SerializeToString(deterministic=True) == build(network_of(folder)).SerializeToString(deterministic=True)


def test_without_the_runtimes_own_optimizations(network, batch, expected):
    for graph in (portable_graph(network), fused_graph(network)):
        logits = onnx_logits(graph, batch, graph_optimization_level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
        assert np.abs(logits - expected).max() <= tolerances.ONNX_LOGITS


def test_weights_beyond_one_file(network, batch, expected, tmp_path):
    files = save_model(portable_graph(network), tmp_path / "model.onnx", single_file_bytes=1000)
    assert [file.name for file in files] == ["model.onnx", "model.onnx.data"] and all(file.stat().st_size for file in files)
    logits = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"]).run(None, batch)[0]
    assert np.abs(logits - expected).max() <= tolerances.ONNX_LOGITS


def test_an_opset_that_is_not_written(network):
    with pytest.raises(ConfigError, match="opset 17: bertfast writes opsets 18 to 23"):
        portable_graph(network, 17)


def test_a_folder_that_cannot_be_written(network, tmp_path):
    with pytest.raises(ExportError, match=r"nowhere/model\.onnx: cannot be written: No such file"):
        save_model(portable_graph(network), tmp_path / "nowhere" / "model.onnx")
