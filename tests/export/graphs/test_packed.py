"""The packed graph by its operators' documented meaning, and its trial, against transformers' eager attention."""

import json

import numpy as np
import pytest

from tests.export.graphs.test_network import MASKS, eager_logits, features, network_of
from tests.support import tolerances
from tests.support.exported import write_classifier, write_config, write_data
from tests.support.tiny_bert import write_tiny_bert

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from bertfast.cli.entry import main  # noqa: E402
from bertfast_export.contract import PACKED_FILE  # noqa: E402
from bertfast_export.graphs.fused import fused_graph  # noqa: E402
from bertfast_export.graphs.packed import packed_graph  # noqa: E402
from bertfast_export.graphs.writer import count_operators  # noqa: E402
from bertfast_export.judge.cases import make_cases  # noqa: E402
from bertfast_export.judge.packed_trial import NOT_RUN, judge_packed  # noqa: E402
from bertfast_export.judge.reading import Reading  # noqa: E402
from bertfast_export.judge.reference import Answers  # noqa: E402

without_cuda = pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="a CUDA provider runs the file itself")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_bert(tmp_path_factory.mktemp("tiny"), num_labels=3, initializer_range=0.5)


@pytest.mark.parametrize("integers", ["int64", "int32"])
def test_the_reading_gives_the_eager_logits(integers, folder):
    """For every mask that leaves the first column; for the others NaN."""
    network = network_of(folder)
    batch, graph = features(network.config.vocab_size), packed_graph(network, integers=integers, dtype=np.float32)
    given = Reading(graph).run(["logits"], {name: values.astype(integers) for name, values in batch.items()})[0]
    apart = dict(zip(MASKS, np.abs(given - eager_logits(folder, batch)).max(axis=1), strict=True))
    assert np.isnan(apart.pop("left")) and np.isnan(apart.pop("empty"))
    assert apart == pytest.approx(dict.fromkeys(apart, 0), abs=tolerances.ONNX_LOGITS)


def test_the_reading_of_known_operators_is_that_of_onnxruntime(folder):
    """Of those that a CPU runs too."""
    network = network_of(folder)
    batch = features(network.config.vocab_size)
    graph = fused_graph(network)
    for node in list(graph.graph.node):
        if node.op_type == "EmbedLayerNormalization":
            graph.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None))
            break
    expected = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"]).run(["embeddings.norm"], batch)[0]
    kept = [node for node in graph.graph.node if node.op_type in ("EmbedLayerNormalization", "Cast")]
    del graph.graph.node[:]
    graph.graph.node.extend(kept)
    del graph.graph.output[0]
    assert np.abs(Reading(graph).run(["embeddings.norm"], batch)[0] - expected).max() <= 1e-5


def test_every_layer_is_packed(folder):
    counts = count_operators(packed_graph(network_of(folder)))
    layers = network_of(folder).num_layers
    assert counts["PackedAttention"] == layers and counts["RemovePadding"] == 1 and "Attention" not in counts


def spoilt(graph, operator, edit):
    edit(next(node for node in graph.graph.node if node.op_type == operator))


FAULTS = {
    "an-input-missing": ("PackedAttention", lambda node: node.input.pop(), "its form is refused by"),
    "an-attribute-missing": ("PackedAttention", lambda node: node.attribute.pop(), "its form is refused by"),
    "columns-not-sorted-to-the-front": ("TopK", lambda node: node.attribute[1].__setattr__("i", 0), "batch "),
    "positions-by-place": ("EmbedLayerNormalization", lambda node: node.input.pop(), "batch "),
    "the-first-column-not-asked": ("Where", lambda node: node.input.__setitem__(2, node.input[1]), "batch "),
    "another-token-pooled": ("Slice", lambda node: node.input.__setitem__(slice(1, 3), ["packed.past", "packed.end"]), "batch "),
}


@without_cuda
@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_the_judge_without_cuda(fault, folder, tmp_path):
    network = network_of(folder)
    cases = [case for case in make_cases(network.config) if case.features["input_ids"].size <= 300]
    graph, said = packed_graph(network), None
    if fault is not None:
        operator, edit, said = FAULTS[fault]
        for name, value in (("packed.past", 1), ("packed.end", 2**31)):
            graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value], dtype=np.int64), name))
        spoilt(graph, operator, edit)
    (tmp_path / PACKED_FILE).write_bytes(graph.SerializeToString())
    verdict = judge_packed(tmp_path / PACKED_FILE, cases, Answers.of(folder, cases), [])
    assert verdict.grid["run_by"] == NOT_RUN
    assert verdict.fault is None if said is None else verdict.fault.startswith(said), verdict.fault


@without_cuda
def test_a_bundle_says_that_it_was_not_run(tmp_path):
    model = write_classifier(tmp_path / "model")
    config = write_config(tmp_path, write_data(tmp_path / "dev.tsv", rows=90), model)
    arguments = ["export", str(model), "-o", str(tmp_path / "out"), "--config", str(config), "--variants", "portable", "--packed"]
    assert main(arguments) == 0
    verdict = json.loads((tmp_path / "out" / "verification.json").read_text())["verdicts"][PACKED_FILE]
    assert verdict["passed"] and verdict["data"]["dev"]["examples"] == 64 and verdict["weights"]["compared"] > 30
    assert f"{PACKED_FILE}: {NOT_RUN}" in (tmp_path / "out" / "verification.md").read_text()
    assert main(["verify", str(tmp_path / "out"), "--config", str(config)]) == 0
