"""Bad inputs through the command line: exit code 2, and one line that names the place and the value and says what to do."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from bertfast.cli import main
from tests.support.tiny_bert import write_tiny_bert

SOURCE = {"data_file": "good.tsv", "max_sequence_length": 16, "batch_size": 2}
BLOCK = {
    "task": {"text_columns": ["text"], "label_names": ["no", "yes"]},
    "model": {"checkpoint": "model"},
    "train_input": SOURCE,
    "eval_input": SOURCE,
    "run": {"model_dir": "run", "threads": 1},
}
GOOD = "text\tlabel\na good film\tyes\na bad film\tno\n"


def config_text(**changes):
    return json.dumps({"bertfast": {**BLOCK, **changes}})


def write_files(folder: Path) -> None:
    """Every file that a case names: one fault each."""
    texts = {
        "good.tsv": GOOD,
        "c.json": config_text(),
        "export.json": config_text(export={}),
        "space.yaml": "optimizer.params.lr: [1.0e-5, 2.0e-5]\n",
        # configs
        "comma.json": '{"bertfast": {}\n "fp16": {}}',
        "open.json": '{"bertfast": {"task": "sst2"',
        "twice.json": '{"bertfast": {}, "bertfast": {}}',
        "nan.json": '{"gradient_clipping": NaN, "bertfast": {}}',
        "list.json": "[1, 2]",
        "empty.json": "",
        "none.json": "{}",
        "comment.json": "// mine\n{}",
        "indent.yaml": "bertfast:\n  task: sst2\n model: x\n",
        "tab.yaml": "bertfast:\n\ttask: sst2\n",
        "twice.yaml": "fp16: {}\nfp16: {}\n",
        "c.toml": "[bertfast]\ntask = 'sst2'\n",
        "no_train.json": config_text(train_input=None),
        "no_eval.json": config_text(eval_input=None),
        # rows
        "short.tsv": GOOD + "alone\n",
        "label.tsv": GOOD + "fine\tmaybe\n",
        "no_label.tsv": GOOD + "fine\t\n",
        "header.tsv": "text\tlabel\n",
        "empty.tsv": "",
        "column.tsv": "txt\tlabel\nfine\tyes\n",
        "columns.tsv": "text\ttext\tlabel\nfine\tfine\tyes\n",
        "quote.csv": 'text,label\n"a film,yes\n',
        "long.csv": "text,label\na film, a good one,yes\n",
        "short.csv": "text,label\nfine\n",
        "row.jsonl": '{"text": "fine", "label": "yes"}\n{"text": "fine", "label": }\n',
        "list.jsonl": '["fine", "yes"]\n',
        "null.jsonl": '{"text": null, "label": "yes"}\n',
        "number.jsonl": '{"text": 3, "label": "yes"}\n',
        "key.jsonl": '{"text": "fine", "label": "yes"}\n{"label": "yes"}\n',
        "nolabel.jsonl": '{"text": "fine", "label": null}\n{"text": "fine", "label": "yes"}\n',
        "block.jsonl": '{"text": "fine", "label": {"is": "yes"}}\n',
        "torn.parquet": "PAR1 and no more",
        "rows.xlsx": "text",
        "blank.txt": "",
        "pairs.tsv": "sentence1\tsentence2\tlabel\na\tb\tentailment\n",
        # spaces
        "value.yaml": "optimizer.params.lr: 1.0e-5\n",
        "empty.yaml": "",
        "same.yaml": "optimizer.params.lr: [1.0e-5, 1.0e-5]\n",
        "seed.yaml": "bertfast.run.seed: [1, 2]\n",
        "low.yaml": "optimizer.params.lr: {low: 2.0e-5, high: 1.0e-5}\n",
        "range.yaml": "optimizer.params.lr: {low: 1.0e-5, hihg: 2.0e-5}\n",
        "log.yaml": "optimizer.params.lr: {low: 0, high: 1.0e-5, log: true}\n",
        "endless.yaml": "optimizer.params.lr: {low: 1.0e-5, high: 2.0e-5}\n",
        "key.yaml": "bertfast.run.epoch: [1, 2]\n",
        "kind.yaml": "bertfast.run.epochs: [1, many]\n",
        # outputs
        "file": "",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "latin.json").write_bytes('{"bertfast": "é"}'.encode("latin-1"))
    (folder / "latin.tsv").write_bytes(GOOD.encode() + "café\tyes\n".encode("latin-1"))
    (folder / "latin.txt").write_bytes("fine\ncafé\n".encode("latin-1"))
    (folder / "nul.csv").write_bytes(b"text,label\n\x00\xff,yes\n")
    write_models(folder)


def write_models(folder: Path) -> None:
    """A fine-tuned model, and others that lack or spoil one file of it."""
    model = write_tiny_bert(folder / "model", num_labels=2, id2label={0: "no", 1: "yes"})
    (model / "bertfast.json").write_text(config_text())
    for name in ("no_config", "torn_config", "gpt", "no_weights", "torn_weights", "no_tokenizer", "torn_tokenizer"):
        shutil.copytree(model, folder / name)
    (folder / "no_config" / "config.json").unlink()
    (folder / "torn_config" / "config.json").write_text('{"model_type": "bert",')
    (folder / "gpt" / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "no_weights" / "model.safetensors").unlink()
    (folder / "torn_weights" / "model.safetensors").write_bytes(b"short")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / "no_tokenizer" / name).unlink(missing_ok=True)
    (folder / "torn_tokenizer" / "tokenizer.json").write_text("{")
    write_tiny_bert(folder / "three", num_labels=3)
    (folder / "empty").mkdir()
    (folder / "bundle").mkdir()
    (folder / "torn_bundle").mkdir()
    (folder / "torn_bundle" / "verification.json").write_text("{")
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("mine")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    write_files(folder)
    return folder


TRAIN, EVAL = "train CPU --config c.json", "eval CPU --config c.json --checkpoint_path model"
PREDICT, SWEEP = "predict CPU --config c.json --checkpoint_path model", "sweep CPU --config c.json"


def with_set(command: str, *overrides: str) -> str:
    return " ".join([command, *(f"--set {override}" for override in overrides)])


def data(file: str) -> str:
    return with_set(EVAL, f"bertfast.eval_input.data_file={file}")


FLAGS = {
    "no-command": ("", "COMMAND", "--help"),
    "unknown-command": ("trian", "'trian'", "'train'"),
    "no-config": ("train", "--config is missing", "ds_mnli.json"),
    "no-value": ("train --config", "--config", "expected one argument"),
    "misspelt-flag": ("train --confg c.json", "--confg", "did you mean --config"),
    "shortened-flag": ("train --conf c.json", "--conf", "did you mean --config"),
    "unheard-of-flag": (f"{TRAIN} --xyzzy", "--xyzzy", "known flags"),
    "hyphen": (f"{TRAIN} --model-dir r", "--model-dir", "did you mean --model_dir"),
    "late-device": ("train --config c.json GPU", "GPU", "first"),
    "bare-config": ("train c.json", "'c.json'", "--config c.json"),
    "choice": (f"{TRAIN} --pooling median", "'median'", "attention"),
    "layers": (f"{TRAIN} --layers top", "'top'", "--layers"),
    "truncation": (f"{TRAIN} --trunc_medium -7", "--trunc_medium -7", "head"),
    "resume-eval": (f"{EVAL} --resume", "--resume", "it is for train and pretrain"),
    "variant-alone": (f"{PREDICT} --variant int8", "--variant", "--onnx"),
    "two-modes": (f"{TRAIN} --validate_only --compile_only", "--validate_only and --compile_only", "only one"),
    "seeds": (f"{SWEEP} --seeds 0", "'0'", "from 1 on"),
    "jobs": (f"{SWEEP} --jobs two", "'two'", "whole number"),
    "gpu": ("train GPU --config c.json", "GPU", "leave GPU out"),
    "flag-of-another": ("eval CPU --config c.json --checkpoint_path model --grid_only", "--grid_only", "it is for export"),
    "target": ("compile --config c.json --target sm_70", "'sm_70'", "sm_80"),
    "opset": ("export model -o out --grid_only --opset nine", "'nine'", "--opset"),
    "export-nowhere": ("export model", "-o", "required"),
    "convert-to": ("convert model out --to jax", "'jax'", "tensorflow"),
}

OVERRIDES = {
    "no-equals": (with_set(TRAIN, "batch_size"), "--set batch_size", "key.path=value"),
    "no-key": (with_set(TRAIN, "=3"), "--set =3", "key.path=value"),
    "below-a-value": (with_set(TRAIN, "bertfast.run.seed.x=1"), "--set bertfast.run.seed.x=1", "bertfast.run.seed is a value, not a block"),
    "unknown-key": (with_set(TRAIN, "bertfast.run.epoch=3"), "'epoch' in bertfast.run", "'epochs'"),
    "unknown-block": (with_set(TRAIN, "bertfast.modle.x=3"), "'modle' in bertfast", "'model'"),
    "top-level": (with_set(TRAIN, "gradient_cliping=1"), "'gradient_cliping'", "'gradient_clipping'"),
    "block-as-value": (with_set(TRAIN, "bertfast.run=5"), "bertfast.run = 5", "object"),
    "text-for-number": (with_set(TRAIN, "bertfast.run.epochs=many"), '"many"', "must be a number"),
    "zero-epochs": (with_set(TRAIN, "bertfast.run.epochs=0"), "bertfast.run.epochs = 0", "greater than 0"),
    "endless": (with_set(TRAIN, "bertfast.run.epochs=.inf"), "bertfast.run.epochs", "finite"),
    "negative-seed": (with_set(TRAIN, "bertfast.run.seed=-1"), "bertfast.run.seed = -1", "0 or more"),
    "half-a-batch": (with_set(TRAIN, "bertfast.train_input.batch_size=2.5"), "batch_size = 2.5", "a whole number"),
    "warmup": (with_set(TRAIN, "bertfast.run.warmup_ratio=1.5"), "warmup_ratio = 1.5", "1 or less"),
    "no-threads": (with_set(TRAIN, "bertfast.run.threads=0"), "bertfast.run.threads = 0", "1 or more"),
    "short": (with_set(TRAIN, "bertfast.train_input.max_sequence_length=1"), "max_sequence_length = 1", "2 or more"),
    "planner": (with_set(TRAIN, "bertfast.train_input.planner=random"), 'planner = "random"', "'examples' or 'tokens'"),
    "no-budget": (with_set(TRAIN, "bertfast.train_input.planner=tokens"), "bertfast.train_input", "needs tokens_per_batch"),
    "two-sources": (with_set(TRAIN, "bertfast.train_input.data_dir=d"), "data_dir and data_file", "give one of"),
    "dropout": (with_set(TRAIN, "bertfast.head.dropout=1"), "bertfast.head.dropout = 1", "less than 1"),
    "below-a-text": (
        with_set(TRAIN, "bertfast.train_input.planner.x=1"),
        "--set bertfast.train_input.planner.x=1",
        "is a value, not a block",
    ),
    "task": (with_set(TRAIN, "bertfast.task=sst3"), "'sst3'", "'sst2'"),
    "metric": (with_set(TRAIN, "bertfast.task.metric=acuracy"), "'acuracy'", "'accuracy'"),
    "optimizer": (with_set(TRAIN, "optimizer.type=AdanW"), 'optimizer.type = "AdanW"', "'AdamW'"),
    "rate": (with_set(TRAIN, "optimizer.params.lr=high"), 'optimizer.params.lr = "high"', "a number"),
    "stage": (with_set(TRAIN, "zero_optimization.stage=4"), "zero_optimization.stage = 4", "0, 1, 2 or 3"),
    "scheduler": (with_set(TRAIN, "scheduler.type=WarmupDecay"), "scheduler.type", "'WarmupDecayLR'"),
    "fp16": (with_set(TRAIN, "fp16.enabled=true"), "fp16.enabled is true", "bf16"),
    "both": (with_set(TRAIN, "fp16.enabled=true", "bf16.enabled=true"), "fp16.enabled and bf16.enabled", "turn one of them off"),
    "switch": (with_set(TRAIN, "wandb.enabled=maybe"), 'wandb.enabled = "maybe"', "true or false"),
}

CONFIGS = {
    "missing": ("train --config nowhere.json", "--config nowhere.json", "no such file"),
    "near": ("train --config ds_mnly.json", "--config ds_mnly.json", "did you mean ds_mnli.json"),
    "comma": ("train --config comma.json", "comma.json, line 2, column 2", "not valid JSON"),
    "open": ("train --config open.json", "open.json, line 1", "not valid JSON"),
    "comment": ("train --config comment.json", "comment.json, line 1, column 1", "not valid JSON"),
    "twice": ("train --config twice.json", "twice.json", "stands twice"),
    "nan": ("train --config nan.json", "nan.json", "finite"),
    "list": ("train --config list.json", "list.json", "must be an object"),
    "empty": ("train --config empty.json", "empty.json, line 1", "not valid JSON"),
    "no-block": ("train --config none.json", "none.json", "no 'bertfast' block"),
    "latin": ("train --config latin.json", "latin.json", "save the file as UTF-8"),
    "yaml-indent": ("train --config indent.yaml", "indent.yaml, line 3", "not valid YAML"),
    "yaml-tab": ("train --config tab.yaml", "tab.yaml, line 2", "not valid YAML"),
    "yaml-twice": ("train --config twice.yaml", "twice.yaml, line 2", "stands twice"),
    "folder": ("train --config empty", "empty", "file"),
    "toml": ("train --config c.toml", "c.toml", "JSON"),
    "no-train-input": ("train --config no_train.json", "no_train.json", "train_input"),
    "no-eval-input": ("eval --config no_eval.json --checkpoint_path model", "no_eval.json", "eval_input"),
    "no-pretrain": ("pretrain --config c.json", "c.json", "bertfast.pretrain"),
}

ROWS = {
    "missing": (data("nowhere.tsv"), "data_file nowhere.tsv", "no such file"),
    "suffix": (data("rows.xlsx"), "rows.xlsx", ".parquet"),
    "empty": (data("empty.tsv"), "empty.tsv", "empty"),
    "header-alone": (data("header.tsv"), "header.tsv", "no rows"),
    "column": (data("column.tsv"), "column.tsv", "'text'"),
    "column-twice": (data("columns.tsv"), "columns.tsv", "rename one"),
    "few-fields": (data("short.tsv"), "short.tsv, line 4", "Mend or remove the row"),
    "label": (data("label.tsv"), "label.tsv, line 4", "'maybe'"),
    "no-label": (data("no_label.tsv"), "no_label.tsv, line 4", "every row needs one"),
    "latin": (data("latin.tsv"), "latin.tsv, line 4", "save the file as UTF-8"),
    "open-quote": (data("quote.csv"), "quote.csv, line 2", "quot"),
    "many-fields": (data("long.csv"), "long.csv, line 2", "quot"),
    "csv-few-fields": (data("short.csv"), "short.csv, line 2", "too few fields"),
    "nul": (data("nul.csv"), "nul.csv, line 2", "UTF-8"),
    "json": (data("row.jsonl"), "row.jsonl, line 2", "not valid JSON"),
    "json-list": (data("list.jsonl"), "list.jsonl, line 1", "one object a line"),
    "json-null": (data("null.jsonl"), "null.jsonl, line 1", "null"),
    "json-number": (data("number.jsonl"), "number.jsonl, line 1", "text"),
    "json-key": (data("key.jsonl"), "key.jsonl, line 2", "'text'"),
    "json-no-label": (data("nolabel.jsonl"), "nolabel.jsonl, line 1", "every row needs one"),
    "json-label": (data("block.jsonl"), "block.jsonl, line 1", "a name or a number"),
    "parquet": (data("torn.parquet"), "torn.parquet", "Parquet"),
    "no-folder": (
        with_set(EVAL, "bertfast.eval_input.data_file=null", "bertfast.eval_input.data_dir=nowhere"),
        "data_dir nowhere",
        "expected",
    ),
    "no-split": (
        with_set(EVAL, "bertfast.eval_input.data_file=null", "bertfast.eval_input.data_dir=empty"),
        "data_dir empty",
        "looked for",
    ),
    "no-data": (with_set(EVAL, "bertfast.eval_input.data_file=null"), "names no data", "data_file"),
    "length": (with_set(EVAL, "bertfast.eval_input.max_sequence_length=999"), "999", "128"),
    "input-missing": (f"{PREDICT} --input nowhere.txt", "--input nowhere.txt", "no such file"),
    "input-empty": (f"{PREDICT} --input blank.txt", "blank.txt", "one text a line"),
    "input-latin": (f"{PREDICT} --input latin.txt", "latin.txt, line 2", "UTF-8"),
    "input-column": (f"{PREDICT} --input pairs.tsv", "pairs.tsv", "'text'"),
}

MODELS = {
    "no-folder": ("eval CPU --config c.json --checkpoint_path ./nowhere", "./nowhere", "no such folder"),
    "not-trained": ("eval CPU --config c.json --model_dir never", "never/model", "train first"),
    "no-recipe": ("eval CPU --checkpoint_path empty", "--checkpoint_path empty", "--config"),
    "empty": ("eval CPU --config c.json --checkpoint_path ./empty", "empty", "config.json"),
    "no-config": ("eval CPU --config c.json --checkpoint_path no_config", "no_config", "config.json"),
    "torn-config": ("eval CPU --config c.json --checkpoint_path torn_config", "torn_config/config.json", "not valid JSON"),
    "gpt": ("eval CPU --config c.json --checkpoint_path gpt", "'gpt2'", "bert"),
    "no-weights": ("eval CPU --config c.json --checkpoint_path no_weights", "no_weights", "model.safetensors"),
    "torn-weights": ("eval CPU --config c.json --checkpoint_path torn_weights", "torn_weights/model.safetensors", "cut short"),
    "no-tokenizer": ("eval CPU --config c.json --checkpoint_path no_tokenizer", "no_tokenizer", "bertfast.model.tokenizer"),
    "torn-tokenizer": ("eval CPU --config c.json --checkpoint_path torn_tokenizer", "torn_tokenizer", "bertfast.model.tokenizer"),
    "three-labels": ("eval CPU --config c.json --checkpoint_path three", "3 labels", "another task"),
    "convert-nothing": ("convert ./nowhere out", "./nowhere", "no such folder"),
    "convert-onto": ("convert model full", "full", "name a folder that is not"),
    "onnx-nothing": ("predict --onnx nowhere --input good.tsv", "nowhere", "export"),
    "onnx-empty": ("predict --onnx bundle --input good.tsv", "bundle", "export"),
    "verify-nothing": ("verify bundle", "bundle", "export"),
    "verify-torn": ("verify torn_bundle", "torn_bundle", "export"),
    "export-nothing": ("export ./nowhere -o out --grid_only", "./nowhere", "no such folder"),
    "export-variant": ("export model -o out --grid_only --variants tiny", "'tiny'", "portable"),
    "export-opset": ("export model -o out --grid_only --opset 99", "99", "23"),
    "export-onto-a-file": ("export model -o file --grid_only --variants portable", "file", "folder"),
}

OUTPUTS = {
    "run-in-a-file": (with_set(TRAIN, "bertfast.run.model_dir=file/run"), "file/run", "--model_dir"),
    "predict-below-a-file": (f"{PREDICT} --input good.tsv --output file/out.tsv", "file/out.tsv", "another place"),
    "sweep-in-a-file": (f"{SWEEP} --space space.yaml --seeds 1 --model_dir file/sweep", "file/sweep", "--model_dir"),
    "space-missing": (f"{SWEEP} --space nowhere.yaml", "--space nowhere.yaml", "no such file"),
    "space-empty": (f"{SWEEP} --space empty.yaml", "empty.yaml", "lists of values"),
    "space-value": (f"{SWEEP} --space value.yaml", "optimizer.params.lr = 1e-05", "a list of values"),
    "space-twice": (f"{SWEEP} --space same.yaml", "optimizer.params.lr", "twice"),
    "space-seed": (f"{SWEEP} --space seed.yaml", "bertfast.run.seed", "--seeds"),
    "space-low": (f"{SWEEP} --space low.yaml", "low.yaml: optimizer.params.lr", "low being less than high"),
    "space-range": (f"{SWEEP} --space range.yaml", "'hihg'", "'high'"),
    "space-log": (f"{SWEEP} --space log.yaml", "log.yaml: optimizer.params.lr", "above 0"),
    "space-endless": (f"{SWEEP} --space endless.yaml", "endless.yaml", "--trials"),
    "space-trials": (f"{SWEEP} --space space.yaml --trials 9", "--trials 9", "no more than 2"),
    "space-key": (f"{SWEEP} --space key.yaml", "'epoch' in bertfast.run", "'epochs'"),
    "space-kind": (f"{SWEEP} --space kind.yaml", '"many"', "must be a number"),
}

ALL = {"flag": FLAGS, "set": OVERRIDES, "config": CONFIGS, "row": ROWS, "model": MODELS, "output": OUTPUTS}
NEEDED = {  # by what a command holds: the packages without which it is answered otherwise
    "sweep": ("optuna", "matplotlib"),
    "export": ("onnx", "onnxruntime"),
    "verify": ("onnx", "onnxruntime"),
    "--onnx": ("onnx", "onnxruntime"),
    "file/run": ("deepspeed",),
}
CASES = [pytest.param(*case, id=f"{kind}: {name}") for kind, cases in ALL.items() for name, case in cases.items()]


@pytest.mark.parametrize("command, place, mend", CASES)
def test_a_bad_input_is_one_line(world, monkeypatch, capsys, command, place, mend):
    for package in [package for word, packages in NEEDED.items() if word in command for package in packages]:
        if find_spec(package) is None:
            pytest.skip(f"needs {package}, which is not installed")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BERTFAST_CACHE", str(world / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(world)
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    said = [line for line in err.splitlines() if line.startswith("bertfast: ")]
    assert said and err.endswith(f"{said[-1]}\n") and len(said) == 1, err
    assert said[0].startswith("bertfast: error: ") and "Traceback" not in out + err
    assert place in said[0] and mend in said[0], said[0]
