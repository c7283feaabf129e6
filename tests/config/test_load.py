"""Reading JSON and YAML, overrides, and the message for every fault."""

import json
from pathlib import Path

import pytest
import yaml

from bertfast.config.files import find_config
from bertfast.config.load import load_config
from bertfast.config.schema import BertfastConfig, Config, TaskConfig
from bertfast.errors import ConfigError
from tests.support import ROOT

CONFIGS = sorted((ROOT / "configs").iterdir())
BASE = {"bertfast": {"task": "mnli", "model": {"checkpoint": "bert-base-uncased"}}}


def message(config, overrides=None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(config, overrides)
    return str(caught.value)


def write(folder, name, text, encoding="utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_load(path):
    config = load_config(path)
    assert config.path == path
    assert config.bertfast.train_input and config.bertfast.eval_input
    assert 2e-5 <= float(config.deepspeed["optimizer"]["params"]["lr"]) <= 1e-3


def test_the_promised_configs_are_shipped():
    promised = {f"ds_{name}.json" for name in ("mnli", "sst2", "mrpc", "cola", "mnli_zero3", "mnli_cpu_offload")}
    promised |= {f"bert_{size}_{task}.yaml" for size in ("base", "large") for task in ("sst2", "mnli")}
    assert promised <= {path.name for path in CONFIGS}


def test_yaml_and_json_of_the_same_content_are_equal(tmp_path):
    path = next(path for path in CONFIGS if path.name == "ds_mnli.json")
    again = write(tmp_path, "same.yaml", yaml.safe_dump(json.loads(path.read_text())))
    assert load_config(path).to_dict() == load_config(again).to_dict()
    assert load_config(path).bertfast == load_config(again).bertfast


def test_the_whole_config_comes_back_as_plain_data():
    config = load_config({**BASE, "gradient_clipping": 1.0})
    assert isinstance(config, Config) and isinstance(config.bertfast, BertfastConfig)
    assert config.deepspeed == {"gradient_clipping": 1.0}
    again = load_config(json.loads(json.dumps(config.to_dict())))
    assert (again.deepspeed, again.bertfast) == (config.deepspeed, config.bertfast)


def test_the_dictionary_given_is_not_changed():
    given = json.loads(json.dumps(BASE))
    load_config(given, ["bertfast.task=sst2"])
    assert given == BASE


def test_what_python_gives_in_the_place_of_a_file(tmp_path):
    np, pandas = pytest.importorskip("numpy"), pytest.importorskip("pandas")
    given = {"task": {"text_columns": ("a", "b")}, "model": {"checkpoint": tmp_path}, "run": {"epochs": np.float32(2), "seed": np.int64(7)}}
    block = load_config({"bertfast": given}).bertfast
    assert (block.task.text_columns, block.model.checkpoint, block.run.epochs, block.run.seed) == (("a", "b"), str(tmp_path), 2.0, 7)
    config = load_config({"bertfast": given}, {"bertfast.run.epochs": 3, "optimizer.params.lr": 1e-4})
    assert config.bertfast.run.epochs == 3 and config.deepspeed == {"optimizer": {"params": {"lr": 1e-4}}}
    assert load_config(config) is config and load_config(config, "bertfast.run.seed=8").bertfast.run.seed == 8
    for value, kind in (
        (pandas.DataFrame({"a": [1]}), "DataFrame, .*write it to a file"),
        ({1, 2}, "set, .*give a string"),
        (len, "builtin_function"),
    ):
        with pytest.raises(ConfigError, match=rf"^config: bertfast\.train_input\.data_file is of type {kind}"):
            load_config({"bertfast": {**given, "train_input": {"data_file": value}}})


@pytest.mark.parametrize("given", [None, 7, ["a.json"], BASE["bertfast"].items()], ids=["none", "number", "list", "items"])
def test_what_is_no_config_is_named(given):
    assert "give the path of a config file, or a dictionary" in message(given)


@pytest.mark.parametrize("overrides", [[("bertfast.run.seed", 7)], [7], 7])
def test_overrides_that_are_no_strings_are_named(overrides):
    assert "write it as a string, key.path=value" in message(BASE, overrides)


def test_the_block_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_config(BASE).bertfast.task = "sst2"


@pytest.mark.parametrize(
    "text, expected",
    [
        pytest.param("3e-5", 3e-5, id="exponent-without-a-point"),
        pytest.param("1.5E+3", 1500.0, id="exponent-with-a-point"),
        pytest.param("-2e3", -2000.0, id="negative"),
        pytest.param('"3e-5"', "3e-5", id="quoted-number-stays-a-string"),
        pytest.param("1e5x", "1e5x", id="a-name-that-begins-like-a-number"),
        pytest.param("no", "no", id="no-is-a-label"),
        pytest.param("2024-01-01", "2024-01-01", id="a-date-is-a-string"),
        pytest.param("true", True, id="true"),
        pytest.param("32", 32, id="integer"),
        pytest.param("[a, no]", ["a", "no"], id="list"),
        pytest.param("", "", id="empty"),
        pytest.param("a: b: c", "a: b: c", id="not-yaml-is-a-string"),
        pytest.param("x=y", "x=y", id="a-second-equals-sign"),
    ],
)
def test_values_of_overrides(text, expected):
    assert load_config(BASE, [f"data_types.param_dtype={text}"]).deepspeed["data_types"]["param_dtype"] == expected


def test_overrides_apply_in_order_and_make_blocks():
    config = load_config(BASE, ["bertfast.train_input.batch_size=8", "bertfast.train_input.batch_size=64", "fp16.enabled=true"])
    assert config.bertfast.train_input.batch_size == 64
    assert config.deepspeed == {"fp16": {"enabled": True}}


@pytest.mark.parametrize(
    "override, words",
    [
        pytest.param("batch_size", ["--set batch_size", "key.path=value"], id="no-equals-sign"),
        pytest.param("=3", ["--set =3", "key.path=value"], id="no-key"),
        pytest.param("bertfast.task.name=x", ["--set bertfast.task.name=x", "bertfast.task is a value, not a block"], id="below-a-value"),
        pytest.param(
            "bertfast.run.epoch=3", ["--set bertfast.run.epoch=3", "'epoch' in bertfast.run", "did you mean 'epochs'"], id="unknown-key"
        ),
        pytest.param("bertfast.run.epochs=three", ["--set bertfast.run.epochs=three", '"three"', "it must be a number"], id="not-a-number"),
        pytest.param('bertfast.run={"epochs": 0}', ["--set bertfast.run=", "run.epochs = 0", "greater than 0"], id="a-whole-block"),
        pytest.param("fp16.enable=1", ["--set fp16.enable=1", "'enable' in fp16", "did you mean 'enabled'"], id="deepspeed-key"),
    ],
)
def test_a_bad_override_is_named(override, words):
    text = message(BASE, ["bertfast.run.epochs=3", override] if override.startswith("bertfast.run") else [override])
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    "changes, words",
    [
        pytest.param({"gradient_cliping": 1}, ["'gradient_cliping' at the top level", "did you mean 'gradient_clipping'"], id="top-level"),
        pytest.param({"bertfst": {}}, ["'bertfst' at the top level", "did you mean 'bertfast'"], id="misspelt-bertfast"),
        pytest.param({"xyzzy": 1}, ["'xyzzy'", "known keys: activation_checkpointing, aio,"], id="nothing-is-near"),
        pytest.param({"zero_optimization": {"stag": 1}}, ["'stag' in zero_optimization", "'stage'"], id="zero"),
        pytest.param(
            {"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}},
            ["'devise' in zero_optimization.offload_optimizer", "'device'"],
            id="offload",
        ),
        pytest.param(
            {"scheduler": {"type": "WarmupDecayLR", "params": {"total_steps": 9}}},
            ["'total_steps' in scheduler.params", "'total_num_steps'"],
            id="scheduler-parameter",
        ),
        pytest.param({"fp16": True}, ["fp16 = true", "must be an object", "enabled"], id="a-block-that-is-a-value"),
        pytest.param({"flops_profiler": {"enabld": True}}, ["'enabld' in flops_profiler", "'enabled'"], id="flops-profiler"),
        pytest.param({"optimizer": {"params": {"lrr": 1}}}, ["'lrr' in optimizer.params", "'lr'"], id="adamw-params-without-a-type"),
        pytest.param({"optimizer": {"type": "AdanW"}}, ['optimizer.type = "AdanW"', "did you mean 'AdamW'"], id="optimizer-type"),
        pytest.param({"optimizer": {"type": 3}}, ["optimizer.type = 3", "known: ASGD, Adadelta"], id="optimizer-type-number"),
        pytest.param({"scheduler": {"type": "WarmupDecay"}}, ["scheduler.type", "did you mean 'WarmupDecayLR'"], id="scheduler-type"),
    ],
)
def test_unknown_deepspeed_keys(changes, words):
    text = message({**BASE, **changes})
    assert text.startswith("config: ") and all(word in text for word in words), text


@pytest.mark.parametrize(
    "override, words",
    [
        pytest.param("zero_optimization.stage=4", "zero_optimization.stage = 4: it must be 0, 1, 2 or 3", id="zero-stage"),
        pytest.param("zero_optimization.stage=two", 'zero_optimization.stage = "two"', id="zero-stage-in-words"),
        pytest.param("zero_optimization.stage=true", "zero_optimization.stage = true", id="zero-stage-switch"),
        pytest.param("zero_optimization.offload_param.device=gpu", "'none', 'cpu' or 'nvme'", id="offload"),
        pytest.param("gradient_clipping=-1", "gradient_clipping = -1: it must be a number from 0 on, or 'auto'", id="negative-clipping"),
        pytest.param("optimizer.params.lr='3e-5'", 'optimizer.params.lr = "3e-5": it must be a number', id="quoted-rate"),
        pytest.param("optimizer.params.betas=[0.9]", "optimizer.params.betas = [0.9]: it must be two numbers", id="one-beta"),
        pytest.param("steps_per_print=x", 'steps_per_print = "x"', id="steps-per-print"),
        pytest.param("wandb.enabled=maybe", 'wandb.enabled = "maybe": it must be true or false', id="switch"),
    ],
)
def test_values_that_deepspeed_cannot_take(override, words):
    with pytest.raises(ConfigError) as error:
        load_config(BASE, [override])
    assert str(error.value).startswith(f"--set {override}: ") and words in str(error.value)


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.type=adamw",
        "optimizer.type=SGD",
        "scheduler.type=LRRangeTest",
        "scheduler.type=LinearLR",
        "optimizer.params.lr=auto",
        "gradient_clipping=auto",
        "zero_optimization.stage=0",
    ],
)
def test_values_that_deepspeed_takes(override):
    key, _, value = override.partition("=")
    node = load_config(BASE, [override]).deepspeed
    for part in key.split("."):
        node = node[part]
    assert str(node) == value


