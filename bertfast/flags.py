"""The one parser: `bertfast COMMAND [CPU|GPU] --flags`, and the same flags for launch.py, where --mode takes the command's place.

A flag that changes the run stands for a config key, which its help names; `overrides` turns it into that key.
"""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from bertfast import __version__
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
EXPORT_COMMANDS = {
    "export": "turn a fine-tuned classifier into a folder of ONNX files that a judge has passed",
    "verify": "judge an exported folder anew: its files, its logits, its answers",
}
_LAUNCHED = ("train", "eval", "predict", "validate", "compile", "pretrain")  # what the deepspeed launcher may start
_WITH_CONFIG = (*_LAUNCHED, "sweep")
_TRAINING = ("train", "validate")
MODES = ("train", "eval", "train_and_eval", "predict", "pretrain")
DEVICES = ("cpu", "gpu")
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")  # those of bertfast_kernels.compile, which is too heavy to ask
_SUMMARY = "Fine-tune BERT classifiers on packed sequences."


@dataclass(frozen=True)
class Flag:
    """One flag: its names, the commands that take it, argparse's options, and the config key it sets (to `value`, where it takes none)."""

    names: tuple[str, ...]
    help: str
    commands: tuple[str, ...] = _WITH_CONFIG
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


def _number(metavar: str, default: int | None = None) -> dict[str, Any]:
    """The options of a flag that takes a whole number from 1 on."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
        return int(text)

    return {"type": number, "metavar": metavar, "default": default}


def _trunc_medium(tokens: int) -> dict[str, Any]:
    """Sun et al.'s numbers for the ways to cut a text."""
    if tokens < -2:
        raise ConfigError(f"--trunc_medium {tokens}: give -2 (head), -1 (tail), 0 (half and half) or how many tokens of the head")
    if tokens <= 0:
        return {"bertfast.truncation.strategy": {-2: "head", -1: "tail", 0: "head_tail"}[tokens]}
    return {"bertfast.truncation.strategy": "head_tail", "bertfast.truncation.head_tokens": tokens}


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
        "bertfast.truncation.strategy",
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
        "the weights to start from; with --resume, the training checkpoint to continue; for eval and predict, the model or training "
        "checkpoint to use (left out: model_dir/model)",
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
    Flag(("--resume",), "continue from the newest whole checkpoint of model_dir", commands=("train", "pretrain"), options=_SWITCH),
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
        "which of its files (left out: fp16 on a GPU, optimized on a CPU)",
        commands=("predict",),
        options={"choices": ["portable", "optimized", "fp16", "int8"]},
    ),
    Flag(
        ("--output",),
        "a file, or a folder, in which files take GLUE's official names (left out: standard output)",
        commands=("predict",),
        options={"metavar": "FILE"},
    ),
    Flag(
        ("--format",),
        "glue: index<TAB>prediction, as GLUE's server takes it; jsonl: with probabilities (left out: glue for a folder or a .tsv)",
        commands=("predict",),
        options={"choices": ["glue", "jsonl"]},
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

# Of `export` and `verify`, which take a folder as their argument and need no config.
EXPORT_FLAGS = (
    Flag(("--output", "-o"), "the folder to write", commands=("export",), options={"metavar": "BUNDLE", "required": True}),
    Flag(
        ("--input",),
        "a file of texts, with labels or without, to judge on (left out: the eval_input of the config)",
        commands=("export", "verify"),
        options={"metavar": "FILE"},
    ),
    Flag(
        ("--config", "--params"),
        "a config whose task and eval_input to judge on (left out: the one that the model's folder carries)",
        commands=("export", "verify"),
        options={"metavar": "FILE"},
    ),
    Flag(
        ("--set",),
        "replace a config value; repeatable",
        commands=("export", "verify"),
        options={"metavar": "KEY=VALUE", "action": "append", "default": []},
    ),
    Flag(("--grid_only",), "judge on made-up batches alone; no int8 then", commands=("export",), options=_SWITCH),
    Flag(("--pairs",), "the model judges pairs of texts, and its folder does not say so", commands=("export",), options=_SWITCH),
    Flag(
        ("--variants",),
        "which files to write, of portable, optimized, fp16 and int8 (left out: all)",
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


class _Parser(argparse.ArgumentParser):
    """argparse, with its errors as ours: one message, no usage, exit code 2. `flags` are those that it takes."""

    flags: tuple[Flag, ...] = ()

    def take(self, *flags: Flag) -> None:
        self.flags = (*self.flags, *flags)
        for flag in flags:
            key = f" ({flag.key}{'' if flag.value is None else f' = {json.dumps(flag.value)}'})" if flag.key else ""
            self.add_argument(*flag.names, help=f"{flag.help}{key}", **flag.options)
        self.add_argument("--local_rank", type=int, help=argparse.SUPPRESS, default=argparse.SUPPRESS)  # the deepspeed launcher gives it

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}\nSee {self.prog} --help.")


def parse_command(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of `bertfast`, with `command` and `device` ("cpu", "gpu" or None) among them.

    Raises:
        ConfigError: naming the flag that is unknown (with the nearest known one), missing or wrong.
        SystemExit: after --help or --version.
    """
    parser = _Parser(prog="bertfast", description=_SUMMARY, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"bertfast {__version__}")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher puts it before the command
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        words = " ".join(flag.names[0] for flag in FLAGS if name in flag.commands and flag.is_positional)
        usage = f"bertfast {name} {words} [flags]" if words else f"bertfast {name} [CPU|GPU] --config FILE [flags]"
        description = f"{summary[0].upper()}{summary[1:]}."
        command = commands.add_parser(name, help=summary, description=description, usage=usage, allow_abbrev=False)
        command.take(*(flag for flag in FLAGS if name in flag.commands))
        command.set_defaults(parser=command)
    for name, summary in EXPORT_COMMANDS.items():
        usage = "bertfast export [CPU|GPU] FOLDER -o BUNDLE [flags]" if name == "export" else "bertfast verify [CPU|GPU] BUNDLE [flags]"
        description = f"{summary[0].upper()}{summary[1:]}."
        command = commands.add_parser(name, help=summary, description=description, usage=usage, allow_abbrev=False)
        command.add_argument("folder", metavar="FOLDER" if name == "export" else "BUNDLE", help="the folder to read")
        command.take(*(flag for flag in EXPORT_FLAGS if name in flag.commands))
        command.set_defaults(parser=command)
    device, rest = _take_device(argv)
    arguments, extra = parser.parse_known_args(rest)
    return _checked(arguments, extra, device)


def parse_launch(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of launch.py: those of every command, and --mode, from which `command` is made. Raises as `parse_command` does."""
    usage = "deepspeed launch.py [CPU|GPU] --config FILE [flags]"
    parser = _Parser(prog="launch.py", description=_SUMMARY, usage=usage, allow_abbrev=False)
    what = "what to do (left out: train, which evaluates too where the config has an eval_input)"
    parser.take(
        Flag(("--mode",), what, options={"choices": MODES, "default": "train"}),
        *(flag for flag in FLAGS if not flag.is_positional and set(flag.commands) & set(_LAUNCHED)),
    )
    parser.set_defaults(parser=parser)
    device, rest = _take_device(argv)
    arguments, extra = parser.parse_known_args(rest)
    arguments.command = arguments.mode
    return _checked(arguments, extra, device)


def names_command(argv: Sequence[str]) -> bool:
    """Whether these arguments are for `bertfast` (a command, --help or --version comes first, or nothing), and not for launch.py."""
    _, rest = _take_device(argv)
    first = next((word for word in rest if not word.startswith("--local_rank=")), "--help")
    return first in (*COMMANDS, *EXPORT_COMMANDS, "-h", "--help", "--version")


def overrides(arguments: argparse.Namespace) -> list[str]:
    """Every --set, and after them the flags that stand for a config key, as `key.path=value`."""
    found = list(arguments.set)
    for flag in FLAGS:
        given = getattr(arguments, flag.dest, None)
        if (
            flag.key is None
            or given is None
            or given is False
            or (flag.dest == "checkpoint_path" and not starts_from_checkpoint(arguments))
        ):
            continue
        values = flag.expand(given) if flag.expand else {flag.key: given if flag.value is None else flag.value}
        found += [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return found


def starts_from_checkpoint(arguments: argparse.Namespace) -> bool:
    """Whether --checkpoint_path means the weights to start from, and not a run to continue or a model to judge."""
    return arguments.command in ("train", "train_and_eval", "validate", "compile", "pretrain", "sweep") and not arguments.resume


def _take_device(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """A leading CPU or GPU, in any case, and the other arguments. What deepspeed puts in front, and the command, may stand before it."""
    for place, word in enumerate(argv):
        if word.lower() in DEVICES:
            return word.lower(), [*argv[:place], *argv[place + 1 :]]
        if word not in (*COMMANDS, *EXPORT_COMMANDS) and not word.startswith("--local_rank="):
            break
    return None, list(argv)


def _checked(arguments: argparse.Namespace, extra: list[str], device: str | None) -> argparse.Namespace:
    parser = arguments.parser
    for word in extra:
        parser.error(_unknown(word, parser))
    arguments.device = device
    command = arguments.command
    doing = {command.removesuffix("_and_eval"), *(["compile"] if vars(arguments).get("compile_only") else [])}
    if command in EXPORT_COMMANDS:
        return arguments
    for flag in FLAGS:
        given = vars(arguments).setdefault(flag.dest, None)
        if not (given is None or given is False or given == []) and not doing & set(flag.commands):
            parser.error(f"{flag.names[0]} is for {' and '.join(flag.commands)}, not for {command}")
    if command not in (*_WITH_CONFIG, "train_and_eval"):
        return arguments
    if arguments.validate_only and arguments.compile_only:
        parser.error("--validate_only and --compile_only: only one thing can be done and nothing else")
    if arguments.validate_only or arguments.compile_only:
        arguments.command = command = "validate" if arguments.validate_only else "compile"
    judging = command in ("eval", "predict")
    if arguments.variant and not arguments.onnx:
        parser.error("--variant is of an exported folder; name one with --onnx")
    if arguments.config is None and not (judging and (arguments.checkpoint_path or arguments.onnx)):
        instead = ", or the folder of a fine-tuned model with --checkpoint_path" if judging else ""
        parser.error(f"--config is missing: name a config file, for example --config ds_mnli.json{instead}")
    return arguments


def _unknown(word: str, parser: _Parser) -> str:
    if not word.startswith("-"):
        if word.lower() in DEVICES:
            return f"{word} must stand first, before the flags"
        instead = f"; did you mean --config {word}?" if word.endswith((".json", ".yaml", ".yml")) else ""
        return f"unexpected argument {word!r}{instead}"
    name = word.partition("=")[0]
    known = [name for flag in parser.flags for name in flag.names]
    near = difflib.get_close_matches(name, known, 1)
    return f"unknown flag {name}; " + (f"did you mean {near[0]}?" if near else f"known flags: {', '.join(sorted(known))}")
