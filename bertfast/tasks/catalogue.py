"""The known tasks, and the Task of a user's own config."""

from __future__ import annotations

from bertfast.config import TaskConfig
from bertfast.errors import ConfigError
from bertfast.tasks.task import CLASS_METRICS, MULTILABEL_METRICS, REGRESSION_METRICS, FileLayout, HubSet, Task
from bertfast.wording import did_you_mean


def get_task(task: str | TaskConfig | Task) -> Task:
    """The Task of that name, or of a user's own `TaskConfig`.

    Raises:
        ConfigError: an unknown name (with the nearest known one), columns or label names that stand twice, a metric that does not fit.
    """
    if isinstance(task, Task):
        return task
    if isinstance(task, TaskConfig):
        return _own_task(task)
    if task not in TASKS:
        hint = did_you_mean(task.replace("-", ""), TASKS, f"known tasks: {', '.join(TASKS)}")
        own = "for data of your own, make it a block with text_columns and label_column"
        raise ConfigError(f"bertfast.task = {task!r}: no such task; {hint} ({own})")
    return TASKS[task]


_OF_SEVERAL = set(MULTILABEL_METRICS) - set(CLASS_METRICS)  # a metric that says by itself that a text has several labels


def _own_task(config: TaskConfig) -> Task:
    where = f"bertfast.task ({config.name})"
    labels, key = (config.label_columns, "label_columns") if config.label_columns else ((config.label_column,), "label_column")
    columns = [*config.text_columns, *labels]
    for column in columns:
        if columns.count(column) > 1:
            raise ConfigError(f"{where}: the column {column!r} stands twice in text_columns and {key}")
    names = config.label_names or config.label_columns
    if names is not None:
        if len(names) < 2:
            raise ConfigError(f"{where}: label_names has {len(names)} name; a classifier needs two or more (for regression leave it out)")
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ConfigError(f"{where}: label_names holds {twice[0]!r} twice")
    if config.metric is not None and config.metric not in (known := sorted({*CLASS_METRICS, *REGRESSION_METRICS, *MULTILABEL_METRICS})):
        hint = did_you_mean(config.metric, known, f"known metrics: {', '.join(known)}")
        raise ConfigError(f"{where}: metric = {config.metric!r}: there is no such metric; {hint}")
    _check_kind(config, where)
    task = Task(
        config.name,
        config.text_columns,
        config.label_column,
        label_names=None,
        kind=config.kind,
        labels="several" if config.is_multilabel or config.metric in _OF_SEVERAL else config.labels,
        label_columns=config.label_columns or (),
        label_separator=config.label_separator,
        metric_is_asked=config.metric is not None,
        metrics=(),
        main_metric=config.metric or "",
    )
    if names is not None:
        return task.with_labels(names)
    return task.with_labels(None) if config.kind == "regression" or config.metric in REGRESSION_METRICS else task


def _check_kind(config: TaskConfig, where: str) -> None:
    """Raise ConfigError where `kind` contradicts the other keys."""
    if config.kind == "regression" and config.label_names is not None:
        raise ConfigError(f"{where}: kind = 'regression' has scores and no classes; leave out label_names, or make kind 'classification'")
    for key in ("label_columns", "label_separator", "labels"):
        value = getattr(config, key)
        if value is None or (key == "labels" and value == "one"):
            continue
        if config.kind == "regression" or config.metric in REGRESSION_METRICS:
            said = "kind = 'regression'" if config.kind == "regression" else f"metric = {config.metric!r}"
            raise ConfigError(f"{where}: {said} is of one score a text, and {key} of several labels; take one of them out")
        if config.labels == "one":
            raise ConfigError(f"{where}: labels = 'one', but {key} is of several labels a text; take one of them out")
    if config.labels == "one" and config.metric in _OF_SEVERAL:
        raise ConfigError(f"{where}: labels = 'one', but metric = {config.metric!r} is of several labels a text; change one of them")
    if config.label_columns and config.label_separator:
        raise ConfigError(
            f"{where}: label_columns has a column for each label, and label_separator parts the labels in one; take one of them out"
        )
    if config.label_columns and config.label_names and len(config.label_names) != len(config.label_columns):
        raise ConfigError(
            f"{where}: {len(config.label_columns)} label_columns and {len(config.label_names)} label_names; give a name for each column, or no names"
        )
    of = "regression" if config.metric in REGRESSION_METRICS else "classification"
    if None not in (config.kind, config.metric) and config.kind != of:
        raise ConfigError(f"{where}: kind = {config.kind!r}, but metric = {config.metric!r} is one of {of}; change one of them")


