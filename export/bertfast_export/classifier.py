"""Use a bundle: texts in, answers out. Needs onnxruntime, tokenizers and numpy; neither torch nor transformers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bertfast.data import Encode, TokenBlock, backend_encoder
from bertfast.errors import DataError, ExportError
from bertfast.tasks import softmax
from bertfast_export.contract import A_PAIR, VARIANTS, no_bundle
from bertfast_export.runtime import CPU, Session, input_types, open_session, sha256_of

# n texts, B batch, S sequence, C classes

_BATCH_SIZE = 32
_BATCH_TOKENS = 2048  # beyond, a larger batch is no faster and takes more memory
_OTHER_TEXTS = {
    True: "this model was verified for pairs of texts: give the second ones too, as text_pairs",
    False: "this model was verified for single texts, and text_pairs were given; leave them out, or export a model of pairs with --pairs",
}
_BLOCK = 4096  # texts that are tokenised and sorted by length at a time


class Prediction(NamedTuple):
    """One answer. label: the class's name, None for a regression. score: its probability, or the regression's number. probabilities: by name."""

    label: str | None
    score: float
    probabilities: dict[str, float]


class OnnxClassifier:
    """A verified ONNX classifier. May be called from several threads at once: it holds nothing that a call changes."""

    def __init__(self, session: Session, encode: Encode, labels: Sequence[str], is_pair: bool = False, pad_token_id: int = 0):
        """encode: of single texts, or with is_pair of pairs; the judge has asked of no other."""
        self.session, self.labels, self.is_pair = session, tuple(labels), is_pair
        self._encode, self._pad_token_id, self._types = encode, pad_token_id, input_types(session)

    @classmethod
    def from_bundle(
        cls, folder: str | Path, variant: str | None = None, providers: Sequence[str] | None = None, threads: int | None = None
    ) -> OnnxClassifier:
        """The classifier of a bundle.

        Args:
            variant: "portable", "optimized", "fp16", "int8" or "packed_cpu"; left out, fp16 on a GPU and packed_cpu on a CPU, or what there is.
            providers: onnxruntime's execution providers in order of preference; left out, the CPU. The first one is used or it is an error.
            threads: of the CPU for one call; left out, one a core, or fewer where the process is to use fewer.

        Raises:
            ExportError: no bundle is there, it lacks the variant, a file of it has changed, or the provider cannot be used.
        """
        from tokenizers import Tokenizer

        if not isinstance(folder, str | os.PathLike):
            raise ExportError(f"the bundle is of type {type(folder).__name__}; give the path of a folder that bertfast export wrote")
        folder = Path(folder)
        file = _model_file(folder, variant, next(iter(providers or [CPU])))
        session = open_session(file, providers, threads)
        facts = session.get_modelmeta().custom_metadata_map
        try:
            steps, length = json.loads(facts["preprocessing"]), int(facts["max_sequence_length"])
            tokenizer = Tokenizer.from_file(str(folder / steps["tokenizer"]))
            is_pair = steps["texts"].startswith(A_PAIR)
            encode = backend_encoder(tokenizer, length, is_pair, cut_left=steps.get("truncation_side") == "left")
            return cls(session, encode, json.loads(facts["labels"]), is_pair, steps["pad_token"])
        except Exception as error:  # tokenizers raises plain Exceptions
            raise ExportError(f"{folder}: its tokenizer or its metadata cannot be read ({error}); export it again") from None

    def predict(self, texts: Sequence[str], text_pairs: Sequence[str] | None = None, batch_size: int = _BATCH_SIZE) -> list[Prediction]:
        """One answer a text (or pair of texts), in order.

        Raises:
            DataError: texts and text_pairs are not of one length, or are no lists of strings; or pairs of a model of single texts, or single texts of
                one of pairs.
        """
        logits = self.logits(texts, text_pairs, batch_size)
        if not self.labels:
            return [Prediction(None, score, {}) for score in logits[:, 0].tolist()]
        rows = softmax(logits).tolist()
        best = logits.argmax(axis=1).tolist()
        return [
            Prediction(self.labels[index], row[index], dict(zip(self.labels, row, strict=True)))
            for index, row in zip(best, rows, strict=True)
        ]

    def logits(self, texts: Sequence[str], text_pairs: Sequence[str] | None = None, batch_size: int = _BATCH_SIZE) -> np.ndarray:
        """Logits [n, C], float32, in the order of the texts. Texts of like length share a batch, so that little of it is padding."""
        texts, text_pairs = _listed("texts", texts), None if text_pairs is None else _listed("text_pairs", text_pairs)
        if text_pairs is not None and len(text_pairs) != len(texts):
            raise DataError(f"there are {len(texts)} texts and {len(text_pairs)} text_pairs; give one for each")
        if self.is_pair != (text_pairs is not None):
            raise DataError(_OTHER_TEXTS[self.is_pair])
        size = len(self.labels) or 1
        logits = np.empty((len(texts), size), dtype=np.float32)
        for begin in range(0, len(texts), _BLOCK):
            block = slice(begin, begin + _BLOCK)
            tokens = self._encode(texts[block], None if text_pairs is None else text_pairs[block])
            ends = np.cumsum(tokens.lengths, dtype=np.int64)
            for rows in _batches(tokens.lengths, batch_size):
                logits[begin + rows] = self._run(tokens, [slice(ends[row] - tokens.lengths[row], ends[row]) for row in rows])
        return logits

    def _run(self, tokens: TokenBlock, examples: list[slice]) -> np.ndarray:
        width = max(example.stop - example.start for example in examples)
        features = {name: np.zeros((len(examples), width), dtype=kind) for name, kind in self._types.items()}
        features["input_ids"].fill(self._pad_token_id)
        for row, example in enumerate(examples):
            length = example.stop - example.start
            features["input_ids"][row, :length] = tokens.input_ids[example]
            features["attention_mask"][row, :length] = 1
            features["token_type_ids"][row, :length] = tokens.token_type_ids[example]
        return self.session.run(["logits"], features)[0]


def _listed(name: str, column: Iterable[str]) -> list[str]:
    """A column of texts, be it a tuple, a pandas Series or a numpy array, as a list.

    Raises:
        DataError: it is one string, a table or a dictionary, or holds what is no string.
    """
    if isinstance(column, str | bytes):
        raise DataError(f"{name} is one string; give a list of strings")
    if isinstance(column, Mapping) or hasattr(column, "columns") or not isinstance(column, Iterable):
        raise DataError(f"{name} is of type {type(column).__name__}; give a list of strings, of a table one column")
    texts = list(column)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            is_pair = isinstance(text, list | tuple) and len(text) == 2
            hint = (
                "; give the second texts of pairs as text_pairs"
                if is_pair
                else "; an empty text is ''"
                if text is None or text != text
                else ""
            )
            raise DataError(f"{name}[{index}] is {text!r}, where a string should be{hint}")
    return texts


def _batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Rows, longest first, in batches of at most batch_size rows and about _BATCH_TOKENS tokens."""
    order, batches, begin = np.argsort(-lengths, kind="stable"), [], 0
    while begin < len(order):
        rows = max(1, min(batch_size, _BATCH_TOKENS // int(lengths[order[begin]])))
        batches.append(order[begin : begin + rows])
        begin += rows
    return batches


def _model_file(folder: Path, variant: str | None, provider: str) -> Path:
    """The model's file. It and what is read beside it are what the judge saw: their SHA-256s are those of the record."""
    try:
        record = json.loads((folder / "verification.json").read_text(encoding="utf-8"))
        files = record["files"]
    except (FileNotFoundError, NotADirectoryError):
        raise ExportError(f"{folder}: {no_bundle(folder)}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{folder}: its verification.json cannot be read ({error}); export it again") from None
    there = {name: file for name, file in VARIANTS.items() if file in files}
    if not there:
        raise ExportError(f"{folder}: has no model at its top; a Triton model repository is served, not loaded")
    usual = (
        ("fp16", "optimized", "portable", "int8", "packed_cpu")
        if provider != CPU
        else ("packed_cpu", "optimized", "portable", "int8", "fp16")
    )
    variant = variant or next(name for name in usual if name in there)
    if variant not in there:
        raise ExportError(f"{folder}: has no variant {variant!r}; it has {', '.join(there)}")
    beside = [name for name in files if name.endswith(".json") and "/" not in name]  # tokenizer and labels; small
    for name in (there[variant], f"{there[variant]}.data", *beside):
        if name in files and (not (folder / name).is_file() or sha256_of(folder / name) != files[name]):
            raise ExportError(f"{folder}: {name} is missing, or not the file that was verified; export it again")
    return folder / there[variant]
