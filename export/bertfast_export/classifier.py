"""Use a bundle: texts in, answers out. Needs onnxruntime or openvino, tokenizers and numpy; neither torch nor transformers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from bertfast import machine
from bertfast.calibration import read_calibration
from bertfast.data import Encode, TokenBlock, backend_encoder
from bertfast.errors import DataError, ExportError
from bertfast.readers import texts_and_pairs
from bertfast.tasks import AS_IT_IS, Calibration, Prediction, Task, predictions_of
from bertfast_export.choice import Setting, read_choice
from bertfast_export.contract import A_PAIR, OPENVINO_VARIANTS, VARIANTS, no_bundle, verdict_name
from bertfast_export.openvino_runtime import has_openvino, open_openvino
from bertfast_export.runtime import CPU, Session, input_types, open_session, sha256_of
from bertfast_export.streams import ahead, batches, side_by_side

# n texts, B batch, S sequence, C classes

_BATCH_SIZE = 32
_BATCH_TOKENS = 2048  # beyond, a larger batch is no faster and takes more memory
_OTHER_TEXTS = {
    True: "this model was verified for pairs of texts: give the second ones too, as text_pairs",
    False: "this model was verified for single texts, and text_pairs were given; leave them out, or export a model of pairs with --pairs",
}
_BLOCK = 1024  # texts that are tokenised at a time, while the block before them is computed


class OnnxClassifier:
    """A verified ONNX classifier. May be called from several threads at once: it holds nothing that a call changes."""

    def __init__(
        self,
        session: Session,
        encode: Encode,
        labels: Sequence[str],
        is_pair: bool = False,
        pad_token_id: int = 0,
        streams: int = 1,
        batch_tokens: int | None = None,
        several: bool = False,
        calibration: Calibration = AS_IT_IS,
    ):
        """encode: of single texts, or with is_pair of pairs; the judge has asked of no other. streams: batches that are computed side by side.
        batch_tokens: of a batch at most, with its padding; left out, 2,048 in at most 32 rows. several: any number of the labels may hold of a text. calibration: how probabilities and decisions
        are read from the logits."""
        self.several, self.calibration = several, calibration
        self._task = Task("bundle", ("text",), "label", tuple(labels) or None, not labels, labels="several" if several else None)
        self.streams, self._batch_tokens = streams, batch_tokens
        self.session, self.labels, self.is_pair = session, tuple(labels), is_pair
        self._encode, self._pad_token_id, self._types = encode, pad_token_id, input_types(session)

    @classmethod
    def from_bundle(
        cls,
        folder: str | Path,
        variant: str | None = None,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        streams: int | None = None,
    ) -> OnnxClassifier:
        """The classifier of a bundle.

        Args:
            variant: "portable", "optimized", "fp16", "int8", "packed_cpu", or one of OpenVINO's; left out, what `bertfast tune` chose for this kind of
                machine, or without its choice fp16 on a GPU and packed_cpu on a CPU, or what there is.
            providers: onnxruntime's execution providers in order of preference; left out, the CPU. The first one is used or it is an error.
            threads: of the CPU for all streams together; left out, one a core, or fewer where the process is to use fewer.
            streams: batches of one call that are computed side by side; left out, what was chosen for many texts at once, or without a choice 1. With 1
                that is used which was chosen for one text at a time.

        Raises:
            ExportError: no bundle is there, it lacks the variant, a file of it has changed, or the provider or OpenVINO cannot be used.
        """
        from tokenizers import Tokenizer

        if not isinstance(folder, str | os.PathLike):
            raise ExportError(f"the bundle is of type {type(folder).__name__}; give the path of a folder that bertfast export wrote")
        if streams is not None and streams < 1:
            raise ExportError(f"streams = {streams}: give 1 or more")
        folder, provider = Path(folder), next(iter(providers or [CPU]))
        there = Files(folder)
        chosen = _chosen(folder, there, streams) if variant is None and provider == CPU else None
        variant = chosen.variant if chosen is not None else there.usual(variant, provider)
        streams = streams or (min(chosen.streams, threads or chosen.streams) if chosen is not None else 1)
        session, facts = open_variant(there, variant, providers, threads, streams)
        try:
            steps, length = json.loads(facts["preprocessing"]), int(facts["max_sequence_length"])
            tokenizer = Tokenizer.from_file(str(folder / steps["tokenizer"]))
            is_pair = steps["texts"].startswith(A_PAIR)
            encode = backend_encoder(tokenizer, length, is_pair, cut_left=steps.get("truncation_side") == "left")
            labels = json.loads(facts["labels"])
            several = facts.get("problem_type") == "multi_label_classification"
            budget = chosen.batch_tokens if chosen is not None else None
            calibration = read_calibration(folder, Task("bundle", ("text",), "label", tuple(labels) or None, not labels))
            return cls(session, encode, labels, is_pair, steps["pad_token"], streams, budget, several, calibration)
        except Exception as error:  # tokenizers raises plain Exceptions
            raise ExportError(f"{folder}: its tokenizer or its metadata cannot be read ({error}); export it again") from None

    def predict(self, texts: Sequence[str], text_pairs: Sequence[str] | None = None, batch_size: int | None = None) -> list[Prediction]:
        """One answer a text (or pair of texts), in order. batch_size: texts of a batch at most; left out, 32, or with a choice of `bertfast tune` as many
        as its budget of tokens holds.

        Raises:
            DataError: texts and text_pairs are not of one length, or are no lists of strings; or pairs of a model of single texts, or single texts of
                one of pairs.
        """
        return predictions_of(self._task, self.logits(texts, text_pairs, batch_size), self.calibration)

    def predict_proba(self, texts: Sequence[str], text_pairs: Sequence[str] | None = None, batch_size: int | None = None) -> np.ndarray:
        """The probabilities [n, C], float64, in the order of `labels`; of several labels a text each is that of its label alone. Raises as `predict` does, and

        ExportError: of a regression, which has none.
        """
        if not self.labels:
            raise ExportError("a regression has no probabilities; its numbers are logits[:, 0], or the scores of predict")
        return self.calibration.probabilities(self._task, self.logits(texts, text_pairs, batch_size))

    def logits(self, texts: Sequence[str], text_pairs: Sequence[str] | None = None, batch_size: int | None = None) -> np.ndarray:
        """Logits [n, C], float32, in the order of the texts. Texts of like length share a batch, so that little of it is padding."""
        texts, text_pairs = texts_and_pairs(texts, text_pairs)
        if self.is_pair != (text_pairs is not None):
            raise DataError(_OTHER_TEXTS[self.is_pair])
        logits = np.empty((len(texts), len(self.labels) or 1), dtype=np.float32)

        def fill(batch: tuple[np.ndarray, TokenBlock, np.ndarray]) -> None:
            rows, tokens, within = batch
            ends = np.cumsum(tokens.lengths, dtype=np.int64)
            logits[rows[within]] = self._run(tokens, [slice(ends[row] - tokens.lengths[row], ends[row]) for row in within])

        side_by_side(self._batches(texts, text_pairs, batch_size), fill, self.streams)
        return logits

    def _batches(
        self, texts: list[str], text_pairs: list[str] | None, batch_size: int | None
    ) -> Iterator[tuple[np.ndarray, TokenBlock, np.ndarray]]:
        """(rows of a block, its tokens, which of them) of each batch. Texts that have many characters come first, so that blocks too hold texts of like
        length, and none of the streams is left with a long one at the end."""
        characters = (
            [-len(text) for text in texts] if text_pairs is None else [-len(a) - len(b) for a, b in zip(texts, text_pairs, strict=True)]
        )
        order = np.argsort(np.array(characters, dtype=np.int64), kind="stable")

        def blocks() -> Iterator[tuple[np.ndarray, TokenBlock]]:
            for begin in range(0, len(order), _BLOCK):
                rows = order[begin : begin + _BLOCK]
                yield rows, self._encode([texts[row] for row in rows], None if text_pairs is None else [text_pairs[row] for row in rows])

        most_rows = batch_size or (_BATCH_SIZE if self._batch_tokens is None else None)
        for rows, tokens in blocks() if len(texts) <= _BLOCK else ahead(blocks()):
            for within in batches(tokens.lengths, self._batch_tokens or _BATCH_TOKENS, most_rows):
                yield rows, tokens, within

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


Classifier = OnnxClassifier  # a bundle may be run by OpenVINO too


class Files:
    """What a bundle holds, by its record: variants by name, and the SHA-256 of every file.

    Raises:
        ExportError: no bundle is there, or its record cannot be read.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            record = json.loads((folder / "verification.json").read_text(encoding="utf-8"))
            self._hashes, verdicts = record["files"], record["verdicts"]
            self.variants = {name: file for name, file in VARIANTS.items() if file in self._hashes}
            self.variants |= {name: file for name, (file, _) in OPENVINO_VARIANTS.items() if verdict_name(name) in verdicts}
        except (FileNotFoundError, NotADirectoryError):
            raise ExportError(f"{folder}: {no_bundle(folder)}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ExportError(f"{folder}: its verification.json cannot be read ({error}); export it again") from None
        if not self.variants:
            raise ExportError(f"{folder}: has no model at its top; a Triton model repository is served, not loaded")

    def usual(self, variant: str | None, provider: str) -> str:
        """The variant that is asked for, or else the usual one of a provider."""
        on_gpu, on_cpu = ("fp16", "optimized", "portable", "int8", "packed_cpu"), ("packed_cpu", "optimized", "portable", "int8", "fp16")
        usual = on_gpu if provider != CPU else on_cpu
        variant = variant or next(name for name in (*usual, *OPENVINO_VARIANTS) if name in self.variants)
        if variant not in self.variants:
            raise ExportError(f"{self.folder}: has no variant {variant!r}; it has {', '.join(self.variants)}")
        return variant

    def verified(self, variant: str) -> Path:
        """The model's file. It and what is read beside it are what the judge saw: their SHA-256s are those of the record."""
        model = self.variants[variant]
        beside = [name for name in self._hashes if name.endswith(".json") and "/" not in name]  # tokenizer and labels; small
        for name in (model, f"{model}.data", f"{model.removesuffix('.xml')}.bin", *beside):
            if name in self._hashes and (not (self.folder / name).is_file() or sha256_of(self.folder / name) != self._hashes[name]):
                raise ExportError(f"{self.folder}: {name} is missing, or not the file that was verified; export it again")
        return self.folder / model


def _chosen(folder: Path, there: Files, streams: int | None) -> Setting | None:
    """What was chosen for this kind of machine, where the bundle has it and its runtime is installed."""
    choice = read_choice(folder)
    if choice is None:
        return None
    setting = choice.one if streams == 1 else choice.many
    can_run = setting.variant not in OPENVINO_VARIANTS or has_openvino()
    return setting if can_run and setting.variant in there.variants else None


def open_variant(
    files: Files, variant: str, providers: Sequence[str] | None, threads: int | None, streams: int
) -> tuple[Session, Mapping[str, str]]:
    """A session of one of a bundle's variants, and what the file says of itself. Raises as `OnnxClassifier.from_bundle` does."""
    model = files.verified(variant)
    if variant in OPENVINO_VARIANTS:
        if providers is not None and next(iter(providers)) != CPU:
            raise ExportError(f"variant {variant!r} runs on a CPU; leave out providers={list(providers)}")
        found = open_openvino(model, OPENVINO_VARIANTS[variant][1], threads, streams)
        return found, found.facts
    if streams > 1:  # the calls' own threads compute, and those of the pool help whichever call they find
        threads = max(1, (threads or machine.threads()) - streams + 1)
    session = open_session(model, providers, threads)
    return session, session.get_modelmeta().custom_metadata_map
