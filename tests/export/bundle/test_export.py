"""Bundles and their commands: whole verified folders or none, told from others, and used."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.support.exported import LABELS, write_classifier, write_config, write_data
from tests.support.runs import environment
from tests.support.tiny_bert import write_tiny_bert

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from bertfast.cli.entry import main  # noqa: E402
from bertfast.errors import BertfastError, CheckpointError, ConfigError, ExportError, VerificationError  # noqa: E402
from bertfast_export import runtime  # noqa: E402
from bertfast_export.bundle.export import export_bundle, fused_graph  # noqa: E402
from bertfast_export.bundle.int8_search import STARTS  # noqa: E402
from bertfast_export.bundle.verify import verify_bundle  # noqa: E402
from bertfast_export.contract import Options  # noqa: E402
from bertfast_export.judge.audit import hash_of  # noqa: E402
from bertfast_export.runtime import sha256_of  # noqa: E402

FILES = ("model.onnx", "model_optimized.onnx", "model_fp16.onnx", "model_quantized.onnx", "model_packed_cpu.onnx")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A classifier, its data and config, and the bundle that the command made of them."""
    folder = tmp_path_factory.mktemp("made")
    model = write_classifier(folder / "model")
    write_config(folder, write_data(folder / "dev.tsv"), model)
    assert main(["export", str(model), "-o", str(folder / "bundle"), "--config", str(folder / "config.json")]) == 0
    return folder


@pytest.fixture
def bundle(made, tmp_path):
    """A copy of the bundle, to be spoilt."""
    return shutil.copytree(made / "bundle", tmp_path / "bundle")


def read(path):
    return json.loads(path.read_text())


def test_what_a_bundle_holds(made):
    bundle = made / "bundle"
    there = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert {*FILES, *(f"onnx/{name}" for name in FILES), "config.json", "tokenizer.json", "verification.json", "verification.md"} <= there
    assert all((bundle / name).samefile(bundle / "onnx" / name) for name in FILES)
    assert read(bundle / "config.json")["id2label"] == {str(index): name for index, name in enumerate(LABELS)}
    assert read(bundle / "tokenizer_config.json")["model_max_length"] == 32
    assert not [path.name for path in made.iterdir() if path.name.startswith(".")]
    text = "".join(path.read_text() for path in bundle.iterdir() if path.suffix in (".json", ".md"))
    assert str(made) not in text  # no folder of this machine


def test_a_folder_that_is_named_by_a_dot(made, bundle, tmp_path, monkeypatch, capsys):
    model = shutil.copytree(made / "model", tmp_path / "mine")
    monkeypatch.chdir(bundle)
    assert main(["verify", "."]) == 0
    monkeypatch.chdir(model)
    assert main(["export", ".", "-o", str(tmp_path / "out"), "--grid_only", "--variants", "portable", "--layout", "triton"]) == 0
    assert (tmp_path / "out" / "mine" / "config.pbtxt").is_file()
    monkeypatch.chdir(made)
    assert main(["export", str(model), "-o", ".", "--grid_only", "--variants", "portable"]) == 2
    assert "empty name" not in capsys.readouterr().err


