"""The graph without padding against transformers' eager attention in float64, for every kind of mask."""

import numpy as np
import pytest

from tests.export.graphs.test_network import MASKS, eager_logits, features, network_of, onnx_logits
from tests.support import tolerances
from tests.support.tiny_bert import write_tiny_bert

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from bertfast_export.graphs.stream import LEAST_OPSET, stream_graph  # noqa: E402
from bertfast_export.graphs.writer import count_operators  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_bert(tmp_path_factory.mktemp("tiny"), num_labels=3, initializer_range=0.5)


@pytest.fixture(scope="module")
def network(folder):
    return network_of(folder)


@pytest.fixture(scope="module")
def batch(network):
    return features(network.config.vocab_size)


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
def test_logits_are_those_of_transformers_for_any_mask(level, folder, network, batch):
    logits = onnx_logits(stream_graph(network), batch, graph_optimization_level=getattr(ort.GraphOptimizationLevel, level))
    apart = np.abs(logits - eager_logits(folder, batch)).max(axis=1)
    assert dict(zip(MASKS, apart, strict=True)) == pytest.approx(dict.fromkeys(MASKS, 0), abs=tolerances.ONNX_LOGITS)


@pytest.mark.parametrize("rows, width", [(1, 1), (1, 2), (33, 1), (3, 128)])
def test_any_batch_and_width_in_int32_too(rows, width, folder, network):
    wide = features(network.config.vocab_size, max(width, 16))
    batch = {name: np.resize(values[:, :width], (rows, width)) for name, values in wide.items()}
    narrow = {name: values.astype(np.int32) for name, values in batch.items()}
    expected = eager_logits(folder, batch)
    assert np.abs(onnx_logits(stream_graph(network), batch) - expected).max() <= tolerances.ONNX_LOGITS
    assert np.abs(onnx_logits(stream_graph(network, integers="int32"), narrow) - expected).max() <= tolerances.ONNX_LOGITS


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
def test_other_architectures(config, tmp_path):
    folder = write_tiny_bert(tmp_path, initializer_range=0.3, **config)
    batch = features(network_of(folder).config.vocab_size)
    expected = eager_logits(folder, batch)
    logits = onnx_logits(stream_graph(network_of(folder)), batch)
    assert logits.shape == expected.shape and np.abs(logits - expected).max() <= tolerances.ONNX_LOGITS


def test_no_padding_is_computed(network, batch):
    """What stays is the tokens, each row's first column, and all of a row without a token; the last layer's feed-forward sees first columns alone."""
    graph = stream_graph(network)
    wide = f"layers.{network.num_layers - 1}.gelu"
    graph.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("layers.0.gelu", wide))
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    first, last = session.run(["layers.0.gelu", wide], batch)
    kept = batch["attention_mask"].copy()
    kept[:, 0] = 1
    kept[MASKS.index("empty")] = 1
    assert first.shape == (kept.sum(), network.config.intermediate_size) and len(last) == len(MASKS) < kept.sum() < kept.size


def test_the_graph_is_standard_and_keeps_its_operators(network, tmp_path):
    """ONNX Runtime fuses nothing of it into an operator that is slower."""
    graph = stream_graph(network, 18)
    onnx.checker.check_model(graph, full_check=True)
    assert [(domain.domain, domain.version) for domain in graph.opset_import] == [("", LEAST_OPSET)]
    settings = ort.SessionOptions()
    settings.optimized_model_filepath, settings.log_severity_level = str(tmp_path / "run.onnx"), 4
    ort.InferenceSession(graph.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    counts, layers = count_operators(onnx.load(tmp_path / "run.onnx")), network.num_layers
    assert [counts[name] for name in ("Attention", "LayerNormalization", "Gelu")] == [layers, 2 * layers + 1, layers]
    assert not {"SkipLayerNormalization", "BiasGelu"} & counts.keys()


def test_a_token_beyond_the_positions_is_refused(network):
    batch = features(network.config.vocab_size, network.config.max_position_embeddings + 1)
    with pytest.raises(Exception, match="out of data bounds"):
        onnx_logits(stream_graph(network), batch, log_severity_level=4)


def test_the_same_weights_give_the_same_bytes(folder, network):
    assert stream_graph(network).SerializeToString(deterministic=True) == stream_graph(network_of(folder)).SerializeToString(
        deterministic=True
    )
