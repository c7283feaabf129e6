"""The command line: `bertfast train | eval | predict | validate | compile | export | verify | pretrain | sweep | convert`; `launch` is what `deepspeed launch.py` starts on every rank.

What is heavy is imported by the command that needs it, once its config is known to be good: a bad flag or key is answered at once.
"""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from bertfast.arguments import overrides, parse_command, parse_launch, starts_from_checkpoint
from bertfast.checkpoint import standing
from bertfast.config import BertfastConfig, Config, load_config
from bertfast.deepspeed_keys import check_monitors
from bertfast.errors import BertfastError, CheckpointError, ConfigError
from bertfast.multitask_config import configs_of, exported_blocks, refuse_several
from bertfast.tasks import get_task

if TYPE_CHECKING:
    from bertfast.trainer import Trainer

INTERRUPTED = 130  # 128 + SIGINT, as shells count
_CLASSIFYING = ("train", "train_and_eval", "eval", "predict", "sweep")
_HEAD_START_SECONDS = 3.0  # the deepspeed launcher looks once a second, and ends all ranks when one has left


def main(argv: Sequence[str] | None = None) -> int:
    """`bertfast`: run one command; returns the exit code."""
    return _run(parse_command, argv)


def launch(argv: Sequence[str] | None = None) -> int:
    """launch.py: the same, with --mode in the place of the command; returns the exit code."""
    return _run(parse_launch, argv)


