"""bertfast compile: what a config needs, what the table and the exit code say, and that every shipped config fits every target."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest
import torch

from bertfast.checks import kernels
from bertfast.checks.kernels import Encoder, choose_targets, encoder_of
from bertfast.cli import entry, flags
from bertfast.config.load import load_config
from bertfast.errors import CheckpointError
from bertfast.weights import sizes
from bertfast.weights.sizes import KNOWN, config_of_checkpoint
from bertfast_kernels.compile import TARGETS, CompiledKernel
from bertfast_kernels.shapes import EncoderShape
from tests.support import ROOT
from tests.support.triton_cases import needs_triton

SHIPPED = sorted(path for path in (ROOT / "configs").iterdir() if path.suffix in (".json", ".yaml"))
FITS = CompiledKernel("bias_gelu_forward", "float16", "F=3072", "sm_90", num_warps=4, registers=40, shared_memory=0, spills=0)
SPILLS = dataclasses.replace(FITS, kernel="layer_norm_backward", spills=8, problem="spills 8 bytes a thread")
EVERY_CONFIG = """
import dataclasses, json, sys
from bertfast.checks.kernels import choose_targets, compile_encoders, encoder_of
from bertfast.config.load import load_config
if __name__ == "__main__":
    encoders = [encoder_of(load_config(path)) for path in sys.argv[1:]]
    rows = compile_encoders(encoders, choose_targets(["sm_80", "sm_90", "sm_100", "gfx942"]))
    print(json.dumps([dataclasses.asdict(row) for row in rows]))
