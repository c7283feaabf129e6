"""Every command and every flag, as tables: what parser.py makes the parsers of `bertfast` and launch.py from.

A flag that changes the run stands for a config key, which its help names.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bertfast.config import OPENVINO_VARIANTS, VARIANTS
from bertfast.errors import ConfigError

COMMANDS = {
    "train": "fine-tune a classifier; evaluates too where the config has an eval_input",
    "eval": "evaluate a fine-tuned model on the eval_input",
    "predict": "classify a file or standard input with a fine-tuned model",
    "validate": "check config, data, tokenizer and weights, run one step, and estimate memory",
    "compile": "compile the GPU kernels that a config needs, with no GPU needed, and check that each fits",
    "pretrain": "pre-train further on plain text or a task's own (masked words, next sentences)",
    "sweep": "search settings and seeds (left out: the BERT paper's grid), a `train` each; a sweep that was stopped goes on",
    "convert": "convert a BERT checkpoint between transformers' format and TensorFlow's",
}
FOLDER_COMMANDS = {
    "calibrate": "by labelled texts, make a model's probabilities right, and find the thresholds of its decisions",
    "export": "turn a fine-tuned classifier into a folder of ONNX files that a judge has passed",
    "verify": "judge an exported folder anew: its files, its logits, its answers",
    "tune": "measure an exported folder's variants on this CPU, and note the fastest in it",
}
LAUNCHED = ("train", "eval", "predict", "validate", "compile", "pretrain")  # what the deepspeed launcher may start
WITH_CONFIG = (*LAUNCHED, "sweep")
_TRAINING = ("train", "validate")
MODES = ("train", "eval", "train_and_eval", "predict", "pretrain")
DEVICES = ("cpu", "gpu")
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")  # those of bertfast_kernels.compile, which is too heavy to ask


@dataclass(frozen=True)
class Flag:
    """One flag: its names, the commands that take it, argparse's options, and the config key it sets (to `value`, where it takes none)."""

    names: tuple[str, ...]
    help: str
    commands: tuple[str, ...] = WITH_CONFIG
    options: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    value: bool | str | None = None
    expand: Callable[[Any], dict[str, Any]] | None = None  # what a value stands for, where that is more than one key

    @property
    def dest(self) -> str:
        return self.names[0].removeprefix("--")

    @property
    def is_positional(self) -> bool:
        return not self.names[0].startswith("--")


_SWITCH = {"action": "store_true"}
_SHARE = {"type": float, "metavar": "SHARE"}


def _number(metavar: str, default: int | None = None) -> dict[str, Any]:
    """The options of a flag that takes a whole number from 1 on."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
        return int(text)

    return {"type": number, "metavar": metavar, "default": default}


def _trunc_medium(tokens: int) -> dict[str, Any]:
    """Sun et al.'s numbers for the ways to cut a text, in the place of whatever the config says of it."""
    if tokens < -2:
        raise ConfigError(f"--trunc_medium {tokens}: give -2 (head), -1 (tail), 0 (half and half) or how many tokens of the head")
    if tokens <= 0:
        return {"bertfast.truncation": {"strategy": {-2: "head", -1: "tail", 0: "head_tail"}[tokens]}}
    return {"bertfast.truncation": {"strategy": "head_tail", "head_tokens": tokens}}


def _recipe(name: str, help: str, key: str, commands: tuple[str, ...] = _TRAINING, **options: Any) -> Flag:
    return Flag((name,), help, commands, options, key)


