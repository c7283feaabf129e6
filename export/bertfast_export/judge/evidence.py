"""What the judge was shown, kept beside the files that it judged: verification.npz, from which the trial can be repeated without the checkpoint.

It holds the grid's features and the eager model's answers to them, and the eager model's logits on the data; not the data themselves, which
belong to someone else: their hash tells whether the same ones are at hand.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from bertfast.data import EncodedDataset
from bertfast.errors import ExportError
from bertfast.model import BertClassifier
from bertfast.packing import plan_sequential
from bertfast.tasks import Calibration
from bertfast_export.contract import INPUTS
from bertfast_export.judge.cases import Case
from bertfast_export.judge.reference import Answers
from bertfast_export.judge.verdict import Evidence, Examples

EVIDENCE_FILE = "verification.npz"
_BATCH_TOKENS = 4096


def eager_logits(model: BertClassifier, dataset: EncodedDataset) -> np.ndarray:
    """Logits [n, C], float32, of every example by the model that was trained, on packed batches."""
    assert model.num_labels is not None, "a classifier counts its classes"
    logits = np.zeros((len(dataset), model.num_labels), dtype=np.float32)
    plan = plan_sequential(dataset.lengths, batch_size=256, tokens_per_batch=max(_BATCH_TOKENS, dataset.max_sequence_length), world_size=1)
    model.eval()
    with torch.inference_mode():
        for step in range(len(plan)):
            for part in plan.micro_batches(step, 0):
                batch = dataset.batch(part)
                rows = batch.example_ids.numpy()
                logits[rows[rows >= 0]] = model(batch).numpy()[rows >= 0]
    return logits


def hash_of(dataset: Examples) -> str:
    """The SHA-256 of a data set's token ids, segments and labels, in order."""
    digest = hashlib.sha256()
    for begin in range(0, len(dataset), 1024):
        batch = dataset.batch(np.arange(begin, min(begin + 1024, len(dataset))))
        for tensor in (batch.input_ids, batch.token_type_ids, batch.cu_seqlens, batch.labels):
            digest.update(b"" if tensor is None else tensor.numpy().tobytes())
    return digest.hexdigest()


def write_evidence(folder: Path, cases: list[Case], answers: Answers, evidence: Iterable[Evidence]) -> None:
    """Write verification.npz."""
    arrays = {"cases": np.array(json.dumps([[case.name, list(case.rows)] for case in cases]))}
    if answers.several:
        arrays["several"] = np.array(True)
    for index, case in enumerate(cases):
        arrays |= {f"case{index}.{name}": _narrow(values) for name, values in case.features.items()}
        arrays |= {f"case{index}.exact": answers.exact[index], f"case{index}.rounded": answers.rounded[index]}
    for part in evidence:
        arrays |= {f"data.{part.name}.logits": part.logits, f"data.{part.name}.hash": np.array(hash_of(part.dataset))}
        arrays |= {f"data.{part.name}.lengths": _narrow(np.asarray(part.dataset.lengths))}
    np.savez_compressed(folder / EVIDENCE_FILE, **arrays)  # type: ignore[arg-type]  # as if an array might be named allow_pickle


class KeptEvidence:
    """verification.npz, read back. lengths: the tokens [n] of each example, by split; a bundle of an earlier bertfast has none.

    Raises:
        ExportError: where it cannot be read.
    """

    def __init__(self, folder: Path):
        path = folder / EVIDENCE_FILE
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            names = json.loads(str(arrays["cases"]))
            self.cases = [
                Case(name, tuple(rows), {key: arrays[f"case{index}.{key}"].astype(np.int64) for key in INPUTS})
                for index, (name, rows) in enumerate(names)
            ]
            exact, rounded = ([arrays[f"case{index}.{kind}"] for index in range(len(names))] for kind in ("exact", "rounded"))
            self.answers = Answers(exact, rounded, bool(arrays.get("several", False)))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ExportError(f"{path}: cannot be read ({error}); the bundle is cut short or changed: export it again") from None
        self._data = {
            key[len("data.") : key.rindex(".")]: array
            for key, array in arrays.items()
            if key.startswith("data.") and key.endswith(".logits")
        }
        self.lengths = {
            key.split(".")[1]: array.astype(np.int64)
            for key, array in arrays.items()
            if key.startswith("data.") and key.endswith(".lengths")
        }
        self._hashes = {
            key[len("data.") : key.rindex(".")]: str(array)
            for key, array in arrays.items()
            if key.startswith("data.") and key.endswith(".hash")
        }

    def of(self, name: str, dataset: Examples, calibration: Calibration) -> Evidence:
        """The eager model's logits on a split that is at hand again.

        Raises:
            ExportError: it was not shown at the export, or is another one.
        """
        if name not in self._data:
            raise ExportError(f"{dataset.source}: the export was judged on {', '.join(self._data) or 'no data'}, not on {name}")
        if hash_of(dataset) != self._hashes[name]:
            raise ExportError(
                f"{dataset.source}: not the data that the export was judged on (other rows, other labels, or another tokenizer); "
                "with --checkpoint_path, the model itself is asked anew"
            )
        return Evidence(name, dataset, self._data[name], calibration)


def _narrow(values: np.ndarray) -> np.ndarray:
    return values.astype(np.uint8 if values.max(initial=0) < 256 else np.int32)
