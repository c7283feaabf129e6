"""`bertfast predict`: by a torch model or by an ONNX bundle, from files or standard input to files or standard output."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from bertfast.cli.loading import config_of, exporter, model_folder_of, trainer_of
from bertfast.config import BertfastConfig, InputConfig, refuse_several
from bertfast.tasks import get_task

if TYPE_CHECKING:
    from bertfast.data import EncodedDataset


def encoded_inputs(
    block: BertfastConfig, folder: str, given: str | None, single: bool, scratch: str
) -> Iterator[tuple[str, EncodedDataset]]:
    """What `read_inputs` gives, tokenised for the model in `folder`, one split after the other; the folder `scratch` holds the tokens.
    Where there is nothing else to read and the input is an input_fn, what it yields in mode "predict"."""
    from bertfast.data import encode, load_dataset_for
    from bertfast.readers import read_inputs, reads_standard_input
    from bertfast.weights import load_tokenizer, model_folder, read_config, resolve_folder, task_of_model

    model = resolve_folder(model_folder(folder))
    bert = read_config(model)
    tokenizer, task = load_tokenizer(model, bert), task_of_model(get_task(block.task), bert, model)
    source = block.eval_input or block.train_input or InputConfig()
    length = source.max_sequence_length
    if given is None and source.input_fn is not None and not reads_standard_input(single):
        yield (
            "test",
            load_dataset_for(task, source.model_copy(update={"cache_dir": scratch}), "test", tokenizer, block.run.seed, block.truncation),
        )
        return
    for split, raw in read_inputs(block, task, given, single, with_labels=False):
        yield split, encode(raw, tokenizer, length, cache_dir=scratch, truncation=block.truncation)


def predict(arguments: Namespace) -> int:
    if arguments.onnx is not None:
        return predict_onnx(arguments)
    config = config_of(arguments)
    refuse_several(config, "predict")
    folder = model_folder_of(arguments, config)

    from bertfast.reporting import choose_format, clean_stdout, is_folder, output_name, prediction_lines, write_lines, write_predictions

    form, output = choose_format(arguments.format, arguments.output), arguments.output
    to_stdout, to_folder = output in (None, "-"), output is not None and is_folder(output)
    with clean_stdout() as stdout, TemporaryDirectory(prefix="bertfast-") as scratch:
        trainer = trainer_of(arguments, config)
        for split, dataset in encoded_inputs(config.bertfast, folder, arguments.input, not to_folder, scratch):
            logits = trainer.predict(dataset=dataset)
            if logits is None:  # on ranks but the first
                continue
            if to_stdout:
                write_lines(stdout, prediction_lines(dataset.task, logits, form))
                continue
            path = Path(output) / output_name(dataset.task, split, form) if to_folder else Path(output)
            write_predictions(path, dataset.task, logits, form)
            print(f"{path}: {len(dataset):,} predictions", file=sys.stderr)
    return 0


def predict_onnx(arguments: Namespace) -> int:
    exporter().check()
    from bertfast.readers import read_inputs
    from bertfast.reporting import choose_format, clean_stdout, is_folder, output_name, prediction_lines, write_lines, write_predictions

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