def _glue(name, folders, text_columns, label_names, *, label_column="label", hub_columns=None, layout=None, **rest) -> Task:
    """A GLUE task. Its hub columns are looked for in its files too, so that an export of the hub's data reads like the original."""
    hub_columns, layout = hub_columns or text_columns, layout or {}
    splits = (*rest.get("train_splits", ("train",)), *rest.get("eval_splits", ("dev",)), *rest.get("test_splits", ("test",)))
    files = {split: (f"{split}.tsv",) for split in splits} | layout.pop("files", {})
    aliases = {label_column: ("label",), **dict(zip(text_columns, ((column,) for column in hub_columns), strict=True))}
    for column, names in layout.pop("aliases", {}).items():
        aliases[column] = (*aliases[column], *names)
    hub_splits = {"dev": "validation", "dev_matched": "validation_matched", "dev_mismatched": "validation_mismatched"}
    hub = HubSet("nyu-mll/glue", name, tuple((column,) for column in hub_columns), splits=hub_splits)
    return Task(
        name, text_columns, label_column, label_names, layout=FileLayout("glue", folders, files, aliases, **layout), hub=hub, **rest
    )


def _zhang(name, folder, label_names, hub_name, hub_columns, *, accuracy, newline_escape="\\n", hub_label="label") -> Task:
    """One of the sets of Zhang et al. 2015: train.csv and test.csv with no header, the class (from 1) first, then the parts of the text."""
    layout = FileLayout(
        "zhang",
        (folder, name),
        {"train": ("train.csv", "train.tsv"), "test": ("test.csv", "test.tsv")},
        {"label": ("class", "Class Index", "class_index", hub_label)},
        first_label=1,
        newline_escape=newline_escape,
    )
    hub = HubSet(hub_name, None, (hub_columns,), hub_label)
    published = {SUN_2019: {"accuracy": accuracy}}
    return Task(name, ("text",), "label", label_names, eval_splits=("test",), layout=layout, hub=hub, published=published)


# Scores of BERT-base. GLUE's test scores are from its server: F1 for mrpc and qqp, Spearman for stsb (Devlin et al. 2019, table 1). GLUE's
# dev scores are from the README of transformers' examples/pytorch/text-classification. The text classification sets are 1 - test error of
# plain fine-tuning, "BERT-FiT" (Sun et al. 2019, "How to Fine-Tune BERT for Text Classification?").
DEVLIN_2019 = "test: Devlin et al. 2019, BERT-base"

TRANSFORMERS = "dev: transformers run_glue, bert-base-cased"

SUN_2019 = "test: Sun et al. 2019, BERT-base"


def _scores(test: dict[str, float] | None, **dev: float) -> dict[str, dict[str, float]]:
    return {name: scores for name, scores in ((DEVLIN_2019, test), (TRANSFORMERS, dev)) if scores}


_ACCURACY_AND_F1 = {"metrics": ("accuracy", "f1"), "main_metric": "f1"}

_ENTAILMENT = ("entailment", "not_entailment")

_MNLI_NAMES = ("entailment", "neutral", "contradiction")

_GLUE_TASKS = (
    _glue(
        "cola",
        ("CoLA", "cola"),
        ("sentence",),
        ("unacceptable", "acceptable"),
        metrics=("matthews_correlation",),
        main_metric="matthews_correlation",
        layout={"no_header": ("source", "label", "mark", "sentence")},  # train and dev; test has a header
        published=_scores({"matthews_correlation": 0.521}, matthews_correlation=0.5653),
    ),
    _glue("sst2", ("SST-2", "sst2"), ("sentence",), ("negative", "positive"), published=_scores({"accuracy": 0.935}, accuracy=0.9232)),
    _glue(
        "mrpc",
        ("MRPC", "mrpc"),
        ("#1 String", "#2 String"),
        ("not_equivalent", "equivalent"),
        label_column="Quality",
        hub_columns=("sentence1", "sentence2"),
        layout={
            "files": {
                "train": ("train.tsv", "msr_paraphrase_train.txt"),
                "dev": ("dev.tsv", "msr_paraphrase_train.txt"),
                "test": ("test.tsv", "msr_paraphrase_test.txt"),
            }
        },
        published=_scores({"f1": 0.889}, f1=0.8885, accuracy=0.8407),
        **_ACCURACY_AND_F1,
    ),
    _glue(
        "stsb",
        ("STS-B", "stsb"),
        ("sentence1", "sentence2"),
        None,
        label_column="score",
        is_regression=True,
        metrics=("pearson", "spearman", "pearson_spearman"),
        main_metric="pearson_spearman",
        published=_scores({"spearman": 0.858}, pearson=0.8864, spearman=0.8848),
    ),
    _glue(
        "qqp",
        ("QQP", "qqp"),
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        label_column="is_duplicate",
        layout={"skip_short_rows": True},
        published=_scores({"f1": 0.712}, accuracy=0.9071, f1=0.8749),
        **_ACCURACY_AND_F1,
    ),
    _glue(
        "mnli",
        ("MNLI", "mnli"),
        ("sentence1", "sentence2"),
        _MNLI_NAMES,
        label_column="gold_label",
        hub_columns=("premise", "hypothesis"),
        eval_splits=("dev_matched", "dev_mismatched"),
        test_splits=("test_matched", "test_mismatched"),
        published={
            DEVLIN_2019: {"matched_accuracy": 0.846, "mismatched_accuracy": 0.834},
            TRANSFORMERS: {"matched_accuracy": 0.8391, "mismatched_accuracy": 0.8410},
        },
    ),
    _glue(
        "qnli",
        ("QNLI", "qnli", "QNLIv2"),
        ("question", "sentence"),
        _ENTAILMENT,
        published=_scores({"accuracy": 0.905}, accuracy=0.9066),
    ),
    _glue("rte", ("RTE", "rte"), ("sentence1", "sentence2"), _ENTAILMENT, published=_scores({"accuracy": 0.664}, accuracy=0.6570)),
    _glue("wnli", ("WNLI", "wnli"), ("sentence1", "sentence2"), ("not_entailment", "entailment"), published=_scores(None, accuracy=0.5634)),
    # The diagnostic set of GLUE: no training data of its own, answered by a model of mnli. The labels are only in diagnostic-full.tsv.
    _glue(
        "ax",
        ("diagnostic", "AX", "ax"),
        ("sentence1", "sentence2"),
        _MNLI_NAMES,
        hub_columns=("premise", "hypothesis"),
        layout={
            "aliases": {"sentence1": ("Premise",), "sentence2": ("Hypothesis",), "label": ("Label",)},
            "files": {"test": ("diagnostic-full.tsv", "diagnostic.tsv", "AX.tsv")},
        },
        metrics=("matthews_correlation", "accuracy"),
        main_metric="matthews_correlation",
        train_splits=(),
        eval_splits=("test",),
    ),
)

