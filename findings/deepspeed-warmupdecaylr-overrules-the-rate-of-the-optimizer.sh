#!/usr/bin/env bash
# expected: that a schedule without warmup_max_lr rises to the rate which stands in the optimizer's block, for WarmupDecayLR as for WarmupLR: its code is the same class,
#           with a decay added, and their docstrings give both one and the same default.
# happens:  WarmupLR rises to the optimizer's rate; WarmupDecayLR, in the same config, to 0.001 for each parameter group, whatever its rate is. Nothing is logged. A rate
#           of 2e-5, usual for BERT, becomes 50 times as high; groups that were given rates of their own lose them.
# since:    deepspeed 0.17.6, the oldest of those tried in which the two differ (in 0.14.5 and 0.16.9 both rose to 0.001); the same in 0.19.3 and 0.19.8, the last.
# do:       write warmup_max_lr into the parameters of WarmupDecayLR, equal to the optimizer's lr; or leave the schedule out of the config and give a torch one.
#           deepspeed-warmup-begins-with-two-steps-at-rate-zero.sh shows another surprise of the same classes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'numpy==2.4.6' 'torch==2.13.0' 'setuptools==83.0.0'
"$folder/venv/bin/python" -m pip install --quiet 'deepspeed==0.19.8'

DS_ACCELERATOR=cpu MASTER_ADDR=127.0.0.1 MASTER_PORT=29651 RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 \
    "$folder/venv/bin/python" -W ignore - 2> "$folder/errors" <<'PYTHON' || { code=$?; tail -5 "$folder/errors" >&2; exit $code; }
import logging
import sys

import deepspeed
import torch

logging.disable(logging.WARNING)
print(f"deepspeed {deepspeed.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}")
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # one process sums nothing, and needs no compiled sum
deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)

RATES = (2e-5, 1e-4)  # of the two parameter groups, as an encoder and its new head have them


def highest(schedule, **params):
    """The rates that each group has in its sixth update, where the warm-up of 4 steps is over."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    groups = [{"params": part.parameters(), "lr": rate} for part, rate in zip(model, RATES, strict=True)]
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "scheduler": {"type": schedule, "params": {"warmup_num_steps": 4, **params}},
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(groups, lr=RATES[0]), config=config, dist_init_required=False)
    for _ in range(5):
        engine.backward(engine(torch.ones(1, 4)).sum())
        engine.step()
    return tuple(group["lr"] for group in engine.optimizer.param_groups)


warmup, decay = highest("WarmupLR"), highest("WarmupDecayLR", total_num_steps=1_000_000)
print(f"rates of the optimizer's groups        {RATES}")
print(f"after the warm-up of WarmupLR          {warmup}")
print(f"after the warm-up of WarmupDecayLR     {tuple(round(rate, 7) for rate in decay)}")
as_described = warmup == RATES and all(abs(rate - 1e-3) < 1e-7 for rate in decay)
sys.exit(0 if as_described else "it has changed: WarmupLR kept the groups' rates, and WarmupDecayLR made both 0.001")
PYTHON
