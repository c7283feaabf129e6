"""bench.contests.roster, with its runtimes and bundles: every contender answers in the order it was asked, and as transformers does."""

import json
import os
import subprocess

import numpy as np
import pytest
import torch

from bench.cases.questions import Texts, Tokens, padded
from bench.contests.answering import Answering
from bench.contests.bundles import bundle_files, recipe_files, tune
from bench.contests.conversions import CONVERSIONS
from bench.contests.roster import BASELINE, everybody
from bench.contests.runtimes import Place
from tests.support.exported import write_classifier, write_config, write_data
from tests.support.tiny_bert import WORDS

CLOSE = {"float32": 2e-5, "bf16": 0.15}  # of logits of some 3; the largest seen: 1e-6, 0.03
ALIKE = 0.9  # the correlation of 8-bit logits with the true ones; of a model so small that a rounding shows


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny classifier, its bundle, and what the peers' tools make of it."""
    pytest.importorskip("onnxruntime")
    from bertfast.config.load import load_config
    from bertfast_export.bundle import configured, export_bundle
    from bertfast_export.contract import Options

    folder = tmp_path_factory.mktemp("place")
    model = write_classifier(folder / "model", hidden_size=32)
    block = load_config(write_config(folder, write_data(folder / "data.tsv"), model)).bertfast
    export_bundle(str(model), str(folder / "bundle"), Options(("portable",)), configured(block))
    (folder / "files").mkdir()
    questions(64).save(folder / "files" / "calibration.npz")
    return Place(model, folder / "bundle", folder / "files", 2, 32)


def texts(count):
    rng = np.random.default_rng(count)
    return Texts([" ".join(rng.choice(WORDS, rng.integers(1, 25))) for _ in range(count)], None)


def questions(count):
    """The ids of `texts`: one word is one token."""
    rows = [[2, *(5 + WORDS.index(word) for word in text.split()), 3] for text in texts(count).first]
    lengths = np.array([len(row) for row in rows], np.int32)
    return Tokens(np.concatenate(rows).astype(np.int32), np.zeros(lengths.sum(), np.uint8), lengths)


