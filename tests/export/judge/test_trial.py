"""The judge passes what is right, and catches every fault that is put into a graph on purpose, naming a case."""

from dataclasses import replace

import numpy as np
import pytest

from tests.support.exported import write_classifier, write_config, write_data

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import helper, numpy_helper  # noqa: E402

from bertfast.config.load import load_config  # noqa: E402
from bertfast.errors import CheckpointError  # noqa: E402
from bertfast_export.bundle import int8_search  # noqa: E402
from bertfast_export.bundle.examples import configured  # noqa: E402
from bertfast_export.bundle.source import Candidate  # noqa: E402
from bertfast_export.contract import Options  # noqa: E402
from bertfast_export.graphs.fused import fused_graph  # noqa: E402
from bertfast_export.graphs.network import portable_graph  # noqa: E402
from bertfast_export.graphs.operators import Network  # noqa: E402
from bertfast_export.graphs.quantized import Recipe, measure, quantized_graph  # noqa: E402
from bertfast_export.judge.audit import CheckpointWeights, KeptWeights  # noqa: E402
from bertfast_export.judge.cases import BATCH_SIZES, make_cases  # noqa: E402
from bertfast_export.judge.evidence import eager_logits  # noqa: E402
from bertfast_export.judge.reference import Answers  # noqa: E402
from bertfast_export.judge.trial import batches_of, judge, run_dataset  # noqa: E402
from bertfast_export.judge.verdict import BUDGETS, Evidence  # noqa: E402


class Trial:
    """A classifier with everything that the judge wants to see."""

    def __init__(self, folder):
        model = write_classifier(folder / "model")
        block = load_config(write_config(folder, write_data(folder / "dev.tsv"), model)).bertfast
        self.source = Candidate(str(model), Options(), block)
        self.network, self.cases = Network.of(self.source.model), make_cases(self.source.bert)
        self.answers, self.weights = Answers.of(model, self.cases), CheckpointWeights.of(model)
        splits = configured(block)(self.source.task, self.source.tokenizer, 32)
        self.evidence = [Evidence(name, dataset, eager_logits(self.source.model, dataset)) for name, dataset in splits.items()]
        self.statistics = measure(self.network, [features for _, features in batches_of(self.evidence[0].dataset)])
        self.graphs = {
            "model.onnx": portable_graph(self.network),
            "model_optimized.onnx": fused_graph(self.network),
            "model_fp16.onnx": fused_graph(self.network, half=True),
            "model_quantized.onnx": quantized_graph(self.network, self.statistics, Recipe("smoothing 0.7")),
        }

    def judge(self, name, path, change=None, weights=()):
        path.write_bytes(self.changed(name, change).SerializeToString())
        return judge(path, name, self.cases, self.answers, self.evidence, weights=weights)

    def changed(self, name, change=None):
        graph = onnx.ModelProto()
        graph.CopyFrom(self.graphs[name])
        if change is not None:
            change(graph.graph)
        return graph


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    return Trial(tmp_path_factory.mktemp("trial"))


def node(graph, name):
    return next(node for node in graph.node if node.name == name)


def attribute(name, key, value):
    """A change: the attribute `key` of a node."""

    def change(graph):
        found = node(graph, name)
        kept = [item for item in found.attribute if item.name != key]
        del found.attribute[:]
        found.attribute.extend([*kept, helper.make_attribute(key, value)])

    return change


def weight(name, edit):
    """A change: edit(array) of a weight, in place or by what it gives."""

    def change(graph):
        tensor = next(tensor for tensor in graph.initializer if tensor.name == name)
        values = numpy_helper.to_array(tensor).copy()
        given = edit(values)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(values if given is None else given, dtype=values.dtype, order="C"), name))

    return change


def rewire(name, place, source):
    """A change: input `place` of a node."""

    def change(graph):
        node(graph, name).input[place] = source

    return change


def scaled(factor, index=...):
    def edit(values):
        values[index] = values[index] * factor

    return edit


