#!/usr/bin/env bash
# expected: that gradient_clipping bounds gradients, and leaves the step of Muon as it is: Muon makes the momentum of a matrix orthogonal, so that a gradient of any
#           size, clipped or not, moves the matrix as far. So it is without ZeRO.
# happens:  under ZeRO 1 and 2 the gradient is replaced by Muon's update first and clipped then: the update of all matrices together gets the norm that was meant for the
#           gradient. Two matrices of 64 x 64 move 3 times less than they should, and a model's dozens tens of times less, by one key that changes nothing under
#           stage 0. Since 0.19.3 a config that leaves gradient_clipping out clips at 1.0, so that it need not even be asked for.
# since:    deepspeed 0.19.3, the oldest of those tried that takes Muon under ZeRO without further keys (0.18.2 refuses it); the same in 0.19.7 and 0.19.8, the last.
# do:       set gradient_clipping to 0 with Muon under ZeRO 1 and 2, or train under stage 0.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'numpy==2.4.6' 'torch==2.13.0' 'setuptools==83.0.0'
"$folder/venv/bin/python" -m pip install --quiet 'deepspeed==0.19.8'

DS_ACCELERATOR=cpu MASTER_ADDR=127.0.0.1 MASTER_PORT=29652 RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 \
    "$folder/venv/bin/python" -W ignore - 2> "$folder/errors" <<'PYTHON' || { code=$?; tail -5 "$folder/errors" >&2; exit $code; }
import logging
import sys

import deepspeed
import torch

logging.disable(logging.WARNING)
print(f"deepspeed {deepspeed.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}")
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # one process sums nothing, and needs no compiled sum
deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)


def moved(stage, clipping):
    """How far (Frobenius norm) the first update moves two matrices, where the gradients' norm is far above 1 in any case."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 64, bias=False))
    before = torch.cat([matrix.detach().clone() for matrix in model.parameters()])
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": clipping,
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "Muon", "params": {"lr": 0.01, "weight_decay": 0.0}},
    }
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=config, dist_init_required=False)
    engine.backward(1000 * engine(torch.randn(8, 64)).square().mean())
    engine.step()
    return (torch.cat(list(model.parameters())).detach() - before).norm().item()


seen = {stage: (moved(stage, 0.0), moved(stage, 1.0)) for stage in (0, 1, 2)}
for stage, (free, clipped) in seen.items():
    print(f"ZeRO {stage}: the first update moves the matrices by {free:.5f} without clipping, and by {clipped:.5f} with gradient_clipping 1.0")
as_described = seen[0][1] > 0.99 * seen[0][0] and all(seen[stage][1] < 0.5 * seen[stage][0] for stage in (1, 2))
sys.exit(0 if as_described else "it has changed: clipping left the update alone under stage 0, and made it less than half as long under stages 1 and 2")
PYTHON
