"""Training on several labels a text: against transformers, over ranks and ZeRO stages, resumed, and what is left behind."""

import csv
import json
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from bertfast.checks.validate import run_checks
from bertfast.cli.entry import main
from bertfast.config.load import load_config
from bertfast.errors import CheckpointError, ConfigError
from bertfast.training.trainer import Trainer
from tests.support.runs import losses, train, write_task
from tests.support.tiny_bert import WORDS
from tests.support.tolerances import LOSSES_ZERO_STAGES

QUIET = ("--set", "bertfast.model.hidden_dropout_prob=0", "--set", "bertfast.model.attention_probs_dropout_prob=0")
NAMES = ("animal", "praise", "reproach")
TRAINED = (
    "--set",
    "bertfast.run.epochs=60",
    "--set",
    "optimizer.params.lr=0.008",
    "--set",
    "bertfast.run.eval_steps=60",
    "--set",
    "bertfast.run.save_steps=360",
    *QUIET,
)


def labels_of(words):
    holds = {"animal": {"dog", "cat"}, "praise": {"good", "great", "fine"}, "reproach": {"bad", "dull"}}
    return [name for name in NAMES if holds[name] & set(words)]


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path)


def written(tmp_path):
    """A folder with texts, a tiny encoder, and a config that trains on them."""
    config = write_task(tmp_path)
    rng = random.Random(1)
    for name, rows in (("train", 96), ("dev", 20)):
        texts = [[rng.choice(WORDS) for _ in range(rng.randint(1, 20))] for _ in range(rows)]
        lines = [json.dumps({"text": " ".join(words), "topics": labels_of(words)}) for words in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        config["bertfast"]["train_input" if name == "train" else "eval_input"]["data_file"] = str(tmp_path / f"{name}.jsonl")
    config["bertfast"]["task"] = {"text_columns": ["text"], "label_column": "topics"}  # that they are several is for the data to say
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_first_loss_is_transformers(folder):
    """On all rows in one batch, by the same head: it is made from the seed, and one step of rate 0 leaves it as it is."""
    whole = ("--set", "bertfast.train_input.batch_size=96", "--set", "bertfast.run.max_steps=1", "--set", "optimizer.params.lr=0.0")
    train(folder, *QUIET, *whole)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "run" / "model").train()
    assert model.config.problem_type == "multi_label_classification" and tuple(model.config.id2label.values()) == NAMES
    rows = rows_of(folder / "train.jsonl")
    features = AutoTokenizer.from_pretrained(folder / "run" / "model")([row["text"] for row in rows], padding=True, return_tensors="pt")
    labels = torch.tensor([[float(name in row["topics"]) for name in NAMES] for row in rows])
    assert abs(losses(folder)[1] - model(**features, labels=labels).loss.item()) < 1e-5


def test_two_ranks_and_every_zero_stage_give_the_same_losses(folder):
    train(folder, "--model_dir", "alone", *QUIET)
    truth = losses(folder, "alone")
    assert len(truth) == 12 and truth[12] < truth[1]
    for stage in range(4):
        train(folder, "--model_dir", f"zero{stage}", "--set", f"zero_optimization.stage={stage}", *QUIET, ranks=2)
        found = losses(folder, f"zero{stage}")
        assert max(abs(found[step] - truth[step]) for step in truth) < LOSSES_ZERO_STAGES, stage


