"""The judge of an IR passes what is right, and sees each fault that is put into one on purpose."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.support.exported import write_classifier

openvino = pytest.importorskip("openvino")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import numpy_helper  # noqa: E402

from bertfast_export.bundle.source import Candidate  # noqa: E402
from bertfast_export.contract import FACTS, Options, verdict_name  # noqa: E402
from bertfast_export.graphs.openvino import ir_of, openvino_graph, save_ir  # noqa: E402
from bertfast_export.graphs.operators import Network  # noqa: E402
from bertfast_export.graphs.quantized import Recipe, measure  # noqa: E402
from bertfast_export.judge.audit import CheckpointWeights, KeptWeights  # noqa: E402
from bertfast_export.judge.cases import make_cases  # noqa: E402
from bertfast_export.judge.openvino_trial import constants_of, judge_neighbours, judge_openvino  # noqa: E402
from bertfast_export.judge.reference import Answers  # noqa: E402
from bertfast_export.judge.trial import run_cases  # noqa: E402
from bertfast_export.judge.verdict import BUDGETS, Verdict  # noqa: E402
from bertfast_export.openvino_runtime import open_openvino  # noqa: E402


class Trial:
    """A classifier, its answers and its graphs."""

    def __init__(self, folder):
        model = write_classifier(folder / "model")
        self.source = Candidate(str(model), Options())
        self.network, every = Network.of(self.source.model), make_cases(self.source.bert)
        self.cases = [case for case in every if case.features["input_ids"].size <= 400]
        self.answers, self.weights = Answers.of(model, self.cases), CheckpointWeights.of(model)
        rows = [case.features for case in self.cases if case.features["attention_mask"].any(axis=1).all()]
        self.statistics = measure(self.network, rows)
        self.graphs = {
            "openvino": openvino_graph(self.network),
            "openvino-int8": openvino_graph(self.network, "int64", self.statistics, Recipe("smoothing 0.7", 0.7)),
        }

    def written(self, name, place, change=None):
        """The IR of a graph, with the weights that `change` gives in the place of its own."""
        graph = onnx.ModelProto()
        graph.CopyFrom(self.graphs[name])
        for tensor in graph.graph.initializer:
            if change is not None and tensor.name == change[0]:
                tensor.CopyFrom(numpy_helper.from_array(change[1](numpy_helper.to_array(tensor).copy()), tensor.name))
        path = place / "model.xml"
        save_ir(ir_of(graph, {"variant": name}), path)
        return path


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    return Trial(tmp_path_factory.mktemp("trial"))


def spoilt(place, value):
    def change(values):
        values[place] = value(values[place])
        return values

    return change


def test_a_right_file_passes_with_every_weight_compared(trial, tmp_path):
    path = trial.written("openvino", tmp_path)
    verdict = judge_openvino(path, "openvino", trial.cases, trial.answers, [], [trial.weights])
    assert verdict.fault is None and verdict.grid["times_eager_float32_error"] <= 2 and verdict.grid["apart_from_the_row_alone"] <= 5e-6
    kept = KeptWeights(verdict.weights["sha256"])
    assert judge_openvino(path, "openvino", trial.cases, trial.answers, [], [kept]).fault is None
    assert json.loads(openvino.Core().read_model(path).get_rt_info(FACTS).astype(str)) == {"variant": "openvino"}


@pytest.mark.parametrize(
    "change, fault",
    [
        pytest.param(
            ("layers.1.qkv.key.weight", spoilt((3, 2), lambda x: np.nextafter(x, np.float32(9)))),
            "its weight layers.1.qkv.weight[3,",
            id="a-weight",
        ),
        pytest.param(("layers.0.qkv.value.bias", spoilt(1, lambda x: x + 1e-6)), "its weight layers.0.qkv.bias[", id="a-bias"),
        pytest.param(("embeddings.word", spoilt((9, 1), lambda x: x + 1e-6)), "its weight embeddings.word[9, 1]", id="a-word"),
        pytest.param(("heads.scale", lambda x: x * np.float32(1.05)), "apart by", id="the-scale-of-scores"),
        pytest.param(("masked.openvino", lambda x: x * np.float32(2.0)), "its weight masked.openvino", id="the-mask"),
    ],
)
def test_a_fault_in_float32_is_named(change, fault, trial, tmp_path):
    verdict = judge_openvino(trial.written("openvino", tmp_path, change), "openvino", trial.cases, trial.answers, [], [trial.weights])
    assert verdict.fault is not None and fault in verdict.fault


@pytest.mark.parametrize(
    "change, fault",
    [
        pytest.param(None, None, id="right"),
        pytest.param(
            ("layers.1.ffn_up.int8", spoilt((2, 5), lambda x: -x if abs(x) > 30 else x + 60)), "layers.1.ffn_up.int8[2, 5]", id="a-level"
        ),
        pytest.param(("layers.0.qkv.query.scale", spoilt(3, lambda x: x * 1.001)), "its scale layers.0.qkv.scale[3]", id="a-scale"),
        pytest.param(("layers.0.ffn_up.evened", spoilt(3, lambda x: x * 1.5)), "layers.0.ffn_up", id="what-evens"),
        pytest.param(("layers.1.ffn_down.least", lambda x: x * np.float32(1.3)), "0 must be one of 256 levels", id="a-bound"),
        pytest.param(("embeddings.word.int8", spoilt((7, 3), lambda x: x + 2)), "its weight embeddings.word.int8[7, 3]", id="a-word"),
        pytest.param(("embeddings.word.scale", spoilt(7, lambda x: x * 1.01)), "its scale embeddings.word.scale[7]", id="a-words-scale"),
    ],
)
def test_a_fault_in_int8_is_named_by_the_audit(change, fault, trial, tmp_path):
    given = constants_of(openvino.Core().read_model(trial.written("openvino-int8", tmp_path, change)))
    found = trial.weights.compare(given).fault
    assert found is None if fault is None else found is not None and fault in found


def test_weights_cannot_hide_under_a_name_of_openvinos(trial, tmp_path):
    model = openvino.Core().read_model(trial.written("openvino", tmp_path))
    next(node for node in model.get_ops() if node.get_friendly_name() == "pooler.weight").set_friendly_name("Constant_1")
    found = trial.weights.compare(constants_of(model)).fault
    assert found is not None and "Constant_1 is none of the checkpoint's" in found


def test_static_scales_know_no_neighbours_and_a_scale_of_the_batch_is_seen(trial, tmp_path):
    session = open_openvino(trial.written("openvino-int8", tmp_path), "f32", 1)
    verdict = Verdict("x", BUDGETS[verdict_name("openvino-int8")])
    judge_neighbours(session, trial.cases, verdict)
    assert verdict.fault is None and verdict.grid["apart_from_the_row_alone"] <= 1e-3

    class OfTheBatch:
        """Answers that depend on who is in the batch."""

        def __getattr__(self, name):
            return getattr(session, name)

        def run(self, names, features):
            return [logits + 0.05 * len(logits) for logits in session.run(names, features)]

    judge_neighbours(OfTheBatch(), trial.cases, verdict := replace(verdict, fault=None))
    assert "from those of the same row alone" in verdict.fault


def test_every_product_of_the_int8_graph_runs_in_int8(trial, tmp_path):
    compiled = openvino.Core().compile_model(trial.written("openvino-int8", tmp_path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    compiled.create_infer_request().infer({name: trial.cases[5].features[name] for name in trial.cases[5].features})
    kinds = [node.rt_info for node in compiled.get_runtime_model().get_ops() if "layerType" in node.rt_info]
    products = [info for info in kinds if info["layerType"].astype(str).startswith("FullyConnected")]
    in_int8 = [info for info in products if "8" in info["primitiveType"].astype(str).rpartition("_")[2]]
    assert len(in_int8) == 6 * trial.network.num_layers and len(products) == len(in_int8) + 2  # pooler and classifier
    moved = [run_cases(open_openvino(trial.written(name, tmp_path), "f32", 1), trial.cases[9].features) for name in trial.graphs]
    assert 0 < np.abs(moved[0] - moved[1]).mean() <= 0.2 * trial.answers.spread
