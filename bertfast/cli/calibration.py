"""`bertfast calibrate`: a model's answers to labelled texts, and what they say of its probabilities."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory

from bertfast.config import Config, InputConfig, load_config, refuse_several
from bertfast.errors import CheckpointError, ConfigError


def calibrate(arguments: Namespace) -> int:
    from bertfast.calibration import Aim, Aims, find_calibration, shown, write_calibration
    from bertfast.data import encode
    from bertfast.readers import load_split
    from bertfast.tasks import get_task
    from bertfast.training import Trainer
    from bertfast.weights import load_tokenizer, model_folder, read_config, resolve_folder, task_of_model

    aims = Aims(_aim(arguments, Aim), _share(arguments.risk, "--risk"))
    model = resolve_folder(model_folder(arguments.folder))
    config = _config(arguments, model)
    refuse_several(config, "calibrate")
    block, bert = config.bertfast, read_config(model)
    trainer = Trainer(config, device=arguments.device, checkpoint_path=str(model))
    task = task_of_model(get_task(block.task), bert, model)
    source, split = _examples(arguments, config, task.eval_splits)
    rows = load_split(task, source, split)
    if rows.labels is None:
        raise ConfigError(
            f"{rows.source}: has no labels, and it is by them that probabilities are put right; name labelled texts with --input"
        )
    if source.max_examples is not None:
        rows = rows.sample(source.max_examples, block.run.seed)
    with TemporaryDirectory(prefix="bertfast-") as scratch:
        data = encode(rows, load_tokenizer(model, bert), source.max_sequence_length, cache_dir=scratch, truncation=block.truncation)
        logits = trainer.predict(dataset=data)
    assert logits is not None and data.labels is not None, "one rank, and the labels were looked for"
    found = find_calibration(data.task, logits, data.labels, aims, block.run.seed)
    print(f"{split} of {rows.source}" if arguments.input != rows.source else rows.source)
    for line in shown(found):
        print(line)
    print(f"{write_calibration(model, found)}: used by predict, and by what is exported from now on", file=sys.stderr)
    return 0


def _aim(arguments: Namespace, aim):
    wanted = {"precision": arguments.precision, "recall": arguments.recall, "f1": True if arguments.best_f1 else None}
    asked = {kind: value for kind, value in wanted.items() if value is not None}
    if len(asked) > 1:
        raise ConfigError("--precision, --recall and --best_f1: each asks for other thresholds; give one of them")
    for kind, value in asked.items():
        return aim(kind) if kind == "f1" else aim(kind, _share(value, f"--{kind}"))
    return None


def _share(value: float | None, flag: str) -> float | None:
    if value is not None and not 0 < value < 1:
        raise ConfigError(f"{flag} {value:g}: give a share between 0 and 1, 0.95 say")
    return value


def _config(arguments: Namespace, model: Path) -> Config:
    from bertfast.reporting import MODEL_CONFIG_FILE

    file = arguments.config or model / MODEL_CONFIG_FILE
    if arguments.config is None and not Path(file).is_file():
        raise CheckpointError(f"{model}: no {MODEL_CONFIG_FILE} there, which would say how texts are read; name a config with --config")
    return load_config(file, arguments.set)


def _examples(arguments: Namespace, config: Config, splits: tuple[str, ...]) -> tuple[InputConfig, str]:
    """Where the labelled texts are, and the split that they are read as."""
    block = config.bertfast
    usual = block.eval_input or block.train_input or InputConfig()
    given = arguments.input
    if given is not None and Path(given).is_file():
        keys = {"data_file": str(given), "data_dir": None, "input_fn": None, "max_examples": None}
        return usual.model_copy(update=keys), "dev"
    if given is not None and given not in splits:
        raise ConfigError(f"--input {given}: neither a file nor a split to evaluate on ({', '.join(splits)})")
    if block.eval_input is None:
        raise ConfigError("there is no bertfast.eval_input; name a file of labelled texts with --input")
    if block.eval_input.input_fn is not None:
        raise ConfigError(f"eval_input is the function {block.eval_input.input_fn}; name a file of labelled texts with --input")
    return block.eval_input, given or splits[0]
