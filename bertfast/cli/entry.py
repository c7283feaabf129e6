"""The command line: `bertfast train | eval | predict | validate | compile | calibrate | export | verify | tune | pretrain | sweep | convert`; `launch` is what `deepspeed launch.py` starts on every rank.

What is heavy is imported by the command that needs it, once its config is known to be good: a bad flag or key is answered at once.
"""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence

from bertfast.cli import commands
from bertfast.cli.calibration import calibrate
from bertfast.cli.parser import parse_command, parse_launch
from bertfast.cli.prediction import predict
from bertfast.cli.resuming import resume_command
from bertfast.errors import BertfastError, OutOfMemoryError, Terminated
from bertfast.machine import out_of_memory, rank

INTERRUPTED = 130  # 128 + SIGINT, as shells count
_HEAD_START_SECONDS = 3.0  # the deepspeed launcher looks once a second, and ends all ranks when one has left


def main(argv: Sequence[str] | None = None) -> int:
    """`bertfast`: run one command; returns the exit code."""
    return _run(parse_command, "bertfast", argv)


def launch(argv: Sequence[str] | None = None) -> int:
    """launch.py: the same, with --mode in the place of the command; returns the exit code."""
    return _run(parse_launch, "launch.py", argv)


def _run(parse: Callable[[Sequence[str]], Namespace], program: str, argv: Sequence[str] | None) -> int:
    words, arguments = sys.argv[1:] if argv is None else argv, None
    try:
        arguments = parse(words)
        return _COMMANDS[arguments.command](arguments)
    except SystemExit as leaving:  # argparse, after --help
        return int(leaving.code or 0)
    except Terminated as error:
        goes_on = resume_command(arguments, words, program) if arguments and arguments.command in _RESUMED else None
        _tell(f"error: {error}" + (f": {goes_on}" if goes_on else ""), of_all=True)
        return error.exit_code
    except BertfastError as error:
        _tell(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _tell("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if (fault := out_of_memory(error)) is None:
            raise
        _tell(f"error: {fault}; end what else runs here, or take a machine with more")
        return OutOfMemoryError.exit_code


_COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "train": commands.train,
    "train_and_eval": commands.train,
    "eval": commands.evaluate,
    "predict": predict,
    "validate": commands.validate,
    "compile": commands.compile_kernels,
    "calibrate": calibrate,
    "export": commands.export,
    "verify": commands.verify,
    "tune": commands.tune,
    "pretrain": commands.pretrain,
    "sweep": commands.sweep,
    "convert": commands.convert,
}
_RESUMED = ("train", "train_and_eval", "pretrain")


def _tell(message: str, of_all: bool = False) -> None:
    """Say it on standard error. A fault that all ranks meet is said once: by rank 0, and the launcher ends the others while they wait here.
    One that rank 0 has not met (a file that is missing on another machine, say) is said by the rank that has, after the wait.
    of_all: all ranks are known to have met it."""
    if rank() == 0:
        print(f"bertfast: {message}", file=sys.stderr)
        return
    time.sleep(_HEAD_START_SECONDS)
    if not of_all:
        print(f"bertfast: rank {rank()}: {message}", file=sys.stderr)
