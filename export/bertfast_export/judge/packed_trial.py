"""The trial of the packed graph: by ONNX Runtime where it has a CUDA provider; elsewhere by the reading of `reading`, and the record says so.

Without CUDA three things are asked: ONNX's checker; whether ONNX Runtime takes every operator's name, types, attributes and shapes, so that it
stops at a missing kernel and at nothing before; and the grid and some of the data by the reading. Rows whose first column is masked must be NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from bertfast.errors import ExportError
from bertfast.packing import PackedBatch
from bertfast_export.contract import PACKED_FILE
from bertfast_export.judge.audit import CheckpointWeights, KeptWeights
from bertfast_export.judge.cases import Case
from bertfast_export.judge.reading import Reading
from bertfast_export.judge.reference import Answers
from bertfast_export.judge.trial import judge_session, judge_weights, run_cases
from bertfast_export.judge.verdict import BUDGETS, Evidence, Examples, Verdict
from bertfast_export.runtime import Session, open_session

CUDA = "CUDAExecutionProvider"
NOT_RUN = "not run: onnxruntime has no CUDA provider here; its operators were read out in numpy"
_READ = 64  # examples of a split that are read where nothing runs the file
_MISSING_KERNEL = ("Could not find an implementation for", "Failed to find kernel for")


class _Part:
    """Some rows of a data set, as the judge looks at one."""

    def __init__(self, dataset: Examples, rows: np.ndarray):
        self._dataset, self._rows = dataset, rows
        self.lengths, self.source, self.task = dataset.lengths[rows], dataset.source, dataset.task
        self.labels = None if dataset.labels is None else dataset.labels[rows]

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: np.ndarray) -> PackedBatch:
        return self._dataset.batch(self._rows[rows])

    def where(self, row: int) -> str:
        return self._dataset.where(int(self._rows[row]))


def judge_packed(
    model: Path, cases: list[Case], answers: Answers, evidence: list[Evidence], weights: Sequence[CheckpointWeights | KeptWeights] = ()
) -> Verdict:
    """Hold model_packed.onnx against the eager model's answers; its weights too."""
    import onnxruntime

    verdict = Verdict(PACKED_FILE, BUDGETS[PACKED_FILE])
    if CUDA in onnxruntime.get_available_providers():
        session = open_session(model, [CUDA])
        verdict.grid["run_by"] = CUDA
    else:
        _judge_form(model, verdict)
        session, evidence = Reading(model), [sampled(part, _READ) for part in evidence]
    if verdict.fault is None:
        judge_session(session, *_answered(cases, answers), evidence, verdict)
    if verdict.fault is None:
        _judge_unanswered(session, cases, verdict)
    if CUDA not in onnxruntime.get_available_providers():
        verdict.grid |= {"run_by": NOT_RUN, "int32_inputs": "not asked"}
    judge_weights(model, weights, answers, verdict)
    return verdict


def _judge_form(model: Path, verdict: Verdict) -> None:
    """ONNX's checker, and ONNX Runtime's own up to the kernels that only CUDA has."""
    try:
        onnx.checker.check_model(str(model))
    except onnx.checker.ValidationError as error:
        verdict.fail(f"its form is refused by ONNX's checker: {str(error).splitlines()[0]}")
        return
    try:
        open_session(model)
    except ExportError as error:
        if not any(said in str(error) for said in _MISSING_KERNEL):
            verdict.fail(f"its form is refused by onnxruntime: {error}")


def _judge_unanswered(session: Session, cases: list[Case], verdict: Verdict) -> None:
    for case in cases:
        masked = case.features["attention_mask"][:, 0] == 0
        if masked.any():
            given = run_cases(session, case.features)
            if not np.isnan(given[masked]).all():
                row = int(np.argmax(masked & np.isfinite(given).any(axis=1)))
                verdict.fail(
                    f"{case.where(row)}: an answer where the first column is masked, and NaN should be", case.features, given, given
                )
                return


def _answered(cases: list[Case], answers: Answers) -> tuple[list[Case], Answers]:
    """The rows whose first column is a token."""
    kept, exact, rounded = [], [], []
    for case, wide, narrow in zip(cases, answers.exact, answers.rounded, strict=True):
        rows = np.flatnonzero(case.features["attention_mask"][:, 0])
        if len(rows):
            features = {name: values[rows] for name, values in case.features.items()}
            kept.append(Case(case.name, tuple(case.rows[row] for row in rows), features))
            exact.append(wide[rows])
            rounded.append(narrow[rows])
    return kept, Answers(exact, rounded, answers.several)


def sampled(part: Evidence, count: int) -> Evidence:
    """At most `count` examples of a split, evenly spread."""
    rows = np.unique(np.linspace(0, len(part.dataset) - 1, min(len(part.dataset), count)).astype(np.int64))
    return Evidence(part.name, _Part(part.dataset, rows), part.logits[rows], part.calibration)
