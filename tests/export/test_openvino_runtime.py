"""A bundle's files for OpenVINO: their answers are the model's, in order, from any stream; each fault is one line that says what to do."""

import json
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from tests.export.test_classifier import TEXTS, eager_logits

openvino = pytest.importorskip("openvino")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from bertfast.cli.entry import main  # noqa: E402
from bertfast.config import OPENVINO_VARIANTS as NAMES  # noqa: E402
from bertfast.errors import ExportError  # noqa: E402
from bertfast_export import Classifier, OnnxClassifier, openvino_runtime  # noqa: E402
from bertfast_export.choice import TUNING_FILE, Choice, Setting, write_choice  # noqa: E402
from bertfast_export.contract import OPENVINO_VARIANTS, verdict_name  # noqa: E402
from bertfast_export.openvino_runtime import hints, open_openvino  # noqa: E402


@pytest.fixture()
def bundle(openvino_made, tmp_path):
    return shutil.copytree(openvino_made / "bundle", tmp_path / "bundle")


def test_the_names_of_the_config_are_those_of_the_contract():
    assert tuple(OPENVINO_VARIANTS) == NAMES


def test_answers_are_those_of_transformers_in_float32(openvino_made):
    found = OnnxClassifier.from_bundle(openvino_made / "bundle", "openvino", threads=1).logits(TEXTS)
    assert np.abs(found - eager_logits(openvino_made / "model", TEXTS)).max() <= 5e-5


def test_the_record_names_the_hints_and_the_file_carries_its_facts(openvino_made):
    record = json.loads((openvino_made / "bundle" / "verification.json").read_text())
    verdict = record["verdicts"][verdict_name("openvino")]
    assert verdict["passed"] and "INFERENCE_PRECISION_HINT=f32" in verdict["grid"]["run_by"]
    assert verdict["grid"]["apart_from_the_row_alone"] <= 5e-6
    assert "openvino" in record["versions"] and "in float32" in (openvino_made / "bundle" / "verification.md").read_text()
    written = ElementTree.parse(openvino_made / "bundle" / "openvino" / "openvino_model.xml").find("rt_info/bertfast")
    assert json.loads(written.get("value"))["max_sequence_length"] == "32"


@pytest.mark.parametrize("streams", [1, 3])
def test_streams_change_no_answer(streams, openvino_made, monkeypatch):
    expected = eager_logits(openvino_made / "model", TEXTS)
    monkeypatch.setattr("bertfast_export.classifier._BLOCK", 3)
    monkeypatch.setattr("bertfast_export.classifier._BATCH_TOKENS", 40)
    for variant in ("openvino", "portable"):
        classifier = Classifier.from_bundle(openvino_made / "bundle", variant, streams=streams)
        assert np.abs(classifier.logits(TEXTS) - expected).max() <= 5e-5


def test_an_input_left_out_is_an_error_and_not_the_last_calls(openvino_made):
    session = open_openvino(openvino_made / "bundle" / "openvino" / "openvino_model.xml", "f32", 1)
    features = {name: np.ones((1, 4), dtype=np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    assert session.run(["logits"], features)[0].shape == (1, 3)
    features.pop("token_type_ids")
    with pytest.raises(ExportError, match="the input token_type_ids is missing"):
        session.run(["logits"], features)


def test_the_model_is_never_left_to_openvinos_own_precision():
    assert hints("f32", 2, 1)["INFERENCE_PRECISION_HINT"] == "f32" and hints("f32", 2, 1)["EXECUTION_MODE_HINT"] == "ACCURACY"
    assert hints("bf16", 2, 2)["INFERENCE_PRECISION_HINT"] == "bf16" and hints("bf16", 2, 2)["NUM_STREAMS"] == 2


def test_verify_passes_it_and_tells_a_changed_one(openvino_made, bundle, capsys):
    write_choice(bundle, Choice(Setting("openvino", 2, 1024), Setting("portable", 1, 2048)), [])
    assert main(["verify", str(bundle)]) == 0
    weights = bundle / "openvino" / "openvino_model.bin"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    assert main(["verify", str(bundle)]) != 0
    assert "openvino/openvino_model.bin has changed since it was verified" in capsys.readouterr().err
    with pytest.raises(ExportError, match=r"openvino/openvino_model\.bin is missing, or not the file"):
        OnnxClassifier.from_bundle(bundle, "openvino")


def test_without_openvino_one_line_says_what_to_install(openvino_made, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    remedy = "openvino is not installed; pip install 'bertfast[openvino]'"
    assert main(["export", str(openvino_made / "model"), "-o", str(tmp_path / "out"), "--grid_only", "--variants", "openvino"]) == 2
    assert remedy in capsys.readouterr().err
    with pytest.raises(ExportError, match=r"pip install 'bertfast\[openvino\]'"):
        OnnxClassifier.from_bundle(openvino_made / "bundle", "openvino")
    assert OnnxClassifier.from_bundle(openvino_made / "bundle").labels


def test_bfloat16_is_refused_where_the_cpu_has_none(openvino_made, monkeypatch):
    monkeypatch.setattr(openvino_runtime, "has_bfloat16", lambda: False)
    with pytest.raises(ExportError, match="this CPU has no bfloat16; name another variant"):
        open_openvino(openvino_made / "bundle" / "openvino" / "openvino_model.xml", "bf16")


def test_a_choice_of_this_kind_of_machine_is_used_and_no_other(bundle, monkeypatch):
    assert not hasattr(OnnxClassifier.from_bundle(bundle).session, "facts")  # ONNX Runtime's, as without a choice
    write_choice(bundle, Choice(Setting("openvino", 2, 1024), Setting("portable", 1, 2048)), [])
    chosen = OnnxClassifier.from_bundle(bundle)
    assert chosen.session.facts["variant"] == "openvino" and chosen.streams == 2
    assert not hasattr(OnnxClassifier.from_bundle(bundle, streams=1).session, "facts")
    assert not hasattr(OnnxClassifier.from_bundle(bundle, "portable").session, "facts")
    with monkeypatch.context() as patch:
        patch.setattr(
            "bertfast_export.openvino_runtime.importlib.util.find_spec", lambda name: None
        )  # the runtime that was chosen is not installed
        assert not hasattr(OnnxClassifier.from_bundle(bundle).session, "facts")
    monkeypatch.setattr("bertfast_export.choice.machine_kind", lambda: {"processor": "another"})
    assert not hasattr(OnnxClassifier.from_bundle(bundle).session, "facts")


@pytest.mark.parametrize("spoil", [lambda text: "{", lambda text: text.replace('"streams": 2', '"streams": "2"')], ids=["torn", "a-word"])
def test_a_choice_that_cannot_be_read_names_its_file(spoil, bundle):
    write_choice(bundle, Choice(Setting("portable", 2, 1024), Setting("portable", 1, 2048)), [])
    (bundle / TUNING_FILE).write_text(spoil((bundle / TUNING_FILE).read_text()))
    with pytest.raises(ExportError, match=r"tuning\.json: cannot be read .*; remove it, or run bertfast tune again"):
        OnnxClassifier.from_bundle(bundle)


def test_a_triton_repository_holds_none_of_them(openvino_made, tmp_path, capsys):
    assert (
        main(
            [
                "export",
                str(openvino_made / "model"),
                "-o",
                str(tmp_path / "out"),
                "--grid_only",
                "--variants",
                "openvino",
                "--layout",
                "triton",
            ]
        )
        == 2
    )
    assert "leave out the one or the other" in capsys.readouterr().err
