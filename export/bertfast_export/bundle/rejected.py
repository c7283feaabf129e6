"""A file that the judge refused, with the case on which it failed, as a folder that anyone can run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from bertfast.storage import replacing
from bertfast_export.judge import Verdict
from bertfast_export.runtime import sha256_of

_SCRIPT = '''"""Runs the case on which this file was refused: python reproduce.py (needs numpy and onnxruntime)."""

from pathlib import Path

import numpy as np
import onnxruntime

here = Path(__file__).parent
case = np.load(here / "case.npz")
session = onnxruntime.InferenceSession(here / "{file}", providers=["CPUExecutionProvider"])
kinds = {{value.name: np.int32 if value.type == "tensor(int32)" else np.int64 for value in session.get_inputs()}}
logits = session.run(["logits"], {{name: case[name].astype(kind) for name, kind in kinds.items()}})[0]
print("given", logits, "expected", case["expected"], "apart by", np.abs(logits - case["expected"]).max(), sep="\\n")
'''

_OPENVINO_SCRIPT = '''"""Runs the case on which this file was refused: python reproduce.py (needs numpy and openvino)."""

from pathlib import Path

import numpy as np
import openvino

here = Path(__file__).parent
case = np.load(here / "case.npz")
hints = {{"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_PRECISION_HINT": "f32"}}
request = openvino.Core().compile_model(here / "{file}", "CPU", hints).create_infer_request()
request.infer({{name: case[name] for name in ("input_ids", "attention_mask", "token_type_ids")}})
logits = request.get_tensor("logits").data
print("given", logits, "expected", case["expected"], "apart by", np.abs(logits - case["expected"]).max(), sep="\\n")
'''


def write_rejected(final: Path, model: Path, verdict: Verdict, hashes: dict[str, str]) -> Path:
    """Write OUTPUT.rejected beside the place of a bundle: the file, the failing case, a script that runs it, and the verdict. Gives the folder."""
    place = final.with_name(f"{final.name}.rejected")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    is_ir = model.suffix == ".xml"
    for part in model.parent.glob(f"{model.stem}.*" if is_ir else f"{model.name}*"):
        shutil.move(part, place / part.name)
    if verdict.failing is not None:
        np.savez_compressed(place / "case.npz", **verdict.failing)  # type: ignore[arg-type]  # as if an array might be named allow_pickle
        with replacing(place / "reproduce.py") as script:
            script.write((_OPENVINO_SCRIPT if is_ir else _SCRIPT).format(file=model.name))
    with replacing(place / "verdict.json") as file:
        said = {**verdict.to_dict(), "file": model.name, "sha256": sha256_of(place / model.name), "checkpoint_sha256": hashes}
        json.dump(said, file, indent=2, ensure_ascii=False)
        file.write("\n")
    return place
