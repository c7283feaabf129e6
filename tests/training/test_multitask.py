"""Training on several tasks: against slow loops in transformers, over ranks and ZeRO stages, resumed, and what is left behind."""

import csv
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertfast.cli.entry import main
from bertfast.config.blocks import HeadConfig, LossConfig
from bertfast.config.load import load_config
from bertfast.data.mixture import MixtureSet
from bertfast.errors import BertfastError, ConfigError
from bertfast.model.bert import RandomBits
from bertfast.model.losses import Loss
from bertfast.model.multitask import MultitaskClassifier
from bertfast.packing.batch import MixedBatch, PackedBatch
from bertfast.packing.plans import plan_examples
from bertfast.tasks.catalogue import get_task
from tests.support.multitask_runs import QUIET, SIZES, write_tasks
from tests.support.runs import losses, train
from tests.support.tolerances import GRADIENT, LOGITS, LOSSES_ZERO_STAGES

NAMES = list(SIZES)
CLASSES = {"verdict": ("no", "yes"), "relation": ("less", "more", "same"), "score": None}
WEIGHTS = {"verdict": 1.0, "relation": 0.5, "score": 2.0}


@pytest.fixture
def folder(tmp_path):
    config = write_tasks(tmp_path)
    for task in config["bertfast"]["multitask"]["tasks"]:
        task["weight"] = WEIGHTS[task["task"]["name"]]
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def settings(**values):
    return [word for key, value in values.items() for word in ("--set", f"bertfast.{key.replace('__', '.')}={json.dumps(value)}")]


def rows_of(folder, name):
    with open(folder / ("train.tsv" if name == "verdict" else f"{name}-train.tsv")) as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    labels = [float(row[-1]) if CLASSES[name] is None else CLASSES[name].index(row[-1]) for row in rows]
    return [row[:-1] for row in rows], labels


def transformers_models(run):
    """A classifier a task, all with the encoder of the first."""
    models = [AutoModelForSequenceClassification.from_pretrained(run / "model" / name) for name in NAMES]
    for model in models[1:]:
        for (name, given), (_, first) in zip(model.bert.named_parameters(), models[0].bert.named_parameters(), strict=True):
            assert torch.equal(given, first), name
        model.bert = models[0].bert
    return models


def slow_loss(models, tokenizer, data, step):
    """The mean over a step's (task, row) of the task's weight times the example's loss, one example at a time."""
    total = torch.zeros(())
    for task, row in step:
        texts, labels = data[task]
        logits = models[task](**tokenizer(*texts[row], return_tensors="pt")).logits[0]
        label = labels[row]
        loss = (logits[0] - label) ** 2 if CLASSES[NAMES[task]] is None else -logits.log_softmax(0)[label]
        total = total + WEIGHTS[NAMES[task]] * loss
    return total / len(step)


def steps_of(folder, batch_size, n):
    """(task, row) of every example of the first n steps, from the draws and the plan alone."""
    data = [rows_of(folder, name) for name in NAMES]
    tokenizer = AutoTokenizer.from_pretrained(folder / "bert")

    class Lengths:
        max_sequence_length = 32

        def __init__(self, texts):
            self.lengths = np.array([len(tokenizer(*text)["input_ids"]) for text in texts], dtype=np.int32)

        def __len__(self):
            return len(self.lengths)

    mixture = MixtureSet([Lengths(texts) for texts, _ in data], "proportional", 42)
    plan = plan_examples(mixture.training_lengths(0), batch_size, seed=42, epoch=0)
    found = []
    for step in range(n):
        examples = mixture.draws(0)[plan.micro_batches(step, 0)[0]]
        tasks = np.searchsorted(mixture.starts, examples, side="right") - 1
        found.append(list(zip(tasks.tolist(), (examples - mixture.starts[tasks]).tolist(), strict=True)))
    return data, tokenizer, found


