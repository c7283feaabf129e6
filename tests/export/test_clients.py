"""Other people's programs with a bundle: onnxruntime-node and transformers.js in Node, Optimum in an environment of its own.

`make clients` installs them under .clients. The tests take them from the folder that BERTFAST_NODE_MODULES names, .clients/node, and from the Python
that BERTFAST_OPTIMUM_PYTHON names, .clients/optimum/bin/python.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.support import ROOT
from tests.support.exported import LABELS, write_classifier, write_config, write_data
from tests.support.tiny_bert import WORDS

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from bertfast.cli.entry import main
from bertfast_export import OnnxClassifier, Options, export_bundle
from bertfast_export.bundle.source import Candidate

TEXTS = [" ".join(WORDS[(7 * index + place) % len(WORDS)] for place in range(3 * index + 1)) for index in range(6)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    model = write_classifier(folder / "model")
    config = write_config(folder, write_data(folder / "dev.tsv"), model)
    assert main(["export", str(model), "-o", str(folder / "bundle"), "--config", str(config)]) == 0
    return folder / "bundle"


@pytest.fixture(scope="module")
def modules() -> Path:
    """The folder with node_modules."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    return Path(_given("BERTFAST_NODE_MODULES"))


@pytest.fixture(scope="module")
def optimum() -> Path:
    """A Python that has Optimum: its transformers is older than ours."""
    return Path(_given("BERTFAST_OPTIMUM_PYTHON"))


def _given(name: str) -> str:
    if not os.environ.get(name):
        pytest.skip(f"{name} is not set")
    return os.environ[name]