def swap_names(first, second):
    def change(graph):
        names = {first: second, second: first}
        for item in graph.node:
            item.input[:] = [names.get(name, name) for name in item.input]

    return change


def count_tokens_for_a_mask(graph):
    """What the stock optimizer does: attention is told how many tokens a row has, which is right for right padding alone."""
    norm = node(graph, "embeddings.norm")
    norm.input.append("attention_mask.int32")
    for item in graph.node:
        if item.op_type == "Attention":
            item.input[3] = norm.output[1]
    cast = node(graph, "attention_mask.int32")
    graph.node.remove(cast)
    graph.node.insert(0, cast)


def fix_the_batch(graph):
    for value in graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1


def rename_the_output(graph):
    node(graph, "logits").output[0] = graph.output[0].name = "linear_13"


FAULTS = {
    "token-type-ids-dropped": ("model.onnx", weight("embeddings.segment", lambda table: np.stack([table[0], table[0]]))),
    "tanh-for-erf-in-gelu": ("model.onnx", attribute("layers.1.gelu", "approximate", "tanh")),
    "eps-of-1e-5": ("model_optimized.onnx", attribute("layers.0.ffn_norm", "epsilon", 1e-5)),
    "labels-swapped": ("model_optimized.onnx", weight("classifier.weight", lambda matrix: matrix[:, [1, 0, 2]])),
    "weight-transposed": ("model.onnx", weight("layers.0.attention_out.weight", lambda matrix: matrix.T)),
    "mask-ignored": ("model_optimized.onnx", rewire("layers.1.qkv.joined", 3, "")),
    "mask-ignored-everywhere": ("model.onnx", weight("masked", lambda value: np.float32(0))),
    "mask-by-counting-tokens": ("model_optimized.onnx", count_tokens_for_a_mask),
    "mask-too-weak": ("model.onnx", weight("masked", lambda value: np.float32(-3))),
    "mask-of-minus-infinity": ("model.onnx", weight("masked", lambda value: np.float32(-np.inf))),
    "mask-of-minus-ten-thousand": ("model_optimized.onnx", attribute("layers.0.qkv.joined", "mask_filter_value", -10000.0)),
    "weights-of-an-output-1-percent-off": ("model_optimized.onnx", weight("layers.1.ffn_up.weight", scaled(1.01, (slice(None), 3)))),
    "one-weight-1-percent-off": ("model.onnx", weight("classifier.weight", scaled(1.01, (5, 1)))),
    "bias-dropped": ("model_optimized.onnx", weight("layers.0.attention_norm.x_bias", scaled(0.0))),
    "int8-scale-halved": ("model_quantized.onnx", weight("layers.1.ffn_up.scale", scaled(0.5))),
    "int8-zero-point-off": ("model_quantized.onnx", weight("zero.128", lambda value: np.uint8(120))),
    "causal-attention": ("model_optimized.onnx", attribute("layers.0.qkv.joined", "unidirectional", 1)),
    "positions-from-1": ("model.onnx", weight("embeddings.position", lambda table: np.roll(table, -1, axis=0))),
    "another-token-pooled": ("model.onnx", weight("first", lambda index: np.int64(-1))),
    "pooler-without-tanh": ("model.onnx", rewire("logits", 0, "pooler")),
    "scores-not-scaled": ("model.onnx", weight("heads.scale", lambda scale: np.float32(1))),
    "one-head-for-two": ("model_optimized.onnx", attribute("layers.1.qkv.joined", "num_heads", 1)),
    "layers-in-another-order": ("model_optimized.onnx", swap_names("layers.0.ffn_up.weight", "layers.1.ffn_up.weight")),
    "residual-dropped": ("model_optimized.onnx", rewire("layers.1.attention_norm", 1, "layers.1.attention_out")),
    "ids-and-segments-swapped": ("model.onnx", swap_names("input_ids", "token_type_ids")),
    "a-word-forgotten": ("model.onnx", weight("embeddings.word", scaled(0.0, 23))),
    "float16-weights-in-float32": ("model.onnx", weight("layers.0.qkv.weight", lambda matrix: matrix.astype(np.float16))),
    "float16-overflows": ("model_fp16.onnx", weight("layers.0.ffn_up.weight", scaled(60000.0, (slice(None), 0)))),
    "batch-fixed": ("model.onnx", fix_the_batch),
    "fewer-positions": ("model.onnx", weight("embeddings.position", lambda table: table[:100])),
    "output-renamed": ("model.onnx", rename_the_output),
    "a-class-less": ("model.onnx", weight("classifier.weight", lambda matrix: matrix[:, :2])),
}


