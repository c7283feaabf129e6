"""bertfast's own contenders of inference: the files of a bundle, and its network on torch. As light to import as its peers (see runtimes.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bench import ROOT
from bench.cases.questions import Texts, Tokens
from bench.contests.runtimes import BATCH_SIZE, Padded, Place

_DIGITS = 8  # a number that stands for a text is so much longer than the text has tokens: whoever sorts by characters sorts by tokens then


class Bundle:
    """bertfast's classifier of a bundle: it makes its batches itself, and is given ids in the place of texts where tokenising is not timed."""

    def __init__(self, place: Place, variant: str | None, streams: int | None):
        from bertfast_export.classifier import Classifier

        self.classifier = Classifier.from_bundle(place.bundle, variant, threads=place.threads, streams=streams)
        self._requests = ThreadPoolExecutor(self.classifier.streams)
        self._encode, self._tokens = self.classifier._encode, None
        self.classifier._encode = lambda first, second=None: self._encode(first, second) if self._tokens is None else self._looked_up(first)

    def _looked_up(self, numbers: Sequence[str]) -> Any:
        from bertfast.data import TokenBlock

        return TokenBlock(*self._tokens.take([int(number) for number in numbers]))

    def of_texts(self, texts: Texts) -> np.ndarray:
        self._tokens = None
        return self.classifier.logits(texts.first, texts.second)

    def answer(self, tokens: Tokens) -> np.ndarray:
        self._tokens = tokens
        return self._of(range(len(tokens)))

    def serve(self, tokens: Tokens) -> np.ndarray:
        self._tokens = tokens
        batches = [range(begin, min(begin + BATCH_SIZE, len(tokens))) for begin in range(0, len(tokens), BATCH_SIZE)]
        return np.concatenate(list(self._requests.map(self._of, batches)))  # as many in flight as there are streams, as with the peers

    def _of(self, rows: range) -> np.ndarray:
        names = [f"{row:>{self._tokens.lengths[row] + _DIGITS}}" for row in rows]
        return self.classifier.logits(names, names if self.classifier.is_pair else None)


class Packed(Padded):
    """bertfast's own network on torch, whose batches hold no padding."""

    def __init__(self, place: Place, precision: str):
        import torch

        from bertfast.model.bert import BertClassifier
        from bertfast.packing.batch import PackedBatch

        torch.set_num_threads(place.threads)
        model = BertClassifier.from_pretrained(str(place.checkpoint)).eval()
        model.compute_dtype = {"float32": None, "bf16": torch.bfloat16}[precision]

        def logits(tokens: Tokens) -> np.ndarray:
            with torch.inference_mode():
                return model(PackedBatch.from_ragged(*tokens)).float().numpy()

        super().__init__(place, list)
        self._logits = logits

    def _in_batches(self, tokens: Tokens, order: np.ndarray) -> np.ndarray:
        found: list[np.ndarray] = []
        for begin in range(0, len(order), BATCH_SIZE):
            rows = order[begin : begin + BATCH_SIZE]
            found.append(self._logits(tokens.take(rows)))
        logits = np.empty((len(order), found[0].shape[1]), np.float32)
        logits[order] = np.concatenate(found)
        return logits

    def serve(self, tokens: Tokens) -> np.ndarray:
        """Within a batch the rows are sorted, as bertfast's own are: its attention goes by runs of equal length."""
        batches = (np.arange(begin, min(begin + BATCH_SIZE, len(tokens))) for begin in range(0, len(tokens), BATCH_SIZE))
        return self._in_batches(tokens, np.concatenate([rows[np.argsort(-tokens.lengths[rows], kind="stable")] for rows in batches]))


def recipe_files(files: Path) -> dict[str, str]:
    """The int8 recipes that were written as files, by the name of a contender."""
    return {f"bertfast int8 recipe: {file.stem}": str(file) for file in sorted((files / "recipes").glob("*.onnx"))}


def bundle_files(bundle: Path) -> dict[str, tuple[str, ...]]:
    """The variants that a bundle holds for a CPU, each with its files. float16 is none: there it runs at float32's speed."""
    from bertfast_export.classifier import Files

    def of(file: str) -> tuple[str, ...]:
        beside = (file, f"{file}.data", f"{file.removesuffix('.xml')}.bin")
        return tuple(name for name in beside if (bundle / name).is_file())

    return {variant: of(file) for variant, file in Files(bundle).variants.items() if variant != "fp16"}


def tune(bundle: Path, threads: int) -> str | None:
    """Have `bertfast tune` choose for so many cores, where it has not yet; why it could not."""
    from bertfast_export.choice import read_choice

    here = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else None
    try:
        if here is not None:
            os.sched_setaffinity(0, sorted(here)[:threads])  # which the command inherits, and the kind of machine depends on
        if read_choice(bundle) is not None:
            return None
        done = subprocess.run([sys.executable, "-m", "bertfast", "tune", str(bundle)], cwd=ROOT, capture_output=True, text=True)
        return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
    finally:
        if here is not None:
            os.sched_setaffinity(0, here)