@pytest.fixture(scope="module")
def truth(place):
    """Each example by itself, in float64."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(place.checkpoint, dtype=torch.float64, attn_implementation="eager").eval()
    tokens = questions(70)
    with torch.inference_mode():
        rows = [{name: torch.from_numpy(values) for name, values in padded(tokens, np.array([row])).items()} for row in range(len(tokens))]
        return torch.cat([model(**row).logits for row in rows]).numpy()


def runtimes(place):
    return {runtime.name: runtime for runtime in everybody(bundle_files(place.bundle), {})}


CHECKED = (
    (BASELINE, "float32"),
    ("transformers bf16", "bf16"),
    ("OpenVINO float32, one stream", "float32"),
    ("OpenVINO int8 and float32, two streams", "int8"),
    ("CTranslate2 float32, one worker", "float32"),
    ("CTranslate2 int8, two workers", "int8"),
    ("ONNX Runtime, quantize_dynamic", "int8"),
    ("bertfast portable", "float32"),
    ("bertfast portable, two streams", "float32"),
    ("bertfast packed network, torch float32", "float32"),
)


@pytest.mark.parametrize(("name", "kind"), CHECKED, ids=[name for name, _ in CHECKED])
def test_it_answers_as_transformers_does_and_in_order(name, kind, place, truth, tmp_path):
    runtime = runtimes(place)[name]
    for need in runtime.needs:
        if need.startswith("openvino"):
            pytest.importorskip("openvino")
            pytest.importorskip("nncf")
        if need.startswith("ctranslate2"):
            pytest.importorskip("ctranslate2")
        if not (place.files / CONVERSIONS[need][1]).exists():
            CONVERSIONS[need][0](place.checkpoint, place.files)
    threads = torch.get_num_threads()
    try:
        contender = runtime.load(place)
        tokens = questions(len(truth))
        answers = contender.answer(tokens), contender.serve(tokens), contender.of_texts(texts(len(truth)))
    finally:
        torch.set_num_threads(threads)
    for found in answers:
        assert found.shape == truth.shape
        assert np.abs(found - truth).max() < CLOSE[kind] if kind in CLOSE else np.corrcoef(found.ravel(), truth.ravel())[0, 1] > ALIKE
    assert truth.std(axis=0).min() > 0.3  # so that an order that is not kept would show
    assert runtime.file_bytes(place) is None or runtime.file_bytes(place) > 1000


def test_one_process_answers_what_it_is_asked(place, truth, tmp_path, monkeypatch):
    cores = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, some: cores.append(len(some)), raising=False)
    questions(len(truth)).save(tmp_path / "tokens.npz")
    texts(len(truth)).save(tmp_path / "texts.json")
    answering = Answering()
    names = {"checkpoint": str(place.checkpoint), "bundle": str(place.bundle), "files": str(place.files)}
    load = {**names, "threads": 2, "length": 32, "variants": list(bundle_files(place.bundle)), "others": {}}
    assert answering({"load": {**load, "name": "bertfast portable"}})["resident_bytes"] > 1e7
    cases = [{"kind": kind, "tokens": str(tmp_path / "tokens.npz")} for kind in ("file", "server", "one")]
    for case in [*cases, {"kind": "texts", "texts": str(tmp_path / "texts.json")}]:
        found = np.array(json.loads(json.dumps(answering({"answer": case}))))
        assert np.abs(found - truth).max() < CLOSE["float32"] and 0 < answering({"time": case}) < 60
    assert np.array(answering({"answer": {**cases[2], "rows": 3}})).shape == (3, 3)
    assert answering({"peak": cases[0]}) > 1e7 and cores == [min(2, len(os.sched_getaffinity(0)))]


def test_recipes_are_files_that_answer(place, truth, tmp_path):
    questions(32).save(tmp_path / "calibration.npz")
    CONVERSIONS["recipes"][0](place.checkpoint, tmp_path)
    found = recipe_files(tmp_path)
    assert "bertfast int8 recipe: smoothing 0.7" in found and any("weights alone" in name for name in found) and len(found) >= 4
    tokens = questions(len(truth))
    ours = [runtime for runtime in everybody({}, found) if runtime.name in found]
    alike = {runtime.name: np.corrcoef(runtime.load(place).answer(tokens).ravel(), truth.ravel())[0, 1] for runtime in ours}
    assert set(alike) == set(found) and all(ALIKE < value < 1 - 1e-9 for value in alike.values())


def test_a_bundle_says_what_it_holds_for_a_cpu(place, tmp_path):
    assert bundle_files(place.bundle) == {"portable": ("model.onnx",)}
    files = ["model.onnx", "model.onnx.data", "model_fp16.onnx", "model_quantized.onnx", "tokenizer.json"]
    (tmp_path / "verification.json").write_text(json.dumps({"files": dict.fromkeys(files, "a hash"), "verdicts": {}}))
    for name in files:
        (tmp_path / name).touch()
    assert bundle_files(tmp_path) == {"portable": ("model.onnx", "model.onnx.data"), "int8": ("model_quantized.onnx",)}


def test_its_own_choice_is_measured_where_it_is_not_made_yet(tmp_path, monkeypatch):
    """On so many cores as are to be used, which its name for the machine holds."""
    cores, asked, codes = [], [], iter([1, 0])
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, some: cores.append(len(some)), raising=False)

    def run(command, **_):
        asked.append(command[2:5])
        return subprocess.CompletedProcess(command, next(codes), "", "warned\nExportError: no variant")

    monkeypatch.setattr(subprocess, "run", run)
    assert tune(tmp_path, 1) == "ExportError: no variant" and tune(tmp_path, 1) is None
    assert asked == [["bertfast", "tune", str(tmp_path)]] * 2 and cores[::2] == [1, 1]
    monkeypatch.setattr("bertfast_export.choice.read_choice", lambda folder: "a choice")
    assert tune(tmp_path, 1) is None and len(asked) == 2
