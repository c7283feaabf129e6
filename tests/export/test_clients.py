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
from bertfast_export import OnnxClassifier

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
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([optimum, "-c", code, bundle, json.dumps(TEXTS)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    logits, labels = json.loads(done.stdout.splitlines()[-1])
    assert np.abs(np.array(logits) - OnnxClassifier.from_bundle(bundle, "portable").logits(TEXTS)).max() <= 5e-5
    assert tuple(labels.values()) == LABELS