_TEXT_TASKS = (
    Task(
        "imdb",
        ("text",),
        "label",
        ("neg", "pos"),
        eval_splits=("test",),
        published={SUN_2019: {"accuracy": 0.9460}},
        layout=FileLayout("imdb", ("aclImdb", "imdb"), {split: (split, f"{split}.tsv", f"{split}.csv") for split in ("train", "test")}),
        hub=HubSet("stanfordnlp/imdb", None, (("text",),)),
    ),
    _zhang(
        "ag_news",
        "ag_news_csv",
        ("World", "Sports", "Business", "Sci/Tech"),
        "fancyzhx/ag_news",
        ("text",),
        newline_escape="\\",  # its readme says \n; the files hold a lone backslash, as in "a second\team"
        accuracy=0.9475,
    ),
    _zhang("yelp_polarity", "yelp_review_polarity_csv", ("negative", "positive"), "fancyzhx/yelp_polarity", ("text",), accuracy=0.9772),
    _zhang(
        "yelp_full",
        "yelp_review_full_csv",
        ("1 star", "2 stars", "3 stars", "4 stars", "5 stars"),
        "Yelp/yelp_review_full",
        ("text",),
        accuracy=0.6994,
    ),
    _zhang(
        "yahoo_answers",
        "yahoo_answers_csv",
        (
            "Society & Culture",
            "Science & Mathematics",
            "Health",
            "Education & Reference",
            "Computers & Internet",
            "Sports",
            "Business & Finance",
            "Entertainment & Music",
            "Family & Relationships",
            "Politics & Government",
        ),
        "community-datasets/yahoo_answers_topics",
        ("question_title", "question_content", "best_answer"),
        hub_label="topic",
        accuracy=0.7758,
    ),
    _zhang(
        "dbpedia",
        "dbpedia_csv",
        (
            *("Company", "EducationalInstitution", "Artist", "Athlete", "OfficeHolder", "MeanOfTransportation", "Building"),
            *("NaturalPlace", "Village", "Animal", "Plant", "Album", "Film", "WrittenWork"),
        ),
        "fancyzhx/dbpedia_14",
        ("title", "content"),
        accuracy=0.9929,
    ),
    Task(
        "trec",
        ("text",),
        "label",
        ("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"),
        eval_splits=("test",),
        published={SUN_2019: {"accuracy": 0.9720}},
        layout=FileLayout(
            "trec",
            ("TREC", "trec"),
            {"train": ("train_5500.label", "train.tsv", "train.csv"), "test": ("TREC_10.label", "test.tsv", "test.csv")},
            {"label": ("coarse_label", "label-coarse")},
        ),
        hub=HubSet("CogComp/trec", None, (("text",),), "coarse_label"),
    ),
    _zhang(
        "sogou",
        "sogou_news_csv",
        ("sports", "finance", "entertainment", "automobile", "technology"),
        "community-datasets/sogou_news",
        ("title", "content"),
        accuracy=0.9757,
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in (*_GLUE_TASKS, *_TEXT_TASKS)}
