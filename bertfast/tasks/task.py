"""The tasks: which columns hold the texts and the label, what the classes are called, which metrics count, how the files are laid out.

`TASKS` holds the known ones; `get_task` also makes a Task from the `TaskConfig` of a user's own data. Class order is that of the
`datasets` hub, so that a checkpoint trained here and one trained there agree on what class 0 is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bertfast.errors import ConfigError, DataError

# Each is the function of that name in metrics.py.
CLASS_METRICS = ("accuracy", "f1", "macro_f1", "matthews_correlation")
REGRESSION_METRICS = ("pearson", "spearman", "pearson_spearman")


@dataclass(frozen=True)
class FileLayout:
    """How a task's own distribution lays out its files.

    kind: "glue" (TSV, no quoting), "zhang" (the CSVs of Zhang et al. 2015), "imdb" (folders of one file a review), "trec"
    (`COARSE:fine text`), or "own" (a user's file with a header). folders: what the task's folder is called. files: for each split, the
    names that its file may have. aliases: other header names of a column. no_header: the columns of a file without a header, in order.
    """

    kind: str = "own"
    folders: tuple[str, ...] = ()
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    no_header: tuple[str, ...] | None = None
    first_label: int = 0  # the number of the first class in the files
    newline_escape: str | None = None  # what the files write for a line break inside a text
    skip_short_rows: bool = False  # the official files hold torn rows, which everyone drops


@dataclass(frozen=True)
class HubSet:
    """The same data on the hub: load_dataset(name, config). Several text columns of one text are joined by a blank."""

    name: str
    config: str | None
    text_columns: tuple[tuple[str, ...], ...]
    label_column: str = "label"
    splits: Mapping[str, str] = field(default_factory=dict, hash=False)  # our name of a split -> the hub's, where they differ


@dataclass(frozen=True)
class Task:
    """One text classification or regression task.

    text_columns: one column (a sentence) or two (a pair). label_names: in class order; None for regression, and for a user's own task
    whose classes are not known until its training data is read (`is_complete` tells). kind: what the config says of labels that are not
    known yet; with None, they tell by how they look. metrics: functions of metrics.py; main_metric picks the best checkpoint. published: source -> metric -> the score of BERT-base, as a fraction.
    """

    name: str
    text_columns: tuple[str, ...]
    label_column: str
    label_names: tuple[str, ...] | None
    is_regression: bool = False
    kind: str | None = None
    metrics: tuple[str, ...] = ("accuracy",)
    main_metric: str = "accuracy"
    train_splits: tuple[str, ...] = ("train",)
    eval_splits: tuple[str, ...] = ("dev",)
    test_splits: tuple[str, ...] = ("test",)
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict, hash=False)
    layout: FileLayout = FileLayout()
    hub: HubSet | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.train_splits, *self.eval_splits, *self.test_splits)))

    @property
    def is_pair(self) -> bool:
        return len(self.text_columns) == 2

    @property
    def is_complete(self) -> bool:
        """Whether it is known what the labels are."""
        return self.is_regression or self.label_names is not None

    @property
    def num_labels(self) -> int:
        """The number of logits: one a class, and 1 for regression.

        Raises:
            DataError: where the classes are not known yet.
        """
        return 1 if self.is_regression else len(self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes are called, in order.

        Raises:
            DataError: where they are not known yet.
            ValueError: of a regression, which has none.
        """
        if self.is_regression:
            raise ValueError(f"task {self.name} is a regression and has no classes")
        if self.label_names is None:
            raise DataError(f"task {self.name}: its classes are not known before its training data is read; or give label_names")
        return self.label_names

    def with_labels(self, label_names: tuple[str, ...] | None) -> Task:
        """The same task with its classes known (None: it is regression), and the metrics that fit.

        Raises:
            ConfigError: where the metric asked for does not fit.
        """
        is_regression = label_names is None
        asked = self.main_metric
        if asked and (asked in REGRESSION_METRICS) != is_regression:
            kind, of = ("numbers", "regression") if is_regression else ("classes", "classification")
            raise ConfigError(f"task {self.name}: metric = {asked!r}, but the labels are {kind}; choose a metric of {of}, or leave it out")
        if asked == "f1" and label_names is not None and len(label_names) != 2:
            raise ConfigError(f"task {self.name}: metric = 'f1' is for two classes, and there are {len(label_names)}; use 'macro_f1'")
        default = ("pearson", "spearman", "pearson_spearman") if is_regression else ("accuracy",)
        metrics = tuple(dict.fromkeys([*default, asked] if asked else default))
        return replace(self, label_names=label_names, is_regression=is_regression, metrics=metrics, main_metric=asked or default[0])
