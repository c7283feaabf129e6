"""The contenders of inference: how each loads a model, and how it answers a file, a server's batches or one text.

Nothing heavy is imported at its head: what a contender's process holds is what it needs to answer. Every peer is given its own strongest setting: batches of
like lengths, streams or workers fed at once, ids from the tokenizers library without transformers around it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.cases.questions import Texts, Tokens, padded

BATCH_SIZE = 32
_DIGITS = 8  # a number that stands for a text is so much longer than the text has tokens: whoever sorts by characters sorts by tokens then
Batch = dict[str, np.ndarray]


class Place(NamedTuple):
    """Where a contender finds its files. files: of the peers' conversions; length: longest sequence in tokens; threads: that it may use."""

    checkpoint: Path
    bundle: Path
    files: Path
    threads: int
    length: int


class Padded:
    """A runtime that takes padded batches. run(batches): logits of each, in their order; it may take several at once."""

    def __init__(self, place: Place, run: Callable[[Iterator[Batch]], list[np.ndarray]]):
        from tokenizers import Tokenizer

        self._run, self._tokenizer = run, Tokenizer.from_file(str(place.checkpoint / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(place.length)

    def of_texts(self, texts: Texts) -> np.ndarray:
        """Logits [n, C] of a whole file, from its texts on."""
        given = texts.first if texts.second is None else list(zip(texts.first, texts.second, strict=True))
        found = self._tokenizer.encode_batch_fast(given)
        ids, types = ([getattr(encoding, name) for encoding in found] for name in ("ids", "type_ids"))
        lengths = np.array([len(row) for row in ids], np.int32)
        return self.answer(Tokens(np.concatenate(ids).astype(np.int32), np.concatenate(types).astype(np.uint8), lengths))

    def answer(self, tokens: Tokens) -> np.ndarray:
        """The same from its ids on: batches of like lengths, the longest first."""
        return self._in_batches(tokens, np.argsort(-tokens.lengths, kind="stable"))

    def serve(self, tokens: Tokens) -> np.ndarray:
        """The same of a server's batches, which hold what came together."""
        return self._in_batches(tokens, np.arange(len(tokens)))

    def _in_batches(self, tokens: Tokens, order: np.ndarray) -> np.ndarray:
        batches = (padded(tokens, order[begin : begin + BATCH_SIZE]) for begin in range(0, len(order), BATCH_SIZE))
        found = np.concatenate(self._run(batches))
        logits = np.empty_like(found)
        logits[order] = found
        return logits


def one_by_one(call: Callable[[Batch], np.ndarray]) -> Callable[[Iterator[Batch]], list[np.ndarray]]:
    return lambda batches: [call(batch) for batch in batches]


# ------------------------------------------------------------------------------------------------------------------------------- the peers


def transformers(place: Place, precision: str, compiled: bool = False) -> Padded:
    """transformers' own model as from_pretrained gives it, or with its weights in bfloat16."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(place.threads)
    dtype = {"float32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = AutoModelForSequenceClassification.from_pretrained(place.checkpoint, dtype=dtype).eval()
    forward = torch.compile(model, dynamic=True) if compiled else model

    def call(batch: Batch) -> np.ndarray:
        with torch.inference_mode():
            return forward(**{name: torch.from_numpy(values) for name, values in batch.items()}).logits.float().numpy()

    return Padded(place, one_by_one(call))


def openvino(place: Place, file: str, precision: str | None, streams: int) -> Padded:
    """OpenVINO with so many streams, of which each has its share of the threads. precision: None leaves it what it computes in by default."""
    import openvino as ov

    settings: dict[str, Any] = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": place.threads}
    settings |= {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    compiled = ov.Core().compile_model(place.files / file, "CPU", settings)
    computes_in = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if precision == "bf16" and "bf" not in computes_in:
        raise RuntimeError(f"OpenVINO computes in {computes_in} here: the CPU has no bfloat16")
    if streams == 1:
        request = compiled.create_infer_request()
        return Padded(place, one_by_one(lambda batch: request.infer(batch)[0].copy()))
    queue = ov.AsyncInferQueue(compiled, streams)
    found: dict[int, np.ndarray] = {}
    queue.set_callback(lambda request, index: found.__setitem__(index, request.get_output_tensor().data.copy()))

    def run(batches: Iterator[Batch]) -> list[np.ndarray]:
        found.clear()
        for index, batch in enumerate(batches):
            queue.start_async(batch, index)
        queue.wait_all()
        return [found[index] for index in range(len(found))]

    return Padded(place, run)


def ctranslate2(place: Place, folder: str, kind: str, workers: int) -> Padded:
    """CTranslate2's encoder and pooler, and the classifier's product in numpy. It takes no padding: its batches go in as lists."""
    import ctranslate2 as ct2

    encoder = ct2.Encoder(
        str(place.files / folder), device="cpu", compute_type=kind, inter_threads=workers, intra_threads=place.threads // workers
    )
    if encoder.compute_type != kind and not (kind == "int8" and encoder.compute_type == "int8_float32"):
        raise RuntimeError(f"CTranslate2 computes in {encoder.compute_type} here")
    with np.load(place.files / folder / "head.npz") as head:
        weight, bias = head["weight"].T.copy(), head["bias"]

    def call(batch: Batch) -> np.ndarray:
        lengths = batch["attention_mask"].sum(axis=1)
        ids, types = (
            [row[:length].tolist() for row, length in zip(batch[name], lengths, strict=True)] for name in ("input_ids", "token_type_ids")
        )
        return np.array(encoder.forward_batch(ids, token_type_ids=types).pooler_output) @ weight + bias

    if workers == 1:
        return Padded(place, one_by_one(call))
    threads = ThreadPoolExecutor(workers)
    return Padded(place, lambda batches: list(threads.map(call, batches)))


def onnxruntime(place: Place, file: str) -> Padded:
    """An ONNX file in one session with all threads."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, place.threads
    session = ort.InferenceSession(place.files / file, options, providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    return Padded(place, one_by_one(lambda batch: session.run(None, {name: batch[name] for name in names})[0]))


# -------------------------------------------------------------------------------------------------------------------------------- bertfast


class Bundle:
    """bertfast's OnnxClassifier: it makes its batches itself, and is given ids in the place of texts where tokenising is not timed."""

    def __init__(self, place: Place, variant: str | None):
        from bertfast_export.classifier import OnnxClassifier

        self.classifier = OnnxClassifier.from_bundle(place.bundle, variant, threads=place.threads if variant else None)
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
        return np.concatenate([self._of(range(begin, min(begin + BATCH_SIZE, len(tokens)))) for begin in range(0, len(tokens), BATCH_SIZE)])

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


# ------------------------------------------------------------------------------------------------------------------------------- all of them


@dataclass(frozen=True)
class Runtime:
    """One contender. load: what a process of it holds. needs: conversions, by name. files: what it loads from the disk, below the folder of a `Place`
    that `root` names. least_threads: with fewer it would be another contender over again."""

    name: str
    load: Callable[[Place], Any]
    files: tuple[str, ...] = ()
    root: str = "files"
    needs: tuple[str, ...] = ()
    least_threads: int = 1

    @property
    def is_peer(self) -> bool:
        return not self.name.startswith("bertfast")

    def file_bytes(self, place: Place) -> int | None:
        """Of its files on the disk; None of a contender that picks a file by itself."""
        return sum((getattr(place, self.root) / file).stat().st_size for file in self.files) or None


BASELINE = "transformers float32"
_WEIGHTS = {"files": ("model.safetensors",), "root": "checkpoint"}


def everybody(variants: Mapping[str, tuple[str, ...]], others: Mapping[str, str], is_tuned: bool) -> list[Runtime]:
    """Every contender, the baseline first. variants: of a bundle, with their files; others: other people's ONNX files, by name."""
    found = [*_transformers_runtimes(), *_openvino_runtimes(), *_ctranslate2_runtimes()]
    for name, file, need in (
        ("ONNX Runtime, quantize_dynamic", "dynamic.onnx", "onnxruntime-dynamic"),
        ("Optimum's export", "optimum/model.onnx", "optimum"),
    ):
        found.append(Runtime(name, partial(onnxruntime, file=file), (file,), needs=(need,)))
    for name, file in others.items():
        found.append(Runtime(name, partial(onnxruntime, file=file), (file,)))
    for variant, files in variants.items():
        found.append(Runtime(f"bertfast {variant}", partial(Bundle, variant=variant), files, "bundle"))
    found.append(Runtime(f"bertfast, its own choice{' after bertfast tune' if is_tuned else ''}", partial(Bundle, variant=None)))
    for precision in ("float32", "bf16"):
        found.append(Runtime(f"bertfast packed network, torch {precision}", partial(Packed, precision=precision), **_WEIGHTS))
    return found


def _transformers_runtimes() -> list[Runtime]:
    return [
        Runtime(
            f"transformers {precision}{', torch.compile' * compiled}",
            partial(transformers, precision=precision, compiled=compiled),
            **_WEIGHTS,
        )
        for compiled in (False, True)
        for precision in ("float32", "bf16")
    ]


def _openvino_runtimes() -> list[Runtime]:
    """int8 as OpenVINO runs it by default, the rest in bf16 where the CPU has that, and with the rest in float32: on CPUs with AMX the default answers
    otherwise for texts of 32 tokens (findings/)."""
    found = []
    kinds = (
        ("float32", "openvino", "f32"),
        ("bf16", "openvino", "bf16"),
        ("int8", "openvino-int8", None),
        ("int8 and float32", "openvino-int8", "f32"),
    )
    for precision, name, hint in kinds:
        for streams in (1, 2):
            load = partial(openvino, file=f"{name}.xml", precision=hint, streams=streams)
            needs = tuple(dict.fromkeys(("openvino", name)))  # nncf quantizes what the first one leaves
            found.append(
                Runtime(
                    f"OpenVINO {precision}, {_number(streams, 'stream')}",
                    load,
                    (f"{name}.xml", f"{name}.bin"),
                    needs=needs,
                    least_threads=streams,
                )
            )
    return found


def _ctranslate2_runtimes() -> list[Runtime]:
    found = []
    for kind, folder in (("float32", "ctranslate2"), ("int8", "ctranslate2-int8")):
        for workers in (1, 2):
            load = partial(ctranslate2, folder=folder, kind=kind, workers=workers)
            files = (f"{folder}/model.bin", f"{folder}/head.npz")
            found.append(Runtime(f"CTranslate2 {kind}, {_number(workers, 'worker')}", load, files, needs=(folder,), least_threads=workers))
    return found


def _number(count: int, noun: str) -> str:
    return f"one {noun}" if count == 1 else f"two {noun}s"


def bundle_files(bundle: Path) -> dict[str, tuple[str, ...]]:
    """The variants that a bundle holds for a CPU, each with its files. float16 is none: there it runs at float32's speed."""
    from bertfast_export.contract import VARIANTS

    there = json.loads((bundle / "verification.json").read_text(encoding="utf-8"))["files"]
    return {
        variant: tuple(name for name in there if name == file or name == f"{file}.data" or name == f"{file.removesuffix('.xml')}.bin")
        for variant, file in VARIANTS.items()
        if file in there and variant != "fp16"
    }
