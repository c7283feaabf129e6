"""What the command line asks for, in its own terms: arguments and config blocks in, bundles and classifiers out."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from bertfast.config import BertfastConfig
from bertfast.errors import ConfigError
from bertfast_export.contract import RECORD_FILE
from bertfast_export.runtime import CPU, check_onnx, check_wheels

if TYPE_CHECKING:
    from transformers import BertConfig

    from bertfast.checks import Found
    from bertfast.config import Config
    from bertfast.tasks import Task
    from bertfast_export.classifier import OnnxClassifier

_PROVIDERS = {"gpu": ["CUDAExecutionProvider", CPU], "cpu": [CPU], None: [CPU]}


def check() -> None:
    """Raise where onnx or onnxruntime are not as they must be."""
    check_wheels()
    check_onnx()


def is_bundle(folder: Path) -> bool:
    """Whether an export wrote this folder."""
    return (folder / RECORD_FILE).is_file()


def check_training(block: BertfastConfig) -> None:
    """Raise where the export that a training config asks for cannot be made; see `check_planned`."""
    check()
    from bertfast.weights import model_folder, read_config, resolve_folder
    from bertfast_export.bundle import check_planned

    check_planned(block, read_config(resolve_folder(model_folder(block.model.checkpoint))))


def describe_training(config: Config, checkpoint: tuple[Path, BertConfig]) -> Found:
    """A row for `bertfast validate`: what the export after training will do."""
    check()
    from bertfast.checks import Found
    from bertfast_export.bundle import check_planned

    return Found(True, *check_planned(config.bertfast, checkpoint[1]))


def export(arguments: Namespace, block: BertfastConfig | None, say: Callable[[str], None]) -> None:
    """`bertfast export`; see `export_bundle` for what it raises."""
    from bertfast_export.bundle import Candidate, configured, export_bundle, from_file, refuse_place
    from bertfast_export.contract import VARIANTS, Options

    refuse_place(Path(arguments.output), arguments.folder, arguments.input, arguments.config)

    named = tuple(part.strip() for part in arguments.variants.split(",")) if arguments.variants else tuple(VARIANTS)
    options = Options(named, arguments.opset, arguments.integers, arguments.layout, arguments.max_sequence_length, arguments.packed)
    source = Candidate(arguments.folder, options, block, arguments.pairs)
    with TemporaryDirectory(prefix="bertfast-") as scratch:
        data = from_file(source.block, arguments.input, scratch) if arguments.input else configured(source.block)
        if arguments.grid_only:
            data = None
        elif data is None:
            raise ConfigError(
                f"{source.folder}: names no data to judge on; give texts with --input FILE, or a config with --config, "
                "or be content with made-up batches: --grid_only"
            )
        export_bundle(arguments.folder, arguments.output, options, data, source, say)


def export_after_training(block: BertfastConfig, say: Callable[[str], None]) -> None:
    """The export that a training config asks for."""
    from bertfast_export.bundle import bundle_folder, configured, export_bundle
    from bertfast_export.contract import Options

    asked = block.export
    assert asked is not None, "called where a config exports"
    options = Options(asked.variants, asked.opset, asked.integers, asked.layout)
    export_bundle(block.run.model_dir, str(bundle_folder(block)), options, configured(block), say=say)


def verify(arguments: Namespace, block: BertfastConfig | None, say: Callable[[str], None]) -> None:
    """`bertfast verify`; see `verify_bundle` for what it raises."""
    from bertfast_export.bundle import bundle_block, configured, from_file, verify_bundle

    with TemporaryDirectory(prefix="bertfast-") as scratch:
        data = from_file(block or bundle_block(arguments.folder), arguments.input, scratch) if arguments.input else configured(block)
        verify_bundle(arguments.folder, arguments.checkpoint_path, data, _PROVIDERS[arguments.device], say)


def tune(arguments: Namespace, say: Callable[[str], None]) -> None:
    """`bertfast tune`; see `tune_bundle` for what it raises."""
    from bertfast.tasks import get_task
    from bertfast.weights import load_tokenizer, read_config, task_of_model
    from bertfast_export.bundle import bundle_block, from_file
    from bertfast_export.tuning import tune_bundle

    lengths = None
    if arguments.input:
        folder, block = Path(arguments.folder), bundle_block(arguments.folder)
        bert = read_config(folder)
        task = task_of_model(get_task(block.task), bert, folder)
        assert block.eval_input is not None, "an export writes it into the bundle's block"
        with TemporaryDirectory(prefix="bertfast-") as scratch:
            splits = from_file(block, arguments.input, scratch)(task, load_tokenizer(folder, bert), block.eval_input.max_sequence_length)
            lengths = next(iter(splits.values())).lengths.copy()
    tune_bundle(arguments.folder, lengths, say)


def load(folder: str, variant: str | None, device: str | None, streams: int | None = None) -> tuple[OnnxClassifier, BertfastConfig, Task]:
    """A bundle's classifier on a device, the config block that it carries, and its task.

    Raises:
        ExportError: no bundle is there, or it cannot be used.
    """
    from bertfast.tasks import get_task, task_of_classes
    from bertfast_export.bundle import bundle_block
    from bertfast_export.classifier import OnnxClassifier

    classifier = OnnxClassifier.from_bundle(folder, variant, _PROVIDERS[device], streams=streams)
    block = bundle_block(folder)
    return classifier, block, task_of_classes(get_task(block.task), classifier.labels or None, folder, classifier.several)
