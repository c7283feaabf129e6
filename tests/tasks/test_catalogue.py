"""The known tasks, and tasks of a user's own."""

from __future__ import annotations

import dataclasses

import pytest

from bertfast.config.schema import TaskConfig
from bertfast.errors import ConfigError, DataError
from bertfast.tasks import metrics
from bertfast.tasks.catalogue import TASKS, get_task
from bertfast.tasks.task import CLASS_METRICS, REGRESSION_METRICS

GLUE = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax"]
OTHERS = ["imdb", "ag_news", "yelp_polarity", "yelp_full", "yahoo_answers", "dbpedia", "trec", "sogou"]

# The features of nyu-mll/glue and of the other sets on the hub, written down from their cards.
CLASSES = {
    "cola": 2,
    "sst2": 2,
    "mrpc": 2,
    "qqp": 2,
    "mnli": 3,
    "qnli": 2,
    "rte": 2,
    "wnli": 2,
    "ax": 3,
    "imdb": 2,
    "ag_news": 4,
    "yelp_polarity": 2,
    "yelp_full": 5,
    "yahoo_answers": 10,
    "dbpedia": 14,
    "trec": 6,
    "sogou": 5,
}
HUB_COLUMNS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
    "ax": ("premise", "hypothesis"),
}


def test_all_tasks_are_there():
    assert sorted(TASKS) == sorted(GLUE + OTHERS)


@pytest.mark.parametrize("name", CLASSES)
def test_number_of_classes(name):
    task = get_task(name)
    assert task.num_labels == CLASSES[name] == len(set(task.label_names))
    assert not task.is_regression and task.is_complete


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("mnli", ("entailment", "neutral", "contradiction")),
        ("rte", ("entailment", "not_entailment")),
        ("qnli", ("entailment", "not_entailment")),
        ("wnli", ("not_entailment", "entailment")),
        ("mrpc", ("not_equivalent", "equivalent")),
        ("trec", ("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM")),
        ("ag_news", ("World", "Sports", "Business", "Sci/Tech")),
    ],
)
def test_classes_stand_in_the_official_order(name, names):
    assert get_task(name).label_names == names


def test_stsb_is_regression():
    task = get_task("stsb")
    assert task.is_regression and task.label_names is None and task.num_labels == 1
    assert set(task.metrics) == set(REGRESSION_METRICS)


