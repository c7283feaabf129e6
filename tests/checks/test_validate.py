"""Every check passes what is right, and names the fault that it is there to see."""

import json
import shutil

import numpy as np
import pytest
import torch

from bertfast.checks import step
from bertfast.checks.table import print_checks
from bertfast.checks.validate import run_checks
from bertfast.cli import entry
from bertfast.config.load import load_config
from bertfast.engine import memory
from tests.support.tiny_bert import write_tiny_bert

TRAIN = "sentence\tlabel\na good film\t1\nthe dull film is\t0\nbad\t0\nfine and great and fine and great\t1\n"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_bert(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def place(tmp_path, tiny, monkeypatch):
    """A folder with SST-2's files, a copy of the tiny model, and its own cache."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BERTFAST_CACHE", str(tmp_path / "cache"))
    shutil.copytree(tiny, tmp_path / "model")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.tsv").write_text(TRAIN)
    (tmp_path / "data" / "dev.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\n\t0\n")
    return tmp_path


def config_of(place, **changes):
    block = {
        "task": "sst2",
        "model": {"checkpoint": str(place / "model")},
        "train_input": {"data_dir": str(place / "data"), "max_sequence_length": 6, "batch_size": 2},
        "eval_input": {"data_dir": str(place / "data"), "max_sequence_length": 16},
        "run": {"epochs": 3},
    }
    deepspeed = {"zero_optimization": {"stage": 1}, **changes.pop("deepspeed", {})}
    return {**deepspeed, "bertfast": {**block, **changes}}


def checks_of(config, device="cpu"):
    return {check.name: check for check in run_checks(lambda: load_config(config), device)}


def results_of(checks):
    return {name: check.result for name, check in checks.items() if check.result != "ok"}


def test_everything_is_fine(place):
    checks = checks_of(config_of(place))
    assert results_of(checks) == {}
    expected = {
        "config": ["sst2", "train_input and eval_input"],
        "precision": ["fp32 on a CPU"],
        "batch size": ["2 = 1 rank x 1 micro-step x 2 examples"],
        "checkpoint": ["2 layers, hidden 16, 2 heads", "128 positions"],
        "sequence length": ["train_input 6", "eval_input 16", "of 128"],
        "tokenizer": ["24 tokens for 24 embeddings"],
        # uncut, the rows have 5, 6, 3 and 9 tokens
        "train_input: train": ["train.tsv: 4 rows", "negative 2, positive 2", "mean 5.0", "longest 6", "25.00% cut at 6"],
        "eval_input: dev": ["3 rows", "negative 2, positive 1", "0.00% cut at 16"],
        "weights": ["made anew: classifier.weight, classifier.bias", "parameters"],
        "loss": ["cross entropy"],
        "packing": ["2 steps an epoch, 6 in all", "100.0% of each batch is real tokens"],
        "optimizer": ["AdamW", "rate 3e-05", "weight decay 0.01", "linear schedule, 1 of 6 steps of warm-up"],
        "one step": ["2 examples", "guessing: 0.693"],
        "memory per rank": ["ZeRO stage 1, 1 rank, fp32"],
    }
    assert list(checks) == list(expected)
    assert 0.6 < float(checks["one step"].detail.partition("loss ")[2][:5]) < 0.8
    # 5, 6, 3 and 6 tokens in two micro-batches: the larger holds 11 or 12
    assert any(f"activations of {tokens} tokens" in checks["memory per rank"].detail for tokens in (11, 12))
    for name, words in expected.items():
        assert all(word in checks[name].detail for word in words), checks[name]


def test_memory_is_that_of_the_formula(place):
    source = {"data_dir": str(place / "data"), "max_sequence_length": 6, "batch_size": 4}
    detail = checks_of(config_of(place, train_input=source))["memory per rank"].detail
    # 20 tokens (5 + 6 + 3 + 6) x 2 layers x (4 x (8 x 16 + 2 x 32) + 2 x 16) bytes are 0.03 MB
    assert "activations of 20 tokens 0.0 MB" in detail and "parameters 0.0 MB" in detail


@pytest.mark.parametrize("total, free, result", [(50_000, 50_000, "failed"), (10**9, 50_000, "warning"), (10**9, 10**9, "ok")])
def test_memory_is_held_against_the_machine(place, monkeypatch, total, free, result):
    monkeypatch.setattr(memory, "memory_total", lambda: total)
    monkeypatch.setattr(memory, "memory_available", lambda: free)
    row = checks_of(config_of(place))["memory per rank"]
    assert row.result == result
    ways = [
        "train_micro_batch_size_per_gpu (now 2;",
        "bertfast.train_input.max_sequence_length (now 6)",
        "gradient_checkpointing = selective",
    ]
    assert all((word in row.detail) == (result != "ok") for word in ways), row.detail


def test_memory_that_runs_out_in_a_check_is_its_fault(place, monkeypatch):
    monkeypatch.setattr(step, "step_facts", lambda *_: torch.empty(10**15))
    checks = checks_of(config_of(place))
    assert results_of(checks) == {"one step": "failed"}
    assert checks["one step"].detail.startswith("memory ran out (4,000,000.0 GB more were asked for)")


def test_a_few_ranks(place, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    checks = checks_of(config_of(place, deepspeed={"zero_optimization": {"stage": 3}}))
    assert results_of(checks) == {}
    assert "2 ranks x 1 micro-step x 1 example" in checks["batch size"].detail
    assert "ZeRO stage 3, 2 ranks" in checks["memory per rank"].detail


def test_pairs_and_packs_and_a_pair_that_is_cut(place):
    rows = "index\tsentence1\tsentence2\tlabel\n0\tgood\tthe film is good and great\tentailment\n1\tbad\t\tnot_entailment\n"
    (place / "data" / "train.tsv").write_text(rows)
    source = {"data_dir": str(place / "data"), "max_sequence_length": 8, "planner": "tokens", "tokens_per_batch": 16}
    checks = checks_of(config_of(place, task="rte", train_input=source, eval_input=None))
    assert results_of(checks) == {}
    assert "50.00% cut at 8" in checks["train_input: train"].detail
    assert "1 pack of 16 tokens" in checks["batch size"].detail and checks["packing"].detail.startswith("tokens: 1 step an epoch")


def test_regression(place):
    (place / "data" / "own.csv").write_text("text,stars\ngood,4.5\nbad,0.5\n")
    task = {"name": "stars", "text_columns": ["text"], "label_column": "stars"}
    checks = checks_of(config_of(place, task=task, train_input={"data_file": str(place / "data" / "own.csv")}, eval_input=None))
    assert results_of(checks) == {}
    assert "labels 0.5 to 4.5, mean 2.500" in checks["train_input: train"].detail and "guessing" not in checks["one step"].detail


def test_classes_found_in_the_training_data_hold_for_the_others(place):
    (place / "data" / "train.jsonl").write_text('{"text": "good", "label": "yes"}\n{"text": "bad", "label": "no"}\n')
    (place / "data" / "dev.jsonl").write_text('{"text": "fine", "label": "maybe"}\n')
    task = {"text_columns": ["text"]}
    train, dev = ({"data_file": str(place / "data" / f"{split}.jsonl")} for split in ("train", "dev"))
    checks = checks_of(config_of(place, task=task, train_input=train, eval_input=dev))
    assert results_of(checks) == {"eval_input: dev": "failed"}
    assert "dev.jsonl, line 1" in checks["eval_input: dev"].detail and "'maybe'" in checks["eval_input: dev"].detail


def test_a_subset_of_the_rows(place):
    checks = checks_of(config_of(place, eval_input={"data_dir": str(place / "data"), "max_examples": 2}))
    assert "dev.tsv: 2 rows" in checks["eval_input: dev"].detail


def test_the_head_of_a_fine_tuned_checkpoint(place, tmp_path):
    model = {"checkpoint": str(write_tiny_bert(tmp_path / "tuned", num_labels=2))}
    changes = [({}, True), ({"load_checkpoint_states": "model"}, False)]
    changes.append(({"load_checkpoint_states": "model", "is_pretrained_checkpoint": True}, True))
    for settings, is_new in changes:
        detail = checks_of(config_of(place, model=model | settings))["weights"].detail
        assert ("made anew: classifier.weight" in detail) == is_new, (settings, detail)


def test_a_model_with_one_segment_cannot_take_pairs(place, tmp_path):
    (place / "data" / "train.tsv").write_text(
        "index\tsentence1\tsentence2\tlabel\n0\tgood\tfine\tentailment\n1\tbad\tfine\tnot_entailment\n"
    )
    model = {"checkpoint": str(write_tiny_bert(tmp_path / "one", type_vocab_size=1))}
    checks = checks_of(config_of(place, task="rte", model=model, eval_input=None))
    assert checks["train_input: train"].result == "failed"
    assert "train.tsv, line 2: token type id 1 is outside" in checks["train_input: train"].detail


def test_only_an_evaluation(place):
    checks = checks_of(config_of(place, train_input=None))
    assert results_of(checks) == {} and "one step" not in checks


def test_a_class_without_a_row_is_a_warning(place):
    (place / "data" / "train.tsv").write_text("sentence\tlabel\na good film\t1\nfine\t1\n")
    checks = checks_of(config_of(place))
    assert results_of(checks) == {"train_input: train": "warning"}
    assert "no row of class negative" in checks["train_input: train"].detail


def break_data(place):
    (place / "data" / "train.tsv").write_text(TRAIN + "no label here\n")


def break_label(place):
    (place / "data" / "dev.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t2\n")


def break_columns(place):
    (place / "data" / "dev.tsv").write_text("text\tlabel\ngood\t1\n")


def break_tokenizer(place):
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (place / "model" / name).unlink()


def foreign_tokenizer(place):
    words = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(40))])
    (place / "model" / "vocab.txt").write_text(words)
    (place / "model" / "tokenizer.json").unlink()
    from transformers import BertTokenizerFast

    BertTokenizerFast(str(place / "model" / "vocab.txt")).save_pretrained(place / "model")


def another_model(place):
    path = place / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 48}))


def torn_tokenizer(place):
    (place / "model" / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "WordPiece"}}')


def no_special_tokens(place):
    for name in ("vocab.txt", "tokenizer_config.json"):
        (place / "model" / name).unlink()
    (place / "model" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def torn_weights(place):
    path = place / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def endless_weights(place):
    fill_words(place, np.inf)


def huge_weights(place):
    fill_words(place, 3e38)  # the largest float32 is 3.4e38: their squares, which LayerNorm takes, are infinite


def fill_words(place, value):
    from safetensors.numpy import load_file, save_file

    weights = load_file(place / "model" / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][5:] = value
    save_file(weights, place / "model" / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "breaking, changes, failed, words",
    [
        pytest.param(break_data, {}, ["train_input: train"], ["train.tsv, line 6"], id="a-row-with-too-few-fields"),
        pytest.param(break_label, {}, ["eval_input: dev"], ["dev.tsv, line 3", "'2'", "'positive'"], id="an-unknown-label"),
        pytest.param(break_columns, {}, ["eval_input: dev"], ["dev.tsv", "'sentence'", "'text'"], id="a-missing-column"),
        pytest.param(break_tokenizer, {}, ["tokenizer"], ["model: no tokenizer is there", "bertfast.model.tokenizer"], id="no-tokenizer"),
        pytest.param(torn_tokenizer, {}, ["tokenizer"], ["model: its tokenizer cannot be loaded"], id="a-torn-tokenizer"),
        pytest.param(no_special_tokens, {}, ["tokenizer"], ["has no cls_token", "[CLS]"], id="no-special-tokens"),
        pytest.param(foreign_tokenizer, {}, ["tokenizer"], ["45 tokens", "24 word embeddings"], id="a-tokenizer-of-another-model"),
        pytest.param(another_model, {}, ["weights"], ["[32, 16]", "[48, 16]"], id="weights-of-another-shape"),
        pytest.param(torn_weights, {}, ["weights"], ["model.safetensors", "cut short"], id="torn-weights"),
        pytest.param(endless_weights, {}, ["weights"], ["word_embeddings.weight[5, 0] is inf"], id="weights-that-are-not-finite"),
        pytest.param(huge_weights, {}, ["one step"], ["the loss is nan", "train.tsv, line"], id="a-loss-that-is-not-finite"),
        pytest.param(None, {"model": {"checkpoint": "./nowhere"}}, ["checkpoint"], ["./nowhere", "no such folder"], id="no-checkpoint"),
        pytest.param(
            None,
            {"train_input": {"data_dir": "./nowhere"}},
            ["train_input: train"],
            ["data_dir nowhere: there is no such folder"],
            id="no-data",
        ),
        pytest.param(
            None,
            {"eval_input": {"data_dir": "data", "max_sequence_length": 129}},
            ["sequence length"],
            ["bertfast.eval_input.max_sequence_length = 129", "128 position embeddings", "128 or less"],
            id="longer-than-the-positions",
        ),
        pytest.param(None, {"deepspeed": {"fp16": {"enabled": True}}}, ["precision"], ["fp16", "CPU", "bf16"], id="fp16-on-a-cpu"),
        pytest.param(
            None,
            {"deepspeed": {"gradient_accumulation_steps": 3}},
            ["batch size"],
            ["train_batch_size = 2", "does not divide", "gradient_accumulation_steps"],
            id="a-batch-that-does-not-divide",
        ),
    ],
)
def test_each_fault_is_named_by_its_check(place, monkeypatch, breaking, changes, failed, words):
    monkeypatch.chdir(place)
    if breaking is not None:
        breaking(place)
    checks = checks_of(config_of(place, **changes))
    assert [name for name, check in checks.items() if check.result == "failed"] == failed
    shown = " ".join(check.detail for check in checks.values() if check.result == "failed")
    assert all(word in shown for word in words), shown


def test_what_needs_a_failed_check_is_skipped_and_the_rest_is_made(place):
    shutil.rmtree(place / "model")
    checks = checks_of(config_of(place, deepspeed={"fp16": {"enabled": True}}))
    assert checks["checkpoint"].result == checks["precision"].result == "failed"
    assert checks["train_input: train"].detail.endswith("train.tsv: 4 rows; negative 2, positive 2; not tokenised")
    assert checks["tokenizer"].result == checks["weights"].result == checks["memory per rank"].result == "skipped"
    assert checks["batch size"].result == "ok"


def test_a_tokenizer_with_far_fewer_tokens_is_a_warning(place, tmp_path):
    large = write_tiny_bert(tmp_path / "large", vocab_size=1000)
    checks = checks_of(config_of(place, model={"checkpoint": str(large)}))
    assert results_of(checks) == {"tokenizer": "warning"}
    assert "976 embeddings have no token" in checks["tokenizer"].detail


def test_left_out_tensors_are_a_warning_where_loading_is_not_strict(place):
    another_model(place)
    checks = checks_of(config_of(place, model={"checkpoint": str(place / "model"), "strict": False}))
    assert results_of(checks) == {"weights": "warning"}
    assert "wrong shape" in checks["weights"].detail and "not from the checkpoint" in checks["weights"].detail


def test_the_table_names_every_failed_check(capsys, place):
    break_data(place)
    checks = run_checks(lambda: load_config(config_of(place, deepspeed={"fp16": {"enabled": True}})), "cpu")
    print_checks(checks)
    shown = capsys.readouterr().out
    assert "2 of 14 checks failed: precision, train_input: train" in shown
    assert "line 6" in shown and "skipped" in shown


VALIDATORS = [(entry.main, ["validate"]), (entry.main, ["train", "--validate_only"]), (entry.launch, ["--validate_only"])]


@pytest.mark.parametrize("run, argv", VALIDATORS, ids=["validate", "train", "launch"])
def test_the_command_exits_0_or_2(place, capsys, monkeypatch, run, argv):
    monkeypatch.chdir(place)
    (place / "c.json").write_text(json.dumps(config_of(place)))
    assert run([*argv, "--config", "c.json"]) == 0
    assert "Nothing failed." in capsys.readouterr().out
    break_label(place)
    assert run([*argv, "--config", "c.json"]) == 2
    assert "1 of 14 checks failed: eval_input: dev" in capsys.readouterr().out


def test_one_rank_checks_for_all(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    assert entry.main(["validate", "--config", str(tmp_path / "nothing.json")]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_config_that_cannot_be_read_is_a_failed_check(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the table breaks lines, and a long path moves the break
    (tmp_path / "c.json").write_text('{"bertfast": {"task": "sst2", "modle": {}}}')
    assert entry.main(["validate", "--config", "c.json"]) == 2
    shown = capsys.readouterr().out
    assert "'modle' in bertfast" in shown and "1 of 2 checks failed: config" in shown and "skipped" in shown


def test_a_wrong_label_is_named_even_where_the_checkpoint_is_not_there(place):
    shutil.rmtree(place / "model")
    break_label(place)
    checks = checks_of(config_of(place))
    assert checks["train_input: train"].result == "ok" and "dev.tsv, line 3" in checks["eval_input: dev"].detail


def test_a_task_without_training_data_cannot_be_trained(place):
    checks = checks_of(config_of(place, task="ax"))
    assert checks["config"].result == "failed" and "ax has no training data" in checks["config"].detail
    (place / "data" / "diagnostic.tsv").write_text("index\tsentence1\tsentence2\n0\tgood\tbad\n")
    checks = checks_of(config_of(place, task="ax", train_input=None))
    assert results_of(checks) == {} and "1 row; no labels" in checks["eval_input: test"].detail