def test_a_run_equals_a_slow_loop_of_transformers(folder):
    """Losses, clipping, AdamW with its decay, and the heads of tasks that a step has no example of, whose gradient is 0 and not missing."""
    few = [*QUIET, *settings(train_input__batch_size=4, run__max_steps=8, run__warmup_steps=0, run__eval_steps=8)]
    train(folder, "--model_dir", "before", *few, *settings(run__max_steps=1), "--set", "optimizer.params.lr=0.0")
    train(folder, "--model_dir", "after", *few)
    models, wanted = transformers_models(folder / "before"), transformers_models(folder / "after")
    data, tokenizer, steps = steps_of(folder, 4, 8)
    assert min(len({task for task, _ in step}) for step in steps) < 3, "there must be a step without some task"
    parameters = list(dict.fromkeys(parameter for model in models for parameter in model.parameters()))
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    for model in models:
        model.eval()  # there is no dropout
    found = []
    for number, step in enumerate(steps):
        loss = slow_loss(models, tokenizer, data, step)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (8 - number) / 8
        optimizer.step()
        found.append(loss.item())
    assert list(losses(folder, "after").values()) == pytest.approx(found, abs=1e-5)
    for name, ours, theirs in zip(NAMES, wanted, models, strict=True):
        for (where, parameter), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            assert (parameter - other).abs().max() < 1e-4, (
                name,
                where,
            )  # Adam's first steps turn the sign of a gradient into a step of 1e-3


TASKS = [
    get_task("sst2"),
    get_task("mnli"),
    get_task("stsb"),
]


def a_model(tmp_path, head=None, **overrides):
    from tests.support.tiny_bert import write_tiny_bert

    folder = write_tiny_bert(tmp_path / "bert", initializer_range=0.3)
    torch.manual_seed(1)
    return MultitaskClassifier.from_pretrained(str(folder), TASKS, head, overrides=overrides)


def a_batch(seed=0, n=12):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 20, size=n)
    tasks = rng.integers(0, 3, size=n)
    labels = np.where(tasks == 2, rng.random(n), rng.integers(0, 2, size=n)).astype(np.float32)
    ids, segments = rng.integers(5, 24, size=lengths.sum()), np.zeros(lengths.sum())
    return PackedBatch.from_ragged(ids, segments, lengths, labels), tasks


def mixed_loss(model, batch, bits=None):
    total = torch.zeros((), dtype=torch.float64)
    for logits, labels in zip(model(batch, bits), batch.by_task(batch.labels), strict=True):
        if len(labels):
            total = total + Loss(LossConfig(), logits.shape[1], np.zeros(1))(logits, labels if logits.shape[1] == 1 else labels.int())
        else:
            total = total + logits.sum()
    return total


@pytest.mark.parametrize("pooling", ["cls", "mean_max"])
def test_loss_and_gradients_equal_the_tasks_own_classifiers(tmp_path, pooling):
    """Each task's saved classifier, in transformers where it can be, on the task's examples alone: gradients of the encoder add up."""
    from bertfast.model.bert import BertClassifier

    model = a_model(tmp_path, HeadConfig(pooling=pooling, hidden_sizes=(8,) if pooling != "cls" else ()), hidden_dropout_prob=0.0).eval()
    batch, tasks = a_batch()
    mixed = MixedBatch.of(batch, tasks, 3)
    loss = mixed_loss(model, mixed)
    loss.backward()
    features = batch.to_features()
    total, word = 0.0, torch.zeros_like(model.embeddings.word)
    for number, task in enumerate(TASKS):
        (tmp_path / task.name).mkdir()
        model.save_task(tmp_path / task.name, number)
        rows = torch.from_numpy(np.flatnonzero(tasks == number))
        labels = features["labels"][rows]
        own = {name: features[name][rows].long() for name in ("input_ids", "token_type_ids", "attention_mask")}
        if pooling == "cls":
            alone = AutoModelForSequenceClassification.from_pretrained(tmp_path / task.name).eval()
            logits, embeddings = alone(**own).logits, alone.bert.embeddings.word_embeddings.weight
        else:
            alone = BertClassifier.from_pretrained(str(tmp_path / task.name)).eval()
            logits, embeddings = alone(PackedBatch.from_features(own)), alone.embeddings.word
        assert (logits - model(mixed)[number]).abs().max() < LOGITS
        if task.is_regression:
            part = ((logits[:, 0] - labels) ** 2).sum()
        else:
            part = torch.nn.functional.cross_entropy(logits, labels.long(), reduction="sum")
        part.backward()
        classifier = model.heads[number].classifier.weight.grad
        assert (alone.classifier.weight.grad - classifier).norm() <= GRADIENT * classifier.norm(), task.name
        total, word = total + part.item(), word + embeddings.grad
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert (model.embeddings.word.grad - word).norm() <= GRADIENT * word.norm()


