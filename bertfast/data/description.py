"""What is told of a split before anything is learned from it: its rows, its labels and what they were taken for, its tokens; and what is odd."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bertfast.config import TruncationConfig
from bertfast.data.encoded import EncodedDataset
from bertfast.data.truncation import leaves_no_tail, num_pieces
from bertfast.readers import RawSplit, is_shard
from bertfast.tasks import Task
from bertfast.wording import counted

NO_EVALUATION = "left out: nothing is evaluated, and the model of the last step is the one that is kept"

_SHOWN_CLASSES = 8
_FEW_CLASSES = 20  # with more, classes of one row are odd, and so are classes that are all numbers
_MUCH = 0.5  # of the rows: what is cut of more than these is odd
_NO_LABELS = ("na", "n/a", "#n/a", "null", "none", "nil")  # as programs write them


class Description(NamedTuple):
    """A split in a line, and what is odd about it but no fault."""

    detail: str
    warning: str

    def __str__(self) -> str:
        return f"{self.detail}; {self.warning}" if self.warning else self.detail


def describe(data: EncodedDataset | RawSplit, asked: Task, truncation: TruncationConfig) -> Description:
    """What validate and the first lines of a run say of a split. asked: the task before the split was read; of what its labels told, it is said
    that they did."""
    labels, odd = _labels(data, asked)
    if is_shard(data.source):
        odd.append("the file is one of several that hold a split together: name their folder as data_dir to read them all")
    tokens = "not tokenised"
    if isinstance(data, EncodedDataset):
        tokens = _tokens(data)
        if not data.has_pieces and (data.num_cut or 0) > _MUCH * len(data):
            odd.append("more than half of the rows are cut: raise max_sequence_length, or choose another truncation")
        if leaves_no_tail(truncation, data.max_sequence_length - (3 if data.task.is_pair else 2)):
            odd.append(f"truncation.head_tokens = {truncation.head_tokens} leaves no room for any token of the tail")
    return Description(f"{data.source}: {counted(len(data), 'row')}; {labels}; {tokens}", "; ".join(odd))


def _tokens(data: EncodedDataset) -> str:
    lengths = np.sort(data.lengths)
    shown = f"tokens: mean {lengths.mean():.1f}, 95 % up to {lengths[int(0.95 * (len(lengths) - 1))]}, longest {lengths[-1]}"
    if data.has_pieces:
        shown += f", in {num_pieces(lengths, data.max_sequence_length).mean():.2f} pieces of up to {data.max_sequence_length}"
        if data.num_cut:
            shown += f", {data.num_cut / len(data):.2%} cut after the last piece that is read"
    elif data.num_cut is not None:
        shown += f", {data.num_cut / len(data):.2%} cut at {data.max_sequence_length}"
    return shown + (f", {counted(data.num_empty, 'row')} with an empty text" if data.num_empty else "")


def _labels(data: EncodedDataset | RawSplit, asked: Task) -> tuple[str, list[str]]:
    """The labels in words, and what is odd about them."""
    if data.labels is None:
        return "no labels", []
    is_guess = not asked.is_complete and asked.kind is None and not asked.main_metric
    if data.task.is_regression:
        return _scores(data.labels, is_guess)
    names, several = data.task.class_names, data.task.is_multilabel
    counts = (data.labels.sum(axis=0, dtype=np.int64) if several else np.bincount(data.labels, minlength=len(names))).tolist()
    shown = ", ".join(f"{name} {count:,}" for name, count in zip(names[:_SHOWN_CLASSES], counts, strict=False))
    if len(names) > _SHOWN_CLASSES:
        shown += f" and {len(names) - _SHOWN_CLASSES} more classes"
    odd: list[str] = []
    if several:
        shown, odd = _several(data, shown)
    if absent := [name for name, count in zip(names, counts, strict=True) if count == 0]:
        odd.append(f"no row of class {', '.join(absent[:_SHOWN_CLASSES])}")
    if asked.is_complete:
        return shown, odd
    if len(names) > _FEW_CLASSES and 2 * counts.count(1) > len(names):
        odd.append(f"{counts.count(1)} of {len(names)} classes have one row each")
    odd += _odd_names(names)
    if is_guess and len(names) > _FEW_CLASSES and all(name.lstrip("+-").isdecimal() for name in names):
        odd.append("every class is a number: set task.kind = 'regression' if they are scores")
    parted = "" if not (several and data.task.label_separator) else f", parted by {data.task.label_separator!r}"
    return f"{len(names)} {'labels' if several else 'classes'}, as the {'rows' if several else 'labels'} name them{parted}: {shown}", odd


def _several(data: EncodedDataset | RawSplit, shown: str) -> tuple[str, list[str]]:
    """How many labels a text has."""
    assert data.labels is not None
    of_text = data.labels.sum(axis=1, dtype=np.int64)
    without = int((of_text == 0).sum())
    shown = (
        f"several labels a text, {of_text.mean():.2f} in the mean, {int(of_text.max())} at most, none of {counted(without, 'row')}: {shown}"
    )
    odd = (
        ["no row has more than one label: leave out task.labels, and classes exclude each other"]
        if of_text.max() == 1 and not without
        else []
    )
    odd += ["no row has a label"] if without == len(of_text) else []
    return shown, odd


def _scores(scores: np.ndarray, is_guess: bool) -> tuple[str, list[str]]:
    shown = f"labels {scores.min():g} to {scores.max():g}, mean {scores.mean():.3f}"
    odd = ["every label is the same"] if scores.min() == scores.max() else []
    if not is_guess:
        return shown, odd
    if (scores == np.round(scores)).all():
        odd.append("every score is a whole number: set task.kind = 'classification' if they are classes")
    return f"regression, as the labels are numbers with a decimal point: {shown}", odd


def _odd_names(names: tuple[str, ...]) -> list[str]:
    """Classes that may be no class, or the same class as another."""
    odd = [f"class {name!r} may stand for a missing label" for name in names if name.lower() in _NO_LABELS]
    alike: dict[str, str] = {}
    for name in names:
        other = alike.setdefault(name.lower().lstrip("0") if name.isdecimal() else name.casefold(), name)
        if other != name:
            odd.append(f"{other!r} and {name!r} are two classes")
    return odd[:_SHOWN_CLASSES]
