"""What a bundle says of its models, beside their numbers: lengths, texts, segments, padding and labels.

Clients read it in many places: the metadata_props of each ONNX file (OnnxClassifier), config.json and tokenizer_config.json (transformers,
Optimum, transformers.js), tokenizer.json (those, and every client of the `tokenizers` library), sentence_bert_config.json
(text-embeddings-inference), labels.txt (Triton). All of it is written here, from one candidate; `disagreements` reads it back, and names whatever is not one thing.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from tokenizers import Tokenizer
from transformers import BertConfig

from bertfast import __version__
from bertfast.calibration import CALIBRATION_FILE
from bertfast.data import backend_encoder
from bertfast.reporting import MODEL_CONFIG_FILE
from bertfast.storage import write_json
from bertfast.tasks import Task, get_task
from bertfast.weights import load_tokenizer, read_config
from bertfast.wording import reason
from bertfast_export.bundle.record import bundle_block
from bertfast_export.bundle.triton import LABELS_FILE, in_a_line, write_triton
from bertfast_export.contract import A_PAIR, INPUTS, ONE_TEXT, OPENVINO, RECORD_FILE, TOKENIZER_FILE, Options
from bertfast_export.runtime import sha256_of

if TYPE_CHECKING:
    from bertfast_export.bundle.source import Candidate

_TRANSFORMERS_JS = "onnx"  # where transformers.js looks
_TOKENIZER_CONFIG = "tokenizer_config.json"
# text-embeddings-inference reads max_seq_length there, and takes max_position_embeddings where there is none (its router/src/lib.rs)
_SERVER_LENGTH = "sentence_bert_config.json"
_SPECIAL = ("cls_token", "sep_token", "pad_token")
_SHOWN = 80  # characters of a value, in a message
_WORDS = 12  # of the vocabulary, that tokenizers are asked of
_CUT = {"strategy": "LongestFirst", "stride": 0}
# transformers' problem_type, by whether it is a regression
# What tokenizers read differently where they differ at all, by their settings, their normalisers or their vocabularies.
_PROBES = (
    "",
    "the",
    "Ünïcode CAPITALS, and:punctuation 123",
    "[MASK] [SEP] in a text",
    "漢字 and кириллица",
    "a\tb\u00a0c\u200bd  e",
    "a good film " * 600,
)

Claim = tuple[str, str, Any]  # what is said of what, by which file; None: the file does not say


def write_tokenizer(folder: Path, source: Candidate) -> str:
    """Write the tokenizer so that every client cuts and pads as the judge's examples were cut and padded. Gives tokenizer.json's SHA-256.

    An earlier use leaves its own truncation and padding in a tokenizer.json: that of all-MiniLM-L6-v2 cuts at 128 tokens and pads up to them.
    """
    tokenizer = copy.deepcopy(source.tokenizer)
    for key in ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of"):
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.model_max_length = source.max_sequence_length
    tokenizer.init_kwargs |= {"padding_side": "right", "model_input_names": list(INPUTS)}
    tokenizer.padding_side, tokenizer.model_input_names = "right", list(INPUTS)
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.enable_truncation(source.max_sequence_length, direction=tokenizer.truncation_side)
    tokenizer.save_pretrained(folder)
    if not second_segment(source):
        config = json.loads((folder / _TOKENIZER_CONFIG).read_text(encoding="utf-8"))
        write_json(
            folder / _TOKENIZER_CONFIG, config | {"tokenizer_class": "PreTrainedTokenizerFast"}
        )  # BertTokenizer would number the second text 1
    return sha256_of(folder / TOKENIZER_FILE)


def second_segment(source: Candidate) -> int:
    """The segment of the second text of a pair: 0 where the checkpoint's tokenizer gives its model no segments, so that it was trained with none."""
    return max(source.tokenizer.backend_tokenizer.encode("a", "a").type_ids)


