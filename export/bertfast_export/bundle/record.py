"""verification.json and verification.md: what was judged, by what, with which result, for machines and for people."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertfast import __version__
from bertfast.config import BertfastConfig, load_config
from bertfast.errors import ExportError
from bertfast.reporting import MODEL_CONFIG_FILE
from bertfast.storage import replacing, write_json
from bertfast_export.contract import PAGE_FILE, RECORD_FILE, RUNTIMES, no_bundle
from bertfast_export.runtime import sha256_of

if TYPE_CHECKING:
    from bertfast_export.judge import Verdict

FORMAT = 1
_SHOWN = 20  # examples with another answer, on the page
_UNHASHED = (RECORD_FILE, PAGE_FILE, "manifest.json")


def write_record(folder: Path, checkpoint: dict[str, Any], verdicts: Sequence[Verdict], notes: dict[str, Any], started: datetime) -> None:
    """Write both files into a folder whose other files are all there.

    checkpoint: its name and the SHA-256 of its files. notes: what else is to be said, such as the int8 search.
    """
    record = {
        "format": FORMAT,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": checkpoint,
        "versions": versions(),
        "machine": {"platform": platform.platform(), "processor": _processor(), "provider": "CPUExecutionProvider"},
        "files": hashes_of(folder),
        "runtimes": {verdict.file: RUNTIMES[verdict.file] for verdict in verdicts},
        "verdicts": {verdict.file: verdict.to_dict() for verdict in verdicts},
        **notes,
    }
    write_json(folder / RECORD_FILE, record)
    with replacing(folder / PAGE_FILE) as file:
        file.write("\n".join(page(record)) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """verification.json of a bundle.

    Raises:
        ExportError: there is none, or it cannot be read.
    """
    path = folder / RECORD_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] == FORMAT and isinstance(record["files"], dict) and isinstance(record["verdicts"], dict):
            return record
        fault = f"its format is {record['format']}, and this bertfast reads {FORMAT}"
    except (FileNotFoundError, NotADirectoryError):
        fault = no_bundle(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        fault = f"its {RECORD_FILE} cannot be read ({error}); export it again"
    raise ExportError(f"{folder}: {fault}")


def changed_files(folder: Path, record: dict[str, Any]) -> list[str]:
    """What is no longer as it was judged: a line for each file that is missing or has another SHA-256."""
    faults = []
    for name, digest in record["files"].items():
        if not (folder / name).is_file():
            faults.append(f"{name} is missing")
        elif sha256_of(folder / name) != digest:
            faults.append(f"{name} has changed since it was verified")
    return faults


def hashes_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of a folder but the records themselves."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in _UNHASHED)
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def versions() -> dict[str, str]:
    """Of Python, bertfast and whatever of its tools is loaded."""
    loaded = {
        name: getattr(sys.modules.get(name), "__version__", None)
        for name in ("torch", "transformers", "onnx", "onnxruntime", "openvino", "numpy")
    }
    return {"python": platform.python_version(), "bertfast": __version__, **{name: str(said) for name, said in loaded.items() if said}}


def page(record: dict[str, Any]) -> list[str]:
    """The lines of verification.md."""
    tools = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        f"# Verification of {record['checkpoint']['name']}",
        "",
        f"Each file was held against transformers' eager model in float64, on a grid of made-up batches, and against the trained model on real "
        f"examples. Finished {record['finished']}, with {tools}, on {record['machine']['processor']}, {record['machine']['provider']}. "
        "`bertfast verify` repeats it.",
        "",
        "| file | result | grid: largest logit difference | allowed | times the error of eager float32 | with int32 inputs | weights |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, verdict in record["verdicts"].items():
        grid = verdict["grid"]
        cells = [name, "passed" if verdict["passed"] else "FAILED", f"{grid.get('largest_logit_difference', float('nan')):.2g}"]
        cells += [f"{verdict['budget']['logits']:g}", f"{grid.get('times_eager_float32_error', float('nan')):.2g}"]
        lines.append("| " + " | ".join([*cells, grid.get("int32_inputs", "not asked"), _weights(verdict)]) + " |")
    lines += ["", *[f"{name} is for {whom}." for name, whom in record.get("runtimes", {}).items()]]
    lines += ["", *[f"{name}: {said}." for name, verdict in record["verdicts"].items() if (said := verdict["grid"].get("run_by"))]]
    lines += [f"{name}: not written; {why}." for name, why in record.get("skipped", {}).items()]
    lines += ["", "| file | data | examples | same answer | largest logit difference | metric, eager | metric, file |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for name, verdict in record["verdicts"].items():
        for split, found in verdict["data"].items():
            metrics = found.get("metrics")
            scores = [_score(metrics, side) for side in ("eager", "onnx")]
            cells = [
                name,
                split,
                f"{found['examples']:,}",
                f"{found['agreement']:.2%}",
                f"{found['largest_logit_difference']:.2g}",
                *scores,
            ]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *_differing(record), *_faults(record), *_recipes(record), "## Files", "", "| file | SHA-256 |", "| --- | --- |"]
    lines += [f"| {name} | `{digest}` |" for name, digest in record["files"].items()]
    lines += [f"| {record['checkpoint']['name']}: {name} | `{digest}` |" for name, digest in record["checkpoint"]["sha256"].items()]
    return lines


def _score(metrics: dict | None, side: str) -> str:
    """The metric of one side; logits that are not finite have none, nor has data without labels."""
    if not metrics:
        return ""
    return f"{metrics['name']} {metrics[side][metrics['name']]:.4f}" if side in metrics else "not finite"


def _weights(verdict: dict[str, Any]) -> str:
    weights = verdict.get("weights")
    if not weights:
        return "not compared"
    apart = weights.get("largest_rounding_of_a_weight_in_levels")
    return f"{weights['compared']} compared with the checkpoint's" + (f"; 8-bit ones within {apart:.2g} levels" if apart else "")


def _differing(record: dict[str, Any]) -> list[str]:
    lines = []
    for name, verdict in record["verdicts"].items():
        for split, found in verdict["data"].items():
            differing = found["differing"]
            if differing:
                lines += [f"## Other answers: {name}, {split}", "", "| example | logits, eager | logits, file |", "| --- | --- | --- |"]
                lines += [f"| {item['where']} | {_numbers(item['eager'])} | {_numbers(item['onnx'])} |" for item in differing[:_SHOWN]]
                more = len(differing) - _SHOWN
                lines += [*([f"| and {more} more, in {RECORD_FILE} | | |"] if more > 0 else []), ""]
    return lines


def _faults(record: dict[str, Any]) -> list[str]:
    faults = [f"- {name}: {verdict['fault']}" for name, verdict in record["verdicts"].items() if verdict["fault"]]
    return ["## Faults", "", *faults, ""] if faults else []


def _recipes(record: dict[str, Any]) -> list[str]:
    lines = []
    for key, of in (("int8_search", ""), ("openvino_int8_search", " for OpenVINO")):
        if record.get(key):
            lines += _recipe(record[key], f"## The search for an int8 recipe{of}")
    return lines


def _recipe(search: dict[str, Any], title: str) -> list[str]:
    lines = [title, "", search["outcome"], ""]
    if search["tried"]:
        lines += [
            "| recipe | products in int8 | same answer | points of the metric lost | ms of a batch on one core |",
            "| --- | --- | --- | --- | --- |",
        ]
        for tried in search["tried"]:
            lost = "" if tried["points_lost"] is None else f"{tried['points_lost']:.2f}"
            over = ", out of budget" if tried.get("fault") else ""
            agreement = "the grid is out of budget" if tried["agreement"] is None else f"{tried['agreement']:.2%}{over}"
            took = "" if tried.get("milliseconds") is None else f"{tried['milliseconds']:.1f}"
            lines.append(f"| {tried['recipe']} | {tried['int8_share']:.0%} of their work | {agreement} | {lost} | {took} |")
    return [*lines, ""]


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def bundle_block(folder: str | Path) -> BertfastConfig:
    """The config block that a bundle carries: its task and its longest sequence.

    Raises:
        ExportError: there is none.
    """
    file = Path(folder) / MODEL_CONFIG_FILE
    if not file.is_file():
        raise ExportError(f"{folder}: there is no {MODEL_CONFIG_FILE} there; give a folder that bertfast export wrote")
    return load_config(file).bertfast