# Named as in the code of Sun et al. 2019 and in Google's create_pretraining_data.py.
RECIPE_FLAGS = (
    _recipe(
        "--layers",
        "the encoder layers that the head reads, from 0, or from the top as -1",
        "bertfast.head.layers",
        type=int,
        nargs="+",
        metavar="N",
    ),
    _recipe(
        "--pooling_type",
        "how several layers become one vector (left out: they are concatenated)",
        "bertfast.head.layer_pooling",
        choices=["concat", "mean", "max"],
    ),
    _recipe(
        "--pooling",
        "how the tokens of a layer become one vector",
        "bertfast.head.pooling",
        choices=["cls", "mean", "max", "mean_max", "attention"],
    ),
    Flag(
        ("--trunc_medium",),
        "of a text that is too long, read -2: the head, -1: the tail, 0: half and half, K: K tokens of the head and then the tail",
        (*_TRAINING, "eval", "predict"),
        {"type": int, "metavar": "K"},
        "bertfast.truncation",
        expand=_trunc_medium,
    ),
    _recipe(
        "--layer_learning_rate",
        "the rate of the top layer, or of each from the lowest",
        "bertfast.optimization.layer_learning_rate",
        type=float,
        nargs="+",
        metavar="RATE",
    ),
    _recipe(
        "--layer_learning_rate_decay",
        "a layer's rate over that of the one above it",
        "bertfast.optimization.layer_learning_rate_decay",
        type=float,
        metavar="FACTOR",
    ),
    Flag(("--frozen_bert",), "train the head alone", _TRAINING, _SWITCH, "bertfast.optimization.frozen_layers", "all"),
    _recipe(
        "--masked_lm_prob", "share of tokens to predict", "bertfast.pretrain.masked_lm_prob", ("pretrain",), type=float, metavar="SHARE"
    ),
    _recipe(
        "--max_predictions_per_seq",
        "most tokens to predict in an example",
        "bertfast.pretrain.max_predictions_per_seq",
        ("pretrain",),
        type=int,
        metavar="N",
    ),
    _recipe(
        "--dupe_factor",
        "so many copies with masks of their own, the same each epoch",
        "bertfast.pretrain.dupe_factor",
        ("pretrain",),
        type=int,
        metavar="N",
    ),
    Flag(
        ("--evaluate_only",),
        "evaluate a pre-trained model on the held-out text (the one in model_dir, or of --checkpoint_path), train nothing",
        ("pretrain",),
        _SWITCH,
    ),
    Flag(("--do_whole_word_mask",), "mask whole words", ("pretrain",), _SWITCH, "bertfast.pretrain.whole_word_mask", True),
)

SWEEP_FLAGS = (
    Flag(
        ("--space",),
        "what to search: a YAML or JSON file of dotted config keys, each with a list of values or a range {low, high, log} "
        "(left out: the BERT paper's batch sizes, rates and epochs)",
        ("sweep",),
        {"metavar": "FILE"},
    ),
    Flag(("--seeds",), "seeds that each setting is tried with, from run.seed on (left out: 3)", ("sweep",), _number("N", 3)),
    Flag(("--trials",), "settings to try, at random (left out: the whole grid); may be raised later", ("sweep",), _number("N")),
    Flag(("--jobs",), "trials at the same time (left out: one for each GPU, or 1 on a CPU)", ("sweep",), _number("N")),
    Flag(("--retry_failed",), "try again what failed before", ("sweep",), _SWITCH),
    Flag(
        ("--keep_models",),
        "whose models to keep (left out: that of the best trial)",
        ("sweep",),
        {"choices": ["best", "all"], "default": "best"},
    ),
)

