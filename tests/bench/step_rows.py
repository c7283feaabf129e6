"""Made-up rows of a training step, for the tests of the report and of the comparison."""

import json

import numpy as np

from bench.harness.intervals import timing_rows

FACTS = {"device": "a machine", "commit": "abc1234", "command": "python -m bench.bench_step"}


def step_rows(speed=2.0, seed=0, rounds=12, **facts):
    rng = np.random.default_rng(seed)
    noise = lambda: np.exp(0.01 * rng.standard_normal(rounds))  # noqa: E731
    seconds = {"transformers fp32": 0.2 * noise(), "bertfast fp32": 0.2 / speed * noise(), "bertfast bf16": 0.2 * noise()}
    common = {"suite": "step", "case": "tiny, sst2, batch 32", "model": "tiny", "lengths": "sst2", "batch_size": 32}
    rows = timing_rows(common, seconds, ["transformers fp32"])
    for row in rows:
        row |= {"samples_per_second": [round(32 / value, 1) for value in row["seconds"][::-1]], **FACTS, **facts}
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
