"""A bundle: the folder that is deployed, with the evidence that it is right. Written beside its place, judged there, and only then renamed.

Killed at any moment, an export leaves a whole verified bundle, or none; what it leaves half-written has a name that nothing reads, and the
next export removes it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from transformers import BertConfig

from bertfast import __version__, checkpoint
from bertfast.atomic import named, write_json
from bertfast.config import BertfastConfig, load_config
from bertfast.data import EncodedDataset
from bertfast.errors import ExportError, VerificationError
from bertfast.pretrained import load_tokenizer, task_of_model
from bertfast.report import MODEL_CONFIG_FILE
from bertfast.tasks import get_task
from bertfast.weights import read_config
from bertfast_export import record
from bertfast_export.audit import CheckpointWeights, KeptWeights
from bertfast_export.cases import make_cases
from bertfast_export.evidence import KeptEvidence, eager_logits, write_evidence
from bertfast_export.examples import Data
from bertfast_export.graph import Network, portable_graph
from bertfast_export.optimize import fused_graph
from bertfast_export.packed import packed_graph
from bertfast_export.packed_judge import NOT_RUN, PACKED_FILE, judge_packed
from bertfast_export.planned import refuse_place
from bertfast_export.reference import Answers, checkpoint_hashes
from bertfast_export.rejected import write_rejected
from bertfast_export.runtime import check_onnx, check_wheels
from bertfast_export.search import search
from bertfast_export.source import VARIANTS, Options, Source
from bertfast_export.triton import write_triton
from bertfast_export.verify import Evidence, Verdict, judge
from bertfast_export.writer import save_model

_TRANSFORMERS_JS = "onnx"  # where transformers.js looks

Say = Callable[[str], None]


def export_bundle(
    folder: str, output: str, options: Options | None = None, data: Data | None = None, source: Source | None = None, say: Say = print
) -> list[Verdict]:
    """Write the bundle of a fine-tuned classifier to the folder `output`, after every file in it has passed the judge.

    Args:
        folder: a run's folder, or any folder (or hub name) of a transformers BERT classifier.
        data: gives the splits to judge on, by name, for a task and a tokenizer; without it the grid alone is asked, and there is no int8.
        source: the same folder, where it is loaded already.
        say: takes lines that tell how far it is.

    Raises:
        VerificationError: a file is out of budget; `output` is left as it was, and a folder beside it holds the failing case.
        BertfastError: the checkpoint, the data or the output cannot be used.
    """
    options, started = options or Options(), datetime.now(UTC)
    check_onnx()
    check_wheels()
    final = named(output)
    checkpoint.recover(final)
    refuse_place(final)
    source = source or Source(folder, options)
    splits = data(source.task, source.tokenizer, source.max_sequence_length) if data is not None else {}
    beside = checkpoint.unfinished(final)
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        verdicts = _fill(beside, source, options, splits, started, final, say)
        checkpoint.seal(beside)
        checkpoint.put_in_place(final)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        if isinstance(error, OSError):
            raise ExportError(f"{final}: cannot be written: {error.strerror or error}; make room, or give another place") from None
        raise
    return verdicts


def _fill(
    beside: Path, source: Source, options: Options, splits: dict[str, EncodedDataset], started: datetime, final: Path, say: Say
) -> list[Verdict]:
    """Write, judge and record everything; gives the verdicts."""
    hashes = checkpoint_hashes(source.folder)
    network, cases = Network.of(source.model), make_cases(source.bert)
    say(f"asking the eager model: {len(cases)} made-up batches, {sum(len(part) for part in splits.values()):,} examples")
    answers, weights = Answers.of(source.folder, cases), CheckpointWeights.of(source.folder)
    evidence = [Evidence(name, dataset, eager_logits(source.model, dataset)) for name, dataset in splits.items()]
    verdicts, notes = [], {}
    if source.skipped:
        notes["skipped"] = {VARIANTS.get(name, PACKED_FILE): why for name, why in source.skipped.items()}
    for variant in (*options.variants, *(["packed"] if options.packed else [])):
        file, metadata = VARIANTS.get(variant, PACKED_FILE), _metadata(source, variant, hashes)
        if variant in source.skipped:
            say(f"{file}: not written; {source.skipped[variant]}")
            continue
        if variant == "int8":
            found = search(network, evidence, options, metadata, say)
            notes["int8_search"] = found.to_dict()
            if found.graph is None:
                say(f"{file}: not written; {found.outcome}")
                continue
            graph = found.graph
        elif variant == "portable":
            graph = portable_graph(network, options.opset, options.integers, metadata)
        elif variant == "packed":
            graph = packed_graph(network, options.opset, options.integers, metadata)
        else:
            graph = fused_graph(network, options.opset, options.integers, variant == "fp16", metadata)
        save_model(graph, beside / file)
        verdict = _judge(beside / file, file, cases, answers, evidence, [weights])
        if verdict.fault is not None and variant == "int8":  # the search promised what the whole grid does not bear out
            for path in beside.glob(f"{file}*"):
                path.unlink()
            notes["int8_search"]["outcome"] = f"none is written: {verdict.fault}"
            say(f"{file}: not written; {verdict.fault}")
            continue
        verdicts.append(verdict)
        if verdict.fault is not None:
            place = write_rejected(final, beside / file, verdict, hashes)
            raise VerificationError(f"{file}: {verdict.fault}\nNothing was written to {final}; the failing case is in {place}")
        say(f"{file}: passed; {_summary(verdict)}")
    write_evidence(beside, cases, answers, evidence)
    _write_companions(beside, source, options)
    record.write_record(beside, {"name": source.name, "sha256": hashes}, verdicts, notes, started)
    return verdicts


def _judge(model: Path, file: str, cases, answers, evidence, weights, providers: Sequence[str] | None = None) -> Verdict:
    if file == PACKED_FILE:
        return judge_packed(model, cases, answers, evidence, weights)
    return judge(model, file, cases, answers, evidence, providers=providers, weights=weights)


def _summary(verdict: Verdict) -> str:
    parts = [f"grid within {verdict.grid['largest_logit_difference']:.2g} of eager float64"]
    parts += [f"{name} {found['agreement']:.2%} the same answers" for name, found in verdict.data.items()]
    if (said := verdict.grid.get("run_by", "")) == NOT_RUN:
        parts.append(said)
    return ", ".join(parts)


def _metadata(source: Source, variant: str, hashes: dict[str, str]) -> dict[str, str]:
    """What the file says of itself, in metadata_props."""
    tokenizer, pair = source.tokenizer, source.task.is_pair
    special = {name: getattr(tokenizer, f"{name}_id") for name in ("cls_token", "sep_token", "pad_token")}
    steps = {
        "tokenizer": "tokenizer.json",
        "texts": "a pair: [CLS] a [SEP] b [SEP], b and its [SEP] in segment 1" if pair else "one text: [CLS] a [SEP]",
        "truncation": "longest first" if pair else "of the one text",
        "truncation_side": tokenizer.truncation_side,
        "padding": f"any, masked by attention_mask 0; positions count columns, and {_pooled(source)}",
        **special,
    }
    return {
        "task": "text-regression" if source.task.is_regression else "text-classification",
        "labels": json.dumps(source.labels(), ensure_ascii=False),
        "max_sequence_length": str(source.max_sequence_length),
        "preprocessing": json.dumps(steps, ensure_ascii=False),
        "variant": variant,
        "bertfast": __version__,
        "checkpoint_sha256": json.dumps(hashes),
    }


def _pooled(source: Source) -> str:
    return "the first column is pooled" if source.head.is_plain else f"the head reads {source.head.describe()}"


def _write_companions(beside: Path, source: Source, options: Options) -> None:
    """config.json, the tokenizer, bertfast.json, and the models where transformers.js or Triton look for them."""
    config = BertConfig.from_dict(source.bert.to_dict())
    config.architectures = ["BertForSequenceClassification"]
    config.save_pretrained(beside)
    source.tokenizer.model_max_length = source.max_sequence_length
    source.tokenizer.save_pretrained(beside)
    task = source.block.task if source.block else None
    if not isinstance(task, str):
        task = {
            "name": source.task.name,
            "text_columns": source.task.text_columns,
            "label_column": source.task.label_column,
            "label_names": source.task.label_names,
            "metric": source.task.main_metric,
        }
    block = {"task": task, "model": {"checkpoint": source.name}, "eval_input": {"max_sequence_length": source.max_sequence_length}}
    write_json(beside / MODEL_CONFIG_FILE, {"bertfast": block})
    if options.layout == "triton":
        write_triton(beside, source, options)
        return
    folder = beside / _TRANSFORMERS_JS
    folder.mkdir()
    for file in sorted(beside.glob("model*.onnx*")):
        try:
            os.link(file, folder / file.name)
        except OSError:  # a file system without hard links
            shutil.copy2(file, folder / file.name)


def verify_bundle(
    folder: str, checkpoint_path: str | None = None, data: Data | None = None, providers: Sequence[str] | None = None, say: Say = print
) -> list[Verdict]:
    """Judge a bundle anew: every file's SHA-256, the grid, its weights, and the data where they are given. Writes nothing.

    checkpoint_path: the checkpoint of the export, to ask it anew; left out, its recorded answers count.

    Raises:
        VerificationError: a file has changed, or is out of budget.
        ExportError: no bundle is there, or the checkpoint or the data are not those of the export.
    """
    check_onnx()
    check_wheels()
    path = checkpoint.standing(named(folder))
    noted = record.read_record(path)
    if faults := record.changed_files(path, noted):
        raise VerificationError(f"{path}: not the bundle that was verified: {'; '.join(faults)}. Export it again")
    say(f"{path}: {len(noted['files'])} files as they were on {noted['finished']}")
    kept, answers, source = KeptEvidence(path), None, None
    if checkpoint_path is not None:
        source = Source(checkpoint_path, Options())
        if checkpoint_hashes(source.folder) != noted["checkpoint"]["sha256"]:
            raise ExportError(f"{source.folder}: not the checkpoint that {path} was made from: its files have other SHA-256s")
        answers = Answers.of(source.folder, kept.cases)
    evidence = _evidence_again(path, kept, source, data)
    verdicts = []
    checkpoint_weights = [CheckpointWeights.of(source.folder)] if source is not None else []
    for file, earlier in noted["verdicts"].items():
        hashes = earlier.get("weights", {}).get("sha256")  # a bundle of an earlier bertfast has none
        weights = [*checkpoint_weights, *([KeptWeights(hashes)] if hashes else [])]
        model = next(path.glob(f"**/{file}"))
        verdict = _judge(model, file, kept.cases, answers or kept.answers, evidence, weights, providers)
        verdicts.append(verdict)
        say(f"{file}: {verdict.fault or 'passed; ' + _summary(verdict)}")
    if faults := [f"{verdict.file}: {verdict.fault}" for verdict in verdicts if verdict.fault is not None]:
        raise VerificationError("\n".join(faults))
    return verdicts


def _evidence_again(path: Path, kept: KeptEvidence, source: Source | None, data: Data | None) -> list[Evidence]:
    if data is None:
        return []
    bert = read_config(path)
    block = bundle_block(path)
    task = task_of_model(get_task(block.task), path)
    splits = data(task, load_tokenizer(path, bert), block.eval_input.max_sequence_length)
    if source is None:
        return [kept.of(name, dataset) for name, dataset in splits.items()]
    return [Evidence(name, dataset, eager_logits(source.model, dataset)) for name, dataset in splits.items()]


def bundle_block(folder: str | Path) -> BertfastConfig:
    """The config block that a bundle carries: its task and its longest sequence.

    Raises:
        ExportError: there is none.
    """
    file = Path(folder) / MODEL_CONFIG_FILE
    if not file.is_file():
        raise ExportError(f"{folder}: there is no {MODEL_CONFIG_FILE} there; give a folder that bertfast export wrote")
    return load_config(file).bertfast