FLAGS = (
    Flag(("--config", "--params"), "the config, JSON or YAML; a bare name is also looked for in configs/", options={"metavar": "FILE"}),
    Flag(
        ("--set",),
        "replace a config value, for example bertfast.train_input.batch_size=64; repeatable",
        options={"metavar": "KEY=VALUE", "action": "append", "default": []},
    ),
    Flag(("--model_dir",), "where the run keeps what it makes", options={"metavar": "FOLDER"}, key="bertfast.run.model_dir"),
    Flag(
        ("--checkpoint_path",),
        "the weights to start from; with --resume, the training checkpoint to continue; for eval, predict and --evaluate_only, the model or "
        "training checkpoint to use (left out: model_dir/model)",
        options={"metavar": "FOLDER"},
        key="bertfast.model.checkpoint",
    ),
    Flag(
        ("--is_pretrained_checkpoint",),
        "the checkpoint is a pre-trained one: leave its head aside and make a new one",
        commands=("train", "validate"),
        options=_SWITCH,
        key="bertfast.model.is_pretrained_checkpoint",
        value=True,
    ),
    Flag(
        ("--load_checkpoint_states",),
        "from a training checkpoint take the weights and nothing else",
        options={"choices": ["model"]},
        key="bertfast.model.load_checkpoint_states",
    ),
    Flag(
        ("--disable_strict_checkpoint_loading",),
        "report tensors that are missing or do not fit, and go on",
        options=_SWITCH,
        key="bertfast.model.strict",
        value=False,
    ),
    Flag(
        ("--resume",),
        "continue from the newest whole checkpoint of model_dir; where there is none yet, begin",
        commands=("train", "pretrain"),
        options=_SWITCH,
    ),
    Flag(
        ("--resume_with_changes",),
        "as --resume, where data or settings are not those that wrote the checkpoint; the log names each change",
        commands=("train", "pretrain"),
        options=_SWITCH,
    ),
    Flag(("--validate_only",), "check everything, print a table, train nothing; exits 0 or 2", commands=("train",), options=_SWITCH),
    Flag(
        ("--compile_only",),
        "compile the GPU kernels that the config needs, with no GPU needed, print a table, train nothing; exits 0, or 2 where one does not fit",
        commands=("train",),
        options=_SWITCH,
    ),
    Flag(
        ("--target",),
        "a GPU to compile for; repeatable (left out: this machine's, or where it has none, all of them)",
        commands=("compile",),
        options={"choices": TARGETS, "action": "append"},
    ),
    Flag(
        ("--profile",),
        "leave a torch profiler trace of a few steps, and a one-page summary, in model_dir/profile",
        commands=("train",),
        options=_SWITCH,
    ),
    Flag(
        ("--profile_startup",),
        "print where the time to the first step goes",
        commands=("train", "eval", "predict", "pretrain"),
        options=_SWITCH,
    ),
    Flag(
        ("--input",),
        "a file like the task's test file or your own data, a .txt with one text a line, a folder of the task, or - for standard input "
        "(left out: what is piped in, or else the test split of eval_input)",
        commands=("predict",),
        options={"metavar": "FILE"},
    ),
    Flag(
        ("--onnx",),
        "an exported folder to predict with, in the place of a model; needs no config",
        commands=("predict",),
        options={"metavar": "BUNDLE"},
    ),
    Flag(
        ("--variant",),
        "which of its files (left out: what bertfast tune chose for this kind of machine; else fp16 on a GPU, packed_cpu on a CPU)",
        commands=("predict",),
        options={"choices": [*VARIANTS, *OPENVINO_VARIANTS]},
    ),
    Flag(
        ("--streams",),
        "with --onnx, on a CPU: how many batches are computed side by side (left out: what bertfast tune chose; else 1)",
        commands=("predict",),
        options={"metavar": "N", "type": int},
    ),
    Flag(
        ("--output",),
        "a file (.csv, .parquet: the input's columns and the answers beside them; .jsonl; .tsv: as GLUE's server takes it), or a folder, in which "
        "files take GLUE's official names (left out: standard output)",
        commands=("predict",),
        options={"metavar": "FILE"},
    ),
    Flag(
        ("--format",),
        "csv, tsv, parquet: the input's columns, then prediction and probability_NAME of each class; jsonl: index, prediction and probabilities; glue: "
        "index<TAB>prediction, as GLUE's server takes it (left out: as the output is called; glue for a folder or a .tsv, jsonl without a suffix)",
        commands=("predict",),
        options={"choices": ["csv", "tsv", "parquet", "jsonl", "glue"]},
    ),
    *RECIPE_FLAGS,
    *SWEEP_FLAGS,
    Flag(
        ("IN",), "the checkpoint's folder: transformers', Google's (bert_model.ckpt.*), or an old pytorch_model.bin", commands=("convert",)
    ),
    Flag(("OUT",), "the folder to write, which must not be there yet", commands=("convert",)),
    Flag(
        ("--to",),
        "the format to write (left out: transformers)",
        commands=("convert",),
        options={"choices": ["transformers", "tensorflow"], "default": "transformers"},
    ),
)

