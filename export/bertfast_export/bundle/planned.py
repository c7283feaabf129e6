"""Whether a classifier can be exported, asked before it is trained: the recipe of a config, its export block and the place for the bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from bertfast.config import HEAD_KEY, BertfastConfig, HeadConfig, TruncationConfig
from bertfast.errors import ConfigError, ExportError
from bertfast.storage import lies_in
from bertfast_export.contract import OWN_HEAD_IN_FLOAT32, RECORD_FILE, skipped_variants

if TYPE_CHECKING:
    from transformers import BertConfig

_REMEDY = "train with the usual one, or do not export it"


def check_planned(block: BertfastConfig, bert: BertConfig) -> tuple[str, str]:
    """What a config's export block will do at the end of training, in a line, and what is odd about it (or "").

    bert: the config of the checkpoint that is trained.

    Raises:
        ConfigError: what the config trains cannot be exported.
        ExportError: the bundle's folder cannot be written.
    """
    if block.pretrain is not None:
        raise ConfigError(
            "bertfast.export: pre-training makes no classifier; take bertfast.export out (--set bertfast.export=null), and export what is fine-tuned from it"
        )
    refuse_head(block.head, "bertfast.head")
    refuse_truncation(block.truncation, "bertfast.truncation")
    from bertfast.tasks import get_task
    from bertfast_export.bundle.examples import configured
    from bertfast_export.contract import FILES, OPENVINO, Options
    from bertfast_export.openvino_runtime import check_openvino

    assert block.export is not None, "asked of configs that export"
    asked, place = block.export, bundle_folder(block)
    Options(asked.variants, asked.opset, asked.integers, asked.layout)  # which refuses what does not go together
    refuse_place(place)
    judged = ", ".join(get_task(block.task).eval_splits) if configured(block) is not None else ""
    skipped = skipped_variants(asked.variants, is_own_head(block.head, bert))
    if OPENVINO in asked.variants:
        check_openvino()
    files = [FILES[name] for name in asked.variants if name not in skipped and (judged or name != "int8")]
    if not files:
        raise ConfigError(
            "bertfast.export.variants asks for int8 alone, which needs examples to be judged on: name them in bertfast.eval_input"
        )
    line = f"{', '.join(files)} to {place}, opset {asked.opset}, {asked.integers} inputs, judged on {judged or 'made-up batches alone'}"
    warnings = [f"no {' and no '.join(skipped)}: {OWN_HEAD_IN_FLOAT32}"] if skipped else []
    if "int8" in asked.variants and not judged and "int8" not in skipped:
        warnings.append("no int8, which needs examples: name files in bertfast.eval_input")
    return line, "; ".join(warnings)


def bundle_folder(block: BertfastConfig) -> Path:
    """Where the bundle of a training run goes."""
    assert block.export is not None, "asked of configs that export"
    return Path(block.export.output or Path(block.run.model_dir) / "onnx")


def refuse_head(head: HeadConfig, where: str) -> None:
    """Raise ConfigError for a head that no graph is written of: one for documents in pieces."""
    if head.pieces != "mean":
        raise ConfigError(
            f"{where}.pieces is {head.pieces!r}: ONNX files answer a text at a time, as the clients of a bundle send it, and know no documents in "
            f"pieces; {_REMEDY}"
        )


def is_own_head(head: HeadConfig, bert: BertConfig) -> bool:
    """Whether a model with this head, on the encoder of `bert`, is another than transformers' BertForSequenceClassification.

    Raises:
        ConfigError: the head names a layer that the encoder has not.
    """
    from transformers import BertConfig

    from bertfast.model import set_head

    described = BertConfig.from_dict(bert.to_dict())
    set_head(described, head)
    return hasattr(described, HEAD_KEY)


def refuse_truncation(truncation: TruncationConfig, where: str) -> None:
    """Raise ConfigError where long texts are not cut at their end, as the clients of a bundle cut them."""
    if truncation.strategy != "head":
        raise ConfigError(
            f"{where}.strategy is {truncation.strategy!r}: those who use a bundle cut long texts at their end, with a tokenizer that knows nothing "
            f"else, and would give other answers; {_REMEDY}"
        )


def refuse_place(final: Path, *inputs: str | None) -> None:
    """An earlier bundle may be replaced, and nothing else; its folder must take files; and none of the inputs, files or folders, lies in it.

    Raises:
        ExportError: naming what is there.
    """
    for given in inputs:
        if given is not None and Path(given).exists() and lies_in(given, final):
            raise ExportError(f"{final}: would be replaced by the bundle, and {given} is read from it; give another place")
    if final.exists() and not final.is_dir():
        raise ExportError(f"{final}: is a file; give a folder for the bundle")
    if final.is_dir() and any(final.iterdir()) and not (final / RECORD_FILE).is_file():
        raise ExportError(f"{final}: holds files that no export wrote; give a new folder for the bundle")
    there = next(path for path in (final.absolute(), *final.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ExportError(f"{final}: cannot be written: {there} is a file; give another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ExportError(f"{final}: cannot be written: {there} takes no files from you; give another place")
