"""Every suite after the other: `python -m bench --quick` (about 5 minutes on 2 cores) or `python -m bench` (hours), and their tables at the end.

    python -m bench [--quick] [--suites step task ...] [--output FOLDER]

Each suite is a process of its own and writes FOLDER/<device>-<suite>.jsonl (and its log, runs/bench/<suite>.log). Real lengths, texts and weights come from the folders that BERTFAST_DATA and
BERTFAST_MODELS name; a suite that cannot do without says so and is left out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import ROOT

SUITES = {  # suite: its words with --quick, its words without
    "packing": (["--quick"], []),
    "step": (["--quick"], ["--profile"]),
    "task": (["--quick"], []),
    "data": (["--quick"], []),
    "inference": (["--quick"], []),
    "scale": (["--quick"], []),
    "recipes": (["--quick"], []),
}
_LEFT_OUT_OF_QUICK = ("scale", "recipes")
_ON_GPU = {
    "kernels": ([], []),
    "gpu_step": (["--parts", "step", "--lengths", "mnli", "--batches", "32", "--precisions", "bf16"], []),
}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--suites", nargs="+", choices=[*SUITES, *_ON_GPU])
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "bench")
    options = parser.parse_args(words)
    on_gpu = torch.cuda.is_available()
    chosen = options.suites or [name for name in SUITES if not (options.quick and name in _LEFT_OUT_OF_QUICK)] + list(_ON_GPU) * on_gpu
    options.output = options.output.resolve()
    logs = ROOT / "runs" / "bench"
    for folder in (options.output, logs):
        folder.mkdir(parents=True, exist_ok=True)
    tables, failed, files = [], [], []
    for name in chosen:
        file = options.output / f"{'gpu' if on_gpu else 'cpu'}-{name}.jsonl"
        file.unlink(missing_ok=True)
        began = time.perf_counter()
        print(f"{name} ...", flush=True)
        more = (SUITES | _ON_GPU)[name][not options.quick]
        with open(logs / f"{name}.log", "w", encoding="utf-8") as log:
            command = [sys.executable, "-m", f"bench.bench_{name}", *more, "--output", str(file)]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, stdin=subprocess.DEVNULL)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        tables.append(f"== {name}\n{done.stdout.strip()}")
        if done.returncode:
            failed.append(name)
            tables[-1] += f"\nended with exit code {done.returncode}; see {logs / f'{name}.log'}"
        if file.is_file():
            files.append(str(file))
    print("\n" + "\n\n".join(tables))
    if files:
        subprocess.run([sys.executable, "-m", "bench.report", *files, "--output", str(options.output)], cwd=ROOT)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