@pytest.mark.parametrize("name", ["model.onnx", "model_optimized.onnx", "model_fp16.onnx", "model_quantized.onnx"])
def test_what_is_right_passes(name, trial, tmp_path):
    verdict = trial.judge(name, tmp_path / name, weights=[trial.weights])
    assert verdict.fault is None and verdict.failing is None
    assert verdict.weights["compared"] == len(trial.graphs[name].graph.initializer)
    assert verdict.grid["cases"] == len(trial.cases) and "cases" in verdict.grid["int32_inputs"]
    assert verdict.data["dev"]["examples"] == 60 and set(verdict.data["dev"]["metrics"]["onnx"]) == {"accuracy"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(fault, trial, tmp_path):
    name, change = FAULTS[fault]
    try:
        verdict = trial.judge(name, tmp_path / name, change)
    except Exception as error:
        assert "cannot open it" in str(error) and str(tmp_path) in str(error)  # onnxruntime's own checks were faster
        return
    assert verdict.fault is not None
    assert verdict.fault.startswith(("batch ", "dev, dev.tsv, line", "its ")), verdict.fault
    assert verdict.failing is not None or verdict.fault.startswith("its ")


def one_up(index):
    """A change of one bit in the last place."""

    def edit(values):
        values[index] = np.nextafter(values[index], np.inf, dtype=values.dtype)

    return edit


def moved(amount, index):
    def edit(values):
        values[index] = values[index].astype(int) + amount

    return edit


def drop(name):
    def change(graph):
        graph.initializer.remove(next(tensor for tensor in graph.initializer if tensor.name == name))

    return change


WEIGHTS = {
    "one-weight-1-percent-off": ("model.onnx", weight("layers.1.ffn_down.weight", scaled(1.01, (7, 2))), "layers.1.ffn_down.weight[7, 2]"),
    "a-weight-in-its-last-bit": ("model_optimized.onnx", weight("layers.0.qkv.weight", one_up((3, 40))), "layers.0.qkv.weight[3, 40]"),
    "a-word-in-its-last-bit": ("model.onnx", weight("embeddings.word", one_up((9, 1))), "embeddings.word[9, 1]"),
    "a-bias-in-its-last-bit": ("model.onnx", weight("layers.0.gelu.bias", one_up(4)), "layers.0.gelu.bias[4]"),
    "float16-in-its-last-bit": ("model_fp16.onnx", weight("pooler.weight", one_up((0, 5))), "pooler.weight[0, 5]"),
    "a-constant": ("model.onnx", weight("heads.scale", lambda value: np.float32(value * 1.0001)), "heads.scale"),
    "a-weight-missing": ("model.onnx", drop("layers.1.ffn_norm.x_bias"), "layers.1.ffn_norm.x_bias"),
    "one-int8-scale-halved": ("model_quantized.onnx", weight("layers.1.ffn_up.scale", scaled(0.5, 3)), "layers.1.ffn_up.scale[3]"),
    "one-int8-scale-1-percent-off": ("model_quantized.onnx", weight("layers.0.qkv.scale", scaled(1.01, 30)), "layers.0.qkv.scale[30]"),
    "an-int8-weight": ("model_quantized.onnx", weight("layers.0.ffn_up.int8", moved(-60, (2, 3))), "layers.0.ffn_up.int8[2, 3]"),
    "an-int8-bias": ("model_quantized.onnx", weight("layers.1.ffn_norm.x_bias", one_up(6)), "layers.1.ffn_norm.x_bias[6]"),
    "an-int8-word": ("model_quantized.onnx", weight("embeddings.word.int8", moved(1, (5, 3))), "embeddings.word.int8[5, 3]"),
    "the-scale-of-a-word": ("model_quantized.onnx", weight("embeddings.word.scale", scaled(1.01, 9)), "embeddings.word.scale[9]"),
    "an-int8-norm": ("model_quantized.onnx", weight("layers.1.ffn_norm.weight", one_up(6)), "layers.1.ffn_norm.weight[6]"),
}


@pytest.mark.parametrize("fault", WEIGHTS)
def test_a_weight_that_is_not_the_checkpoints_is_named(fault, trial):
    name, change, place = WEIGHTS[fault]
    graph, half = trial.changed(name, change), name == "model_fp16.onnx"
    found = trial.weights.audit(graph, half)
    assert place in found.fault and found.fault.startswith(("its weight", "its scale", "the checkpoint's")) and "more" not in found.fault
    kept = KeptWeights(trial.weights.audit(trial.graphs[name], half).hashes)
    assert kept.audit(trial.graphs[name], half).fault is None
    assert place.partition("[")[0] in kept.audit(graph, half).fault


def test_the_judge_names_a_weight_that_no_logit_shows(trial, tmp_path):
    name, change = "model_optimized.onnx", weight("layers.0.ffn_up.weight", one_up((0, 0)))
    assert trial.judge(name, tmp_path / name, change).fault is None
    verdict = trial.judge(name, tmp_path / name, change, [trial.weights])
    assert verdict.fault.startswith("its weight layers.0.ffn_up.weight[0, 0] is ") and not verdict.to_dict()["passed"]


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(Recipe("not evened", None), id="not-evened"),
        pytest.param(Recipe("some in float32", 0.5, ("layers.0.ffn_down", "layers.1.qkv")), id="some-in-float32"),
        pytest.param(Recipe("weights alone", None, (), True), id="weights-alone"),
        pytest.param(Recipe("fixed scales", 0.7, fixed=True), id="fixed-scales"),
    ],
)
def test_every_recipe_passes_the_audit(recipe, trial):
    graph = quantized_graph(trial.network, trial.statistics, recipe)
    assert trial.weights.audit(graph, False).fault is None
    if recipe.weight_only:
        for name, edit in (("scale", scaled(0.5, 3)), ("int8", moved(-2, (4, 0, 5)))):
            spoilt = onnx.ModelProto()
            spoilt.CopyFrom(graph)
            weight(f"layers.1.attention_out.{name}", edit)(spoilt.graph)
            assert f"layers.1.attention_out.{name}[" in trial.weights.audit(spoilt, False).fault