def test_dropout_by_key_does_not_depend_on_the_packing(tmp_path):
    model = a_model(tmp_path, HeadConfig(pooling="mean", hidden_sizes=(8,)), hidden_dropout_prob=0.2).double().train()
    batch, tasks = a_batch(3)
    features = batch.to_features()

    def gradients(parts):
        model.zero_grad()
        for part in parts:
            packed = PackedBatch.from_features({name: value[part] for name, value in features.items()})
            packed.example_ids = torch.tensor(part, dtype=torch.int32)
            mixed_loss(model, MixedBatch.of(packed, tasks[part], 3), RandomBits(key=torch.tensor((1, 5)))).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    whole = gradients([list(range(12))])
    apart = gradients([[int(np.flatnonzero(tasks == 1)[0])], [row for row in reversed(range(12)) if row != np.flatnonzero(tasks == 1)[0]]])
    assert (apart - whole).norm() <= GRADIENT * whole.norm()


def test_two_ranks_and_zero_stages_follow_one_rank(folder):
    """Global batches of 4: most micro-batches lack a task, and the ranks lack different ones."""
    few = [*QUIET, *settings(train_input__batch_size=4, run__max_steps=6, run__eval_steps=6, run__save_steps=6)]
    train(folder, "--model_dir", "alone", *few)
    truth = losses(folder, "alone")
    assert len(truth) == 6
    for stage in (0, 2):
        micro = ("--set", "gradient_accumulation_steps=2") if stage == 2 else ()
        train(folder, "--model_dir", f"zero{stage}", "--set", f"zero_optimization.stage={stage}", *micro, *few, ranks=2)
        found = losses(folder, f"zero{stage}")
        assert max(abs(found[step] - truth[step]) for step in truth) < LOSSES_ZERO_STAGES, stage
    metrics = [json.loads((folder / run / "results.json").read_text())["metrics"] for run in ("alone", "zero0", "zero2")]
    for other in metrics[1:]:  # a correlation of a few scores that hardly differ magnifies what the losses are allowed
        assert {key: pytest.approx(values, abs=1e-3 if key.startswith("score") else 1e-4) for key, values in metrics[0].items()} == other


def test_a_resumed_run_meets_the_same_draws(folder):
    recipe = settings(multitask__sampling="annealed", loss={"r_drop": 0.5, "label_smoothing": 0.1}, run__keep_checkpoints=9, run__epochs=3)
    recipe += settings(head={"pooling": "attention", "hidden_sizes": [8]}, run__save_steps=13)
    train(folder, "--model_dir", "whole", *recipe)
    checkpoint = folder / "whole" / "checkpoints" / "step-00000013"
    train(folder, "--model_dir", "rest", "--resume", "--checkpoint_path", str(checkpoint), *recipe)
    whole, rest = losses(folder, "whole"), losses(folder, "rest")
    assert rest == {step: loss for step, loss in whole.items() if step > 13} and len(rest) == 20
    train(folder, "--model_dir", "proportional", *recipe, *settings(multitask__sampling="proportional"))
    other = losses(folder, "proportional")
    assert [step for step in whole if whole[step] == other[step]] == list(range(1, 12)), "annealing begins with the second epoch"
    output = train(folder, "--resume", "--model_dir", "whole", *recipe, *settings(multitask__sampling="uniform"), code=2)
    assert "sampling = annealed, this run has uniform" in output