def test_texts_are_cut_in_evaluation_as_in_training():
    def lengths(train, evaluation):
        block = {"task": "sst2", "model": {"checkpoint": "bert"}, "train_input": train, "eval_input": evaluation}
        read = load_config({"bertfast": block}).bertfast
        return read.train_input.max_sequence_length, read.eval_input.max_sequence_length

    assert lengths({"max_sequence_length": 256}, {}) == (256, 256)
    assert lengths({"max_sequence_length": 256}, {"max_sequence_length": 64}) == (256, 64)
    assert lengths({}, {"batch_size": 8}) == (128, 128)


@pytest.mark.parametrize(
    "block, words",
    [
        pytest.param({"tasks": "mnli"}, ["'tasks' in bertfast", "did you mean 'task'"], id="unknown-block"),
        pytest.param({"model": {"checkpont": "x"}}, ["'checkpont' in bertfast.model", "'checkpoint'"], id="unknown-model-key"),
        pytest.param({"model": {}}, ["bertfast.model.checkpoint is missing", "required"], id="missing-key"),
        pytest.param({"model": "bert"}, ['bertfast.model = "bert"', "must be an object", "checkpoint"], id="a-block-that-is-a-value"),
        pytest.param({"task": 3}, ["bertfast.task = 3", "quotation marks"], id="task-number"),
        pytest.param(
            {"task": {"text_columns": ["a"], "label_nmes": ["x"]}}, ["'label_nmes' in bertfast.task", "'label_names'"], id="task-key"
        ),
        pytest.param({"task": {"text_columns": "a"}}, ['bertfast.task.text_columns = "a"', 'a list: ["a"]'], id="columns-not-a-list"),
        pytest.param({"task": {"text_columns": ["a", "b", "c"]}}, ["bertfast.task.text_columns", "at most 2"], id="three-text-columns"),
        pytest.param(
            {"task": {"text_columns": ["a"], "label_names": [0, 1]}}, ["task.label_names.0 = 0", "quotation marks"], id="label-numbers"
        ),
        pytest.param({"train_input": {"batch_size": 0}}, ["train_input.batch_size = 0", "1 or more"], id="batch-0"),
        pytest.param(
            {"train_input": {"batch_size": 2.5}}, ["bertfast.train_input.batch_size = 2.5", "a whole number"], id="half-an-example"
        ),
        pytest.param(
            {"train_input": {"data_dir": "a", "data_file": "b"}},
            ["bertfast.train_input: give one of", "data_dir and data_file"],
            id="two-sources",
        ),
        pytest.param({"train_input": {"planner": "tokens"}}, ["bertfast.train_input", "needs tokens_per_batch"], id="no-token-budget"),
        pytest.param(
            {"train_input": {"planner": "tokens", "tokens_per_batch": 64, "max_sequence_length": 128}},
            ["tokens_per_batch is 64", "max_sequence_length 128"],
            id="token-budget-under-the-longest",
        ),
        pytest.param({"run": {"epochs": float("inf")}}, ["bertfast.run.epochs = Infinity", "finite"], id="endless"),
        pytest.param({"head": {"dropout": 1.0}}, ["bertfast.head.dropout = 1.0", "less than 1"], id="dropout-of-all"),
        pytest.param(
            {"model": {"checkpoint": "x", "load_checkpoint_states": "optimizer"}}, ["load_checkpoint_states", "'model'"], id="states"
        ),
    ],
)
def test_faults_of_the_bertfast_block(block, words):
    text = message({"bertfast": {**BASE["bertfast"], **block}})
    assert text.startswith("config: ") and all(word in text for word in words), text


