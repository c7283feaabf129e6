"""Whole runs of further pre-training: the loss falls, ranks and ZeRO stages agree, resumes are exact, and fine-tuning starts from the result."""

import json
import random
import re
import subprocess

import numpy as np
import pytest
import torch
from transformers import BertForPreTraining

from bertfast.config.load import load_config
from bertfast.engine.ranks import Ranks
from bertfast.training.objectives.masked_words import MaskedWords
from tests.model.test_pretrainer import padded
from tests.support.runs import losses, start, train, write_task
from tests.support.tiny_bert import WORDS
from tests.support.tolerances import GRADIENT, LOSSES_ZERO_STAGES

QUIET = ("--set", "bertfast.model.hidden_dropout_prob=0", "--set", "bertfast.model.attention_probs_dropout_prob=0")
PRETRAIN = ("--mode", "pretrain")


@pytest.fixture
def task(tmp_path):
    """The tiny task's folder, its config with plain text in the place of the task: words that follow one another in the alphabet's order."""
    config, rng = write_task(tmp_path), random.Random(0)
    ordered = sorted(WORDS)
    for name, n in (("train", 120), ("held-out", 30)):
        documents = []
        for _ in range(n):
            begin = rng.randrange(len(ordered))
            words = [ordered[(begin + place) % len(ordered)] for place in range(rng.randint(12, 60))]
            documents.append("\n".join(" ".join(words[place : place + 6]) for place in range(0, len(words), 6)))
        (tmp_path / f"{name}.txt").write_text("\n\n".join(documents) + "\n")
    block = config["bertfast"]
    del block["task"], block["train_input"]["data_file"], block["eval_input"]["data_file"]
    block["pretrain"] = {"text_files": [str(tmp_path / "train.txt")], "eval_text_files": [str(tmp_path / "held-out.txt")]}
    block["run"] |= {"epochs": 1, "max_steps": 12, "save_steps": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_two_ranks_and_every_zero_stage_follow_one_rank(task):
    assert "warning: " not in train(task, *PRETRAIN, "--model_dir", "alone", *QUIET)
    truth = losses(task, "alone")
    assert len(truth) == 12
    for stage in range(4):
        train(task, *PRETRAIN, "--model_dir", f"zero{stage}", "--set", f"zero_optimization.stage={stage}", *QUIET, ranks=2)
        found = losses(task, f"zero{stage}")
        assert max(abs(found[step] - truth[step]) for step in truth) < LOSSES_ZERO_STAGES, stage
    metrics = [json.loads((task / run / "results.json").read_text())["metrics"]["dev"] for run in ("alone", "zero1", "zero3")]
    for other in metrics[1:]:
        assert other == pytest.approx(metrics[0], abs=1e-4)


def test_a_step_takes_the_gradient_of_transformers_in_one_micro_step_or_two(task):
    """One SGD step over all examples at the rate 1: what it takes from the weights is BertForPreTraining's gradient of the whole batch."""
    config = json.loads((task / "config.json").read_text())
    config |= {"gradient_clipping": 0.0, "zero_allow_untested_optimizer": True, "optimizer": {"type": "SGD", "params": {"lr": 1.0}}}
    config["bertfast"]["pretrain"] = {"text_files": [str(task / "train.txt")]}
    config["bertfast"]["train_input"] |= {"max_examples": 32, "batch_size": 32}
    config["bertfast"]["run"] |= {"max_steps": 1, "warmup_steps": 0}
    del config["bertfast"]["eval_input"]
    (task / "config.json").write_text(json.dumps(config))
    for name, setting in (
        ("before", "optimizer.params.lr=0.0"),
        ("one", "gradient_accumulation_steps=1"),
        ("two", "gradient_accumulation_steps=2"),
    ):
        train(task, *PRETRAIN, "--model_dir", name, "--set", setting, *QUIET)
    theirs, one, two = (BertForPreTraining.from_pretrained(task / name / "model").eval() for name in ("before", "one", "two"))
    features, labels = padded(training_set(task).training_batch(np.arange(32), 0))
    loss = theirs(next_sentence_label=features.pop("labels"), labels=labels, **features).loss
    loss.backward()
    for found in (one, two):
        for (name, before), after in zip(theirs.named_parameters(), found.parameters(), strict=True):
            rounding = 2e-7 * before.norm() + 1e-9  # of the weights; a key's bias has no gradient but rounding
            assert (before - after - before.grad).norm() <= GRADIENT * before.grad.norm() + rounding, name
    for name in ("one", "two"):
        assert losses(task, name)[1] == pytest.approx(loss.item(), abs=1e-5)


def training_set(task):
    objective = MaskedWords(load_config(task / "config.json"), Ranks(0, 1, torch.device("cpu")))
    return objective.training_set(objective.tokenizer())


def test_a_resumed_run_meets_the_same_masks(task):
    keep = ("--set", "bertfast.run.keep_checkpoints=9", "--do_whole_word_mask")
    train(task, *PRETRAIN, "--model_dir", "whole", *keep)
    train(
        task,
        *PRETRAIN,
        "--model_dir",
        "rest",
        "--resume",
        "--checkpoint_path",
        str(task / "whole" / "checkpoints" / "step-00000004"),
        *keep,
    )
    whole, rest = losses(task, "whole"), losses(task, "rest")
    assert rest == {step: loss for step, loss in whole.items() if step > 4}


def test_the_loss_falls_and_fine_tuning_starts_from_the_result(task):
    longer = ("--set", "bertfast.run.max_steps=150", "--set", "bertfast.run.eval_steps=50", "--set", "optimizer.params.lr=0.005")
    train(task, *PRETRAIN, *longer, "--max_predictions_per_seq", "5", "--masked_lm_prob", "0.2")
    records = [json.loads(line) for line in (task / "run" / "log.jsonl").read_text().splitlines()]
    held_out = [
        record["dev"]["mlm_loss"] if "dev" in record else record["metrics"]["dev"]["mlm_loss"] for record in records if "loss" not in record
    ]
    assert len(held_out) == 3 and held_out[-1] < held_out[0] < np.log(24)
    folder = task / "run" / "model"
    metrics = json.loads((task / "run" / "results.json").read_text())["metrics"]["dev"]
    assert metrics["mlm_loss"] == min(held_out) and metrics["perplexity"] == pytest.approx(np.exp(metrics["mlm_loss"]))
    assert held_out_loss_by_transformers(task, folder) == pytest.approx((metrics["mlm_loss"], metrics["nsp_loss"]), abs=1e-4)
    said = train(task, *PRETRAIN, "--max_predictions_per_seq", "5", "--masked_lm_prob", "0.2", "--evaluate_only")
    shown = [float(cell) for cell in re.findall(r"\d+\.\d{4}", said)]
    assert shown == [round(metrics[name], 4) for name in ("mlm_loss", "mlm_accuracy", "perplexity", "nsp_loss", "nsp_accuracy")]
    said = train(task, *PRETRAIN, "--evaluate_only", "--checkpoint_path", str(task / "bert"), code=2)
    assert f"{task / 'bert'}: has not all heads" in said and "predictions." in said
    assert not (folder / "bertfast.json").exists() and str(task) not in (folder / "README.md").read_text()
    config = write_task(task)
    config["bertfast"]["model"]["checkpoint"] = str(folder)
    config["bertfast"]["run"]["model_dir"] = str(task / "tuned")
    (task / "config.json").write_text(json.dumps(config))
    said = train(task)
    assert "made anew: classifier.weight, classifier.bias\n" in said
    assert re.search(r"\ntrain_input: train: .*train.*: \d+ rows; .*cut at \d+.*\neval_input: dev: ", said), "the data are described"


def test_one_config_for_pre_training_and_for_training(task):
    config = write_task(task)
    config["bertfast"]["pretrain"] = {"next_sentence": False}
    config["bertfast"]["run"] |= {"epochs": 1, "max_steps": 2}
    (task / "config.json").write_text(json.dumps(config))
    train(task, *PRETRAIN, "--model_dir", "further")
    train(task, "--checkpoint_path", "further/model", "--model_dir", "tuned")
    card = (task / "tuned" / "model" / "README.md").read_text()
    assert "fill-mask" not in card and '"pretrain":' not in (task / "tuned" / "model" / "bertfast.json").read_text()
    predict = ("--mode", "predict", "--input", "dev.tsv", "--checkpoint_path", "tuned/model")
    assert len(train(task, *predict, own_process=True).splitlines()) >= 20
    assert "accuracy" in train(task, "--mode", "eval", "--model_dir", "tuned")


def test_plain_text_alone_trains_no_classifier(task):
    assert "bertfast.task is missing" in train(task, code=2)


def held_out_loss_by_transformers(task, folder):
    """BertForPreTraining's two losses on the very examples of the evaluation, one padded batch."""
    from transformers import AutoTokenizer

    from bertfast.data.pretraining import load_pretraining_set
    from bertfast.tasks.catalogue import get_task

    settings = load_config(task / "config.json").bertfast
    pretrain = settings.pretrain.model_copy(update={"max_predictions_per_seq": 5, "masked_lm_prob": 0.2})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = load_pretraining_set(get_task(settings.task), settings.eval_input, "dev", pretrain, tokenizer, 24, 42)
    batch = data.batch(np.arange(len(data)))
    features, labels = padded(batch)
    nsp = features.pop("labels")
    with torch.no_grad():
        output = BertForPreTraining.from_pretrained(folder).eval()(**features)
    mlm_loss = torch.nn.functional.cross_entropy(output.prediction_logits.flatten(0, 1), labels.flatten())
    return mlm_loss.item(), torch.nn.functional.cross_entropy(output.seq_relationship_logits, nsp).item()


def test_masked_words_alone_packed_to_a_budget(task):
    block = ("--set", "bertfast.pretrain.next_sentence=false", "--set", "bertfast.train_input.planner=tokens", "--dupe_factor", "2")
    train(task, *PRETRAIN, *block, "--set", "bertfast.train_input.tokens_per_batch=256", ranks=2)
    values = json.loads((task / "run" / "model" / "config.json").read_text())
    assert values["architectures"] == ["BertForMaskedLM"]
    metrics = json.loads((task / "run" / "results.json").read_text())["metrics"]["dev"]
    assert set(metrics) == {"mlm_loss", "mlm_accuracy", "perplexity"}


def test_pre_training_without_its_block_says_so(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(write_task(tmp_path)))
    process: subprocess.Popen = start(tmp_path, *PRETRAIN)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2 and "there is no bertfast.pretrain block" in output


def test_a_task_s_own_text(tmp_path):
    config = write_task(tmp_path)
    config["bertfast"]["pretrain"] = {}
    (tmp_path / "config.json").write_text(json.dumps(config))
    output = train(tmp_path, *PRETRAIN, "--set", "bertfast.run.max_steps=2")
    assert re.search(r"^warning: .*/train\.tsv: (9\d|100)% of the pairs have a random second part", output, re.MULTILINE)
    assert "mlm_loss" in json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]["dev"]
