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
# Of several labels a text; each is the function of that name in label_metrics.py. The first is the default.
MULTILABEL_METRICS = ("micro_f1", "macro_f1", "samples_f1", "exact_match", "mean_average_precision", "roc_auc")


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
    known yet; with None, they tell by how they look. labels: "one" or "several" a text (then any number of them hold, none too); None: one, unless the data
    hold lists. label_columns: columns of 0 and 1, one for each label. label_separator: what stands between the labels in a field of a CSV or TSV. metrics: functions of metrics.py; main_metric picks the best checkpoint. published: source -> metric -> the score of BERT-base, as a fraction.
    """

    name: str
    text_columns: tuple[str, ...]
    label_column: str
    label_names: tuple[str, ...] | None
    is_regression: bool = False
    kind: str | None = None
    labels: str | None = None
    label_columns: tuple[str, ...] = ()
    label_separator: str | None = None
    metric_is_asked: bool = False  # the config names main_metric
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
    def is_multilabel(self) -> bool:
        """Whether any number of the labels may hold of a text at once."""
        return self.labels == "several"

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
        known = REGRESSION_METRICS if is_regression else MULTILABEL_METRICS if self.is_multilabel else CLASS_METRICS
        if asked and asked not in known:
            raise ConfigError(f"task {self.name}: metric = {asked!r}, but {_MISFITS[known]}, or leave it out")
        if asked == "f1" and label_names is not None and len(label_names) != 2:
            raise ConfigError(f"task {self.name}: metric = 'f1' is for two classes, and there are {len(label_names)}; use 'macro_f1'")
        default = ("accuracy",) if known is CLASS_METRICS else known
        metrics = tuple(dict.fromkeys([*default, asked] if asked else default))
        return replace(self, label_names=label_names, is_regression=is_regression, metrics=metrics, main_metric=asked or default[0])

    def of_several(self) -> Task:
        """The same task, with several labels a text: as its data tell.

        Raises:
            ConfigError: the task is a regression, or was said to have one label a text.
        """
        if self.is_multilabel:
            return self
        is_regression = self.is_regression or self.kind == "regression"
        if is_regression or self.labels == "one" or self.layout.kind != "own":
            what = "a regression" if is_regression else "of one label a text"
            fix = "give one label a row" if self.layout.kind != "own" else "set task.labels = 'several', or give one label a row"
            raise ConfigError(f"task {self.name} is {what}, and its data hold lists of labels; {fix}")
        asked = self.main_metric if self.metric_is_asked or not self.is_complete else ""
        task = replace(self, labels="several", main_metric=asked)
        return task if self.label_names is None else task.with_labels(self.label_names)


_MISFITS = {
    REGRESSION_METRICS: "the labels are numbers; choose a metric of regression",
    CLASS_METRICS: "the labels are classes; choose a metric of classification",
    MULTILABEL_METRICS: f"a text has several labels; choose {', '.join(MULTILABEL_METRICS[:-1])} or {MULTILABEL_METRICS[-1]}",
}
