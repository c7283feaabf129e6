"""A model repository for Triton Inference Server: MODEL/config.pbtxt, its labels, and MODEL/1/model.onnx (or an external .data file with it)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from bertfast.storage import replacing

if TYPE_CHECKING:
    from bertfast_export.bundle.source import Candidate
    from bertfast_export.contract import Options

_PREFERENCE = (
    "model_optimized.onnx",
    "model_packed_cpu.onnx",
    "model.onnx",
    "model_quantized.onnx",
    "model_fp16.onnx",
    "model_packed.onnx",
)
LABELS_FILE = "labels.txt"
_CONFIG = """name: "{name}"
platform: "onnxruntime_onnx"
max_batch_size: {max_batch_size}
input [
{inputs}
]
output [
  {{ name: "logits" data_type: TYPE_FP32 dims: [ {num_labels} ]{labels} }}
]
instance_group [ {{ kind: {kind} }} ]
dynamic_batching {{ preferred_batch_size: [ 8, 32 ] max_queue_delay_microseconds: 2000 }}
parameters {{ key: "intra_op_thread_count" value: {{ string_value: "1" }} }}
"""
# What a client of a model of several labels a text needs to know: the sigmoid of each logit, and not the softmax of all.
_SEVERAL = 'parameters { key: "problem_type" value: { string_value: "multi_label_classification" } }\n'


def write_triton(folder: Path, source: Candidate, options: Options, max_batch_size: int = 64) -> None:
    """Turn a folder of exported files into a model repository, one model for each file; the fused one takes the plain name.

    Triton batches requests of one width: clients pad to a few agreed widths, since every row of a batch has the width of its longest.
    """
    files = sorted(folder.glob("model*.onnx"), key=lambda file: _PREFERENCE.index(file.name))
    base = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in source.name)
    for index, file in enumerate(files):
        name = base if index == 0 else f"{base}_{file.stem.removeprefix('model').lstrip('_') or 'portable'}"
        place = folder / name / "1"
        place.mkdir(parents=True)
        external = file.with_name(f"{file.name}.data")
        if external.exists():
            shutil.move(external, place / external.name)
        shutil.move(file, place / file.name)
        labels = source.labels()
        if labels:
            with replacing(place.parent / LABELS_FILE) as lines:
                lines.write("\n".join(map(in_a_line, labels)) + "\n")
        kind = "TYPE_INT32" if options.integers == "int32" else "TYPE_INT64"
        inputs = [f"  {{ name: {json.dumps(name)} data_type: {kind} dims: [ -1 ] }}" for name in _inputs()]
        with replacing(place.parent / "config.pbtxt") as config:
            config.write(
                _CONFIG.format(
                    name=name,
                    max_batch_size=max_batch_size,
                    inputs=",\n".join(inputs),
                    num_labels=source.bert.num_labels,
                    labels=f' label_filename: "{LABELS_FILE}"' if labels else "",
                    kind="KIND_GPU" if file.name in ("model_fp16.onnx", "model_packed.onnx") else "KIND_CPU",
                )
                + f'default_model_filename: "{file.name}"\n'
                + (_SEVERAL if source.task.is_multilabel else "")
            )


def in_a_line(label: str) -> str:
    """A label as LABELS_FILE can hold it: Triton ends it where a line ends."""
    return label.replace("\n", " ").replace("\r", " ")


def _inputs() -> tuple[str, ...]:
    from bertfast_export.contract import INPUTS

    return INPUTS
