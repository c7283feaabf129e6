"""A bundle: the folder that is deployed, with the evidence that it is right. Written beside its place, judged there, and only then renamed.

Killed at any moment, an export leaves a whole verified bundle, or none; what it leaves half-written has a name that nothing reads, and the
next export removes it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertfast.calibration import read_calibration
from bertfast.data import EncodedDataset
from bertfast.errors import ExportError, VerificationError
from bertfast.storage import folders, named
from bertfast_export.bundle import record
from bertfast_export.bundle.companions import disagreements, metadata_of, write_companions, write_tokenizer
from bertfast_export.bundle.examples import Data
from bertfast_export.bundle.int8_search import search
from bertfast_export.bundle.planned import refuse_place
from bertfast_export.bundle.rejected import write_rejected
from bertfast_export.bundle.source import Candidate
from bertfast_export.bundle.verdicts import Say, judge_file, summary
from bertfast_export.contract import FILES, OPENVINO, Options
from bertfast_export.graphs import Network, fused_graph, packed_graph, portable_graph, save_model, stream_graph
from bertfast_export.ir import write_openvino
from bertfast_export.judge import Answers, CheckpointWeights, Evidence, Verdict, checkpoint_hashes, eager_logits, make_cases, write_evidence
from bertfast_export.openvino_runtime import check_openvino
from bertfast_export.runtime import check_onnx, check_wheels

if TYPE_CHECKING:
    import onnx


def export_bundle(
    folder: str, output: str, options: Options | None = None, data: Data | None = None, source: Candidate | None = None, say: Say = print
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
    if OPENVINO in options.variants:
        check_openvino()
    final = named(output)
    folders.recover(final)
    refuse_place(final, folder)
    source = source or Candidate(folder, options)
    splits = data(source.task, source.tokenizer, source.max_sequence_length) if data is not None else {}
    beside = folders.unfinished(final)
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        verdicts = _fill(beside, source, options, splits, started, final, say)
        folders.seal(beside)
        folders.put_in_place(final)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        if isinstance(error, OSError):
            raise ExportError(f"{final}: cannot be written: {error.strerror or error}; make room, or give another place") from None
        raise
    return verdicts


def _fill(
    beside: Path, source: Candidate, options: Options, splits: dict[str, EncodedDataset], started: datetime, final: Path, say: Say
) -> list[Verdict]:
    """Write, judge and record everything; gives the verdicts."""
    hashes, tokenizer_sha256 = checkpoint_hashes(source.folder), write_tokenizer(beside, source)
    network, cases = Network.of(source.model), make_cases(source.bert)
    say(f"asking the eager model: {len(cases)} made-up batches, {sum(len(part) for part in splits.values()):,} examples")
    answers, weights = Answers.of(source.folder, cases), CheckpointWeights.of(source.folder)
    calibration = read_calibration(source.folder, source.task)
    evidence = [Evidence(name, dataset, eager_logits(source.model, dataset), calibration) for name, dataset in splits.items()]
    verdicts: list[Verdict] = []
    notes: dict[str, Any] = {}
    if source.skipped:
        notes["skipped"] = {FILES[name]: why for name, why in source.skipped.items()}

    def judged(graph: onnx.ModelProto, file: str) -> Verdict:
        """A graph written and judged, in the place of any that had the same file."""
        _remove(beside, file)
        save_model(graph, beside / file)
        return judge_file(beside / file, file, cases, answers, evidence, [weights])

    for variant in (*options.variants, *(["packed"] if options.packed else [])):
        file, metadata = FILES[variant], metadata_of(source, variant, hashes, tokenizer_sha256)
        if variant in source.skipped:
            say(f"{file}: not written; {source.skipped[variant]}")
            continue
        if variant == OPENVINO:
            written = write_openvino(
                beside,
                network,
                cases,
                answers,
                evidence,
                weights,
                options.integers,
                lambda name: metadata_of(source, name, hashes, tokenizer_sha256),
                say,
            )
            notes.setdefault("skipped", {}).update(written.notes.pop("skipped", {}))
            notes |= written.notes
            for verdict in written.verdicts:
                verdicts.append(verdict)
                _refuse(verdict, beside / file, final, hashes)
                say(f"{verdict.file}: passed; {summary(verdict)}")
            continue
        if variant == "int8":
            found = search(network, evidence, options, metadata, say, partial(judged, file=file))
            notes["int8_search"] = found.to_dict()
            if found.verdict is None:
                _remove(beside, file)
                say(f"{file}: not written; {found.outcome}")
                continue
            verdict = found.verdict
        else:
            verdict = judged(_graph_of(variant, network, options, metadata), file)
        verdicts.append(verdict)
        _refuse(verdict, beside / file, final, hashes)
        say(f"{file}: passed; {summary(verdict)}")
    write_evidence(beside, cases, answers, evidence)
    write_companions(beside, source, options)
    if faults := disagreements(beside, hashes, source.tokenizer):
        raise VerificationError(
            f"{source.folder}: the parts of its bundle do not agree: {'; '.join(faults)}\nNothing was written to {final}"
        )
    record.write_record(beside, {"name": source.name, "sha256": hashes}, verdicts, notes, started)
    return verdicts


def _graph_of(variant: str, network: Network, options: Options, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The graph of a variant that is not looked for."""
    if variant in ("optimized", "fp16"):
        return fused_graph(network, options.opset, options.integers, variant == "fp16", metadata)
    graph = {"portable": portable_graph, "packed_cpu": stream_graph, "packed": packed_graph}[variant]
    return graph(network, options.opset, options.integers, metadata)


def _remove(folder: Path, file: str) -> None:
    """A graph's file, and its weights where they lie beside it."""
    for path in folder.glob(f"{file}*"):
        path.unlink()


def _refuse(verdict: Verdict, model: Path, final: Path, hashes: dict[str, str]) -> None:
    """Raise VerificationError for a file with a fault, and leave its failing case beside the bundle's place."""
    if verdict.fault is not None:
        place = write_rejected(final, model, verdict, hashes)
        raise VerificationError(f"{verdict.file}: {verdict.fault}\nNothing was written to {final}; the failing case is in {place}")
