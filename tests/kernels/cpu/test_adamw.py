"""The C++ kernels' AdamW against torch's, in float64."""

import math
import os
import subprocess
import sys

import pytest
import torch

from bertfast_kernels import CpuAdamW
from bertfast_kernels.cpu.products import half_of
from tests.support.cpp_cases import draw, needs_cpp

pytestmark = needs_cpp
SHAPES = ((300, 37), (13,), (40, 1152), ())


def build(make, dtype, betas=(0.8, 0.95), **settings):
    values = [torch.nn.Parameter(value.to(dtype)) for value in draw(*SHAPES)]
    groups = [{"params": [values[0], values[2]], "weight_decay": 0.1}, {"params": [values[1], values[3]], "weight_decay": 0.0, "lr": 3e-3}]
    return values, make(groups, lr=1e-2, betas=betas, eps=1e-6, **settings)


def gradients(step):
    """Those of a step, dense, with 20 rows of the matrix alone; and that one as a sparse tensor, in two parts."""
    rows = torch.randperm(100, generator=torch.Generator().manual_seed(step))[:20]
    grads = draw(*SHAPES, seed=50 + step)
    values, grads[0] = grads[0][:20], torch.zeros_like(grads[0]).index_copy(0, rows, grads[0][:20])
    halves = torch.sparse_coo_tensor(rows.repeat(2)[None], torch.cat((values, values)) / 2, grads[0].shape, check_invariants=True)
    return grads, halves


@pytest.mark.parametrize("betas", [(0.8, 0.95), (0.9, 0.999)])
@pytest.mark.parametrize("sparse", [False, True])
def test_twenty_steps_follow_torch_in_float64(sparse, betas):
    theirs, reference = build(torch.optim.AdamW, torch.float64, betas)
    ours, optimizer = build(CpuAdamW, torch.float32, betas)
    half_of(ours[2])
    for step in range(20):
        grads, halves = gradients(step)
        for parameter, grad in zip(theirs, grads, strict=True):
            parameter.grad = grad.clone()
        for parameter, grad in zip(ours, grads, strict=True):
            parameter.grad = grad.float()
        if sparse:
            ours[0].grad = halves.float()
        norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0).item()
        assert optimizer.clip(1.0) == pytest.approx(norm, rel=1e-6)
        reference.step()
        optimizer.step()
        if step == 10:  # through a checkpoint, and to torch's own and back
            fused = build(torch.optim.AdamW, torch.float32, betas, fused=True)[1]
            fused.load_state_dict(optimizer.state_dict())
            optimizer.load_state_dict(fused.state_dict())
    for parameter, truth in zip(ours, theirs, strict=True):
        assert (parameter - truth).abs().max() <= 2e-6 * truth.abs().max()
        for name in ("exp_avg", "exp_avg_sq"):
            moment, true = optimizer.state[parameter][name], reference.state[truth][name]
            assert (moment - true).abs().max() <= 2e-6 * true.abs().max()
    assert half_of(ours[2]) is half_of(ours[2]) and torch.equal(half_of(ours[2]), ours[2].bfloat16())
    assert not optimizer.state[ours[0]]["exp_avg"][100:].any()


def test_a_step_without_clipping_takes_the_gradients_as_they_are():
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = CpuAdamW([weight], lr=1.0, betas=(0.0, 0.0), eps=0.0, weight_decay=0.0)
    for wanted in (torch.tensor([0.5, 0.5, 0.5]), torch.tensor([1.0, 1.0, 1.0])):
        weight.grad = torch.ones(3)
        if wanted[0] < 1:
            optimizer.clip(math.sqrt(3) / 2)
        optimizer.step()
        assert torch.allclose(optimizer.state[weight]["exp_avg"], wanted, rtol=1e-5)


def test_a_norm_that_is_no_number_reaches_the_weights():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = CpuAdamW([weight], lr=0.1)
    weight.grad = torch.tensor([1.0, float("nan")])
    optimizer.clip(1.0)
    optimizer.step()
    assert weight.isnan().all()


def test_torchs_compiler_is_not_imported():
    code = (
        "import sys, torch; from bertfast_kernels import CpuAdamW; p = torch.nn.Parameter(torch.ones(3)); a = CpuAdamW([p], lr=0.1); "
        "p.sum().backward(); a.step(); a.zero_grad(); a.load_state_dict(a.state_dict()); print('torch._dynamo' in sys.modules, p.grad)"
    )
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    answer = subprocess.run([sys.executable, "-c", code], env={**os.environ, **paths}, capture_output=True, text=True, check=True).stdout
    assert answer.split() == ["False", "None"]


def test_moments_that_take_the_place_of_others_are_looked_at():
    """Loaded ones may lie at the address of those that were there."""
    weight = torch.nn.Parameter(torch.zeros(3, 4))
    optimizer = CpuAdamW([weight], lr=0.1)

    def step():
        weight.grad = torch.sparse_coo_tensor([[0]], torch.ones(1, 4), (3, 4), check_invariants=True)
        optimizer.step()

    step()
    before, state = weight[2].clone(), optimizer.state[weight]
    for name in ("exp_avg", "exp_avg_sq"):
        state[name].numpy()[2] = 1
        state[name] = torch.from_numpy(state[name].numpy())
    step()
    assert not torch.equal(weight[2], before)


@pytest.mark.parametrize("values", [torch.zeros(4, 3).t(), torch.zeros(3, 4, dtype=torch.float64)], ids=["gaps", "float64"])
def test_what_it_cannot_read_is_refused(values):
    weight = torch.nn.Parameter(values)
    weight.grad = torch.ones_like(weight)
    with pytest.raises(ValueError, match=r"a parameter of \[3, 4\] or its state is not float32 without gaps"):
        CpuAdamW([weight], lr=0.1).step()
