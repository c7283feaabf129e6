"""The judge: an ONNX file against the model that it was made from, case by case, then on the task's own data.

Four questions. Grid: are the logits of every case of `cases` within the budget of transformers' eager model in float64? Types: does a twin
with int32 inputs give the same? Data: does it give the same answers on every example, and the same metric? Weights: are they the
checkpoint's (`audit`)? float32 files are asked a fifth: is their mean error no more than rounding alone explains? Weights that are 1 % off move
single logits less than any honest budget for them, but they can move the mean error by a factor of thirty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertfast.tasks import Calibration, Task, compute_metrics, sigmoid, softmax
from bertfast_export.contract import HALF_FILES
from bertfast_export.judge.audit import Audit, CheckpointWeights, KeptWeights
from bertfast_export.judge.cases import Case
from bertfast_export.judge.reference import Answers
from bertfast_export.judge.verdict import BUDGETS, Budget, Evidence, Examples, Verdict
from bertfast_export.runtime import Session, input_types, open_session

# n examples, B batch, S sequence, C classes


_ROUNDING_FLOOR = 1e-8  # of a mean error: a model whose logits are exact in float32 has no noise to compare with
_INT32_TOKENS = 600  # of the cases that the int32 twin is asked
_SCORES_APART = 0.02  # regression: two scores are one answer within this share of the spread of the eager model's scores
_BATCH_SIZE = 32


def judge(
    model: Path,
    name: str,
    cases: list[Case],
    answers: Answers,
    evidence: list[Evidence],
    budget: Budget | None = None,
    providers: Sequence[str] | None = None,
    weights: Sequence[CheckpointWeights | KeptWeights] = (),
) -> Verdict:
    """Hold one file against the eager model's answers, on the first of `providers`. name: which of BUDGETS is its own. weights: what to hold its
    weights against."""
    verdict = Verdict(name, budget or BUDGETS[name])
    judge_session(open_session(model, providers), cases, answers, evidence, verdict)
    if verdict.fault is None:
        _judge_int32(model, cases, answers, verdict, providers)
    judge_weights(model, weights, answers, verdict)
    return verdict


def judge_session(session: Session, cases: list[Case], answers: Answers, evidence: list[Evidence], verdict: Verdict) -> None:
    """The signature, the grid and the data, by whatever answers as a session of onnxruntime does."""
    _judge_signature(session, answers, verdict)
    if verdict.fault is None:
        _judge_grid(session, cases, answers, verdict)
    for part in evidence if verdict.fault is None else ():
        _judge_data(session, part, verdict)


def run_cases(session: Session, features: dict[str, np.ndarray]) -> np.ndarray:
    """Logits [B, C] of features [B, S], in the integer type that the file takes."""
    return session.run(["logits"], {name: features[name].astype(kind) for name, kind in input_types(session).items()})[0]


def run_dataset(session: Session, dataset: Examples, num_labels: int, batch_size: int = _BATCH_SIZE) -> np.ndarray:
    """Logits [n, C] of every example in order, run in batches sorted by length."""
    logits = np.full((len(dataset), num_labels), np.nan, dtype=np.float32)
    for rows, features in batches_of(dataset, batch_size):
        logits[rows] = run_cases(session, features)
    return logits


def batches_of(
    dataset: Examples, batch_size: int = _BATCH_SIZE, rows: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """(rows, padded features) of a dataset, or of some of its rows, shortest examples first."""
    rows = np.arange(len(dataset)) if rows is None else rows
    order = rows[np.argsort(dataset.lengths[rows], kind="stable")]
    for begin in range(0, len(order), batch_size):
        batch = order[begin : begin + batch_size]
        yield batch, _features_of(dataset, batch)


def _judge_signature(session: Session, answers: Answers, verdict: Verdict) -> None:
    wanted = {"input_ids", "attention_mask", "token_type_ids"}
    inputs, outputs = {value.name for value in session.get_inputs()}, {value.name: value.shape for value in session.get_outputs()}
    if inputs != wanted:
        verdict.fail(f"its inputs are {', '.join(sorted(inputs))}, where {', '.join(sorted(wanted))} should be")
    elif list(outputs) != ["logits"] or outputs["logits"][-1] != answers.exact[0].shape[1]:
        verdict.fail(f"its outputs are {outputs}, where logits of {answers.exact[0].shape[1]} classes should be")


def _judge_grid(session: Session, cases: list[Case], answers: Answers, verdict: Verdict) -> None:
    budget, largest, total, count, chances, worst = verdict.budget, -1.0, 0.0, 0, 0.0, (0, 0)
    for index, (case, exact) in enumerate(zip(cases, answers.exact, strict=True)):
        try:
            given = run_cases(session, case.features)
        except Exception as error:  # onnxruntime's errors share no base class
            verdict.fail(f"{case.name}: it cannot be run ({_first_line(error)})", case.features, exact, np.zeros_like(exact))
            return
        apart = np.abs(given - exact)
        farthest = np.where(np.isfinite(apart), apart, np.inf).max(axis=1)
        row = int(farthest.argmax())
        chance = float(np.abs(_chances(given, answers.several) - _chances(exact, answers.several)).max())
        if not (apart[row].max() <= budget.logits and chance <= budget.probabilities):
            verdict.fail(
                f"{case.where(row)}: logits {_shown(given[row])} where {_shown(exact[row])} should be; apart by {apart[row].max():.3g}, "
                f"probabilities of the batch by {chance:.3g}, and {budget.logits:g} and {budget.probabilities:g} are allowed",
                case.features,
                exact,
                given,
            )
        if farthest[row] > largest:  # where no logit is finite, the first row of all
            largest, worst = float(farthest[row]), (index, row)
        total, count, chances = total + float(apart.sum()), count + apart.size, max(chances, chance)
    mean = total / count
    ratio, share = mean / (answers.noise + _ROUNDING_FLOOR), mean / answers.spread
    verdict.grid = {"cases": len(cases), "rows": sum(len(case.rows) for case in cases), "largest_logit_difference": largest}
    verdict.grid |= {
        "mean_logit_difference": mean,
        "largest_probability_difference": chances,
        "times_eager_float32_error": ratio,
        "mean_share_of_spread": share,
        "worst": cases[worst[0]].where(worst[1]),
    }
    faults = [
        f"{ratio:.3g} times that of the eager model in float32, and {budget.rounding:g} times are allowed"
        if budget.rounding is not None and not ratio <= budget.rounding
        else "",
        f"{share:.2g} of the spread of its logits, and {budget.mean:g} is allowed" if not share <= budget.mean else "",
    ]
    if any(faults) and verdict.fault is None:
        case, exact = cases[worst[0]], answers.exact[worst[0]]
        said = "; ".join(filter(None, faults))
        verdict.fail(
            f"{verdict.grid['worst']}: the mean error of the grid is {said}", case.features, exact, run_cases(session, case.features)
        )
        verdict.is_of_the_mean = True


def _judge_int32(model: Path, cases: list[Case], answers: Answers, verdict: Verdict, providers: Sequence[str] | None) -> None:
    """The same graph, declared to take int32, must say the same. One that takes int32 already has no casts, and cannot take int64."""
    import onnx

    proto = onnx.load(model)
    if proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT32:
        verdict.grid["int32_inputs"] = "its own"
        return
    for value in proto.graph.input:
        value.type.tensor_type.elem_type = onnx.TensorProto.INT32
    if proto.ByteSize() >= 2**31 - 2**16:
        verdict.grid["int32_inputs"] = "not asked: the graph and its weights are more than a message may hold"
        return
    session = open_session(proto.SerializeToString(), providers)
    asked = [index for index, case in enumerate(cases) if case.features["input_ids"].size <= _INT32_TOKENS]
    for index in asked:
        given = run_cases(session, cases[index].features)
        apart = np.abs(given - answers.exact[index])
        if not apart.max() <= verdict.budget.logits:
            row = int(apart.max(axis=1).argmax())
            fault = f"{cases[index].where(row)}, with int32 inputs: apart by {apart.max():.3g}"
            verdict.fail(fault, cases[index].features, answers.exact[index], given)
    verdict.grid["int32_inputs"] = f"{len(asked)} cases"


def judge_weights(model: Path, weights: Sequence[CheckpointWeights | KeptWeights], answers: Answers, verdict: Verdict) -> None:
    """The audit of a file that has no fault so far; of one whose mean error is too large, to tell what makes it so."""
    if not weights or not (verdict.fault is None or verdict.is_of_the_mean):
        return
    import onnx

    proto = onnx.load(model)
    add_audits([known.audit(proto, verdict.file in HALF_FILES) for known in weights], answers, verdict)


def add_audits(audits: Sequence[Audit], answers: Answers, verdict: Verdict) -> None:
    """Put what audits have found into a verdict without a fault, or with one of the mean alone."""
    faults = []
    for found in audits:
        verdict.weights |= found.to_dict()
        faults += [found.fault] if found.fault is not None else []
    if faults:
        verdict.fault = faults[0] if verdict.fault is None else f"{verdict.fault}: {faults[0]}"
    elif verdict.fault is not None and verdict.budget.rounding is not None:
        verdict.fault += ": its weights are the checkpoint's, so an operator or a constant is off"
    elif verdict.fault is not None:  # a head from random numbers: 0.063 of the spread in int8, and every answer the same
        verdict.fault += (
            f": its weights are the checkpoint's, but the model's own logits differ by {answers.spread:.2g} alone (their standard deviation "
            "over the grid), too little for how this form rounds and cuts off; a head that was not trained answers so"
        )


def _judge_data(session: Session, part: Evidence, verdict: Verdict) -> None:
    dataset, expected, budget = part.dataset, part.logits.astype(np.float64), verdict.budget
    given = run_dataset(session, dataset, expected.shape[1]).astype(np.float64)
    task = dataset.task
    agrees = agree(given, expected, task, part.calibration)
    apart = np.abs(given - expected)
    found: dict[str, Any] = {
        "examples": len(dataset),
        "source": Path(dataset.source).name,
        "largest_logit_difference": float(apart.max()),
        "mean_logit_difference": float(apart.mean()),
        "largest_probability_difference": _chances_apart(given, expected, task, part.calibration),
        "agreement": float(agrees.mean()),
        "differing": [
            {"index": int(row), "where": where(dataset, int(row)), "eager": expected[row].tolist(), "onnx": given[row].tolist()}
            for row in np.flatnonzero(~agrees)
        ],
    }
    verdict.data[part.name] = found
    if dataset.labels is not None:
        name, eager = task.main_metric, compute_metrics(task, expected, dataset.labels)
        found["metrics"] = {"name": name, "eager": eager}
        if np.isfinite(given).all():  # else there is no metric, and the logits are out of budget
            found["metrics"]["onnx"] = compute_metrics(task, given, dataset.labels)
            found["points_lost"] = 100 * (eager[name] - found["metrics"]["onnx"][name])
    row = int(np.argmax(np.where(agrees, 0, 2 + apart.max(axis=1)))) if not agrees.all() else int(apart.max(axis=1).argmax())
    features = _features_of(dataset, np.array([row]))
    reasons = [
        f"agreement {found['agreement']:.4%}, and {budget.agreement:.2%} is asked" if not found["agreement"] >= budget.agreement else "",
        f"{found['points_lost']:.3g} points of the metric lost, and {budget.metric:g} are allowed"
        if not found.get("points_lost", 0.0) <= budget.metric + 1e-9
        else "",
        f"logits apart by {apart.max():.3g}, and {budget.logits:g} is allowed" if not apart.max() <= budget.logits else "",
    ]
    if any(reasons):
        fault = f"{part.name}, {where(dataset, row)}: logits {_shown(given[row])} where {_shown(expected[row])} should be; "
        verdict.fail(fault + "; ".join(filter(None, reasons)), features, expected[row : row + 1], given[row : row + 1])


def where(dataset: Examples, row: int) -> str:
    """File and line of an example, without the folders of this machine."""
    return dataset.where(row).replace(dataset.source, Path(dataset.source).name)


def _features_of(dataset: Examples, rows: np.ndarray) -> dict[str, np.ndarray]:
    features = dataset.batch(rows).to_features()
    features.pop("labels", None)
    return {name: tensor.numpy() for name, tensor in features.items()}


def agree(given: np.ndarray, expected: np.ndarray, task: Task, calibration: Calibration) -> np.ndarray:
    """Which examples [n] have the same answer: the same class, or none, as the calibration reads the logits; of several labels a text just the same ones; or
    scores within a small share of all scores' spread."""
    if not task.is_regression:
        is_finite = np.isfinite(given).all(axis=1)
        answers = [
            calibration.decisions(task, calibration.probabilities(task, np.where(is_finite[:, None], logits, 0.0)))
            for logits in (given, expected)
        ]
        return is_finite & (answers[0] == answers[1]).all(axis=1)
    return np.abs(given - expected)[:, 0] <= _SCORES_APART * max(float(np.ptp(expected)), 1e-6)


def _chances_apart(given: np.ndarray, expected: np.ndarray, task: Task, calibration: Calibration) -> float:
    """The largest difference of a probability, as the calibration reads the logits; of a regression none."""
    if task.is_regression:
        return 0.0
    return float(np.abs(calibration.probabilities(task, given) - calibration.probabilities(task, expected)).max())


def _chances(logits: np.ndarray, several: bool) -> np.ndarray:
    """The probabilities: softmax over classes, or of several labels a text each label's sigmoid; of a regression, nothing."""
    if several:
        return sigmoid(logits)
    return np.zeros_like(logits) if logits.shape[1] == 1 else softmax(logits)


def _shown(logits: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:.5g}" for value in logits) + "]"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
