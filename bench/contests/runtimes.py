"""How each peer of inference loads a model, and how it answers a file, a server's batches or one text.

Nothing heavy is imported at its head: what a contender's process holds is what it needs to answer. Every peer is given its own strongest setting: batches of
like lengths, streams or workers fed at once, ids from the tokenizers library without transformers around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.cases.questions import Texts, Tokens, padded

BATCH_SIZE = 32
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
    queue = ov.AsyncInferQueue(compiled, 2 * streams)  # a request waits for each stream while the next batch is padded
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
