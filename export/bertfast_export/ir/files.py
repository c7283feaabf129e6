"""openvino/openvino_model.xml and openvino_model_int8.xml, each with its .bin, written and judged in float32 and in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertfast_export.contract import OPENVINO_VARIANTS, verdict_name
from bertfast_export.graphs import Network, ir_of, openvino_graph, save_ir
from bertfast_export.ir.search import search
from bertfast_export.judge import Answers, Case, CheckpointWeights, Evidence, Verdict, judge_openvino
from bertfast_export.openvino_runtime import check_openvino, has_bfloat16


@dataclass
class Written:
    """What came of it. verdicts: of every variant that is in the bundle; where the float32 file is refused, of that alone. notes: for the record."""

    verdicts: list[Verdict] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


def write_openvino(
    folder: Path,
    network: Network,
    cases: list[Case],
    answers: Answers,
    evidence: list[Evidence],
    weights: CheckpointWeights,
    integers: str,
    metadata: Callable[[str], Mapping[str, str]],
    say: Callable[[str], None],
) -> Written:
    """Write the files into `folder`/openvino and judge them. metadata: what a file is to say of itself, by variant.

    Raises:
        ExportError: OpenVINO is not installed, or a file cannot be written.
    """
    check_openvino()
    written, skipped = Written(), {}
    for name, precisions in _FILES.items():
        if name == "openvino":
            graph = openvino_graph(network, integers)
        else:
            found = search(network, cases, answers, evidence, integers, say)
            written.notes["openvino_int8_search"] = found.to_dict()
            if found.graph is None:
                say(f"{OPENVINO_VARIANTS[name][0]}: not written; {found.outcome}")
                continue
            graph = found.graph
        path = folder / OPENVINO_VARIANTS[name][0]
        save_ir(ir_of(graph, metadata(name)), path)
        for variant in precisions:
            said = verdict_name(variant)
            if OPENVINO_VARIANTS[variant][1] == "bf16" and not has_bfloat16():
                skipped[said] = "this CPU has no bfloat16"
                continue
            verdict = judge_openvino(path, variant, cases, answers, evidence, [weights])
            if verdict.fault is None:
                written.verdicts.append(verdict)
            elif variant == "openvino":
                return Written([verdict])
            else:
                skipped[said] = verdict.fault
                say(f"{said}: not for use; {verdict.fault}")
        if not any(verdict.file.startswith(OPENVINO_VARIANTS[name][0]) for verdict in written.verdicts):
            for part in path.parent.glob(f"{path.stem}.*"):
                part.unlink()
    if skipped:
        written.notes["skipped"] = skipped
    return written


_FILES: Mapping[str, Sequence[str]] = {
    name: [variant for variant, (file, _) in OPENVINO_VARIANTS.items() if file == OPENVINO_VARIANTS[name][0]]
    for name in ("openvino", "openvino-int8")
}