def _run(parse: Callable[[Sequence[str]], Namespace], argv: Sequence[str] | None) -> int:
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        return _COMMANDS[arguments.command](arguments)
    except SystemExit as leaving:  # argparse, after --help
        return int(leaving.code or 0)
    except BertfastError as error:
        _tell(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _tell("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _train(arguments: Namespace) -> int:
    config = _load(arguments)
    if config.bertfast.train_input is None:
        raise ConfigError(f"{_name(config)}: there is no bertfast.train_input; it names the training data")
    if arguments.command == "train_and_eval" and config.bertfast.eval_input is None:
        raise ConfigError(f"{_name(config)}: there is no bertfast.eval_input, which --mode train_and_eval needs")
    check_monitors(config.deepspeed)
    export = config.bertfast.export
    if export is not None:
        for block in exported_blocks(config.bertfast):
            exporter().check_training(block)  # before the training, not after it
    results = _trainer(arguments, config).fit()
    if rank() == 0:
        _print_metrics(results.get("metrics", {}))
        folder = Path(config.bertfast.run.model_dir)
        print(f"model: {folder / 'model'}; figures: {folder / 'results.json'}", file=sys.stderr)
        if export is not None:
            for block in exported_blocks(config.bertfast):
                exporter().export_after_training(block, _tell_progress)
    return 0


def _pretrain(arguments: Namespace) -> int:
    config = _load(arguments)
    if config.bertfast.pretrain is None:
        raise ConfigError(f"{_name(config)}: there is no bertfast.pretrain block; it names the text ({{}} takes the task's own)")
    if not arguments.evaluate_only:
        return _train(arguments)
    metrics = _trainer(arguments, config).evaluate()
    if rank() == 0:
        _print_metrics(metrics)
    return 0


def _evaluate(arguments: Namespace) -> int:
    config = _load(arguments)
    if config.bertfast.eval_input is None:
        raise ConfigError(f"{_name(config)}: there is no bertfast.eval_input; it names the data to evaluate on")
    metrics = _trainer(arguments, config).evaluate()
    if rank() == 0:
        _print_metrics(metrics)
    return 0


def _predict(arguments: Namespace) -> int:
    if arguments.onnx is not None:
        return _predict_onnx(arguments)
    config = _load(arguments)
    refuse_several(config, "predict")
    folder = _model_folder(arguments, config)

    from bertfast.inputs import encoded_inputs
    from bertfast.predictions import choose_format, clean_stdout, is_folder, output_name, prediction_lines, write_lines, write_predictions

    form, output = choose_format(arguments.format, arguments.output), arguments.output
    to_stdout, to_folder = output in (None, "-"), output is not None and is_folder(output)
    with clean_stdout() as stdout, TemporaryDirectory(prefix="bertfast-") as scratch:
        trainer = _trainer(arguments, config)
        for split, dataset in encoded_inputs(config.bertfast, folder, arguments.input, not to_folder, scratch):
            logits = trainer.predict(dataset=dataset)
            if rank() != 0:
                continue
            if to_stdout:
                write_lines(stdout, prediction_lines(dataset.task, logits, form))
                continue
            path = Path(output) / output_name(dataset.task, split, form) if to_folder else Path(output)
            write_predictions(path, dataset.task, logits, form)
            print(f"{path}: {len(dataset):,} predictions", file=sys.stderr)
    return 0


def _predict_onnx(arguments: Namespace) -> int:
    exporter().check()
    from bertfast.inputs import read_inputs
    from bertfast.predictions import choose_format, clean_stdout, is_folder, output_name, prediction_lines, write_lines, write_predictions

    form, output = choose_format(arguments.format, arguments.output), arguments.output
    to_folder = output is not None and is_folder(output)
    with clean_stdout() as stdout:
        classifier, block, task = exporter().load(arguments.onnx, arguments.variant, arguments.device)
        for split, rows in read_inputs(block, task, arguments.input, not to_folder, with_labels=False):
            logits = classifier.logits(rows.text_a, rows.text_b)
            if output in (None, "-"):
                write_lines(stdout, prediction_lines(rows.task, logits, form))
                continue
            path = Path(output) / output_name(rows.task, split, form) if to_folder else Path(output)
            write_predictions(path, rows.task, logits, form)
            print(f"{path}: {len(rows):,} predictions", file=sys.stderr)
    return 0


def _export(arguments: Namespace) -> int:
    block = _one_block(arguments)
    exporter().check()
    exporter().export(arguments, block, _tell_progress)
    print(f"{arguments.output}: verified; see {Path(arguments.output) / 'verification.md'}", file=sys.stderr)
    return 0


def _verify(arguments: Namespace) -> int:
    block = _one_block(arguments)
    exporter().check()
    exporter().verify(arguments, block, _tell_progress)
    print(f"{arguments.folder}: verified", file=sys.stderr)
    return 0


def _one_block(arguments: Namespace) -> BertfastConfig | None:
    """The block of --config for `export` and `verify`, where it is given: of one task."""
    if not arguments.config:
        return None
    config = load_config(arguments.config, arguments.set)
    refuse_several(config, arguments.command)
    return config.bertfast


def exporter():
    """What the commands ask of bertfast_export: its module `commands`."""
    from bertfast_export import commands

    return commands


def _validate(arguments: Namespace) -> int:
    if rank() != 0:  # one rank checks for all; the others leave without a fault, or the launcher would end rank 0 in mid-table
        return 0
    from bertfast.validate import print_checks, run_checks

    checks = run_checks(lambda: _load(arguments), arguments.device, lambda *given: exporter().describe_training(*given))
    print_checks(checks)
    return 2 if any(check.result == "failed" for check in checks) else 0


def _compile(arguments: Namespace) -> int:
    if rank() != 0:  # the ranks of a machine share Triton's cache
        return 0
    config = _load(arguments)
    from bertfast.compilation import choose_targets, compile_encoders, encoder_of, print_kernels

    encoders = [encoder_of(part) for part in configs_of(config)]
    kernels = compile_encoders(encoders, choose_targets(arguments.target or ()))
    print_kernels(kernels, "; ".join(dict.fromkeys(encoder.source for encoder in encoders)))
    return 0 if all(kernel.fits for kernel in kernels) else 2


def _sweep(arguments: Namespace) -> int:
    config = _load(arguments)
    check_monitors(config.deepspeed)
    from bertfast.search import read_space
    from bertfast.sweep import Search, Sweep
    from bertfast.sweep_report import print_results
    from bertfast.trials import places_of, train_command

    space = read_space(arguments.space, config)
    search = Search(space, arguments.seeds, arguments.trials, arguments.retry_failed, arguments.keep_models)
    sweep = Sweep(config, search, places_of(arguments.device, arguments.jobs), train_command(arguments.device), _tell_progress)
    print_results(sweep.folder, sweep.run())
    return 0


def _convert(arguments: Namespace) -> int:
    from bertfast.convert import convert

    print(convert(arguments.IN, arguments.OUT, arguments.to))
    return 0


_COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "train": _train,
    "train_and_eval": _train,
    "eval": _evaluate,
    "predict": _predict,
    "validate": _validate,
    "compile": _compile,
    "export": _export,
    "verify": _verify,
    "pretrain": _pretrain,
    "sweep": _sweep,
    "convert": _convert,
}


def rank() -> int:
    """This process's number among all that the launcher started; 0 without a launcher."""
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0)


