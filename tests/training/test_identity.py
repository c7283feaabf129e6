"""Single changes between a run and its resume: each is refused by its name, or may be made by design."""

import copy
import json
import shutil

import pytest

from bertfast.config.deepspeed.keys import NESTED_KEYS, TOP_LEVEL_KEYS
from bertfast.config.deepspeed.optimizers import SCHEDULER_PARAMS
from bertfast.config.load import load_config
from bertfast.config.schema import BertfastConfig
from bertfast.training.identity import MAY_CHANGE, differences, shown, untold
from tests.support.multitask_runs import write_tasks
from tests.support.runs import need_deepspeed
from tests.support.tiny_bert import write_tiny_bert

ROWS = [("the film was good", "yes"), ("a dull film", "no"), ("she runs and he sleeps", "no"), ("the cat is great and fine", "yes")] * 4
ALLOWED = None  # in the place of a name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints, tokenizers and data, each with others that differ in one thing."""
    need_deepspeed()
    folder = tmp_path_factory.mktemp("identity")
    write_tiny_bert(folder / "bert", num_labels=2)
    shutil.copytree(folder / "bert", folder / "moved-bert")
    write_tiny_bert(folder / "further", num_labels=2, initializer_range=0.03)
    for name, key, value in (("heads", "num_attention_heads", 4), ("gelu", "hidden_act", "gelu_new"), ("epsilon", "layer_norm_eps", 1e-5)):
        shutil.copytree(folder / "bert", folder / name)
        config = json.loads((folder / name / "config.json").read_text())
        (folder / name / "config.json").write_text(json.dumps(config | {key: value}))
    shutil.copytree(folder / "bert", folder / "cased")
    tokenizer = json.loads((folder / "cased" / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "cased" / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((folder / "cased" / "tokenizer_config.json").read_text())
    (folder / "cased" / "tokenizer_config.json").write_text(json.dumps(settings | {"do_lower_case": False}))
    files = {
        "train": ROWS,
        "moved": ROWS,
        "shuffled": ROWS[1:] + ROWS[:1],
        "flipped": [(text, "no" if label == "yes" else "yes") for text, label in ROWS],
        "shorter": ROWS[:-1],
        "reworded": [(text.replace("dull", "bad"), label) for text, label in ROWS],
        "dev": ROWS[:4],
        "other-dev": ROWS[1:5],
    }
    for name, rows in files.items():
        lines = ["text\tlabel\treversed\tother"] + [
            f"{text}\t{label}\t{' '.join(text.split()[::-1])}\t{'no' if label == 'yes' else 'yes'}" for text, label in rows
        ]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS))
    sentences = ["the film was good.", "he sleeps.", "a dull dog runs.", "she is fine."]
    (folder / "text.txt").write_text("\n\n".join("\n".join(sentences) for _ in range(6)) + "\n")
    (folder / "moved.txt").write_text((folder / "text.txt").read_text())
    (folder / "reversed.txt").write_text("\n\n".join("\n".join(sentences[::-1]) for _ in range(6)) + "\n")
    return folder


def classification(folder):
    source = {"batch_size": 4, "max_sequence_length": 32, "cache_dir": str(folder / "cache")}
    return {
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.01}},
        "bertfast": {
            "task": {"text_columns": ["text"], "label_names": ["no", "yes"]},
            "model": {"checkpoint": str(folder / "bert")},
            "train_input": {"data_file": str(folder / "train.tsv"), **source},
            "eval_input": {"data_file": str(folder / "dev.tsv"), **source},
            "run": {"epochs": 2, "model_dir": str(folder / "run"), "threads": 1},
        },
    }


def masked_words(folder):
    config = classification(folder)
    del config["bertfast"]["task"], config["bertfast"]["train_input"]["data_file"], config["bertfast"]["eval_input"]
    config["bertfast"]["pretrain"] = {"text_files": [str(folder / "text.txt")]}
    return config


def several(folder):
    config = write_tasks(folder / "several")
    head, *rows = (folder / "several" / "train.tsv").read_text().splitlines()
    (folder / "several" / "reversed.tsv").write_text("\n".join([head, *rows[::-1]]) + "\n")
    return config


@pytest.fixture(scope="module")
def base(folder):
    """base(form): the config of a form, and its identity."""
    (folder / "several").mkdir()
    known = {}

    def of(form):
        if form not in known:
            config = form(folder)
            known[form] = config, identity(config)
        return known[form]

    return of


def identity(config):
    """What a run of this config would write into a checkpoint, as it comes back from one."""
    from bertfast.training.trainer import Trainer

    pretrains = config["bertfast"].get("pretrain") is not None
    return Trainer(load_config(copy.deepcopy(config)), device="cpu", pretrains=pretrains)._prepare().folder._identity


