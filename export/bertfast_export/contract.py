"""What an exported file takes and gives, which files a bundle has, and what can be asked for. Both the graphs and their judge stand on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bertfast.errors import ConfigError

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "logits"
INTEGERS = ("int64", "int32")
MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operators
DEFAULT_OPSET = 20
# The lowest IR version that may carry each opset (onnx's versioning table): the file is then read by every runtime that knows the opset.
IR_VERSIONS = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}

VARIANTS = {"portable": "model.onnx", "optimized": "model_optimized.onnx", "fp16": "model_fp16.onnx", "int8": "model_quantized.onnx"}
VARIANTS |= {"packed_cpu": "model_packed_cpu.onnx"}
PACKED_FILE = "model_packed.onnx"
HALF_FILES = ("model_fp16.onnx", "model_packed.onnx")
# What OpenVINO computes with: file and precision of what is not in int8, by the variant's name. `export` knows them all as "openvino".
OPENVINO = "openvino"
OPENVINO_VARIANTS = {
    "openvino": ("openvino/openvino_model.xml", "f32"),
    "openvino-bf16": ("openvino/openvino_model.xml", "bf16"),
    "openvino-int8": ("openvino/openvino_model_int8.xml", "f32"),
    "openvino-int8-bf16": ("openvino/openvino_model_int8.xml", "bf16"),
}
FILES = {**VARIANTS, "packed": PACKED_FILE, OPENVINO: OPENVINO_VARIANTS[OPENVINO][0]}  # of whatever an export may be asked for
_PRECISIONS = {"f32": "float32", "bf16": "bfloat16"}
FACTS = "bertfast"  # in an IR's rt_info: what an ONNX file has in its metadata_props
TOKENIZER_FILE = "tokenizer.json"
RECORD_FILE, PAGE_FILE = "verification.json", "verification.md"
LAYOUTS = ("flat", "triton")
OWN_HEAD_VARIANTS = ("portable", "optimized", "packed_cpu")
OWN_HEAD_IN_FLOAT32 = "a head of bertfast's own is written in float32 alone"
# How a file's own words on its texts begin (`preprocessing` in its metadata_props).
ONE_TEXT, A_PAIR = "one text", "a pair"
SHORTEST = 2  # tokens: [CLS] and [SEP], of an empty text
# What a file may be given to. OpenVINO takes ONNX Runtime's operators too, and runs some as others without a word (findings/). Its own default on a
# CPU with bfloat16 moves the logits of model.onnx by up to 1e-3 of a model whose float32 is within 1.1e-7 (OpenVINO 2026.4.1, MiniLM).
_ONNX_RUNTIME_ALONE = "ONNX Runtime alone; another runtime that takes its operators, as OpenVINO does, may run them as others"
RUNTIMES = {
    "model.onnx": "every runtime; OpenVINO with EXECUTION_MODE_HINT=ACCURACY or INFERENCE_PRECISION_HINT=f32, else it may compute in bfloat16",
    "model_optimized.onnx": _ONNX_RUNTIME_ALONE,
    "model_fp16.onnx": _ONNX_RUNTIME_ALONE,
    "model_quantized.onnx": _ONNX_RUNTIME_ALONE,
    "model_packed_cpu.onnx": "every runtime that has opset 23; made for ONNX Runtime's CPU provider",
    PACKED_FILE: "ONNX Runtime's CUDA provider alone",
    "openvino/openvino_model.xml in float32": "OpenVINO with INFERENCE_PRECISION_HINT=f32 and EXECUTION_MODE_HINT=ACCURACY",
    "openvino/openvino_model.xml in bfloat16": "OpenVINO with INFERENCE_PRECISION_HINT=bf16, on a CPU that has it",
    "openvino/openvino_model_int8.xml in float32": "OpenVINO with INFERENCE_PRECISION_HINT=f32: what is not in int8 computes in float32",
    "openvino/openvino_model_int8.xml in bfloat16": "OpenVINO with INFERENCE_PRECISION_HINT=bf16, on a CPU that has it",
}


def verdict_name(variant: str) -> str:
    """What the record calls an OpenVINO variant: one file is judged in each precision that it may be run in."""
    file, precision = OPENVINO_VARIANTS[variant]
    return f"{file} in {_PRECISIONS[precision]}"


def openvino_variant(name: str) -> str | None:
    """The OpenVINO variant that the record calls so; None of an ONNX file."""
    return next((variant for variant in OPENVINO_VARIANTS if verdict_name(variant) == name), None)


@dataclass(frozen=True)
class Options:
    """What to export. `variants` are keys of VARIANTS; integers: "int64" or "int32"; layout: "flat" or "triton"."""

    variants: tuple[str, ...] = tuple(VARIANTS)
    opset: int = DEFAULT_OPSET
    integers: str = "int64"
    layout: str = "flat"
    max_sequence_length: int | None = None
    packed: bool = False  # model_packed.onnx too

    def __post_init__(self) -> None:
        for name in self.variants:
            if name not in (*VARIANTS, OPENVINO):
                raise ConfigError(f"variant {name!r}: there is no such variant; known: {', '.join((*VARIANTS, OPENVINO))}")
        if not self.variants:
            raise ConfigError(f"variants is empty; name one or more of {', '.join(VARIANTS)}")
        check_opset(self.opset)
        if self.integers not in INTEGERS:
            raise ConfigError(f"integers = {self.integers!r}: the inputs are int64 or int32")
        if self.layout not in LAYOUTS:
            raise ConfigError(f"layout {self.layout!r}: there is no such layout; known: {', '.join(LAYOUTS)}")
        if self.layout == "triton" and OPENVINO in self.variants:
            raise ConfigError("layout 'triton' holds ONNX models, and variants name openvino; leave out the one or the other")
        if self.max_sequence_length is not None and self.max_sequence_length < SHORTEST:
            raise ConfigError(f"max_sequence_length = {self.max_sequence_length}: [CLS] and [SEP] alone are {SHORTEST} tokens; give more")


def check_opset(opset: int) -> None:
    """Raise ConfigError for an opset that is not written."""
    if opset not in IR_VERSIONS:
        known = f"{min(IR_VERSIONS)} to {max(IR_VERSIONS)}"
        raise ConfigError(f"opset {opset}: bertfast writes opsets {known}; {DEFAULT_OPSET} is the usual one")


def no_bundle(folder: Path) -> str:
    """What a folder without a record is, where a bundle was wanted, and what to give."""
    if folder.is_file():
        return f"is a file, and a bundle is a folder; give {folder.parent}"
    if not folder.is_dir():
        return f"there is no {RECORD_FILE}, as there is no such folder; give one that bertfast export wrote"
    near = next((place for place in (folder / "onnx", folder.parent) if (place / RECORD_FILE).is_file()), None)
    if near is not None:
        return f"there is no {RECORD_FILE} there; give the bundle {near}"
    if any((place / "config.json").is_file() for place in (folder, folder / "model")):
        return (
            f"there is no {RECORD_FILE} there: it is a model, and no bundle of one; export it with bertfast export {folder} -o BUNDLE, or have the model "
            f"itself answer: bertfast predict --checkpoint_path {folder}"
        )
    return f"there is no {RECORD_FILE} there; give a folder that bertfast export wrote"


def skipped_variants(variants: Sequence[str], own_head: bool) -> dict[str, str]:
    """Which of the variants asked for are not written of a model with such a head, and why.

    Raises:
        ConfigError: none is left.
    """
    skipped = {name: OWN_HEAD_IN_FLOAT32 for name in variants if own_head and name not in OWN_HEAD_VARIANTS}
    if variants and len(skipped) == len(variants):
        raise ConfigError(f"variants {', '.join(skipped)}: {OWN_HEAD_IN_FLOAT32}; ask for one of {', '.join(OWN_HEAD_VARIANTS)}")
    return skipped
