"""The judge that each file of a bundle needs, and its verdict in a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bertfast_export.contract import PACKED_FILE, openvino_variant
from bertfast_export.judge import (
    NOT_RUN,
    Answers,
    Case,
    CheckpointWeights,
    Evidence,
    KeptWeights,
    Verdict,
    judge,
    judge_openvino,
    judge_packed,
)

Say = Callable[[str], None]


def judge_file(
    model: Path,
    file: str,
    cases: list[Case],
    answers: Answers,
    evidence: list[Evidence],
    weights: Sequence[CheckpointWeights | KeptWeights],
    providers: Sequence[str] | None = None,
) -> Verdict:
    if (variant := openvino_variant(file)) is not None:
        return judge_openvino(model, variant, cases, answers, evidence, weights)
    if file == PACKED_FILE:
        return judge_packed(model, cases, answers, evidence, weights)
    return judge(model, file, cases, answers, evidence, providers=providers, weights=weights)


def summary(verdict: Verdict) -> str:
    parts = [f"grid within {verdict.grid['largest_logit_difference']:.2g} of eager float64"]
    parts += [f"{name} {found['agreement']:.2%} the same answers" for name, found in verdict.data.items()]
    if (said := verdict.grid.get("run_by", "")) == NOT_RUN:
        parts.append(said)
    return ", ".join(parts)