def metadata_of(source: Candidate, variant: str, hashes: Mapping[str, str], tokenizer_sha256: str) -> dict[str, str]:
    """What an ONNX file says of itself, in metadata_props. hashes: the SHA-256 of the checkpoint's files."""
    tokenizer, pair = source.tokenizer, source.task.is_pair
    special = {name: getattr(tokenizer, f"{name}_id") for name in _SPECIAL}
    pooled = "the first column is pooled" if source.head.is_plain else f"the head reads {source.head.describe()}"
    steps = {
        "tokenizer": TOKENIZER_FILE,
        "tokenizer_sha256": tokenizer_sha256,
        "texts": f"{A_PAIR}: [CLS] a [SEP] b [SEP], b and its [SEP] in segment {second_segment(source)}"
        if pair
        else f"{ONE_TEXT}: [CLS] a [SEP]",
        "truncation": "longest first" if pair else "of the one text",
        "truncation_side": tokenizer.truncation_side,
        "padding": f"any, masked by attention_mask 0; positions count columns, and {pooled}",
        **special,
    }
    return {
        "task": "text-regression" if source.task.is_regression else "text-classification",
        "labels": json.dumps(source.labels(), ensure_ascii=False),
        "problem_type": problem_type(source.task),
        "max_sequence_length": str(source.max_sequence_length),
        "preprocessing": json.dumps(steps, ensure_ascii=False),
        "variant": variant,
        "bertfast": __version__,
        "checkpoint_sha256": json.dumps(dict(hashes)),
    }


def write_companions(beside: Path, source: Candidate, options: Options) -> None:
    """config.json, bertfast.json, the length for servers, and the models where transformers.js or Triton look for them."""
    config = BertConfig.from_dict(source.bert.to_dict())
    config.architectures = ["BertForSequenceClassification"]
    config.problem_type = problem_type(source.task)  # transformers' pipeline takes one output for a probability without it
    if not source.task.is_regression:
        config.id2label = dict(enumerate(source.labels()))
    config.label2id = {str(name): int(index) for index, name in (config.id2label or {}).items()}
    config.save_pretrained(beside)
    write_json(beside / _SERVER_LENGTH, {"max_seq_length": source.max_sequence_length, "do_lower_case": False})
    described = {
        "name": source.task.name,
        "text_columns": source.task.text_columns,
        "label_column": source.task.label_column,
        "label_names": source.task.label_names,
        "metric": source.task.main_metric,
    }
    if source.task.is_multilabel:
        described |= {"labels": source.task.labels, "label_separator": source.task.label_separator}
        described |= {"label_columns": source.task.label_columns} if source.task.label_columns else {}
    named_task = source.block.task if source.block else None
    task = named_task if isinstance(named_task, str) else described
    block = {"task": task, "model": {"checkpoint": source.name}, "eval_input": {"max_sequence_length": source.max_sequence_length}}
    write_json(beside / MODEL_CONFIG_FILE, {"bertfast": block})
    if (source.folder / CALIBRATION_FILE).is_file():
        shutil.copyfile(source.folder / CALIBRATION_FILE, beside / CALIBRATION_FILE)
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


def problem_type(task: Task) -> Literal["regression", "multi_label_classification", "single_label_classification"]:
    """What transformers calls a task's kind of answer."""
    return "regression" if task.is_regression else "multi_label_classification" if task.is_multilabel else "single_label_classification"


def disagreements(folder: Path, checkpoint: Mapping[str, str], tokenizer: Any = None) -> list[str]:
    """Where two parts of a bundle say different things of it: a line for each, which names both.

    What a file leaves unsaid, as in bundles of an earlier bertfast, contradicts nothing. checkpoint: the SHA-256 of its files. tokenizer: the
    checkpoint's own, where it is at hand.
    """
    said: dict[str, dict[str, Any]] = {}
    try:
        for what, file, value in _claims(folder, checkpoint):
            if value is not None:
                said.setdefault(what, {})[file] = value
        faults = [
            _contradiction(what, values)
            for what, values in said.items()
            if any(value != next(iter(values.values())) for value in values.values())
        ]
        return faults or list(_read_otherwise(folder, tokenizer))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return [f"one of its parts cannot be read ({type(error).__name__}: {reason(error)})"]


def _contradiction(what: str, values: Mapping[str, Any]) -> str:
    first = next(iter(values.values()))
    alike = [file for file, value in values.items() if value == first]
    others = [f"{_shown(value)} in {file}" for file, value in values.items() if value != first]
    return f"{what}: {_shown(first)} in {', '.join(alike)}, but {', '.join(others)}"