def test_every_fault_of_the_block_is_named_at_once():
    text = message({"bertfast": {"task": "mnli", "model": {"chekpoint": "x"}, "run": {"epochs": 0}}})
    assert len(text.splitlines()) == 3
    assert all(word in text for word in ("'chekpoint'", "bertfast.model.checkpoint is missing", "bertfast.run.epochs = 0"))


@pytest.mark.parametrize(
    "name, text, words",
    [
        pytest.param("a.json", '{"bertfast": {}\n "fp16": {}}', ["line 2, column 2", "not valid JSON"], id="json-syntax"),
        pytest.param("a.json", '{"fp16": {}, "fp16": {}}', ["'fp16' stands twice"], id="json-key-twice"),
        pytest.param("a.json", '{"gradient_clipping": NaN}', ["NaN", "finite"], id="json-nan"),
        pytest.param("a.json", "[1]", ["top level must be an object", "list"], id="json-list"),
        pytest.param("a.json", "", ["line 1, column 1", "not valid JSON"], id="json-empty"),
        pytest.param("a.json", "{}", ["no 'bertfast' block", "configs/"], id="no-block"),
        pytest.param("a.yaml", "fp16:\n  enabled: true\nfp16: {}\n", ["line 3, column 1", "'fp16' stands twice"], id="yaml-key-twice"),
        pytest.param("a.yaml", "a: [1\nb: 2\n", ["line 2", "not valid YAML"], id="yaml-syntax"),
        pytest.param("a.yaml", "a: \x00\n", ["not valid YAML"], id="yaml-control-character"),
        pytest.param("a.yaml", "? [1, 2]\n: 3\n", ["not valid YAML", "unhashable"], id="yaml-list-as-key"),
        pytest.param("a.yaml", "", ["top level must be an object"], id="yaml-empty"),
        pytest.param("a.yaml", "7: 3\n", ["unknown key '7' at the top level"], id="yaml-number-as-key"),
    ],
)
def test_faults_of_the_file_name_the_file(tmp_path, name, text, words):
    path = write(tmp_path, name, text)
    found = message(path)
    assert found.startswith(str(path)) and all(word in found for word in words), found
    assert len(found.splitlines()) <= 2


