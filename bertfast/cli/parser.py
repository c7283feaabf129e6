"""The one parser: `bertfast COMMAND [CPU|GPU] --flags`, and the same flags for launch.py, where --mode takes the command's place.

It is made from the tables in flags.py; `overrides` turns the flags that were given into the config keys that they stand for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import NoReturn

from bertfast import __version__
from bertfast.cli.flags import COMMANDS, DEVICES, FLAGS, FOLDER_COMMANDS, FOLDER_FLAGS, LAUNCHED, MODES, WITH_CONFIG, Flag
from bertfast.errors import ConfigError
from bertfast.wording import listed, nearest

_SUMMARY = "Fine-tune BERT classifiers on packed sequences."


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
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")


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
    for name, summary in FOLDER_COMMANDS.items():
        usage = {
            "calibrate": "bertfast calibrate [CPU|GPU] FOLDER [--input FILE] [flags]",
            "export": "bertfast export [CPU|GPU] FOLDER -o BUNDLE [flags]",
            "verify": "bertfast verify [CPU|GPU] BUNDLE [flags]",
            "tune": "bertfast tune BUNDLE [flags]",
        }[name]
        description = f"{summary[0].upper()}{summary[1:]}."
        command = commands.add_parser(name, help=summary, description=description, usage=usage, allow_abbrev=False)
        command.add_argument("folder", metavar="BUNDLE" if name in ("verify", "tune") else "FOLDER", help="the folder to read")
        command.take(*(flag for flag in FOLDER_FLAGS if name in flag.commands))
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
        *(flag for flag in FLAGS if not flag.is_positional and set(flag.commands) & set(LAUNCHED)),
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
    return first in (*COMMANDS, *FOLDER_COMMANDS, "-h", "--help", "--version")


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
    starting = ("train", "train_and_eval", "validate", "compile", "pretrain", "sweep")
    return arguments.command in starting and not (arguments.resume or arguments.resume_with_changes or arguments.evaluate_only)


def _take_device(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """A leading CPU or GPU, in any case, and the other arguments. What deepspeed puts in front, and the command, may stand before it."""
    for place, word in enumerate(argv):
        if word.lower() in DEVICES:
            return word.lower(), [*argv[:place], *argv[place + 1 :]]
        if word not in (*COMMANDS, *FOLDER_COMMANDS) and not word.startswith("--local_rank="):
            break
    return None, list(argv)


def _checked(arguments: argparse.Namespace, extra: list[str], device: str | None) -> argparse.Namespace:
    parser = arguments.parser
    for word in extra:
        parser.error(_unknown(word, parser))
    arguments.device = device
    command = arguments.command
    doing = {command.removesuffix("_and_eval"), *(["compile"] if vars(arguments).get("compile_only") else [])}
    if command in FOLDER_COMMANDS:
        return arguments
    for flag in FLAGS:
        given = vars(arguments).setdefault(flag.dest, None)
        if not (given is None or given is False or given == []) and not doing & set(flag.commands):
            parser.error(f"{flag.names[0]} is for {' and '.join(flag.commands)}, not for {command}")
    if command not in (*WITH_CONFIG, "train_and_eval"):
        return arguments
    if arguments.validate_only and arguments.compile_only:
        parser.error("--validate_only and --compile_only: only one thing can be done and nothing else")
    if arguments.validate_only or arguments.compile_only:
        arguments.command = command = "validate" if arguments.validate_only else "compile"
    judging = command in ("eval", "predict")
    for name in ("variant", "streams"):
        if vars(arguments)[name] is not None and not arguments.onnx:
            parser.error(f"--{name} is of an exported folder; name one with --onnx")
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
    from bertfast.config import meaning  # and the whole schema with it

    name = word.partition("=")[0]
    known = [name for flag in parser.flags for name in flag.names]
    elsewhere = dict.fromkeys(command for flag in (*FLAGS, *FOLDER_FLAGS) if name in flag.names for command in flag.commands)
    if elsewhere:
        return f"unknown flag {name}: it is for {' and '.join(elsewhere)}"
    word = name.lstrip("-").replace("-", "_")
    places, why = ([], "") if f"--{word}" in known else meaning(word)
    if why:
        return f"unknown flag {name}; bertfast has none: {why}"
    if places:
        flags = {flag.key: flag.names[0] for flag in parser.flags}
        return f"unknown flag {name}; give {' or '.join(flags.get(place, f'--set {place}=VALUE') for place in places)}"
    near = nearest(name, known)
    return f"unknown flag {name}; " + (f"did you mean {near}?" if near else f"known flags: {listed(known)}")
