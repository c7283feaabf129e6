"""A bundle, verified again: by the evidence that it keeps, or by the checkpoint that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bertfast.calibration import read_calibration
from bertfast.errors import ExportError, VerificationError
from bertfast.storage import folders, named
from bertfast.tasks import get_task
from bertfast.weights import load_tokenizer, read_config, task_of_model
from bertfast_export.bundle import record
from bertfast_export.bundle.companions import disagreements
from bertfast_export.bundle.examples import Data
from bertfast_export.bundle.record import bundle_block
from bertfast_export.bundle.source import Candidate
from bertfast_export.bundle.verdicts import Say, judge_file, summary
from bertfast_export.contract import OPENVINO_VARIANTS, Options, openvino_variant
from bertfast_export.judge import Answers, CheckpointWeights, Evidence, KeptEvidence, KeptWeights, Verdict, checkpoint_hashes, eager_logits
from bertfast_export.runtime import check_onnx, check_wheels


def verify_bundle(
    folder: str, checkpoint_path: str | None = None, data: Data | None = None, providers: Sequence[str] | None = None, say: Say = print
) -> list[Verdict]:
    """Judge a bundle anew: every file's SHA-256, the grid, its weights, and the data where they are given. Writes nothing.

    checkpoint_path: the checkpoint of the export, to ask it anew; left out, its recorded answers count.

    Raises:
        VerificationError: a file has changed, says what another contradicts, or is out of budget.
        ExportError: no bundle is there, or the checkpoint or the data are not those of the export.
    """
    check_onnx()
    check_wheels()
    path = folders.standing(named(folder))
    noted = record.read_record(path)
    if faults := record.changed_files(path, noted):
        raise VerificationError(f"{path}: not the bundle that was verified: {'; '.join(faults)}. Export it again")
    say(f"{path}: {len(noted['files'])} files as they were on {noted['finished']}")
    kept, answers, source = KeptEvidence(path), None, None
    if checkpoint_path is not None:
        source = Candidate(checkpoint_path, Options())
        if checkpoint_hashes(source.folder) != noted["checkpoint"]["sha256"]:
            raise ExportError(f"{source.folder}: not the checkpoint that {path} was made from: its files have other SHA-256s")
        answers = Answers.of(source.folder, kept.cases)
    if faults := disagreements(path, noted["checkpoint"]["sha256"], source and source.tokenizer):
        raise VerificationError(f"{path}: its parts do not agree: {'; '.join(faults)}. Export it again")
    evidence = _evidence_again(path, kept, source, data)
    verdicts = []
    checkpoint_weights = [CheckpointWeights.of(source.folder)] if source is not None else []
    for file, earlier in noted["verdicts"].items():
        hashes = earlier.get("weights", {}).get("sha256")  # a bundle of an earlier bertfast has none
        weights: list[CheckpointWeights | KeptWeights] = [*checkpoint_weights, *([KeptWeights(hashes)] if hashes else [])]
        variant = openvino_variant(file)
        model = next(path.glob(f"**/{file}")) if variant is None else path / OPENVINO_VARIANTS[variant][0]
        verdict = judge_file(model, file, kept.cases, answers or kept.answers, evidence, weights, providers)
        verdicts.append(verdict)
        say(f"{file}: {verdict.fault or 'passed; ' + summary(verdict)}")
    if faults := [f"{verdict.file}: {verdict.fault}" for verdict in verdicts if verdict.fault is not None]:
        raise VerificationError("\n".join(faults))
    return verdicts


def _evidence_again(path: Path, kept: KeptEvidence, source: Candidate | None, data: Data | None) -> list[Evidence]:
    if data is None:
        return []
    bert = read_config(path)
    block = bundle_block(path)
    task = task_of_model(get_task(block.task), bert, path)
    assert block.eval_input is not None, "an export writes it into the bundle's block"
    splits = data(task, load_tokenizer(path, bert), block.eval_input.max_sequence_length)
    calibration = read_calibration(path, task)
    if source is None:
        return [kept.of(name, dataset, calibration) for name, dataset in splits.items()]
    return [Evidence(name, dataset, eager_logits(source.model, dataset), calibration) for name, dataset in splits.items()]
