"""Data: MNLI pairs tokenised a second, against transformers' plain call, and the seconds from a command to its first training step.

    python -m bench.bench_data --data DIR --checkpoint FOLDER [--quick] [--rows N] [--repeats 10] [--output FILE]

Tokenising: the contenders take turns on the same rows, each with every core. `transformers` is `tokenizer(a, b, truncation=True,
max_length=128)`, which leaves lists; `bertfast` leaves arrays of int32; `bertfast, file to cache` also reads the rows from disk, checks their
labels and writes the Arrow cache, as a first run does. Start-up: `launch.py --profile_startup` in a process of its own, with an empty cache
and then with the cache that the run before it left. A row holds quartiles.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import ROOT
from bench.harness.intervals import Ratio, take_turns, timing_rows
from bench.harness.processes import command_environment
from bench.harness.provenance import provenance
from bench.harness.rows import keep, quartiles
from bertfast.config.blocks import InputConfig
from bertfast.data.load import encode
from bertfast.data.tokenizing import tokenise
from bertfast.readers.splits import RawSplit, load_split

LENGTH = 128
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "pyarrow", "deepspeed")
_STAGE = re.compile(r"^ *(\d+\.\d+) s  (.+)$")


def measure_tokenising(data: Path, checkpoint: str, rows: int | None, repeats: int) -> list[dict]:
    """Pairs a second of each contender, over the same rows of MNLI's training set."""
    from transformers import AutoTokenizer

    source = InputConfig(data_dir=str(data / "MNLI"))
    raw = load_split("mnli", source, "train")
    if rows is not None:
        raw = raw.sample(rows, seed=42)
    text_a, text_b = list(raw.text_a), list(raw.text_b)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def theirs() -> int:
        return sum(map(len, tokenizer(text_a, text_b, truncation=True, max_length=LENGTH)["input_ids"]))

    def ours() -> int:
        return sum(int(block.lengths.sum()) for block in tokenise(raw.text_a, raw.text_b, tokenizer, LENGTH))

    def file_to_cache() -> int:
        with tempfile.TemporaryDirectory() as cache:
            read: RawSplit = load_split("mnli", source, "train")
            read = read if rows is None else read.sample(rows, seed=42)
            return int(encode(read, tokenizer, LENGTH, cache_dir=cache).lengths.sum())

    contenders: dict[str, Callable[[], int]] = {"transformers": theirs, "bertfast": ours, "bertfast, file to cache": file_to_cache}
    tokens = {name: run() for name, run in contenders.items()}  # warms each up
    if len(set(tokens.values())) != 1:
        raise SystemExit(f"the contenders do not give the same tokens: {tokens}")

    def turn(run: Callable[[], int]) -> Callable[[int], float]:
        def timed(_: int) -> float:
            began = time.perf_counter()
            run()
            return time.perf_counter() - began

        return timed

    seconds = take_turns({name: turn(run) for name, run in contenders.items()}, repeats, warm_up=0)
    common = {"suite": "data", "case": "tokenising", "measure": "tokenising", "pairs": len(raw), "repeats": repeats}
    rows = timing_rows(common, seconds, ["transformers"])
    for row in rows:
        name = row["contender"]
        row |= {"tokens": tokens[name], "pairs_per_second": quartiles([len(raw) / taken for taken in seconds[name]])}
    return rows


def measure_startup(data: Path, checkpoint: str, rows: int | None, repeats: int) -> list[dict]:
    """Seconds from the start of the process to the end of the first step, and of each stage on the way."""
    found: dict[str, list[dict[str, float]]] = {"empty cache": [], "cached": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for kind, runs in found.items():
                runs.append(start_once(Path(folder), kind, data, checkpoint, rows))
    return [
        {
            "suite": "data",
            "case": "start-up",
            "measure": "start-up",
            "contender": f"bertfast, {kind}",
            "seconds_to_first_step": quartiles([sum(run.values()) for run in runs]),
            "samples": [round(sum(run.values()), 3) for run in runs],
            "stages": {name: quartiles([run[name] for run in runs])[1] for name in runs[0]},
            "repeats": repeats,
        }
        for kind, runs in found.items()
    ]


def start_once(folder: Path, kind: str, data: Path, checkpoint: str, rows: int | None) -> dict[str, float]:
    """One run of one step; stage -> seconds."""
    part = {"data_dir": str(data / "MNLI"), "max_sequence_length": LENGTH, **({"max_examples": rows} if rows else {})}
    config = {
        "bertfast": {
            "task": "mnli",
            "model": {"checkpoint": checkpoint},
            "train_input": {**part, "batch_size": 32},
            "run": {"max_steps": 1, "model_dir": str(folder / kind)},
        }
    }
    (folder / "config.json").write_text(json.dumps(config))
    command = [sys.executable, str(ROOT / "launch.py"), "CPU", "--config", str(folder / "config.json"), "--profile_startup"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = command_environment(BERTFAST_CACHE=str(folder / "cache"), PYTHONPATH=paths)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)} ended with exit code {done.returncode}:\n{done.stderr}")
    stages = [match for line in done.stderr.splitlines() if (match := _STAGE.match(line))]
    return {match[2]: float(match[1]) for match in stages[:-1]}  # the last line is their sum


def summary(rows: list[dict]) -> str:
    lines = [""]
    for row in rows:
        if row["measure"] == "tokenising":
            ratio = str(Ratio.from_row(row["ratios"][0])) if row["ratios"] else ""
            lines.append(f"tokenising  {row['contender']:26s} {row['pairs_per_second'][1]:12,.0f} pairs/s  {ratio}")
        else:
            stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["stages"].items())
            lines.append(f"start-up    {row['contender']:26s} {row['seconds_to_first_step'][1]:12.1f} s to the first step ({stages})")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data, models = os.environ.get("BERTFAST_DATA"), os.environ.get("BERTFAST_MODELS")
    parser.add_argument("--data", type=Path, default=data and Path(data) / "glue", help="a folder of GLUE folders")
    parser.add_argument("--checkpoint", default=models and str(Path(models) / "all-MiniLM-L6-v2"))
    parser.add_argument("--rows", type=int, help="a random subset of this size (left out: all of them)")
    parser.add_argument("--repeats", type=int, help="of tokenising; left out: 10, or 8 with --quick")
    parser.add_argument("--starts", type=int, help="of a run, with an empty cache and with a full one; left out: 3, or 1 with --quick")
    parser.add_argument("--quick", action="store_true", help="2,000 rows, one start")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(words)
    if not options.data or not options.checkpoint:
        print("data: skipped, for want of data: give --data and --checkpoint, or set BERTFAST_DATA and BERTFAST_MODELS")
        return 0
    count = options.rows or (2000 if options.quick else None)
    sources = (options.data, options.checkpoint, count)
    facts = {"seed": 42, "checkpoint": Path(options.checkpoint).name, **provenance("bench.bench_data", PACKAGES)}
    plans = (
        (measure_tokenising, options.repeats or (8 if options.quick else 10)),
        (measure_startup, options.starts or (1 if options.quick else 3)),
    )
    print(summary([row for measure, repeats in plans for row in keep(measure(*sources, repeats), facts, options.output)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