def test_each_task_s_model_stands_alone_and_can_be_trained_on(folder, capsys):
    train(folder, *settings(train_input__planner="tokens", train_input__tokens_per_batch=128, multitask__sampling="square_root"))
    results = json.loads((folder / "run" / "results.json").read_text())
    metrics, model = results["metrics"], folder / "run" / "model"
    assert set(metrics) == {f"{name}/dev" for name in NAMES}
    mean = (metrics["verdict/dev"]["accuracy"] + metrics["relation/dev"]["macro_f1"] + metrics["score/dev"]["pearson"]) / 3
    assert results["mean_of_main_metrics"] == pytest.approx(mean)
    evaluations = [json.loads(line)["metrics"] for line in (folder / "run" / "log.jsonl").read_text().splitlines() if "metrics" in line]
    best = [(e["verdict/dev"]["accuracy"] + e["relation/dev"]["macro_f1"] + e["score/dev"]["pearson"]) / 3 for e in evaluations]
    assert mean == pytest.approx(max(best))
    for name in NAMES:
        assert main(["eval", "cpu", "--checkpoint_path", str(model / name)]) == 0
        said = capsys.readouterr().out
        assert all(f"{value:.4f}" in said for value in metrics[f"{name}/dev"].values()), name
        config = AutoModelForSequenceClassification.from_pretrained(model / name).config
        assert config.num_labels == len(CLASSES[name] or "1") and (
            CLASSES[name] is None or tuple(config.id2label.values()) == CLASSES[name]
        )
        card = (model / name / "README.md").read_text()
        assert f"fine-tuned on {name}" in card and "trained together with" in card and str(folder) not in card
    assert main(["eval", "cpu", "--config", str(folder / "config.json"), "--model_dir", str(folder / "run")]) == 0
    said = capsys.readouterr().out
    assert all(f"{values[key]:.4f}" in said for values in metrics.values() for key in values)
    assert main(["predict", "cpu", "--config", str(folder / "config.json"), "--model_dir", str(folder / "run"), "--input", "x.txt"]) == 2
    assert f"--checkpoint_path {model / 'verdict'}" in capsys.readouterr().err
    (folder / "pairs.txt").write_text("good film\tdull\nthe dog\ta cat runs\n")
    assert main(["export", str(model / "score"), "--output", "x", "--config", str(folder / "config.json")]) == 2
    assert "export one at a time, without --config" in capsys.readouterr().err
    assert main(["eval", "cpu", "--config", str(model / "score" / "bertfast.json"), "--checkpoint_path", str(folder / "run")]) == 2
    assert f"it holds models of several tasks: give one of them, {model / 'relation'} say" in capsys.readouterr().err
    arguments = ["--checkpoint_path", str(model / "relation"), "--input", str(folder / "pairs.txt"), "--output", str(folder / "out.jsonl")]
    assert main(["predict", "cpu", *arguments]) == 0 and len((folder / "out.jsonl").read_text().splitlines()) == 2

    alone = json.loads((model / "relation" / "bertfast.json").read_text())
    assert "multitask" not in alone["bertfast"] and alone["bertfast"]["task"]["label_names"] == list(CLASSES["relation"])
    (folder / "config.json").write_text(json.dumps(alone))
    said = train(folder, "--checkpoint_path", str(model / "relation"), "--model_dir", "tuned", *settings(run__max_steps=2))
    assert "made anew: classifier.weight, classifier.bias\n" in said
    kept = ("--load_checkpoint_states", "model")
    said = train(folder, "--checkpoint_path", str(model / "relation"), "--model_dir", "kept", *settings(run__max_steps=2), *kept)
    assert "made anew" not in said