def test_the_grid_asks_what_it_promises(trial):
    shapes = {case.features["input_ids"].shape for case in trial.cases}
    assert {rows for rows, _ in shapes} == set(BATCH_SIZES)
    assert {1, 2, 127, 128} <= {width for _, width in shapes}
    asked = " ".join(row for case in trial.cases for row in case.rows)
    for kind in ("right", "left", "hole", "random", "no token at all", "highest ids", "lowest ids", "one segment", "two segments"):
        assert kind in asked
    ids = np.concatenate([case.features["input_ids"].ravel() for case in trial.cases])
    assert set(ids) == set(range(trial.source.bert.vocab_size))
    for case in trial.cases:
        for row, mask in zip(case.rows, case.features["attention_mask"], strict=True):
            assert row.startswith("no token") == (mask.sum() == 0) or "random" in row, case.where(0)
            assert not row.startswith("no padding") or mask.all()
    again = make_cases(trial.source.bert)
    assert all(np.array_equal(a.features["input_ids"], b.features["input_ids"]) for a, b in zip(trial.cases, again, strict=True))


def test_int8_answers_do_not_depend_on_the_batch(trial, tmp_path):
    """Nor on its padding: unlike with onnxruntime's dynamic quantization, whose scale is that of the whole batch."""
    from bertfast_export.judge.trial import run_cases
    from bertfast_export.runtime import open_session

    session = open_session(trial.graphs["model_quantized.onnx"].SerializeToString())
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 24, (6, 30))
    features = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    features["attention_mask"][0, 9:] = 0
    alone = {name: values[:1, :9] for name, values in features.items()}
    assert np.abs(run_cases(session, features)[:1] - run_cases(session, alone)).max() <= 1e-5


