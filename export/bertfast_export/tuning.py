"""`bertfast tune`: every verified variant of a bundle, held to the judge's grid on this machine and then timed, and the fastest noted in the bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bertfast import machine
from bertfast.errors import ExportError
from bertfast.storage import folders, named
from bertfast.wording import counted
from bertfast_export.bundle import read_record
from bertfast_export.choice import TUNING_FILE, Choice, Setting, machine_kind, write_choice
from bertfast_export.classifier import Files, open_variant
from bertfast_export.contract import OPENVINO_VARIANTS, VARIANTS, verdict_name
from bertfast_export.judge import BUDGETS, Answers, KeptEvidence, Verdict, judge_session
from bertfast_export.runtime import Session, input_types
from bertfast_export.streams import batches, side_by_side

# n texts, B batch, S sequence

_BUDGETS_OF_TOKENS = (1024, 2048, 4096)
_USUAL_BUDGET = 2048
_TOKENS = 12_000  # of the texts that a round computes, at most
_ROUNDS, _LAST_ROUNDS = 2, 5
_GRID_TOKENS = 600  # of the grid's cases that are asked: the kernels are other ones here, the weights are not
_FINALISTS = 3
_SLOWEST = 3.0  # times the fastest of the first round; what is slower is measured no more
_IDS = 1000  # made-up ids begin here, beyond the special tokens of usual vocabularies
_SINGLE = 16  # texts that are asked one at a time

Say = Callable[[str], None]


@dataclass
class _Contender:
    """A setting, ready to run, and the seconds that it took."""

    setting: Setting
    session: Session
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return median(self.seconds)


def tune_bundle(folder: str, lengths: np.ndarray | None = None, say: Say = print) -> Choice:
    """Measure a bundle on this machine and write the choice into it.

    A round asks every setting once, in turn, so that what else the machine does falls on all alike; medians are compared. Only variants that keep the
    judge's budgets on its grid here are timed.

    Args:
        lengths: tokens [n] of texts as the bundle will meet them; left out, those of the data that it was verified on.
        say: takes lines that tell how far it is.

    Raises:
        ExportError: no bundle is there, it keeps no lengths and none are given, nothing of it can run here, or the choice cannot be written.
    """
    path = folders.standing(named(folder))
    record, files, kept = read_record(path), Files(path), KeptEvidence(path)
    lengths = _sampled(lengths if lengths is not None else _kept_lengths(path, kept))
    threads, vocabulary = machine.threads(), 1 + max(int(case.features["input_ids"].max()) for case in kept.cases)
    say(f"{path}: {len(lengths)} texts of {int(lengths.mean())} tokens on average, {threads} threads, {machine_kind()['processor']}")
    usable = [variant for variant in files.variants if _keeps_its_budget(variant, files, kept, say)]
    if not usable:
        raise ExportError(f"{path}: none of its variants ({', '.join(files.variants)}) can be used on this machine; export it again here")
    settings = [Setting(variant, streams, _USUAL_BUDGET) for variant in usable for streams in sorted({1, threads})]
    texts = _made_up(lengths, vocabulary)
    sessions = {
        (setting.variant, setting.streams): open_variant(files, setting.variant, None, None, setting.streams)[0] for setting in settings
    }
    say(f"timing {len(settings)} settings in turn: {', '.join(usable)}")
    many = _fastest_of_many(settings, sessions, texts, lengths)
    singles = [_Contender(setting, sessions[setting.variant, 1]) for setting in settings if setting.streams == 1]
    some = np.linspace(0, len(texts) - 1, min(_SINGLE, len(texts))).astype(int)

    def one_at_a_time(contender: _Contender) -> None:
        for row in some:
            _run(contender.session, texts, np.array([row]))

    _race(singles, one_at_a_time, _LAST_ROUNDS)
    one = min(singles, key=lambda contender: contender.median)
    choice = Choice(many[0].setting, Setting(one.setting.variant, 1, _USUAL_BUDGET))
    measured = _rows(many, len(lengths), record, "many texts") + _rows(
        sorted(singles, key=lambda found: found.median), len(some), record, "one text"
    )
    for row in measured:
        say(_line(row))
    write_choice(path, choice, measured)
    say(
        f"{path / TUNING_FILE}: {choice.many.variant} in {counted(choice.many.streams, 'stream')} for many texts, {choice.one.variant} for one at a time"
    )
    return choice


def _keeps_its_budget(variant: str, files: Files, kept: KeptEvidence, say: Say) -> bool:
    """Whether a variant is on this machine what it was where it was verified: kernels, and so roundings, go by the CPU."""
    name = _name_of(variant)
    try:
        session, _ = open_variant(files, variant, None, None, 1)
    except ExportError as error:
        say(f"{variant}: not measured; {error}")
        return False
    budget = BUDGETS[name]  # its means are those of the whole grid, and vary over a part of it
    verdict = Verdict(name, replace(budget, mean=2 * budget.mean, rounding=None if budget.rounding is None else 2 * budget.rounding))
    chosen = [index for index, case in enumerate(kept.cases) if case.features["input_ids"].size <= _GRID_TOKENS]
    exact, rounded = ([answers[index] for index in chosen] for answers in (kept.answers.exact, kept.answers.rounded))
    judge_session(session, [kept.cases[index] for index in chosen], Answers(exact, rounded, kept.answers.several), [], verdict)
    if verdict.fault is not None:
        say(f"{variant}: not measured; {verdict.fault}")
    return verdict.fault is None


def _fastest_of_many(
    settings: Sequence[Setting], sessions: Mapping[tuple[str, int], Session], texts: list[dict[str, np.ndarray]], lengths: np.ndarray
) -> list[_Contender]:
    """Contenders, the fastest first: all with the usual budget of tokens, then the fastest with others too."""

    def run(contender: _Contender) -> None:
        setting = contender.setting
        work = iter(batches(lengths, setting.batch_tokens))
        side_by_side(work, lambda rows: _run(contender.session, texts, rows), setting.streams)

    first = [_Contender(setting, sessions[setting.variant, setting.streams]) for setting in settings]
    _race(first, run, 1)
    least = min(contender.median for contender in first)
    first = [contender for contender in first if contender.median <= _SLOWEST * least]
    _race(first, run, _ROUNDS, is_warm=True)
    first.sort(key=lambda contender: contender.median)
    finalists = [
        _Contender(Setting(best.setting.variant, best.setting.streams, budget), best.session)
        for best in first[:_FINALISTS]
        for budget in _BUDGETS_OF_TOKENS
    ]
    _race(finalists, run, _LAST_ROUNDS)
    finalists.sort(key=lambda contender: contender.median)
    return [*finalists, *first[_FINALISTS:]]


def _race(contenders: Sequence[_Contender], run: Callable[[_Contender], None], rounds: int, is_warm: bool = False) -> None:
    """Time each in turn, after a run that is not timed: kernels are made for a shape when it first comes."""
    for is_timed in [*([] if is_warm else [False]), *([True] * rounds)]:
        for contender in contenders:
            begin = time.perf_counter()
            run(contender)
            if is_timed:
                contender.seconds.append(time.perf_counter() - begin)


def _run(session: Session, texts: list[dict[str, np.ndarray]], rows: np.ndarray) -> None:
    width = max(len(texts[row]["input_ids"]) for row in rows)
    features = {name: np.zeros((len(rows), width), dtype=kind) for name, kind in input_types(session).items()}
    for place, row in enumerate(rows):
        for name, values in texts[row].items():
            features[name][place, : len(values)] = values
    session.run(["logits"], features)


def _made_up(lengths: np.ndarray, vocabulary: int) -> list[dict[str, np.ndarray]]:
    """Texts of these lengths: the time does not depend on their words."""
    rng, least = np.random.default_rng(0), min(_IDS, vocabulary - 1)
    return [
        {"input_ids": rng.integers(least, vocabulary, length), "attention_mask": np.ones(length), "token_type_ids": np.zeros(length)}
        for length in lengths
    ]


def _name_of(variant: str) -> str:
    """What the record calls a variant."""
    return verdict_name(variant) if variant in OPENVINO_VARIANTS else VARIANTS[variant]


def _kept_lengths(path: Path, kept: KeptEvidence) -> np.ndarray:
    if not kept.lengths:
        raise ExportError(
            f"{path}: keeps no lengths of texts, being verified on made-up batches alone or by an earlier bertfast; give texts with --input FILE"
        )
    return np.concatenate(list(kept.lengths.values()))


def _sampled(lengths: np.ndarray) -> np.ndarray:
    """Some of the lengths, evenly spread, of _TOKENS tokens at most."""
    ordered = np.sort(lengths)
    count = max(1, min(len(ordered), int(_TOKENS / max(float(ordered.mean()), 1.0))))
    return ordered[np.linspace(0, len(ordered) - 1, count).astype(int)]


def _rows(contenders: Sequence[_Contender], texts: int, record: Mapping[str, Any], what: str) -> list[dict[str, Any]]:
    rows = []
    for contender in contenders:
        setting, times = contender.setting, contender.seconds
        verdict = record["verdicts"].get(_name_of(setting.variant), {})
        agreement = min((part["agreement"] for part in verdict.get("data", {}).values()), default=None)
        rows.append(
            {
                "what": what,
                "variant": setting.variant,
                "streams": setting.streams,
                "batch_tokens": setting.batch_tokens if what == "many texts" else None,
                "texts_per_second": round(texts / contender.median, 2),
                "range": [round(texts / max(times), 2), round(texts / min(times), 2)],
                "same_answers": agreement,
            }
        )
    return rows


def _line(row: Mapping[str, Any]) -> str:
    agreement = "not judged on data" if row["same_answers"] is None else f"{row['same_answers']:.2%} the same answers"
    how = f"{counted(row['streams'], 'stream')}, batches of {row['batch_tokens']:,} tokens" if row["batch_tokens"] else "one at a time"
    least, most = row["range"]
    return f"{row['variant']}, {how}: {row['texts_per_second']:,.0f} texts/s ({least:,.0f} to {most:,.0f}); {agreement}"