def test_a_file_that_is_not_utf8_names_the_byte(tmp_path):
    path = tmp_path / "latin.json"
    path.write_bytes('{"bertfast": "é"}'.encode("latin-1"))
    assert message(path) == f"{path}: not valid UTF-8 at byte 14; save the file as UTF-8"


def test_a_byte_order_mark_is_passed_over(tmp_path):
    assert load_config(write(tmp_path, "bom.json", json.dumps(BASE), "utf-8-sig")).bertfast.task == "mnli"


def test_a_bare_name_is_looked_for_in_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("ds_mnli.json").name == "ds_mnli.json"
    (tmp_path / "configs").mkdir()
    here = write(tmp_path / "configs", "ds_mnli.json", json.dumps(BASE))
    assert find_config("ds_mnli.json").resolve() == here
    write(tmp_path, "ds_mnli.json", json.dumps(BASE))
    assert find_config("ds_mnli.json") == Path("ds_mnli.json")


def test_a_name_that_is_not_found_names_the_nearest():
    assert message("ds_mnly.json") == "--config ds_mnly.json: no such file; did you mean ds_mnli.json?"
    assert "no such file; looked here and in configs/" in message("zzz")


def test_defaults_are_those_of_the_bert_paper():
    run = load_config(BASE).bertfast.run
    assert (run.epochs, run.warmup_ratio) == (3.0, 0.1)
    task = load_config({"bertfast": {**BASE["bertfast"], "task": {"text_columns": ["a", "b"]}}}).bertfast.task
    assert task == TaskConfig(text_columns=("a", "b"), label_column="label")