def _load(arguments: Namespace) -> Config:
    """The config of --config, or the one that a fine-tuned model's folder carries; its task is known to exist."""
    from bertfast.report import MODEL_CONFIG_FILE

    if arguments.config is not None:
        config = load_config(arguments.config, overrides(arguments))
    else:
        folder = Path(arguments.checkpoint_path)
        files = (folder / MODEL_CONFIG_FILE, standing(folder / "model") / MODEL_CONFIG_FILE)
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise CheckpointError(f"--checkpoint_path {folder}: no {MODEL_CONFIG_FILE} there; name the config with --config")
        config = load_config(file, overrides(arguments))
    given = vars(arguments)
    validates_training = given.get("validate_only") and given.get("mode") != "pretrain"
    if arguments.command in _CLASSIFYING or validates_training:
        config = config.without_pretraining()
    for part in configs_of(config):
        get_task(part.bertfast.task)
    return config


def _model_folder(arguments: Namespace, config: Config) -> str:
    """The model that eval and predict use: its folder, or that of the run or checkpoint which holds it.

    Raises:
        CheckpointError: where there is none yet.
    """
    if arguments.checkpoint_path is not None:
        return arguments.checkpoint_path
    model = Path(config.bertfast.run.model_dir) / "model"
    if rank() == 0 and not standing(model).is_dir():
        kind, command = ("pre-trained", "pretrain") if arguments.evaluate_only else ("fine-tuned", "train")
        raise CheckpointError(
            f"{model}: there is no {kind} model yet; train first (bertfast {command} --config ...), or name a model with --checkpoint_path"
        )
    return config.bertfast.run.model_dir


def _trainer(arguments: Namespace, config: Config) -> Trainer:
    if arguments.command in ("eval", "predict") or arguments.evaluate_only:
        checkpoint_path = _model_folder(arguments, config)
    else:
        checkpoint_path = None if starts_from_checkpoint(arguments) else arguments.checkpoint_path
    from bertfast.trainer import Trainer

    kind = Trainer
    if arguments.command == "pretrain":
        from bertfast.pretraining import Pretrainer as kind
    elif config.bertfast.multitask is not None:
        from bertfast.multitask import Multitasker as kind

    return kind(
        config,
        device=arguments.device,
        resume=bool(arguments.resume),
        checkpoint_path=checkpoint_path,
        profile_startup=arguments.profile_startup,
        **({"profile": True} if arguments.profile else {}),
    )


def _print_metrics(metrics: dict[str, dict[str, float]]) -> None:
    from rich.console import Console
    from rich.table import Table

    if not metrics:
        return
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    table = Table("split", *names)
    for split, values in metrics.items():
        table.add_row(split, *(f"{values[name]:.4f}" if name in values else "" for name in names))
    Console().print(table)


def _tell_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _name(config: Config) -> str:
    return str(config.path or "config")


def _tell(message: str) -> None:
    """Say it on standard error. A fault that all ranks meet is said once: by rank 0, and the launcher ends the others while they wait here.
    One that rank 0 has not met (a file that is missing on another machine, say) is said by the rank that has, after the wait."""
    if rank() == 0:
        print(f"bertfast: {message}", file=sys.stderr)
    else:
        time.sleep(_HEAD_START_SECONDS)
        print(f"bertfast: rank {rank()}: {message}", file=sys.stderr)