@pytest.mark.parametrize(
    "file, dtype, variant",
    [
        pytest.param("model.onnx", "fp32", "portable", id="portable"),
        pytest.param("model_optimized.onnx", None, "optimized", id="fused"),
        pytest.param("model_quantized.onnx", "q8", "int8", id="int8"),
    ],
)
def test_node_gives_the_same_answers(file, dtype, variant, modules, bundle, tmp_path):
    from transformers import AutoTokenizer

    features = AutoTokenizer.from_pretrained(bundle)(TEXTS, padding=True, truncation=True, return_tensors="np")
    request = {
        "bundle": str(bundle),
        "file": file,
        "modules": str(modules),
        "texts": TEXTS,
        "transformers": dtype is not None and (modules / "node_modules" / "@huggingface").is_dir(),
        "dtype": dtype,
        "features": {name: values.tolist() for name, values in features.items()},
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    command = ["node", str(ROOT / "tests" / "support" / "client.mjs"), str(tmp_path / "request.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    given = json.loads(done.stdout.splitlines()[-1])
    classifier = OnnxClassifier.from_bundle(bundle, variant)
    assert np.abs(np.reshape(given["logits"], (len(TEXTS), 3)) - classifier.logits(TEXTS)).max() <= 1e-4
    for answer, prediction in zip(given["answers"] or [], classifier.predict(TEXTS), strict=bool(given["answers"])):
        scores = {item["label"]: item["score"] for item in answer}
        assert answer[0]["label"] == prediction.label and scores.keys() == set(LABELS)
        assert scores == pytest.approx(prediction.probabilities, abs=1e-4)


def documented(language: str, heading: str) -> str:
    """The fenced block of a language under a heading of docs/deploy.md, the last one: what a reader copies."""
    section = (ROOT / "docs" / "deploy.md").read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return section.rpartition(f"```{language}\n")[2].partition("\n```")[0]


LONG = ["the Dog sleeps and " * 20, "", "a good film", "he was very dull " * 30, "she runs"]
OTHERS = ["", "a fine cat " * 25, "the film is not bad", "he was very great " * 30, "the cat"]
KINDS = {
    "pairs": {"is_pair": True},
    "pairs-cut-at-their-beginning": {"is_pair": True, "side": "left"},
    "long-texts": {},
    "regression": {"num_labels": 1},
    "several-labels": {"several": True},
}


def bundle_of_a_kind(folder: Path, is_pair: bool = False, side: str = "right", num_labels: int = 3, several: bool = False) -> Path:
    """A bundle that is cut at 31 tokens, as `folder`/mnli: an odd room for pairs, and an even one for texts."""
    from transformers import AutoTokenizer

    kind = {"problem_type": "multi_label_classification"} if several else {}
    model = write_classifier(folder / "model", num_labels=num_labels, max_position_embeddings=40, **kind)
    AutoTokenizer.from_pretrained(model, truncation_side=side).save_pretrained(model)
    options = Options(("portable",), max_sequence_length=31)
    source = Candidate(str(model), options, is_pair=is_pair)
    export_bundle(str(model), str(folder / "mnli"), options, source=source, say=lambda line: None)
    return folder / "mnli"


def eager_answers(folder: Path, texts: list[str], pairs: list[str] | None) -> np.ndarray:
    """Logits [n, C] of transformers' own model and tokenizer, one text at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = []
    for row, text in enumerate(texts):
        features = tokenizer([text], None if pairs is None else [pairs[row]], truncation=True, max_length=31, return_tensors="pt")
        with torch.inference_mode():
            rows.append(model(**features).logits[0].double().numpy())
    return np.array(rows)


def run_python(python: Path, code: str, *words: str | Path) -> list[str]:
    """The lines that another Python prints, which must not find this repository."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, "-c", code, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.mark.parametrize("kind", KINDS)
def test_the_documented_code_for_node(kind, modules, tmp_path):
    bundle_of_a_kind(tmp_path, **KINDS[kind])
    pairs = OTHERS if KINDS[kind].get("is_pair") else None
    code = (
        documented("js", "Node")
        .replace('localModelPath = "bundles"', f"localModelPath = {json.dumps(str(tmp_path))}")
        .replace('"q8"', '"fp32"')
    )
    code = (
        code.rpartition("console.log(")[0]
        + f"console.log(JSON.stringify(await predict(...{json.dumps([LONG, pairs] if pairs else [LONG])})));"
    )
    (tmp_path / "client.mjs").write_text(code)
    (tmp_path / "node_modules").symlink_to(modules / "node_modules")
    done = subprocess.run(["node", str(tmp_path / "client.mjs")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    given, logits = json.loads(done.stdout.splitlines()[-1]), eager_answers(tmp_path / "model", LONG, pairs)
    if logits.shape[1] == 1:
        assert [answer["score"] for answer in given] == pytest.approx(logits[:, 0].tolist(), abs=1e-4)
        return
    several, powers = "several" in KINDS[kind], np.exp(logits - logits.max(axis=1, keepdims=True))
    assert [answer["label"] for answer in given] == [LABELS[index] for index in logits.argmax(axis=1)]
    found = [[answer["probabilities"][name] for name in LABELS] for answer in given]
    chances = 1 / (1 + np.exp(-logits)) if several else powers / powers.sum(axis=1, keepdims=True)
    assert np.abs(np.array(found) - chances).max() <= 1e-4
    held = logits > 0 if several else powers == 1
    assert [answer["labels"] for answer in given] == [[name for name, is_true in zip(LABELS, row, strict=True) if is_true] for row in held]
    assert all(answer["score"] == max(answer["probabilities"].values()) for answer in given)


def test_the_documented_code_for_optimum(optimum, tmp_path):
    bundle_of_a_kind(tmp_path, is_pair=True)
    code = documented("python", "Python").replace('"bundles/mnli"', json.dumps(str(tmp_path / "mnli")))
    code = code.replace('texts, pairs = ["A man plays a guitar."], ["A man makes music."]', f"texts, pairs = {LONG!r}, {OTHERS!r}")
    said = run_python(optimum, f"{code}\nprint(logits.tolist())")
    labels, logits = said[-2:]
    expected = eager_answers(tmp_path / "model", LONG, OTHERS)
    assert np.abs(np.array(json.loads(logits)) - expected).max() <= 5e-5
    assert labels == str([LABELS[index] for index in expected.argmax(axis=1)])


def test_optimum_gives_the_same_answers(optimum, bundle):
    code = (
        "import json, sys\n"
        "from optimum.onnxruntime import ORTModelForSequenceClassification\n"
        "from transformers import AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "model = ORTModelForSequenceClassification.from_pretrained(sys.argv[1], file_name='model.onnx')\n"
        "features = tokenizer(json.loads(sys.argv[2]), padding=True, truncation=True, return_tensors='pt')\n"
        "print(json.dumps([model(**features).logits.tolist(), model.config.id2label]))"
    )
    said = run_python(optimum, code, bundle, json.dumps(TEXTS))
    logits, labels = json.loads(said[-1])
    assert np.abs(np.array(logits) - OnnxClassifier.from_bundle(bundle, "portable").logits(TEXTS)).max() <= 5e-5
    assert tuple(labels.values()) == LABELS


def test_optimum_and_transformers_js_take_the_sigmoid(modules, optimum, tmp_path):
    """Their own pipelines, of a model with several labels a text."""
    bundle, texts = bundle_of_a_kind(tmp_path, several=True), TEXTS[:4]
    chances = 1 / (1 + np.exp(-eager_answers(tmp_path / "model", texts, None)))
    code = (
        "import json, sys\n"
        "from optimum.onnxruntime import ORTModelForSequenceClassification, pipeline\n"
        "answers = pipeline('text-classification', sys.argv[1], accelerator='ort', top_k=None)(json.loads(sys.argv[2]))\n"
        "print(json.dumps(answers))"
    )
    said = run_python(optimum, code, bundle, json.dumps(texts))
    request = {"bundle": str(bundle), "file": "model.onnx", "modules": str(modules), "texts": texts, "transformers": True, "dtype": "fp32"}
    request["features"] = {"input_ids": [[2, 3]], "attention_mask": [[1, 1]], "token_type_ids": [[0, 0]]}
    (tmp_path / "request.json").write_text(json.dumps(request))
    node = subprocess.run(
        ["node", str(ROOT / "tests" / "support" / "client.mjs"), str(tmp_path / "request.json")], capture_output=True, text=True
    )
    assert node.returncode == 0, node.stderr[-2000:]
    for given in (json.loads(said[-1]), json.loads(node.stdout.splitlines()[-1])["answers"]):
        found = [[next(one["score"] for one in answer if one["label"] == name) for name in LABELS] for answer in given]
        assert np.abs(np.array(found) - chances).max() <= 1e-4