def _claims(folder: Path, checkpoint: Mapping[str, str]) -> Iterator[Claim]:
    yield "the checkpoint", RECORD_FILE, dict(checkpoint)
    config, block = read_config(folder), bundle_block(folder)
    task = get_task(block.task)
    labels = None if config.num_labels == 1 else [str(name) for _, name in sorted((config.id2label or {}).items())]
    yield "the longest sequence", MODEL_CONFIG_FILE, block.eval_input and block.eval_input.max_sequence_length
    yield "the texts", MODEL_CONFIG_FILE, A_PAIR if task.is_pair else ONE_TEXT
    yield "the number of outputs", "config.json", config.num_labels
    yield "the kind of answer", "config.json", config.problem_type
    yield "the labels", "config.json", labels
    yield "the number of each label", "id2label of config.json", {name: index for index, name in (config.id2label or {}).items()}
    yield "the number of each label", "label2id of config.json", config.label2id
    if task.is_complete:
        yield "the number of outputs", MODEL_CONFIG_FILE, task.num_labels
        yield "the kind of answer", MODEL_CONFIG_FILE, problem_type(task)
        yield "the labels", MODEL_CONFIG_FILE, None if task.is_regression else list(task.class_names)
    if (server := folder / _SERVER_LENGTH).is_file():
        yield "the longest sequence", _SERVER_LENGTH, _json(server)["max_seq_length"]
    for path in sorted(folder.glob(f"*/{LABELS_FILE}")):
        with open(path, encoding="utf-8", newline="\n") as file:
            lines = file.read().removesuffix("\n").split("\n")
        yield "the labels, in a line each", "config.json", [in_a_line(name) for name in labels or ()]
        yield "the labels, in a line each", path.relative_to(folder).as_posix(), lines
    yield from _tokenizer_claims(folder)
    for path in _models(folder):
        yield from _model_claims(path.relative_to(folder).as_posix(), path)
    for path in sorted(folder.glob(f"{OPENVINO}/*.xml")):
        yield from _ir_claims(path.relative_to(folder).as_posix(), path)


def _tokenizer_claims(folder: Path) -> Iterator[Claim]:
    config, written = _json(folder / _TOKENIZER_CONFIG), _json(folder / TOKENIZER_FILE)
    cut, padding = written["truncation"], written["padding"]
    yield "the longest sequence", _TOKENIZER_CONFIG, config.get("model_max_length")
    yield "the side that is cut", _TOKENIZER_CONFIG, config.get("truncation_side")
    yield "the side that is padded", "the judge's examples", "right"
    yield "the side that is padded", _TOKENIZER_CONFIG, config.get("padding_side")
    if cut is not None:
        yield "the longest sequence", TOKENIZER_FILE, cut["max_length"]
        yield "the side that is cut", TOKENIZER_FILE, cut["direction"].lower()
        yield "how texts are cut", "the judge's examples", _CUT
        yield "how texts are cut", TOKENIZER_FILE, {key: cut[key] for key in _CUT}
    if padding is not None:
        yield "how far texts are padded", "the judge's examples", "BatchLongest"
        yield "how far texts are padded", TOKENIZER_FILE, padding["strategy"]
    numbers = {token["content"]: token["id"] for token in written["added_tokens"]}
    for name in _SPECIAL:
        yield f"the number of {name}", TOKENIZER_FILE, numbers.get(config.get(name))
    yield "the tokenizer's SHA-256", TOKENIZER_FILE, sha256_of(folder / TOKENIZER_FILE)


def _model_claims(name: str, path: Path) -> Iterator[Claim]:
    """What an ONNX file says of itself."""
    model = onnx.load(path, load_external_data=False)
    yield "the number of outputs", name, model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    yield from _claims_of_facts(name, {item.key: item.value for item in model.metadata_props})


def _ir_claims(name: str, path: Path) -> Iterator[Claim]:
    """What an IR says of itself."""
    import openvino

    from bertfast_export.openvino_runtime import facts_of

    model = openvino.Core().read_model(str(path))
    yield "the number of outputs", name, model.outputs[0].partial_shape[1].get_length()
    yield from _claims_of_facts(name, facts_of(model))