# Of the commands that take a folder as their argument and need no config.
FOLDER_FLAGS = (
    Flag(
        ("--input",),
        "a split of the config's eval_input, dev say, or a file of labelled texts (left out: the first split that training evaluates on)",
        commands=("calibrate",),
        options={"metavar": "SPLIT|FILE"},
    ),
    Flag(
        ("--precision",), "of each class: the threshold from which it has this precision, 0.95 say", commands=("calibrate",), options=_SHARE
    ),
    Flag(("--recall",), "of each label: the threshold from which it has this recall", commands=("calibrate",), options=_SHARE),
    Flag(("--best_f1",), "of each label: the threshold with the best F1", commands=("calibrate",), options=_SWITCH),
    Flag(
        ("--risk",),
        "leave texts unanswered, so that of the others no larger share is answered wrongly, 0.02 say",
        commands=("calibrate",),
        options=_SHARE,
    ),
    Flag(("--output", "-o"), "the folder to write", commands=("export",), options={"metavar": "BUNDLE", "required": True}),
    Flag(
        ("--input",),
        "a file of texts, with labels or without, to judge on (left out: the eval_input of the config)",
        commands=("export", "verify"),
        options={"metavar": "FILE"},
    ),
    Flag(
        ("--input",),
        "a file of texts as the bundle will meet them (left out: the lengths of those that it was verified on)",
        commands=("tune",),
        options={"metavar": "FILE"},
    ),
    Flag(
        ("--config", "--params"),
        "a config whose task and eval_input to take (left out: the one that the model's folder carries)",
        commands=("calibrate", "export", "verify"),
        options={"metavar": "FILE"},
    ),
    Flag(
        ("--set",),
        "replace a config value; repeatable",
        commands=("calibrate", "export", "verify"),
        options={"metavar": "KEY=VALUE", "action": "append", "default": []},
    ),
    Flag(("--grid_only",), "judge on made-up batches alone; no int8 then", commands=("export",), options=_SWITCH),
    Flag(("--pairs",), "the model judges pairs of texts, and its folder does not say so", commands=("export",), options=_SWITCH),
    Flag(
        ("--variants",),
        f"which files to write, of {', '.join(VARIANTS)} and openvino (left out: all but openvino)",
        commands=("export",),
        options={"metavar": "LIST"},
    ),
    Flag(
        ("--packed",), "model_packed.onnx too, for onnxruntime's CUDA provider: no work on padding", commands=("export",), options=_SWITCH
    ),
    Flag(("--opset",), "of the standard operators, 18 to 23 (left out: 20)", commands=("export",), options={"type": int, "default": 20}),
    Flag(("--integers",), "the type of the inputs", commands=("export",), options={"choices": ["int64", "int32"], "default": "int64"}),
    Flag(
        ("--layout",),
        "triton: a model repository for Triton Inference Server",
        commands=("export",),
        options={"choices": ["flat", "triton"], "default": "flat"},
    ),
    Flag(
        ("--max_sequence_length",),
        "tokens that a text is cut to (left out: as in training)",
        commands=("export",),
        options={"metavar": "N", "type": int},
    ),
    Flag(
        ("--checkpoint_path",),
        "the checkpoint of the export, to ask it anew (left out: its recorded answers count)",
        commands=("verify",),
        options={"metavar": "FOLDER"},
    ),
)