def block_of(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config["bertfast"], config["bertfast"]["multitask"]["tasks"])
    return config


CONFIGS = [
    pytest.param(lambda block, tasks: tasks[1].update(batch_size=3), "unknown key 'batch_size' in bertfast.multitask.tasks.1", id="key"),
    pytest.param(lambda block, tasks: tasks[0]["train_input"].update(planner="tokens"), "'planner' in .*tasks.0.train_input", id="planner"),
    pytest.param(lambda block, tasks: tasks[0]["task"].pop("text_columns"), "tasks.0.task.text_columns is missing", id="columns"),
    pytest.param(
        lambda block, tasks: block["multitask"].update(sampling="sqrt"), "sampling = \"sqrt\": it must be 'proportional'", id="sampling"
    ),
    pytest.param(lambda block, tasks: tasks[1]["task"].update(name="verdict"), "holds 'verdict' twice", id="a-name-twice"),
    pytest.param(lambda block, tasks: tasks[1]["task"].update(name="a/b"), "'a/b' is to be a folder's name", id="a-name-with-a-slash"),
    pytest.param(lambda block, tasks: [tasks.pop(), tasks.pop()], "tasks holds 1; name two or more", id="one-task"),
    pytest.param(lambda block, tasks: tasks[0].update(weight=0), "tasks.0.weight = 0", id="weight"),
    pytest.param(lambda block, tasks: block.update(task="sst2"), "task and multitask contradict each other", id="a-task-beside"),
    pytest.param(lambda block, tasks: block.update(pretrain={}), "pretrain and multitask contradict", id="pre-training"),
    pytest.param(lambda block, tasks: block["model"].update(load_checkpoint_states="model"), "makes every head anew", id="heads"),
    pytest.param(lambda block, tasks: block["train_input"].update(data_dir="x"), "train_input.data_dir belongs to one task", id="data"),
    pytest.param(lambda block, tasks: block["eval_input"].update(max_examples=2), "eval_input.max_examples belongs", id="eval-data"),
    pytest.param(
        lambda block, tasks: [task.pop("eval_input") for task in tasks], "none of multitask.tasks has an eval_input", id="no-eval"
    ),
    pytest.param(lambda block, tasks: block.update(truncation={"strategy": "hierarchical"}), "reads each text once", id="documents"),
    pytest.param(lambda block, tasks: block.update(loss={"class_weights": [1, 2]}), "weights of one task's classes", id="class-weights"),
    pytest.param(
        lambda block, tasks: (
            block["multitask"].update(sampling="annealed"),
            block["train_input"].update(planner="tokens", tokens_per_batch=64),
        ),
        "'annealed' changes from epoch to epoch",
        id="annealed-tokens",
    ),
    pytest.param(
        lambda block, tasks: (
            block["train_input"].update(planner="tokens", tokens_per_batch=64),
            tasks[1]["train_input"].update(max_sequence_length=99),
        ),
        "train_input.tokens_per_batch is 64, less than max_sequence_length 99 of task relation",
        id="budget",
    ),
]


@pytest.mark.parametrize(("change", "message"), CONFIGS)
def test_configs_that_cannot_be_are_named(folder, change, message):
    with pytest.raises(ConfigError, match=message):
        load_config(block_of(folder, change))


@pytest.mark.parametrize("name", ["train_input", "eval_input"])
def test_null_is_what_is_left_out(folder, name):
    without, null = (
        load_config(block_of(folder, change)) for change in (lambda block, _: block.pop(name), lambda block, _: block.update({name: None}))
    )
    assert null.bertfast == without.bertfast and getattr(null.bertfast, name) is not None


def test_a_task_that_is_not_known_is_named(folder, capsys):
    config = block_of(folder, lambda block, tasks: tasks[0].update(task="sst3"))
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["train", "--config", str(folder / "config.json")]) == 2
    assert "sst3" in capsys.readouterr().err