def test_a_file_explains_itself(made):
    facts = ort.InferenceSession(made / "bundle" / "model_optimized.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(facts["labels"]) == list(LABELS) and facts["max_sequence_length"] == "32" and facts["variant"] == "optimized"
    assert json.loads(facts["preprocessing"])["pad_token"] == 0
    assert json.loads(facts["checkpoint_sha256"]).keys() == {"config.json", "model.safetensors"}


def test_the_record(made):
    record = read(made / "bundle" / "verification.json")
    assert record["verdicts"].keys() == set(FILES) and all(verdict["passed"] for verdict in record["verdicts"].values())
    assert {"torch", "transformers", "onnx", "onnxruntime", "python"} <= record["versions"].keys()
    for name in FILES[:2]:
        assert record["verdicts"][name]["grid"]["largest_logit_difference"] <= 5e-5
        assert record["verdicts"][name]["data"]["dev"]["agreement"] == 1.0
    tried = record["int8_search"]["tried"]
    assert [trial["recipe"] for trial in tried] == [recipe.name for recipe in STARTS] and all(trial["agreement"] >= 0.99 for trial in tried)
    taken = next(trial for trial in tried if record["int8_search"]["outcome"].startswith(f"{trial['recipe']}: "))
    assert taken["fault"] is None and "fixed" not in taken["recipe"]  # scales of 60 texts cut off what the grid reaches
    page = (made / "bundle" / "verification.md").read_text()
    assert record["runtimes"].keys() == set(FILES) and all(f"{name} is for {whom}." in page for name, whom in record["runtimes"].items())
    assert "INFERENCE_PRECISION_HINT=f32" in record["runtimes"]["model.onnx"]
    assert all(name in page for name in FILES) and record["files"]["model.onnx"] in page
    lines = page.splitlines()
    begin = next(place for place, line in enumerate(lines) if line.startswith("| recipe |"))
    assert {line.count("|") for line in lines[begin : begin + 2 + len(tried)]} == {6}
    shown = lines[begin + 2 : begin + 2 + len(tried)]
    assert [", out of budget |" in line for line in shown] == [trial["fault"] is not None for trial in tried]


def test_transformers_reads_config_and_tokenizer(made):
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made / "bundle")
    assert AutoConfig.from_pretrained(made / "bundle").num_labels == 3
    features = tokenizer("a good film", return_tensors="np")
    assert ort.InferenceSession(made / "bundle" / "model.onnx").run(None, dict(features))[0].shape == (1, 3)


def test_verify_repeats_the_trial(made, capsys):
    assert main(["verify", str(made / "bundle"), "--config", str(made / "config.json"), "--checkpoint_path", str(made / "model")]) == 0
    said = capsys.readouterr().err
    assert all(f"{name}: passed" in said for name in FILES) and "dev 100.00% the same answers" in said
    verify_bundle(str(made / "bundle"), say=lambda line: None)


@pytest.mark.parametrize(
    "spoil, message",
    [
        pytest.param(lambda path: (path / "model.onnx").unlink(), r"model\.onnx is missing", id="missing"),
        pytest.param(lambda path: os.truncate(path / "model.onnx", 5000), r"model\.onnx has changed", id="cut-short"),
        pytest.param(lambda path: (path / "config.json").write_text("{}"), r"config\.json has changed", id="labels-changed"),
        pytest.param(lambda path: (path / "tokenizer.json").write_text("{}"), r"tokenizer\.json has changed", id="tokenizer-changed"),
    ],
)
def test_verify_notices_a_change(spoil, message, bundle, capsys):
    spoil(bundle)
    assert main(["verify", str(bundle)]) == 4 and "error: " in capsys.readouterr().err
    with pytest.raises(VerificationError, match=message):
        verify_bundle(str(bundle), say=lambda line: None)


def test_verify_notices_a_file_that_was_replaced_with_its_hash(bundle, monkeypatch):
    """Even one whose SHA-256 was put into the record: the logits tell."""
    graph = onnx.load(bundle / "model.onnx")
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.name == "classifier.weight")
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)[:, ::-1].copy(), tensor.name))
    (bundle / "model.onnx").write_bytes(graph.SerializeToString())
    record = read(bundle / "verification.json")
    record["files"]["model.onnx"] = sha256_of(bundle / "model.onnx")
    (bundle / "verification.json").write_text(json.dumps(record))
    with pytest.raises(VerificationError, match=r"model\.onnx: batch 1 x 1 tokens, row 0: "):
        verify_bundle(str(bundle), say=lambda line: None)


