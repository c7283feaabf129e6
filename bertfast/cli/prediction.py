"""`bertfast predict`: by a torch model or by an ONNX bundle, from files or standard input to files or standard output."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TextIO

from bertfast.cli.loading import config_of, exporter, model_folder_of, trainer_of
from bertfast.config import BertfastConfig, InputConfig, refuse_several
from bertfast.errors import ConfigError
from bertfast.machine import rank
from bertfast.tasks import Task, get_task

if TYPE_CHECKING:
    import numpy as np

    from bertfast.data import EncodedDataset
    from bertfast.readers import RawSplit

_OUTPUT_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl")  # a file of these in a model's folder is an earlier output


class Output:
    """Where the predictions go, and as what: standard output, a file, or a folder with a file for each split.

    inputs: files and folders that must not be written over.

    Raises:
        ConfigError: see `choose_format`.
    """

    def __init__(self, arguments: Namespace):
        from bertfast.reporting import choose_format, is_folder

        self.place: str | None = None if arguments.output == "-" else arguments.output
        self.format, self.is_folder = choose_format(arguments.format, arguments.output), self.place is not None and is_folder(self.place)

    def refuse_overwriting(self, task: Task, splits: list[str], inputs: list[str]) -> None:
        """Raise ConfigError where a file that is to be written is an input; nothing is written yet."""
        from bertfast.storage import overwritten

        for split in splits if self.place is not None else ():
            path = self._path(task, split)
            if (given := overwritten(path, inputs)) is not None:
                raise ConfigError(f"--output {path}: is an input of this command ({given}), and would be written over; give another place")

    def write(self, stdout: TextIO, task: Task, split: str, logits: np.ndarray, rows: RawSplit | None, model: str | Path) -> None:
        from bertfast.calibration import read_calibration
        from bertfast.readers import whole_rows
        from bertfast.reporting import Given, write_predictions, write_to

        calibration = read_calibration(model, task)
        given = None if rows is None or self.format in ("glue", "jsonl") else Given(*whole_rows(rows))
        if self.place is None:
            write_to(stdout, task, logits, self.format, given, calibration)
            return
        path = self._path(task, split)
        write_predictions(path, task, logits, self.format, given, calibration)
        print(f"{path}: {len(logits):,} predictions", file=sys.stderr)

    def _path(self, task: Task, split: str) -> Path:
        from bertfast.reporting import output_name

        assert self.place is not None, "asked where there is a place"
        return Path(self.place) / output_name(task, split, self.format) if self.is_folder else Path(self.place)


def predict(arguments: Namespace) -> int:
    if arguments.onnx is not None:
        return predict_onnx(arguments)
    config = config_of(arguments)
    refuse_several(config, "predict")
    folder = model_folder_of(arguments, config)

    from bertfast.data import encode
    from bertfast.reporting import clean_stdout
    from bertfast.weights import load_tokenizer, model_folder, read_config, resolve_folder, task_of_model

    output, block = Output(arguments), config.bertfast
    with clean_stdout() as stdout, TemporaryDirectory(prefix="bertfast-") as scratch:
        trainer = trainer_of(arguments, config)
        model = resolve_folder(model_folder(folder))
        bert = read_config(model)
        tokenizer, task = load_tokenizer(model, bert), task_of_model(get_task(block.task), bert, model)
        source = block.eval_input or block.train_input or InputConfig()
        for split, rows in _rows_to_read(block, task, arguments, output, model):
            if rows is None:
                dataset = _from_function(block, task, source, tokenizer, scratch)
            else:
                dataset = encode(rows, tokenizer, source.max_sequence_length, cache_dir=scratch, truncation=block.truncation)
            logits = trainer.predict(dataset=dataset)
            if logits is not None:  # as it is on ranks but the first
                output.write(stdout, dataset.task, split, logits, rows, model)
    return 0


def predict_onnx(arguments: Namespace) -> int:
    exporter().check()
    from bertfast.reporting import clean_stdout

    output = Output(arguments)
    with clean_stdout() as stdout:
        classifier, block, task = exporter().load(arguments.onnx, arguments.variant, arguments.device, arguments.streams)
        for split, rows in _rows_to_read(block, task, arguments, output, Path(arguments.onnx)):
            assert rows is not None, "a bundle's block names no function"
            output.write(stdout, rows.task, split, classifier.logits(rows.text_a, rows.text_b), rows, arguments.onnx)
    return 0


def _rows_to_read(
    block: BertfastConfig, task: Task, arguments: Namespace, output: Output, model: Path
) -> list[tuple[str, RawSplit | None]]:
    """What `read_inputs` gives, or ("test", None) where there is nothing else to read and the input is an input_fn; no output is one of the inputs."""
    from bertfast.readers import read_inputs, reads_standard_input

    given, source = arguments.input, block.eval_input or block.train_input or InputConfig()
    found: list[tuple[str, RawSplit | None]]
    if given is None and source.input_fn is not None and not reads_standard_input(not output.is_folder):
        found = [("test", None)]
    else:
        found = [*read_inputs(block, task, given, not output.is_folder, with_labels=False)]
    if rank() == 0:
        read = [rows.source for _, rows in found if rows is not None]
        output.refuse_overwriting(task, [split for split, _ in found], [*read, *_inputs(block, task, arguments, model)])
    return found


def _inputs(block: BertfastConfig, task: Task, arguments: Namespace, model: Path) -> Iterator[str]:
    """The files that a prediction must leave alone: those of the config, of its data, and of the model."""
    from bertfast.config import find_config
    from bertfast.readers import files_of

    if arguments.config is not None:
        yield str(find_config(arguments.config))
    if arguments.input is not None and Path(arguments.input).is_dir():
        yield from files_of(task, InputConfig(data_dir=arguments.input))
    for part in (block.eval_input, block.train_input):
        if part is not None:
            yield from files_of(task, part)
    yield from (str(file) for file in model.rglob("*") if file.is_file() and file.suffix not in _OUTPUT_SUFFIXES)


def _from_function(block: BertfastConfig, task: Task, source: InputConfig, tokenizer, scratch: str) -> EncodedDataset:
    from bertfast.data import load_dataset_for

    return load_dataset_for(task, source.model_copy(update={"cache_dir": scratch}), "test", tokenizer, block.run.seed, block.truncation)
