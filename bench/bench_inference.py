"""Inference on a CPU: every file of a bundle beside OpenVINO, CTranslate2, ONNX Runtime and transformers, each in a process of its own.

    python -m bench.bench_inference --task sst2 --checkpoint RUN/model --bundle BUNDLE [--threads 1 2] [--parts file server one] [--only NAME ...] [--output FILE]
    python -m bench.bench_inference --size base                # random weights of BERT-base's sizes, and a bundle of them (kept in --files)
    python -m bench.bench_inference --quick

What is answered: the task's dev set (--texts of them, evenly), from --data; without a checkpoint, made-up pairs with the lengths of MNLI. Answers are held
against eager float32 before anything is timed, and are in each row: the share of same answers, the largest difference of a logit, and what the neighbours in
a batch change. Then the contenders take turns (harness/intervals.py). Parts: a whole file, sorted by length, from its ids and from its texts on; a server's
batches of 32 as they come; one text at a time; the int8 recipes of bertfast's export, losers among them; and, with --command, whole commands. bertfast's own choice is that of `bertfast tune`, which is run where it has not chosen for so many threads yet.

A run takes minutes to an hour. In pieces: --parts, --threads and --only (eager float32 always runs) add rows to the same file, and --files keeps what the
peers' tools have converted. IPEX is no contender: its last release, 2.8 of August 2025, is for torch 2.8. Optimum's export is one where it is installed, or by
--other "Optimum's export=model.onnx", as is any other ONNX file.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.cases.pair_files import write_pairs
from bench.cases.questions import Texts, Tokens
from bench.cases.workloads import MODELS, lengths_of
from bench.contests.bundles import bundle_files, recipe_files, tune
from bench.contests.commands import command_rows
from bench.contests.inference_contest import Case, Contest, Job, convert
from bench.contests.roster import BASELINE, OWN_CHOICE, Runtime, everybody
from bench.contests.runtimes import BATCH_SIZE
from bench.harness.intervals import MIN_ROUNDS, Ratio
from bench.harness.provenance import provenance
from bench.harness.rows import keep

PARTS = ("file", "server", "one", "recipes")
TASKS = {"sst2": ("SST-2", "dev"), "mnli": ("MNLI", "dev_matched")}
LENGTHS_OF_ONE = {16: 40, 32: 40, 128: 16, 512: 6}  # tokens of one text: calls a round
ROUNDS_OF_ONE = 20  # a call takes milliseconds
SERVED = 16 * BATCH_SIZE  # examples of the server's case
QUICK = (BASELINE, "OpenVINO bf16, two streams", "CTranslate2 int8, two workers", "bertfast optimized", "bertfast int8")
PACKAGES = ("torch", "transformers", "tokenizers", "openvino", "nncf", "ctranslate2", "onnxruntime", "numpy")
_CALIBRATION = 300  # training examples, nncf's own default
_QUICK_CALIBRATION, _QUICK_TEXTS, _QUICK_LENGTHS = 32, 32, {16: 10, 128: 4}


class Asked(NamedTuple):
    """What is asked of whom. name: for the rows. texts, calibration: of the task's dev and training sets. length: longest sequence in tokens."""

    name: str
    checkpoint: Path
    texts: Texts
    calibration: Texts
    length: int


def of_task(options: argparse.Namespace) -> Asked:
    """The dev set of a task and a model that was fine-tuned on it."""
    from bertfast.config.blocks import InputConfig
    from bertfast.readers.splits import load_split
    from bertfast.tasks.catalogue import get_task

    folder, split = TASKS[options.task]
    source = InputConfig(data_dir=str(options.data / folder))

    def texts(split: str, count: int | None) -> Texts:
        raw = load_split(get_task(options.task), source, split)
        rows = np.unique(np.linspace(0, len(raw) - 1, min(count or len(raw), len(raw))).astype(np.int64))
        first, second = ([str(column[int(row)]) for row in rows] if column is not None else None for column in (raw.text_a, raw.text_b))
        return Texts(first, second)

    dev = texts(split, options.texts)
    return Asked(f"{options.size}, {folder} {split}", options.checkpoint, dev, texts("train", options.calibration), 128)