def test_logits_that_are_not_finite_on_data_alone_are_a_fault(trial, tmp_path, monkeypatch):
    def spoilt(session, dataset, num_labels):
        logits = run_dataset(session, dataset, num_labels)
        logits[7, 1] = np.nan
        return logits

    monkeypatch.setattr("bertfast_export.judge.trial.run_dataset", spoilt)
    verdict = trial.judge("model.onnx", tmp_path / "model.onnx")
    assert verdict.fault.startswith("dev, dev.tsv, line 9: logits") and "nan" in verdict.fault
    assert verdict.data["dev"]["metrics"].keys() == {"name", "eager"} and verdict.failing is not None


def test_a_recipe_whose_logits_are_not_finite_loses_the_whole_metric(trial, monkeypatch):
    monkeypatch.setattr(int8_search, "run_cases", lambda session, features: np.full((len(features["input_ids"]), 3), np.nan))
    rows = [np.arange(60)]
    found = int8_search._try(trial.graphs["model_quantized.onnx"], Recipe("smoothing 0.7"), trial.network, trial.evidence, rows)
    part = trial.evidence[0]
    right = part.logits.argmax(axis=1) == part.dataset.labels
    assert found.agreement == 0.0 and found.points_lost == pytest.approx(100 * right.mean())


@pytest.mark.parametrize("name", ["model.onnx", "model_fp16.onnx"])
def test_logits_of_which_none_is_finite_are_a_fault(name, trial, tmp_path):
    """Nothing is larger than NaN: the worst case is the first."""
    verdict = trial.judge(name, tmp_path / name, weight("classifier.bias", scaled(np.nan)))
    assert verdict.fault.startswith(f"{trial.cases[0].where(0)}: logits [nan, nan, nan] where")
    assert verdict.grid["worst"] == trial.cases[0].where(0) and np.isnan(verdict.failing["given"]).all()


def test_a_checkpoint_whose_own_answers_are_not_finite_is_refused(trial, tmp_path):
    import torch
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(trial.source.folder)
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[3, 4] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"not finite for batch 1 x 1 tokens, row 0: .* take an earlier checkpoint"):
        Answers.of(tmp_path, trial.cases)


def of_the_mean(trial, name, path, change, weights):
    """A verdict by which the mean error of the grid is the first fault: such a file's own budget for single logits is lifted."""
    path.write_bytes(trial.changed(name, change).SerializeToString())
    budget = replace(BUDGETS[name], logits=9.0, probabilities=1.0, mean=1e-9)
    return judge(path, name, trial.cases, trial.answers, [], budget, weights=weights)


def test_a_mean_error_has_its_cause_named(trial, tmp_path):
    """A weight where a weight is off; where none is, the logits, which are too much alike for what the form rounds."""
    path = tmp_path / "model.onnx"
    found = of_the_mean(trial, "model_quantized.onnx", path, None, [trial.weights]).fault
    assert "of the spread of its logits" in found and "a head that was not trained" in found and "is off" not in found
    assert f"differ by {np.concatenate([exact.ravel() for exact in trial.answers.exact]).std():.2g} alone" in found
    found = of_the_mean(trial, "model_fp16.onnx", path, weight("pooler.weight", one_up((0, 5))), [trial.weights]).fault
    assert "of the spread of its logits" in found and "its weight pooler.weight[0, 5] is" in found
    found = of_the_mean(trial, "model.onnx", path, attribute("layers.0.ffn_norm", "epsilon", 1e-5), [trial.weights]).fault
    assert "times that of the eager model" in found and found.endswith("so an operator or a constant is off")