@pytest.mark.parametrize("is_noted", [pytest.param(False, id="by-its-hash"), pytest.param(True, id="by-the-checkpoint")])
def test_verify_names_a_weight_that_was_replaced(is_noted, made, bundle):
    """One bit, which no logit shows; the checkpoint tells even where the record was rewritten too."""
    graph = onnx.load(bundle / "model.onnx")
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.name == "layers.0.ffn_up.weight")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[1, 2] = np.nextafter(values[1, 2], np.float32(9))
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    (bundle / "model.onnx").write_bytes(graph.SerializeToString())
    record = read(bundle / "verification.json")
    record["files"]["model.onnx"] = sha256_of(bundle / "model.onnx")
    if is_noted:
        record["verdicts"]["model.onnx"]["weights"]["sha256"][tensor.name] = hash_of(values)
    (bundle / "verification.json").write_text(json.dumps(record))
    with pytest.raises(VerificationError, match=r"^model\.onnx: its weight layers\.0\.ffn_up\.weight.* is "):
        verify_bundle(str(bundle), str(made / "model") if is_noted else None, say=lambda line: None)


@pytest.mark.parametrize(
    "spoil, message",
    [
        pytest.param(lambda path: shutil.rmtree(path), "there is no verification.json", id="no-bundle"),
        pytest.param(lambda path: os.truncate(path / "verification.json", 100), "verification.json cannot be read", id="record-cut-short"),
        pytest.param(lambda path: (path / "verification.json").write_text('{"format": 9}'), "its format is 9", id="another-format"),
    ],
)
def test_verify_of_what_is_no_bundle(spoil, message, bundle):
    spoil(bundle)
    with pytest.raises(ExportError, match=message):
        verify_bundle(str(bundle), say=lambda line: None)


def test_verify_wants_the_same_checkpoint_and_data(made, tmp_path, capsys):
    other = write_classifier(tmp_path / "other", seed=2)
    assert main(["verify", str(made / "bundle"), "--checkpoint_path", str(other)]) == 2
    assert "not the checkpoint" in capsys.readouterr().err
    config = write_config(tmp_path, write_data(tmp_path / "dev.tsv", seed=5), made / "model")
    assert main(["verify", str(made / "bundle"), "--config", str(config)]) == 2
    assert "not the data that the export was judged on" in capsys.readouterr().err


