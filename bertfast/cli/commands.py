"""What each command does."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from bertfast.cli.loading import config_of, exporter, name_of, print_metrics, tell_progress, trainer_of
from bertfast.config import BertfastConfig, check_monitors, configs_of, exported_blocks, load_config, refuse_several
from bertfast.errors import ConfigError
from bertfast.machine import rank


def train(arguments: Namespace) -> int:
    config = config_of(arguments)
    if config.bertfast.train_input is None:
        raise ConfigError(f"{name_of(config)}: there is no bertfast.train_input; it names the training data")
    if arguments.command == "train_and_eval" and config.bertfast.eval_input is None:
        raise ConfigError(f"{name_of(config)}: there is no bertfast.eval_input, which --mode train_and_eval needs")
    check_monitors(config.deepspeed)
    export = config.bertfast.export
    if export is not None:
        for block in exported_blocks(config.bertfast):
            exporter().check_training(block)  # before the training, not after it
    results = trainer_of(arguments, config).fit()
    if rank() == 0:
        print_metrics(results.get("metrics", {}))
        folder = Path(config.bertfast.run.model_dir)
        print(f"model: {folder / 'model'}; figures: {folder / 'results.json'}", file=sys.stderr)
        if export is not None:
            for block in exported_blocks(config.bertfast):
                exporter().export_after_training(block, tell_progress)
    return 0


def pretrain(arguments: Namespace) -> int:
    config = config_of(arguments)
    if config.bertfast.pretrain is None:
        raise ConfigError(f"{name_of(config)}: there is no bertfast.pretrain block; it names the text ({{}} takes the task's own)")
    if not arguments.evaluate_only:
        return train(arguments)
    metrics = trainer_of(arguments, config).evaluate()
    if rank() == 0:
        print_metrics(metrics)
    return 0


def evaluate(arguments: Namespace) -> int:
    config = config_of(arguments)
    if config.bertfast.eval_input is None:
        raise ConfigError(f"{name_of(config)}: there is no bertfast.eval_input; it names the data to evaluate on")
    metrics = trainer_of(arguments, config).evaluate()
    if rank() == 0:
        print_metrics(metrics)
    return 0


def export(arguments: Namespace) -> int:
    block = _one_block(arguments)
    exporter().check()
    exporter().export(arguments, block, tell_progress)
    print(f"{arguments.output}: verified; see {Path(arguments.output) / 'verification.md'}", file=sys.stderr)
    return 0


def verify(arguments: Namespace) -> int:
    block = _one_block(arguments)
    exporter().check()
    exporter().verify(arguments, block, tell_progress)
    print(f"{arguments.folder}: verified", file=sys.stderr)
    return 0


def tune(arguments: Namespace) -> int:
    if arguments.device == "gpu":
        raise ConfigError(
            "bertfast tune measures on a CPU, and GPU was given; leave it out: on a GPU fp16 is taken unless --variant names another"
        )
    exporter().check()
    exporter().tune(arguments, tell_progress)
    return 0


def _one_block(arguments: Namespace) -> BertfastConfig | None:
    """The block of --config for `export` and `verify`, where it is given: of one task."""
    if not arguments.config:
        return None
    config = load_config(arguments.config, arguments.set)
    refuse_several(config, arguments.command)
    return config.bertfast


def validate(arguments: Namespace) -> int:
    if rank() != 0:  # one rank checks for all; the others leave without a fault, or the launcher would end rank 0 in mid-table
        return 0
    from bertfast.checks import print_checks, run_checks

    checks = run_checks(lambda: config_of(arguments), arguments.device, lambda *given: exporter().describe_training(*given))
    print_checks(checks)
    return 2 if any(check.result == "failed" for check in checks) else 0


def compile_kernels(arguments: Namespace) -> int:
    if rank() != 0:  # the ranks of a machine share Triton's cache
        return 0
    config = config_of(arguments)
    from bertfast.checks import choose_targets, compile_encoders, encoder_of, print_kernels

    encoders = [encoder_of(part) for part in configs_of(config)]
    kernels = compile_encoders(encoders, choose_targets(arguments.target or ()))
    print_kernels(kernels, "; ".join(dict.fromkeys(encoder.source for encoder in encoders)))
    return 0 if all(kernel.fits for kernel in kernels) else 2


def sweep(arguments: Namespace) -> int:
    config = config_of(arguments)
    check_monitors(config.deepspeed)
    from bertfast.sweep import Search, Sweep, places_of, print_results, read_space, train_command

    space = read_space(arguments.space, config)
    search = Search(space, arguments.seeds, arguments.trials, arguments.retry_failed, arguments.keep_models)
    sweep = Sweep(config, search, places_of(arguments.device, arguments.jobs), train_command(arguments.device), tell_progress)
    print_results(sweep.folder, sweep.run())
    return 0


def convert(arguments: Namespace) -> int:
    from bertfast.weights import convert_checkpoint

    print(convert_checkpoint(arguments.IN, arguments.OUT, arguments.to))
    return 0