def test_models_of_other_tasks_are_not_evaluated(folder):
    from bertfast.training.trainer import Trainer

    with pytest.raises(BertfastError, match="holds no model of task verdict"):
        Trainer(load_config(folder / "config.json"), device="cpu", checkpoint_path=str(folder / "bert")).evaluate()


def test_validate_checks_every_task(folder):
    from bertfast.checks.validate import run_checks

    def rows(config, results):
        found = run_checks(lambda: load_config(config), "cpu")
        return {check.name: check.detail for check in found if check.result in results}

    config = json.loads((folder / "config.json").read_text())
    assert not rows(config, ("failed", "skipped"))
    found = rows(config, ("ok",))
    assert {f"{name}: {split}" for name in NAMES for split in ("train_input: train", "eval_input: dev")} <= set(found)
    assert "tasks verdict, relation, score, proportional" in found["config"] and "11 steps an epoch" in found["packing"]
    assert "heads.2.classifier.weight" in found["weights"] and "8 examples (verdict " in found["one step"]
    (folder / "relation-train.tsv").write_text("first\tsecond\tlabel\na\tb\t\n")
    failed = rows(config, ("failed",))
    assert list(failed) == ["relation: train_input: train"] and "relation-train.tsv, line 2: the label is empty" in next(
        iter(failed.values())
    )
    config["bertfast"]["multitask"]["tasks"][0]["task"] = "ax"
    assert "task ax has no training data" in rows(config, ("failed",))["config"]


def test_validate_checks_the_loss_of_every_task(folder):
    """As the trainer makes it: classes are balanced within each task, and what is for classes passes the regression by."""
    from bertfast.checks.validate import run_checks

    def checks_of(change):
        return {check.name: check for check in run_checks(lambda: load_config(block_of(folder, change)), "cpu")}

    def one_step(weight):
        return float(checks_of(lambda block, tasks: [task.update(weight=weight) for task in tasks])["one step"].detail.split()[-4][:-1])

    def balanced(block, tasks):
        block["loss"] = {"class_weights": "balanced", "r_drop": 0.5}
        tasks[1]["task"]["label_names"] = list(CLASSES["relation"])

    found = checks_of(balanced)
    assert found["score: loss"].detail == "squared error; r_drop 0.5" and found["one step"].result == "ok"
    assert found["verdict: loss"].detail.startswith("cross entropy; r_drop 0.5; class weights ")
    (folder / "relation-train.tsv").write_text("first\tsecond\tlabel\na\tb\tless\nb\ta\tmore\n")
    found = checks_of(balanced)
    assert [name for name, check in found.items() if check.result == "failed"] == ["relation: loss"]
    assert "class 2 has no training example" in found["relation: loss"].detail and found["one step"].result == "skipped"
    assert one_step(4.0) == pytest.approx(4 * one_step(1.0), abs=4e-3)


def test_validate_holds_each_task_s_own_length_against_the_positions(folder):
    from bertfast.checks.validate import run_checks

    config = block_of(folder, lambda block, tasks: tasks[2]["train_input"].update(max_sequence_length=129))
    found = {check.name: check for check in run_checks(lambda: load_config(config), "cpu")}["sequence length"]
    assert found.result == "failed"
    assert "multitask.tasks: score: train_input.max_sequence_length = 129, but " in found.detail


def test_kernels_are_compiled_for_every_task(folder):
    from bertfast.checks.kernels import encoder_of
    from bertfast.config.per_task import configs_of

    config = block_of(folder, lambda block, tasks: tasks[1]["task"].update(label_names=list(CLASSES["relation"])))
    config["bertfast"]["multitask"]["tasks"][2]["eval_input"]["max_sequence_length"] = 99
    shapes = [encoder_of(part).shape for part in configs_of(load_config(config))]
    assert [(shape.num_labels, shape.max_seqlen) for shape in shapes] == [(2, 32), (3, 32), (None, 99)]
