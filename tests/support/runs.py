"""Whole runs of a tiny BERT, for the tests of the trainer: one rank alone in this process, and others in processes of their own."""

import contextlib
import functools
import io
import json
import os
import random
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.rank_pool import RANKS, RankPool
from tests.support.tiny_bert import WORDS, write_tiny_bert


def need_deepspeed() -> None:
    """Skip the test where DeepSpeed, without which nothing trains, is not installed."""
    if find_spec("deepspeed") is None:
        pytest.skip("training needs deepspeed, which is not installed")


def write_task(folder: Path) -> dict:
    """A tiny checkpoint, 96 training rows and 20 dev rows; the config of 12 steps on them."""
    need_deepspeed()
    rng = random.Random(0)
    for name, rows in (("train", 96), ("dev", 20)):
        lines = ["text\tlabel"]
        for _ in range(rows):
            words = [rng.choice(WORDS) for _ in range(rng.randint(0, 20))]
            lines.append(" ".join(words) + "\t" + ("yes" if "good" in words or "great" in words else "no"))
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    write_tiny_bert(folder / "bert")
    source = {"batch_size": 16, "max_sequence_length": 32, "cache_dir": str(folder / "cache")}
    return {
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.01}},
        "bertfast": {
            "task": {"text_columns": ["text"], "label_names": ["no", "yes"]},
            "model": {"checkpoint": str(folder / "bert")},
            "train_input": {"data_file": str(folder / "train.tsv"), **source},
            "eval_input": {"data_file": str(folder / "dev.tsv"), **source},
            "run": {"epochs": 2, "model_dir": str(folder / "run"), "logging_steps": 1, "save_steps": 2, "threads": 1},
        },
    }


def environment():
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(ROOT / "export"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def start(folder: Path, *arguments: str, ranks: int = 0) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "launch.py")]
    if ranks:
        port = str(random.SystemRandom().randint(20_000, 60_000))
        command = [
            sys.executable,
            "-m",
            "deepspeed.launcher.runner",
            "--num_gpus",
            str(ranks),
            "--master_port",
            port,
            str(ROOT / "launch.py"),
        ]
    command += ["--config", str(folder / "config.json"), *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def train(folder: Path, *arguments: str, ranks: int = 0, code: int = 0, own_process: bool = False) -> str:
    """What launch.py says with these arguments, on standard output and error together; it must end with `code`.

    One rank runs in this process, and two in processes that stay (see rank_pool): by the same function as launch.py's, and spared some seconds of
    imports each. A run that is resumed has processes of its own, so that what it knows is what the checkpoint tells; so has one that is to fail on two ranks.
    """
    words = ["--config", str(folder / "config.json"), *arguments]
    if own_process or ("--resume" in arguments and not code) or ranks not in (0, RANKS) or (ranks and code):
        process = start(folder, *arguments, ranks=ranks)
        output, _ = process.communicate(timeout=300)
        codes = [process.returncode]
    elif ranks:
        codes, output = _pool().run(folder, words)
    else:
        codes, output = _here(folder, words)
    assert set(codes) == {code}, output[-3000:]
    return output


@functools.cache
def _pool() -> RankPool:
    folder = Path(tempfile.mkdtemp(prefix="bertfast-ranks-"))
    pool = RankPool(folder, environment())
    return pool


def close_pool() -> None:
    """End the ranks that stay, where there are any."""
    if _pool.cache_info().currsize:
        _pool().close()


def _here(folder: Path, arguments: list[str]) -> tuple[list[int], str]:
    from bertfast.cli import launch

    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        returned = launch(arguments)
    return [returned], said.getvalue()


def losses(folder: Path, run: str = "run") -> dict[int, float]:
    records = [json.loads(line) for line in (folder / run / "log.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if "loss" in record}