@pytest.mark.parametrize("name", GLUE)
def test_glue_on_the_hub(name):
    task = get_task(name)
    assert (task.hub.name, task.hub.config) == ("nyu-mll/glue", name)
    assert task.hub.text_columns == tuple((column,) for column in HUB_COLUMNS[name])


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_is_consistent(task):
    assert task.main_metric in task.metrics
    assert all(len(texts) for texts in task.hub.text_columns) and len(task.hub.text_columns) == len(task.text_columns)
    assert set(task.layout.files) == set(task.splits)
    known = {*task.metrics, "accuracy", "f1", "matched_accuracy", "mismatched_accuracy"}
    for scores in task.published.values():
        assert set(scores) <= known and all(0.3 < score < 1 for score in scores.values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.name = "other"


@pytest.mark.parametrize(
    ("name", "metrics"),
    [("cola", ("matthews_correlation",)), ("mrpc", ("accuracy", "f1")), ("qqp", ("accuracy", "f1")), ("rte", ("accuracy",))],
)
def test_metrics(name, metrics):
    assert get_task(name).metrics == metrics


def test_splits():
    assert get_task("mnli").eval_splits == ("dev_matched", "dev_mismatched")
    assert get_task("mnli").test_splits == ("test_matched", "test_mismatched")
    assert get_task("ax").splits == ("test",)
    assert get_task("imdb").splits == ("train", "test") and get_task("imdb").eval_splits == ("test",)


@pytest.mark.parametrize(("name", "near"), [("mnil", "'mnli'"), ("SST-2", "'sst2'"), ("agnews", "'ag_news'")])
def test_an_unknown_task_names_the_nearest(name, near):
    with pytest.raises(ConfigError, match=f"'{name}'.*did you mean {near}"):
        get_task(name)


def test_an_unknown_task_like_no_other_lists_the_known():
    with pytest.raises(ConfigError, match="known tasks: cola, sst2.*text_columns and label_column"):
        get_task("zzzzzz")


def test_own_task_with_names_is_complete():
    task = get_task(TaskConfig(name="mine", text_columns=("a", "b"), label_column="y", label_names=("no", "yes")))
    assert task.is_complete and task.is_pair and task.num_labels == 2
    assert task.metrics == ("accuracy",) and task.main_metric == "accuracy" and task.eval_splits == ("dev",)


def test_own_task_without_names_waits_for_its_data():
    task = get_task(TaskConfig(text_columns=("a",)))
    assert not task.is_complete
    with pytest.raises(DataError, match=r"custom.*label_names"):
        _ = task.num_labels
    classes = task.with_labels(("x", "y", "z"))
    assert classes.num_labels == 3 and classes.metrics == ("accuracy",) and classes.main_metric == "accuracy"
    scores = task.with_labels(None)
    assert scores.num_labels == 1 and scores.is_regression and scores.main_metric == "pearson"


def test_own_metric_comes_with_the_default_one():
    task = get_task(TaskConfig(text_columns=("a",), label_names=("n", "p"), metric="f1"))
    assert task.metrics == ("accuracy", "f1") and task.main_metric == "f1"


def test_the_kind_makes_it_regression():
    task = get_task(TaskConfig(text_columns=("a",), kind="regression"))
    assert task.is_regression and task.main_metric == "pearson" and task.is_complete
    task = get_task(TaskConfig(text_columns=("a",), kind="classification", metric="f1"))
    assert not task.is_complete and task.kind == "classification" and task.main_metric == "f1"


def test_a_regression_metric_makes_it_regression():
    task = get_task(TaskConfig(text_columns=("a",), metric="spearman"))
    assert task.is_regression and task.main_metric == "spearman"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param({"text_columns": ("a", "a")}, "'a' stands twice", id="text-column-twice"),
        pytest.param({"text_columns": ("label",)}, "'label' stands twice", id="label-is-a-text"),
        pytest.param({"text_columns": ("a",), "label_names": ("x", "y", "x")}, "label_names holds 'x' twice", id="name-twice"),
        pytest.param({"text_columns": ("a",), "label_names": ("x",)}, "label_names has 1 name", id="one-class"),
        pytest.param(
            {"text_columns": ("a",), "kind": "regression", "label_names": ("x", "y")}, "kind = 'regression' has scores", id="kind-names"
        ),
        pytest.param({"text_columns": ("a",), "kind": "regression", "metric": "f1"}, "kind = 'regression'.*classification", id="kind-f1"),
        pytest.param({"text_columns": ("a",), "kind": "classification", "metric": "pearson"}, "metric = 'pearson'.*regression", id="kind"),
        pytest.param({"text_columns": ("a",), "label_names": ("x", "y"), "metric": "pearson"}, "metric = 'pearson'.*classes", id="metric"),
    ],
)
def test_own_task_that_cannot_be(config, message):
    with pytest.raises(ConfigError, match=message):
        get_task(TaskConfig(**config))


def test_the_metrics_are_those_that_can_be_computed():
    assert all(callable(getattr(metrics, name)) for name in (*CLASS_METRICS, *REGRESSION_METRICS))


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(ConfigError, match=r"metric = 'acuracy': there is no such metric; did you mean 'accuracy'\?"):
        get_task(TaskConfig(text_columns=("a",), metric="acuracy"))


def test_f1_is_for_two_classes():
    task = get_task(TaskConfig(text_columns=("a",), metric="f1"))
    assert task.with_labels(("n", "p")).main_metric == "f1"
    with pytest.raises(ConfigError, match=r"'f1' is for two classes, and there are 3; use 'macro_f1'"):
        task.with_labels(("n", "p", "x"))


def test_a_classification_metric_does_not_fit_scores():
    with pytest.raises(ConfigError, match=r"metric = 'f1'.*numbers"):
        get_task(TaskConfig(text_columns=("a",), metric="f1")).with_labels(None)