def made_up(options: argparse.Namespace, folder: Path) -> Asked:
    """Random weights of a size, and pairs of made-up words with the lengths of MNLI."""
    count = options.texts or 1000
    lengths = lengths_of("mnli", options.calibration + count, options.seed)
    config = write_pairs(folder, options.size, lengths, options.seed)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with open(folder / "train.tsv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    first, second = ([row[name] for row in rows] for name in ("a", "b"))
    cut = options.calibration
    return Asked(
        f"{options.size}, made-up pairs", folder / "model", Texts(first[cut:], second[cut:]), Texts(first[:cut], second[:cut]), 128
    )


def tokenised(texts: Texts, checkpoint: Path, length: int) -> Tokens:
    """The ids, as the fast tokenizer of the checkpoint gives them."""
    from tokenizers import Tokenizer

    from bertfast.data.tokenizing import backend_encoder

    block = backend_encoder(Tokenizer.from_file(str(checkpoint / "tokenizer.json")), length, texts.second is not None)(*texts)
    return Tokens(block.input_ids, block.token_type_ids, block.lengths)


def of_length(tokens: Tokens, length: int, count: int) -> Tokens:
    """So many examples of just this length: the ids of real ones end to end, with the first one's [CLS] and [SEP] around them."""
    inner = np.setdiff1d(np.arange(len(tokens.input_ids)), [0])
    words = np.resize(tokens.input_ids[inner], (count, length))
    words[:, 0], words[:, -1] = tokens.input_ids[0], tokens.input_ids[tokens.lengths[0] - 1]
    return Tokens(words.reshape(-1), np.zeros(words.size, np.uint8), np.full(count, length, np.int32))


def questions(asked: Asked, parts: Sequence[str], lengths: Mapping[int, int], folder: Path) -> tuple[Case, list[Case]]:
    """The case whose answers are compared, and those that are timed. lengths: tokens of the part "one", and the calls of a round."""
    tokens, cases = tokenised(asked.texts, asked.checkpoint, asked.length), []
    ids, texts = folder / "tokens.npz", folder / "texts.json"
    tokens.save(ids)
    asked.texts.save(texts)
    known = Case("whole file, tokenising out", {"kind": "file", "tokens": str(ids)}, 1)
    if "file" in parts:
        cases += [known, Case("whole file, tokenising in", {"kind": "texts", "texts": str(texts)}, 1)]
    if "server" in parts:
        cases.append(Case("batches of 32 as they come", {"kind": "server", "tokens": str(ids), "rows": SERVED}, 1))
    if "one" in parts:
        for length, calls in lengths.items():
            of_length(tokens, length, calls).save(folder / f"one-{length}.npz")
            cases.append(Case(f"one text of {length} tokens", {"kind": "one", "tokens": str(folder / f"one-{length}.npz")}, calls))
    return known, cases


def measure(asked: Asked, bundle: Path, files: Path, folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of one checkpoint; each case's as soon as it is timed."""
    if not (files / "calibration.npz").is_file():
        tokenised(asked.calibration, asked.checkpoint, asked.length).save(files / "calibration.npz")
    common = {"suite": "inference", "measure": "time", "case": f"{asked.name}, {len(asked.texts.first)} texts", "model": options.size}
    common["texts"] = len(asked.texts.first)
    others, variants = dict(part.split("=", 1) for part in options.other), bundle_files(bundle)
    known, cases = questions(asked, options.parts, options.lengths, folder)

    def taken(runtimes: Sequence[Runtime], more: dict[str, str], threads: int, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
        missing = convert((need for runtime in runtimes for need in runtime.needs), asked.checkpoint, files)
        faults = {runtime.name: missing[need] for runtime in runtimes for need in runtime.needs if need in missing}
        own = [runtime.name for runtime in runtimes if runtime.name.startswith(OWN_CHOICE)]
        if own and (fault := tune(bundle, threads)):
            faults |= dict.fromkeys(own, fault)
        able = [runtime for runtime in runtimes if runtime.least_threads <= threads and runtime.name not in faults]
        job = Job(asked.checkpoint, bundle, files, threads, asked.length, tuple(variants), more)
        here = {**common, "case": f"{common['case']}, {threads} thread{'s' * (threads > 1)}", "threads": threads}
        with Contest(able, job, known) as contest:
            for case in cases:
                rounds = options.rounds or (ROUNDS_OF_ONE if case.calls > 1 else MIN_ROUNDS)
                asked_for = f", {rounds} rounds" if options.rounds and not options.quick else ""  # beside the usual run, not in its place
                print(f"{here['case']}, {case.name}{asked_for} ...", file=sys.stderr, flush=True)
                yield from contest.rows(case._replace(name=case.name + asked_for), rounds, here)
            faults |= contest.faults
        yield from ({**here, "contender": name, "fault": fault} for name, fault in faults.items())

    for threads in options.threads if cases else ():
        yield from taken(choose(everybody(variants, others), options.only), others, threads, cases)
    if "recipes" in options.parts:
        if failed := convert(["recipes"], asked.checkpoint, files):
            yield {**common, "contender": "bertfast int8, by recipe", "fault": failed["recipes"]}
        else:
            found = recipe_files(files)
            chosen = choose(everybody(variants, found), list(found))
            yield from taken(chosen, found, max(options.threads), [known._replace(name=f"recipes for int8, {known.name}")])


def choose(runtimes: Sequence[Runtime], names: Sequence[str] | None) -> list[Runtime]:
    """The contenders of these names or patterns ("OpenVINO*"), and the baseline; without names all that can run here."""
    if names is None:
        return [runtime for runtime in runtimes if "optimum" not in runtime.needs or importlib.util.find_spec("optimum")]
    known = [runtime.name for runtime in runtimes]
    if unknown := [name for name in names if not fnmatch.filter(known, name)]:
        raise SystemExit(f"--only {unknown[0]!r}: there is no such contender; known: {'; '.join(known)}")
    return [runtime for runtime in runtimes if any(fnmatch.fnmatchcase(runtime.name, name) for name in (*names, BASELINE))]


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """A table that a person can read: a case after the other, the fastest first."""
    lines: list[str] = []
    timed = [row for row in rows if "milliseconds" in row]
    for case in dict.fromkeys(row["case"] for row in timed):
        found = sorted((row for row in timed if row["case"] == case), key=lambda row: row["seconds"][1])
        lines += ["", case]
        for row in found:
            against = "; ".join(f"{Ratio.from_row(ratio)} {ratio['to']}" for ratio in row["ratios"])
            figures = f"{row['milliseconds'][1]:10.2f} ms"
            if "same" in row:  # a whole command keeps its answers to itself
                figures += f"  {row['same']:7.2%}  neighbours {row['alone_difference']:<8g} {row['resident_bytes'] / 1e6:5.0f} MB"
                figures += f", peak {row['peak_bytes'] / 1e6:5.0f}"
            lines.append(f"  {row['contender']:44s} {figures}   {against}")
    lines += [f"{row['contender']} did not run: {row['fault']}" for row in rows if "fault" in row]
    return "\n".join(lines)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("BERTFAST_DATA")
    parser.add_argument("--task", choices=list(TASKS), help="whose dev set is answered; needs --checkpoint and --data")
    parser.add_argument("--checkpoint", type=Path, help="a fine-tuned model, as transformers saves one")
    parser.add_argument("--bundle", type=Path, help="that `bertfast export` made of it; of made-up weights it is made on the spot")
    parser.add_argument("--data", type=Path, default=data and Path(data) / "glue", help="a folder of GLUE folders")
    parser.add_argument(
        "--size", choices=list(MODELS), default="minilm", help="of the checkpoint, for the rows; without one, of random weights"
    )
    parser.add_argument("--texts", type=int, help="so many of the dev set; left out: all, of made-up ones 1000")
    parser.add_argument("--threads", nargs="+", type=int, default=None, help="left out: 1 and 2, or 2 with --quick")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="left out: all")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these contenders alone, and eager float32; 'OpenVINO*' names several")
    parser.add_argument("--other", action="append", default=[], metavar="NAME=FILE.onnx")
    parser.add_argument(
        "--files", type=Path, help="a folder for what the peers' tools convert, kept for the next run of the same checkpoint"
    )
    parser.add_argument("--command", type=Path, metavar="TSV", help="whole commands over a file with a column named sentence, too")
    parser.add_argument("--rounds", type=int, help=f"left out: {ROUNDS_OF_ONE} of one text at a time, {MIN_ROUNDS} of the other cases")
    parser.add_argument(
        "--quick", action="store_true", help=f"{_QUICK_TEXTS} made-up texts, two threads, five contenders, texts of 16 and 128 tokens"
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(words)
    if options.task and not (options.checkpoint and options.bundle and options.data):
        parser.error(
            "--task needs the --checkpoint that was fine-tuned on it, its --bundle, and --data, a folder of GLUE folders (or BERTFAST_DATA)"
        )
    if options.checkpoint and not options.task:
        parser.error("--checkpoint needs the --task that it was fine-tuned on")
    options.calibration = _QUICK_CALIBRATION if options.quick else _CALIBRATION
    options.texts = options.texts or (_QUICK_TEXTS if options.quick else None)
    options.threads = options.threads or ([2] if options.quick else [1, 2])
    options.only = options.only or (list(QUICK) if options.quick else None)
    options.lengths = _QUICK_LENGTHS if options.quick else LENGTHS_OF_ONE
    options.parts = options.parts or [part for part in PARTS if not (options.quick and part == "recipes")]
    if options.quick:
        options.rounds = MIN_ROUNDS
    return options


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    facts = {"seed": options.seed, **provenance("bench.bench_inference", PACKAGES)}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        asked = of_task(options) if options.task else made_up(options, folder)
        files = options.files or folder / "files"
        files.mkdir(parents=True, exist_ok=True)
        bundle = options.bundle or files / "bundle"
        if not options.bundle and (failed := convert(["bundle"], asked.checkpoint, files)):
            raise SystemExit(f"inference: the made-up model could not be exported: {failed['bundle']}")
        rows = keep(measure(asked, bundle, files, folder, options), facts, options.output)
        if options.command:
            rows += keep(
                command_rows(asked.checkpoint, bundle, list(bundle_files(bundle)), options.command, max(options.threads)),
                facts,
                options.output,
            )
    print(summary(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
