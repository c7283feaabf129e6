"""The trial of an IR, by OpenVINO itself under the hints of its variant: the grid, the data, its neighbours, and the weights read back from the file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bertfast_export.contract import OPENVINO_VARIANTS, verdict_name
from bertfast_export.judge.audit import CheckpointWeights, KeptWeights
from bertfast_export.judge.cases import Case
from bertfast_export.judge.reference import Answers
from bertfast_export.judge.trial import add_audits, judge_session, run_cases
from bertfast_export.judge.verdict import BUDGETS, Evidence, Verdict
from bertfast_export.openvino_runtime import open_openvino
from bertfast_export.runtime import Session

if TYPE_CHECKING:
    import openvino

# D hidden

_PARTS = ("query", "key", "value")
_UNNAMED = re.compile(r"Constant_\d+")  # what OpenVINO's reader of ONNX adds: axes, shapes, the factor of a Gemm
_UNNAMED_SIZE = 4  # numbers at most
_NEIGHBOURS = 600  # tokens of the cases whose rows are asked alone


def judge_openvino(
    model: Path,
    variant: str,
    cases: list[Case],
    answers: Answers,
    evidence: list[Evidence],
    weights: Sequence[CheckpointWeights | KeptWeights] = (),
) -> Verdict:
    """Hold an IR against the eager model's answers, as `variant` of OPENVINO_VARIANTS computes it."""
    import openvino

    precision, name = OPENVINO_VARIANTS[variant][1], verdict_name(variant)
    verdict = Verdict(name, BUDGETS[name])
    session = open_openvino(model, precision)
    judge_session(session, cases, answers, evidence, verdict)
    verdict.grid |= {"run_by": f"openvino {openvino.__version__}, INFERENCE_PRECISION_HINT={precision}", "int32_inputs": "not asked"}
    if verdict.fault is None:
        judge_neighbours(session, cases, verdict)
    if weights and (verdict.fault is None or verdict.is_of_the_mean):
        given = constants_of(openvino.Core().read_model(str(model)))
        add_audits([known.compare(given) for known in weights], answers, verdict)
    return verdict


def judge_neighbours(session: Session, cases: list[Case], verdict: Verdict) -> None:
    """An answer must be the same whoever is in the batch: each row of some cases is asked alone, as wide as it was, and may differ by a tenth of what a
    logit may be off by. Scales taken from a batch move logits by 0.2 to 0.3; sums in another order in int8 by a level here and there."""
    largest = 0.0
    for case in cases:
        rows = len(case.rows)
        if rows == 1 or case.features["input_ids"].size > _NEIGHBOURS:
            continue
        together = run_cases(session, case.features)
        for row in range(rows):
            alone = run_cases(session, {name: values[row : row + 1] for name, values in case.features.items()})
            apart = float(np.abs(alone - together[row]).max())
            largest = max(largest, apart)
            if not apart <= verdict.budget.logits / 10:
                verdict.fail(
                    f"{case.where(row)}: logits apart by {apart:.3g} from those of the same row alone, and {verdict.budget.logits / 10:g} is allowed",
                    case.features,
                    alone,
                    together,
                )
                return
    verdict.grid["apart_from_the_row_alone"] = largest


def constants_of(model: openvino.Model) -> dict[str, np.ndarray]:
    """Every constant of an IR by name, queries, keys and values joined as the checkpoint's audit knows them; of OpenVINO's own those that could hide
    weights, being larger than an operator needs."""
    found = {node.get_friendly_name(): np.array(node.data) for node in model.get_ordered_ops() if node.get_type_name() == "Constant"}
    found = {name: values for name, values in found.items() if not (_UNNAMED.fullmatch(name) and values.size <= _UNNAMED_SIZE)}
    return _joined(found)


def _joined(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    joined = dict(found)
    for name in found:
        head, _, kind = name.rpartition(".query.")
        parts = [f"{head}.{part}.{kind}" for part in _PARTS]
        if head and all(part in found for part in parts):
            joined[f"{head}.{kind}"] = np.concatenate([joined.pop(part) for part in parts], axis=-1)
    return joined