def test_a_graph_that_is_wrong_is_not_delivered(made, tmp_path, monkeypatch):
    def without_mask(*arguments):
        graph = fused_graph(*arguments)
        for node in graph.graph.node:
            if node.op_type == "Attention":
                node.input[3] = ""
        return graph

    monkeypatch.setattr("bertfast_export.bundle.export.fused_graph", without_mask)
    with pytest.raises(VerificationError, match=r"model_optimized\.onnx: batch \d+ x \d+ tokens, row \d+: .*\nNothing was written"):
        export_bundle(str(made / "model"), str(tmp_path / "out"), say=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["out.rejected"]
    shown = subprocess.run(
        [sys.executable, str(tmp_path / "out.rejected" / "reproduce.py")], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    assert float(shown.split()[-1]) > 5e-5
    assert read(tmp_path / "out.rejected" / "verdict.json")["fault"].startswith("batch")


def test_without_examples_there_is_no_int8(made, tmp_path):
    said = []
    export_bundle(str(made / "model"), str(tmp_path / "out"), Options(("portable", "int8"), integers="int32"), say=said.append)
    assert not (tmp_path / "out" / "model_quantized.onnx").exists() and "without examples" in said[-1]
    assert ort.InferenceSession(tmp_path / "out" / "model.onnx").get_inputs()[0].type == "tensor(int32)"


def test_an_int8_file_that_changes_answers_is_not_written(made, tmp_path, monkeypatch):
    from dataclasses import replace

    from bertfast_export.judge import trial as verify

    monkeypatch.setitem(verify.BUDGETS, "model_quantized.onnx", replace(verify.BUDGETS["model_quantized.onnx"], agreement=1.1))
    arguments = ["export", str(made / "model"), "-o", str(tmp_path / "out"), "--config", str(made / "config.json"), "--variants", "int8"]
    assert main(arguments) == 0
    assert not (tmp_path / "out" / "model_quantized.onnx").exists()
    search = read(tmp_path / "out" / "verification.json")["int8_search"]
    assert search["outcome"].startswith("none is written: of ") and len(search["tried"]) > 4
    assert "none is written" in (tmp_path / "out" / "verification.md").read_text()


def test_the_triton_layout(made, tmp_path):
    folder = tmp_path / "repository"
    export_bundle(str(made / "model"), str(folder), Options(("optimized", "portable"), layout="triton"), say=lambda line: None)
    place = next(folder.glob("*/1/model_optimized.onnx")).parent.parent
    assert (folder / f"{place.name}_portable" / "1" / "model.onnx").is_file()
    config = (place / "config.pbtxt").read_text()
    assert (
        'default_model_filename: "model_optimized.onnx"' in config
        and "dynamic_batching" in config
        and 'label_filename: "labels.txt"' in config
    )
    assert config.count("{") == config.count("}") and config.count("[") == config.count("]")
    assert (place / "labels.txt").read_text().split() == list(LABELS)
    verify_bundle(str(folder), say=lambda line: None)


def test_a_bundle_does_not_replace_what_it_is_made_from(bundle, made, tmp_path, capsys):
    import bertfast.cli

    shutil.copytree(made / "model", bundle / "model")
    shutil.copy(made / "dev.tsv", bundle)
    (tmp_path / "link").symlink_to(bundle, target_is_directory=True)
    with pytest.raises(ExportError, match="would be replaced by the bundle, and .*/model is read from it"):
        export_bundle(str(bundle / "model"), str(tmp_path / "link"), Options(("portable",)))
    assert bertfast.cli.main(["export", str(made / "model"), "-o", str(bundle), "--input", str(bundle / "dev.tsv")]) == 2
    assert f"{bundle / 'dev.tsv'} is read from it; give another place" in capsys.readouterr().err
    assert (bundle / "model" / "model.safetensors").is_file() and (bundle / "dev.tsv").is_file() and (bundle / "model.onnx").is_file()


def test_an_earlier_bundle_is_replaced_and_nothing_else(bundle, made, tmp_path):
    options = Options(("portable",))
    export_bundle(str(made / "model"), str(bundle), options, say=lambda line: None)
    assert not (bundle / "model_optimized.onnx").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ExportError, match=r"mine: holds files that no export wrote"):
        export_bundle(str(made / "model"), str(tmp_path / "mine"), options)
    with pytest.raises(ExportError, match=r"thesis\.tex: is a file"):
        export_bundle(str(made / "model"), str(tmp_path / "mine" / "thesis.tex"), options)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_disk_that_is_full(made, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bertfast_export.bundle.export.write_evidence", full)
    with pytest.raises(ExportError, match=r"out: cannot be written: No space left on device"):
        export_bundle(str(made / "model"), str(tmp_path / "out"), Options(("portable",)), say=lambda line: None)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(made, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["export", str(made / "model"), "-o", str(tmp_path / "file" / "out"), "--grid_only"]) == 2
    assert f"out: cannot be written: {tmp_path / 'file'} is a file; give another place" in capsys.readouterr().err


@pytest.mark.parametrize(
    "spoil, error, message",
    [
        pytest.param({"model_type": "distilbert"}, CheckpointError, "model_type is 'distilbert'", id="another-architecture"),
        pytest.param({"problem_type": "regression"}, CheckpointError, "a regression of 3 numbers", id="several-numbers"),
        pytest.param({"hidden_act": "silu"}, CheckpointError, "hidden_act is 'silu'", id="another-activation"),
    ],
)
def test_checkpoints_that_cannot_be_exported(spoil, error, message, made, tmp_path):
    folder = shutil.copytree(made / "model", tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({**read(folder / "config.json"), **spoil}))
    with pytest.raises(error, match=message):
        export_bundle(str(folder), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_head(tmp_path):
    with pytest.raises(CheckpointError, match="no classification head"):
        export_bundle(str(write_tiny_bert(tmp_path / "bare")), str(tmp_path / "out"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        pytest.param(["--variants", "int4"], "'int4': there is no such variant", id="variant"),
        pytest.param(["--opset", "9"], "opset 9: bertfast writes opsets 18 to 23", id="opset"),
        pytest.param(["--max_sequence_length", "999"], "the model has 128 positions", id="length"),
        pytest.param([], "names no data to judge on", id="no-data"),
        pytest.param(["--epochs", "3"], "unknown flag --epochs", id="flag"),
        pytest.param(["--input", "nowhere.txt"], "no such file", id="input"),
    ],
)
def test_arguments_that_cannot_be(arguments, message, made, tmp_path, capsys):
    assert main(["export", str(made / "model"), "-o", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_text_of_the_users_own(made, tmp_path):
    (tmp_path / "texts.txt").write_text("a good film\nthe dog sleeps\n\nnot very fine\n")
    arguments = [
        "export",
        str(made / "model"),
        "-o",
        str(tmp_path / "out"),
        "--input",
        str(tmp_path / "texts.txt"),
        "--variants",
        "portable",
    ]
    assert main(arguments) == 0
    found = read(tmp_path / "out" / "verification.json")["verdicts"]["model.onnx"]["data"]["test"]
    assert found["examples"] == 4 and found["agreement"] == 1.0 and "metrics" not in found
    assert main(["verify", str(tmp_path / "out"), "--input", str(tmp_path / "texts.txt")]) == 0


def test_a_regression(tmp_path):
    model = write_classifier(tmp_path / "model", num_labels=1)
    export_bundle(str(model), str(tmp_path / "out"), Options(("portable", "optimized", "fp16")), say=lambda line: None)
    assert json.loads(ort.InferenceSession(tmp_path / "out" / "model.onnx").get_modelmeta().custom_metadata_map["labels"]) == []


@pytest.mark.parametrize(
    "installed, provider, message",
    [
        pytest.param({}, None, r"pip install 'bertfast\[export\]'", id="none"),
        pytest.param({"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}, None, "are both installed", id="both"),
        pytest.param({"onnxruntime": "1.31.1"}, "CUDAExecutionProvider", r"is the CPU's wheel.*onnxruntime-gpu\[cuda,cudnn\]", id="cuda"),
        pytest.param({"onnxruntime": "1.31.1"}, "CoreMLExecutionProvider", "has no CoreMLExecutionProvider; it has", id="another"),
    ],
)
def test_the_preflight_names_the_fix(installed, provider, message, made, monkeypatch):
    monkeypatch.setattr(runtime, "_version", installed.get)
    with pytest.raises(ExportError, match=message):
        runtime.open_session(made / "bundle" / "model.onnx", [provider] if provider else None)


@pytest.mark.parametrize("seconds", [pytest.param(share, id=f"after-{share}-of-its-time") for share in (0.5, 0.7, 0.85, 0.95)])
def test_a_kill_leaves_a_whole_bundle_or_none(seconds, made, tmp_path):
    """An export over an earlier bundle, killed; what stands there is verified, or nothing is; and the next export cleans up."""
    command = [sys.executable, "-m", "bertfast", "export", str(made / "model"), "-o", str(tmp_path / "out"), "--grid_only"]
    output = tmp_path / "out"
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith(("asking", "model")) and (line.count("passed") or seconds < 0.6):
            break
    time.sleep((time.monotonic() - began) * max(seconds - 0.7, 0.0))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if output.exists():
        verify_bundle(str(output), say=lambda line: None)
    export_bundle(str(made / "model"), str(output), Options(("portable",)), say=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_bundle_is_verified_after_a_kill_between_the_renames(bundle):
    """The new bundle is whole under its other name, the old one has been moved away; and there they stay, for the next export to clean up."""
    shutil.copytree(bundle, bundle.with_name(".writing-bundle"))
    bundle.rename(bundle.with_name(".old-bundle"))
    verify_bundle(str(bundle), say=lambda line: None)
    assert sorted(path.name for path in bundle.parent.iterdir()) == [".old-bundle", ".writing-bundle"]


def test_verifying_leaves_an_export_alone_that_is_at_work(bundle):
    half = bundle.with_name(".writing-bundle")
    half.mkdir()
    (half / "model.onnx").write_bytes(b"half of it")
    verify_bundle(str(bundle), say=lambda line: None)
    assert (half / "model.onnx").read_bytes() == b"half of it"


def test_errors_are_the_projects_own():
    assert issubclass(VerificationError, BertfastError) and VerificationError.exit_code == 4
    with pytest.raises(ConfigError, match="layout 'zip'"):
        Options(layout="zip")