def test_a_resumed_run_is_the_same_run(folder):
    train(folder, "--model_dir", "whole", "--set", "bertfast.run.keep_checkpoints=9")
    train(folder, "--model_dir", "rest", "--resume", "--checkpoint_path", str(folder / "whole" / "checkpoints" / "step-00000004"))
    whole, rest = losses(folder, "whole"), losses(folder, "rest")
    assert list(rest) == list(range(5, 13)) and all(rest[step] == whole[step] for step in rest)
    tensors = [load_file(folder / run / "model" / "model.safetensors") for run in ("whole", "rest")]
    assert all(np.array_equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = written(tmp_path_factory.mktemp("trained"))
    train(folder, *TRAINED)
    return folder


def test_what_is_left_behind_is_used_by_transformers_and_predicts_alike(trained):
    model = trained / "run" / "model"
    texts = [row["text"] for row in rows_of(trained / "dev.jsonl")]
    answers = pipeline("text-classification", str(model), top_k=None)(texts)
    wanted = [{one["label"]: one["score"] for one in answer} for answer in answers]

    assert (
        main(["predict", "--checkpoint_path", str(model), "--input", str(trained / "dev.jsonl"), "--output", str(trained / "out.jsonl")])
        == 0
    )
    found = rows_of(trained / "out.jsonl")
    for row, probabilities in zip(found, wanted, strict=True):
        assert row["probabilities"] == pytest.approx(probabilities, abs=1e-5)
        assert row["prediction"] == [name for name in NAMES if probabilities[name] > 0.5]
    assert len({len(row["prediction"]) for row in found}) > 2  # none, one and several

    assert (
        main(["predict", "--checkpoint_path", str(model), "--input", str(trained / "dev.jsonl"), "--output", str(trained / "out.csv")]) == 0
    )
    with open(trained / "out.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["prediction"] for row in table] == ["|".join(row["prediction"]) for row in found]
    assert [float(row["probability_praise"]) for row in table] == [row["probabilities"]["praise"] for row in found]

    # What was predicted is read back as labels: by itself, everything is right.
    config = json.loads((model / "bertfast.json").read_text())
    task = {**config["bertfast"]["task"], "label_column": "prediction"}
    source = {"data_file": str(trained / "out.csv"), "max_sequence_length": 32, "cache_dir": str(trained / "cache")}
    (trained / "again.json").write_text(json.dumps({"bertfast": {"task": task, "model": {"checkpoint": str(model)}, "eval_input": source}}))
    said = Trainer(load_config(trained / "again.json"), checkpoint_path=str(model)).evaluate()
    assert said["dev"]["exact_match"] == 1.0 and said["dev"]["roc_auc"] == 1.0


def test_its_results_and_card_say_so(trained):
    metrics = json.loads((trained / "run" / "results.json").read_text())["metrics"]["dev"]
    assert set(metrics) == {"micro_f1", "macro_f1", "samples_f1", "exact_match", "mean_average_precision", "roc_auc"}
    assert metrics["micro_f1"] > 0.8
    card = (trained / "run" / "model" / "README.md").read_text()
    assert "A BERT multi-label classifier of single texts" in card and "Any number of them may hold of a text" in card
    code = card.partition("```python\n")[2].partition("```")[0].replace('"."', repr(str(trained / "run" / "model")))
    code = code.replace("A text to judge.", "the good dog")
    said = []
    exec(code, {"print": said.append})  # what the card tells its reader to run
    (scores,) = pipeline("text-classification", str(trained / "run" / "model"), top_k=None)(["the good dog"])
    assert said == [[name for name in NAMES if next(one["score"] for one in scores if one["label"] == name) > 0.5]] and said[0]


def test_the_model_is_trained_further(trained, tmp_path):
    """From its own head, and not from a head of another kind."""
    trained = shutil.copytree(trained, tmp_path / "copy")
    config = json.loads((trained / "config.json").read_text())
    config["bertfast"]["run"]["model_dir"] = "run"
    for name in ("train", "eval"):
        config["bertfast"][f"{name}_input"]["data_file"] = str(trained / f"{'dev' if name == 'eval' else name}.jsonl")
    (trained / "config.json").write_text(json.dumps(config))
    further = ("--set", "bertfast.model.checkpoint=run", "--set", "bertfast.model.load_checkpoint_states=model")
    train(trained, "--model_dir", "further", *further, *TRAINED)
    assert losses(trained, "further")[1] < 0.65 * losses(trained)[1]
    classes = ("--set", "bertfast.task.label_column=kind", "--set", 'bertfast.task.label_names=["animal", "praise", "reproach"]')
    for name in ("train", "dev"):
        rows = [{"text": row["text"], "kind": (row["topics"] or NAMES)[0]} for row in rows_of(trained / f"{name}.jsonl")]
        (trained / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    said = train(trained, "--model_dir", "classes", *further, *classes, code=2)
    assert "its head was trained for multi_label_classification, and the task is of one label a text" in said
    assert AutoConfig.from_pretrained(trained / "run" / "model").problem_type == "multi_label_classification"
    train(trained, "--model_dir", "classes", *further[:2], *classes)
    assert AutoConfig.from_pretrained(trained / "classes" / "model").problem_type == "single_label_classification"


def test_a_model_of_one_kind_does_not_answer_for_the_other(trained):
    block = {"text_columns": ["text"], "label_names": list(NAMES), "labels": "one"}
    source, run = {"data_file": str(trained / "dev.jsonl")}, {"model_dir": str(trained / "run")}
    config = {"bertfast": {"task": block, "model": {"checkpoint": str(trained / "run")}, "eval_input": source, "run": run}}
    (trained / "one.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="the model gives a text several labels, and task custom is of one"):
        Trainer(load_config(trained / "one.json")).predict()


def test_validate_tells_of_them(folder):
    said = {check.name: check for check in run_checks(lambda: load_config(folder / "config.json"), "cpu")}
    assert (
        "3 labels, as the rows name them: several labels a text, 2.09 in the mean, 3 at most, none of 5 rows"
        in said["train_input: train"].detail
    )
    assert "cross entropy of each label" in said["loss"].detail and any("(guessing: 0.693)" in check.detail for check in said.values())
    assert not [check for check in said.values() if check.result == "failed"]


def test_a_sweep_holds_weights_against_the_labels_of_its_data(folder):
    from bertfast.sweep.checks import check_space
    from bertfast.sweep.space import Space, draw_settings

    config = load_config(folder / "config.json")
    space = Space("space.yaml", {"bertfast.loss.pos_weight": [2.0, "balanced", {"praise": 3.0}]})
    check_space(config, space, draw_settings(space, None, 0), "cpu")
    space = Space("space.yaml", {"bertfast.loss.pos_weight": [{"prase": 3.0}]})
    with pytest.raises(ConfigError, match="space.yaml: .*there is no class 'prase'; did you mean 'praise'"):
        check_space(config, space, draw_settings(space, None, 0), "cpu")