def with_changes(config, folder, keys):
    """The config with the values at dotted keys replaced; "@name" is a file or folder of the test, and None takes the key away."""
    config = copy.deepcopy(config)
    for key, value in keys.items():
        *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        node = config
        for parent in parents:
            node = node[parent] if isinstance(node, list) else node.setdefault(parent, {})
        node[last] = json.loads(json.dumps(value).replace("@", f"{folder}/"))
        if value is None:
            del node[last]
    return config


DIVIDED = {"zero_optimization.stage": 1, "data_types": {"grad_accum_dtype": "fp32"}}
DECAY = {"scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 2, "total_num_steps": 8}}}
TASK = "bertfast.multitask.tasks.0"
TSV = "bertfast.train_input.data_file"

# (the form), the keys that are changed, the name that is given or ALLOWED; and what both configs have beside the base
CHANGES = [
    # the data
    (classification, {TSV: "@shuffled.tsv"}, "training data.tokens"),
    (classification, {TSV: "@flipped.tsv"}, "training data.labels"),
    (classification, {TSV: "@shorter.tsv"}, "training examples"),
    (classification, {TSV: "@reworded.tsv"}, "training data.tokens"),
    (classification, {TSV: "@moved.tsv"}, ALLOWED),
    (classification, {TSV: "@train.jsonl"}, ALLOWED),
    (classification, {"bertfast.task.label_names": ["yes", "no"]}, "classes"),
    (classification, {"bertfast.task.label_names": None}, ALLOWED),  # those of the rows are the same
    (classification, {"bertfast.task.label_column": "other"}, "training data.labels"),
    (classification, {"bertfast.task.text_columns": ["reversed"]}, "training data.tokens"),
    (classification, {"bertfast.task.metric": "f1"}, "metric"),
    (classification, {"bertfast.task.name": "verdicts"}, ALLOWED),
    (classification, {"bertfast.train_input.max_examples": 9}, "bertfast.train_input.max_examples"),
    (classification, {"bertfast.train_input.max_sequence_length": 6}, "bertfast.train_input.max_sequence_length"),
    (classification, {"bertfast.train_input.shuffle": False}, "bertfast.train_input.shuffle"),
    (classification, {"bertfast.train_input.batch_size": 8}, "batch size"),
    (classification, {"bertfast.train_input.planner": "tokens", "bertfast.train_input.tokens_per_batch": 64}, "planner"),
    (classification, {"bertfast.eval_input.data_file": "@other-dev.tsv"}, "evaluation data.dev.tokens"),
    (classification, {"bertfast.eval_input": None}, ALLOWED),
    (classification, {"bertfast.eval_input.batch_size": 2}, ALLOWED),
    (several, {f"{TASK}.train_input.data_file": "@several/dev.tsv"}, "tasks"),
    (several, {f"{TASK}.train_input.data_file": "@several/reversed.tsv"}, "training data.verdict.tokens"),
    (several, {f"{TASK}.task.label_names": ["yes", "no"]}, "classes.verdict"),
    (several, {f"{TASK}.weight": 2.0}, "bertfast.multitask.tasks.0.weight"),
    (several, {"bertfast.multitask.sampling": "uniform"}, "bertfast.multitask.sampling"),
    (masked_words, {"bertfast.pretrain.text_files": ["@reversed.txt"]}, "training data.tokens"),
    (masked_words, {"bertfast.pretrain.text_files": ["@moved.txt"]}, ALLOWED),
    (masked_words, {"bertfast.pretrain.masked_lm_prob": 0.2}, "bertfast.pretrain.masked_lm_prob"),
    (masked_words, {"bertfast.pretrain.next_sentence": False}, "bertfast.pretrain.next_sentence"),
    # tokenizer and weights
    (classification, {"bertfast.model.tokenizer": "@cased"}, "tokenizer"),
    (classification, {"bertfast.model.tokenizer": "@moved-bert"}, ALLOWED),
    (classification, {"bertfast.model.checkpoint": "@further"}, "weights"),
    (classification, {"bertfast.model.checkpoint": "@moved-bert"}, ALLOWED),
    (classification, {"bertfast.model.checkpoint": "@heads"}, "network.num_attention_heads"),
    (classification, {"bertfast.model.checkpoint": "@gelu"}, "network.hidden_act"),
    (classification, {"bertfast.model.checkpoint": "@epsilon"}, "network.layer_norm_eps"),
    (classification, {"bertfast.model.load_checkpoint_states": "model"}, "weights"),  # the head of the checkpoint in the place of a new one
    # settings of the model
    (classification, {"bertfast.model.hidden_dropout_prob": 0.5}, "network.hidden_dropout_prob"),
    (classification, {"bertfast.model.hidden_dropout_prob": 0.1}, ALLOWED),  # what the checkpoint says
    (classification, {"bertfast.model.attention_probs_dropout_prob": 0.0}, "network.attention_probs_dropout_prob"),
    (classification, {"bertfast.model.gradient_checkpointing": "selective"}, ALLOWED),
    (classification, {"bertfast.head.dropout": 0.3}, "bertfast.head.dropout"),
    (classification, {"bertfast.head.pooling": "mean"}, "bertfast.head.pooling"),
    (classification, {"bertfast.truncation.strategy": "tail"}, "bertfast.truncation.strategy"),
    (classification, {"bertfast.run.packing_invariant_dropout": True}, "packing_invariant_dropout"),
    (classification, {"bertfast.run.packing_invariant_dropout": False}, ALLOWED),  # as it is on a CPU anyway
    # what is learned, and how
    (classification, {"bertfast.loss.label_smoothing": 0.1}, "bertfast.loss.label_smoothing"),
    (classification, {"bertfast.loss.r_drop": 1.0}, "bertfast.loss.r_drop"),
    (classification, {"bertfast.loss.class_weights": [1.0, 2.0]}, "bertfast.loss.class_weights"),
    (classification, {"bertfast.optimization.schedule": "cosine"}, "bertfast.optimization.schedule"),
    (classification, {"bertfast.optimization.frozen_layers": 1}, "bertfast.optimization.frozen_layers"),
    (classification, {"optimizer.params.lr": 2e-3}, "optimizer.params.lr"),
    (classification, {"optimizer.params.betas": [0.9, 0.98]}, "optimizer.params.betas"),
    (classification, {"optimizer.type": "Adam"}, "optimizer.type"),
    (classification, {"gradient_clipping": 0.01}, "gradient_clipping"),
    (classification, {"bf16": {"enabled": True}}, "precision"),
    (classification, {"bf16": {"enabled": False}}, ALLOWED),
    (classification, {"gradient_accumulation_steps": 2}, "micro-steps"),
    (classification, {"prescale_gradients": True}, "prescale_gradients"),
    (classification, {"zero_optimization.stage": 2}, ALLOWED),  # one rank on a CPU runs it as stage 0
    (classification, DIVIDED, "zero stage"),
    (classification, DECAY, "scheduler.type"),
    (classification, {"scheduler.params.warmup_type": "log"}, "scheduler.params.warmup_type", DECAY),
    (classification, {"scheduler.params.total_num_steps": 80}, ALLOWED, DECAY),
    (classification, {"zero_optimization.reduce_bucket_size": 1000}, ALLOWED, DIVIDED),
    (classification, {"bertfast.run.seed": 7}, "seed"),
    # how long, how often, where to
    *((classification, {f"bertfast.run.{key}": 1}, ALLOWED) for key in ("max_steps", "logging_steps", "eval_steps", "save_steps")),
    *((classification, {f"bertfast.run.{key}": 1}, ALLOWED) for key in ("keep_checkpoints", "early_stopping_patience", "warmup_steps")),
    (classification, {"bertfast.run.epochs": 5, "bertfast.run.warmup_ratio": 0.5, "bertfast.run.model_dir": "@elsewhere"}, ALLOWED),
    (classification, {"bertfast.train_input.num_workers": 1, "bertfast.train_input.cache_dir": "@cache2", "bertfast.export": {}}, ALLOWED),
    (classification, {"csv_monitor": {"enabled": True, "output_path": "@csv"}, "steps_per_print": 7}, ALLOWED),
]


def name_of(change):
    form, keys, name, *_ = change
    return f"{form.__name__}: {', '.join(f'{key} = {value}' for key, value in keys.items())}: {name or 'allowed'}"


@pytest.mark.parametrize("change", CHANGES, ids=name_of)
def test_a_single_change_is_refused_by_name_or_allowed(change, base, folder):
    form, keys, wanted, *both = change
    config, before = base(form)
    if both:
        config = with_changes(config, folder, both[0])
        before = identity(config)
    assert not untold(before, before)
    found = differences(before, identity(with_changes(config, folder, keys)))
    assert (shown(next(iter(found))) if found else ALLOWED) == wanted, found


def test_the_list_is_long_enough():
    assert len(CHANGES) >= 40 and sum(wanted is not ALLOWED for _, _, wanted, *_ in CHANGES) >= 40


def test_what_may_change_are_keys_that_there_are():
    """A key that is gone, or was never one, would let nothing change, and nobody would see."""
    for place in (place for places in MAY_CHANGE.values() for place in places):
        first, _, rest = place.partition(".")
        if first != "deepspeed":
            _check_key(BertfastConfig, place.split("."))
            continue
        key, _, inner = rest.rpartition(".")
        known = TOP_LEVEL_KEYS if not key else NESTED_KEYS.get(key) or {name for names in SCHEDULER_PARAMS.values() for name in names}
        assert inner in known, place


def _check_key(block, parts):
    from bertfast.config.faults import _blocks_in

    for part in parts:
        if part != "*":
            assert part in block.model_fields, parts
            block = next(_blocks_in(block.model_fields[part].annotation), None)