def _claims_of_facts(name: str, facts: Mapping[str, str]) -> Iterator[Claim]:
    steps = json.loads(facts["preprocessing"])
    yield "the longest sequence", name, int(facts["max_sequence_length"])
    yield "the side that is cut", name, steps["truncation_side"]
    yield "the texts", name, A_PAIR if steps["texts"].startswith(A_PAIR) else ONE_TEXT
    usual = "regression" if facts["task"] == "text-regression" else "single_label_classification"  # of bundles of an earlier bertfast
    yield "the kind of answer", name, facts.get("problem_type", usual)
    yield "the labels", name, json.loads(facts["labels"]) or None
    yield "the checkpoint", name, json.loads(facts["checkpoint_sha256"])
    yield "the tokenizer's SHA-256", name, steps.get("tokenizer_sha256")
    for token in _SPECIAL:
        yield f"the number of {token}", name, steps[token]


def _models(folder: Path) -> list[Path]:
    """The ONNX files, each once: a hard link to one is that one."""
    seen: dict[tuple[int, int], Path] = {}
    for path in sorted(folder.rglob("model*.onnx"), key=lambda path: (len(path.parts), path)):
        seen.setdefault((path.stat().st_dev, path.stat().st_ino), path)
    return list(seen.values())


def _read_otherwise(folder: Path, tokenizer: Any) -> Iterator[str]:
    """Whether transformers, OnnxClassifier, and a client of tokenizer.json alone make the same tokens of the same texts."""
    config, block = read_config(folder), bundle_block(folder)
    assert block.eval_input is not None, "an export writes it into the bundle's block"
    length, is_pair = block.eval_input.max_sequence_length, get_task(block.task).is_pair
    if length > config.max_position_embeddings:
        yield f"the longest sequence: {length} in {MODEL_CONFIG_FILE}, but {config.max_position_embeddings} positions in config.json"
        return
    loaded, alone = load_tokenizer(folder, config), Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    words = [word for word in sorted(alone.get_vocab()) if word.isalpha()][:_WORDS]
    texts = [
        *_PROBES,
        " ".join(words),
        " ".join(word.swapcase() for word in words),
    ]  # words that are known, and in the other case may not be
    pairs = texts[::-1] if is_pair else None
    ways: dict[str, list[tuple[list[int], list[int]]]] = {}
    if alone.truncation is not None:
        encodings = alone.encode_batch(texts if pairs is None else list(zip(texts, pairs, strict=True)))
        ways[f"by {TOKENIZER_FILE} alone"] = [(encoding.ids, encoding.type_ids) for encoding in encodings]
    features = loaded(texts, pairs, truncation=True)
    segments = features.get("token_type_ids") or [[0] * len(ids) for ids in features["input_ids"]]  # what a client gives that has none
    ways[f"by {_TOKENIZER_CONFIG}, as transformers reads it"] = list(zip(features["input_ids"], segments, strict=True))
    cut_left = loaded.truncation_side == "left"
    if tokenizer is not None:
        ways["by the checkpoint's tokenizer"] = _cut_rows(copy.deepcopy(tokenizer.backend_tokenizer), length, cut_left, texts, pairs)
    rows = _cut_rows(alone, length, cut_left, texts, pairs)
    asked = [
        " with ".join(repr(text[:40]) for text in parts) for parts in (zip(texts) if pairs is None else zip(texts, pairs, strict=True))
    ]
    for way, others in ways.items():
        for example, right, given in zip(asked, rows, others, strict=True):
            if right != given:
                yield f"the tokens of {example}: {_shown(right)} in OnnxClassifier, but {_shown(given)} {way}"
                break
    if (segment := max(max(kinds) for _, kinds in rows)) >= config.type_vocab_size:
        yield f"segments: {segment} by {TOKENIZER_FILE}, but type_vocab_size is {config.type_vocab_size} in config.json"


def _cut_rows(
    backend: Tokenizer, length: int, cut_left: bool, texts: Sequence[str], pairs: Sequence[str] | None
) -> list[tuple[list[int], list[int]]]:
    """Token ids and segments of each text, as the judge's examples are made."""
    block = backend_encoder(backend, length, pairs is not None, cut_left=cut_left)(texts, pairs)
    ends = np.cumsum(block.lengths).tolist()
    spans = [slice(end - count, end) for end, count in zip(ends, block.lengths.tolist(), strict=True)]
    return [(block.input_ids[span].tolist(), block.token_type_ids[span].tolist()) for span in spans]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _shown(value: Any) -> str:
    said = json.dumps(value, ensure_ascii=False)
    return said if len(said) <= _SHOWN else f"{said[:_SHOWN]}..."