"""


@pytest.fixture(autouse=True)
def lone_rank(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def config(task="mnli", **blocks):
    block = {"task": task, "model": {"checkpoint": "bert-base-uncased"}, "train_input": {"data_dir": "d", "max_sequence_length": 96}}
    block |= blocks.pop("bertfast", {})
    return load_config({**blocks, "bertfast": block})


def without_interpreter(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    environment.pop("TRITON_INTERPRET", None)
    return environment


@needs_triton
def test_every_shipped_config_fits_every_target(tmp_path):
    script = tmp_path / "every_config.py"  # a file: worker processes import the main module again
    script.write_text(EVERY_CONFIG, encoding="utf-8")
    command = [sys.executable, str(script), *map(str, SHIPPED)]
    done = subprocess.run(command, env=without_interpreter(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [CompiledKernel(**row) for row in json.loads(done.stdout.splitlines()[-1])]
    assert [row for row in rows if not row.fits or row.spills] == []
    # The tiles of attention, M queries by L keys, are each target's own.
    shape_of = lambda row: re.sub(r" [ML]=\d+", "", row.shape_class)  # noqa: E731
    by_target = {target: {(row.kernel, shape_of(row)) for row in rows if row.target == target} for target in TARGETS}
    assert len({frozenset(kernels) for kernels in by_target.values()}) == 1 and {row.dtype for row in rows} == {"float16"}
    assert {"embedding_forward", "layer_norm_backward", "bias_gelu_backward"} <= {row.kernel for row in rows}


@needs_triton
def test_the_command_as_a_user_types_it(tmp_path):
    command = [sys.executable, "launch.py", "--config", "ds_demo.json", "--compile_only", "--target", "gfx942"]
    done = subprocess.run(command, env=without_interpreter(tmp_path), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "layer_norm_backward" in done.stdout and "for gfx942: all fit, none spills." in done.stdout
    cache = tmp_path / "cache"
    assert list(cache.rglob("*.hsaco")) and not list(cache.rglob("*.cubin"))


@pytest.fixture
def compiled(monkeypatch):
    """compiled(rows): compilation gives these; what it was asked for is kept."""
    asked = []

    def give(*rows):
        monkeypatch.setattr("bertfast.checks.compile_encoders", lambda encoders, targets: asked.append((encoders, targets)) or list(rows))
        return asked

    return give


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(lambda *words: entry.main(["compile", *words]), id="bertfast-compile"),
        pytest.param(lambda *words: entry.launch(["--compile_only", *words]), id="launch-compile_only"),
    ],
)
def test_the_table_and_the_exit_code(run, compiled, capsys):
    asked = compiled(FITS, dataclasses.replace(FITS, target="gfx942", registers=39, shared_memory=2048))
    assert run("--config", "ds_mnli.json", "--target", "sm_90", "--target", "gfx942", "--target", "sm_90") == 0
    out = capsys.readouterr().out
    (row,) = [line for line in out.splitlines() if "bias_gelu_forward" in line]
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["bias_gelu_forward", "float16", "F=3072", "4", "40", "39, 2,048 B"]
    assert "bert-base-uncased, not read but known to bertfast; fp16, dropout 0.1, up to 128 tokens, 3 classes" in out
    assert asked[0][1] == ["sm_90", "gfx942"]

    compiled(FITS, SPILLS)
    assert run("--config", "ds_mnli.json") == 2
    out = capsys.readouterr().out
    assert "layer_norm_backward (float16, F=3072) on sm_90: spills 8 bytes a thread" in out and "1 do not fit" in out


def test_the_other_ranks_leave(compiled, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert not compiled(SPILLS) and entry.launch(["--compile_only", "--config", "ds_mnli.json"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["train", "--target", "sm_90"], "unknown flag --target", id="target-of-a-training"),
        pytest.param(["compile", "--target", "sm_75"], "'sm_75'", id="unknown-target"),
        pytest.param(["compile", "--resume"], "unknown flag --resume", id="resume"),
        pytest.param(["train", "--compile_only", "--validate_only"], "only one thing", id="two-onlys"),
    ],
)
def test_wrong_flags(words, said, capsys):
    assert entry.main([*words, "--config", "ds_mnli.json"]) == 2
    assert said in capsys.readouterr().err
    assert entry.launch(["--target", "sm_90", "--config", "ds_mnli.json"]) == 2
    assert "--target is for compile, not for train" in capsys.readouterr().err


def test_the_targets_of_the_flag_are_those_that_there_are():
    assert tuple(TARGETS) == flags.TARGETS


def test_the_interpreter_is_named(capsys, monkeypatch):
    monkeypatch.setattr("bertfast_kernels.compile.is_interpreting", lambda: True)
    monkeypatch.setattr("bertfast_kernels.compile.HAS_TRITON", True)
    assert entry.main(["compile", "--config", "ds_mnli.json"]) == 2
    assert "TRITON_INTERPRET unset" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(config(), {"max_seqlen": 96, "num_labels": 3, "dtype": torch.float32, "dropout": 0.1, "heads": 12}, id="no-precision"),
        pytest.param(config(fp16={"enabled": "auto"}), {"dtype": torch.float16}, id="auto-is-fp16"),
        pytest.param(config(fp16={"enabled": "auto"}, bf16={"enabled": True}), {"dtype": torch.bfloat16}, id="bf16"),
        pytest.param(config("stsb"), {"num_labels": None}, id="a-score"),
        pytest.param(config({"text_columns": ["a"], "label_column": "b"}), {"num_labels": 2}, id="classes-not-known-yet"),
        pytest.param(
            config(bertfast={"model": {"checkpoint": "bert-large-cased", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}}),
            {"hidden_size": 1024, "intermediate_size": 4096, "heads": 16, "head_size": 64, "vocab": 28996, "dropout": 0.0},
            id="no-dropout",
        ),
        pytest.param(
            config(bertfast={"model": {"checkpoint": "bert-base-cased", "hidden_dropout_prob": 0.3}}), {"dropout": 0.3}, id="dropout"
        ),
    ],
)
def test_the_shape_of_a_config(given, expected):
    shape = encoder_of(given).shape
    assert {name: getattr(shape, name) for name in expected} == expected


def test_lengths_beyond_the_positions_are_cut():
    assert encoder_of(config(bertfast={"eval_input": {"data_dir": "d", "max_sequence_length": 4096}})).shape.max_seqlen == 512


def test_a_checkpoint_folder_needs_its_config_alone(tmp_path):
    sizes = {"hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 200, "vocab_size": 77, "hidden_act": "gelu_new"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **sizes}))
    encoder = encoder_of(config(bertfast={"model": {"checkpoint": str(tmp_path)}}))
    assert (encoder.shape.head_size, encoder.shape.vocab, encoder.shape.gelu) == (32, 77, "tanh")
    assert encoder.source.startswith(str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_act": "relu"}))
    with pytest.raises(CheckpointError, match="hidden_act is 'relu'"):
        encoder_of(config(bertfast={"model": {"checkpoint": str(tmp_path)}}))


def test_known_names_ask_no_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    for name, known in KNOWN.items():
        for spelling in (name, f"google-bert/{name}"):
            bert, source = config_of_checkpoint(spelling)
            assert bert.hidden_size == known["hidden_size"] and "known to bertfast" in source
    base, _ = config_of_checkpoint("bert-base-uncased")
    assert base.to_dict() == type(base)().to_dict()  # transformers' defaults are those of bert-base-uncased


def test_of_the_hub_only_the_config_is_asked_for(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 48, "num_attention_heads": 2}')
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *words: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file: str(tmp_path / file))
    assert config_of_checkpoint("some/bert")[0].hidden_size == 48


def test_a_checkpoint_out_of_reach_is_named(monkeypatch, tmp_path):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*words):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(CheckpointError, match="'some-bert': no local folder of that name, and the hub does not give its config.json"):
        config_of_checkpoint("some-bert")
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        config_of_checkpoint(str(tmp_path / "nowhere"))


def test_the_demo_is_as_large_as_is_said():
    from bertfast.demo.__main__ import TRAIN_TEMPLATES, _wordpiece_vocabulary, generate

    assert len(_wordpiece_vocabulary(generate(3000, TRAIN_TEMPLATES, 5))) == sizes.DEMO_VOCABULARY
    assert load_config(ROOT / "configs" / "ds_demo.json").bertfast.model.checkpoint in KNOWN


class Gpu:
    """As much of a GPU's properties as is asked for."""

    major, minor, shared_memory_per_block_optin, regs_per_multiprocessor, warp_size, gcnArchName = (
        9,
        0,
        101376,
        65536,
        64,
        "gfx942:sramecc+",
    )


def test_the_target_is_this_machines_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_targets([]) == list(TARGETS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Gpu)
    assert choose_targets([]) == [TARGETS["sm_90"]] and choose_targets(["sm_80"]) == ["sm_80"]
    monkeypatch.setattr(Gpu, "minor", 9)
    monkeypatch.setattr(Gpu, "major", 8)
    (target,) = choose_targets([])
    assert (target.name, target.arch, target.shared_memory) == ("sm_89", 89, 101376)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert choose_targets([]) == [TARGETS["gfx942"]]


def test_two_encoders_of_one_shape_are_compiled_once(monkeypatch):
    asked = []
    monkeypatch.setattr(kernels, "compile_kernels", lambda shapes, *rest: asked.extend(shapes) or [])
    kernels.compile_encoders([Encoder(EncoderShape(), "a"), Encoder(EncoderShape(), "b")], ["sm_90"])
    assert asked == [EncoderShape()]
