"""Steps without DeepSpeed's loops, under Triton's interpreter: the optimizer against torch's, recorded steps against plain ones, and who takes them."""

import shutil
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bertfast.config.load import load_config
from bertfast.config.resolve import BatchSizes, resolve_deepspeed, takes_whole_steps
from bertfast.engine.optimizer import linear_schedule, loss_scale_of, parameter_groups
from bertfast.engine.whole_step import WholeStep
from bertfast.errors import BertfastError
from bertfast.model.bert import BertClassifier, RandomBits
from bertfast.model.losses import loss_sum
from bertfast_kernels import GpuAdamW, LossScale, use_backend
from tests.engine.test_cuda_graphs import batch_of
from tests.model.test_bert import bert_config
from tests.support.runs import losses, need_deepspeed, write_task
from tests.support.triton_cases import needs_triton

pytestmark = needs_triton
ON = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Loss(NamedTuple):
    share: torch.Tensor
    rows_BC: torch.Tensor
    example_ids: torch.Tensor


def loss_of(forward, batch):
    logits = forward(batch)
    return Loss(loss_sum(logits, batch.labels) / 4, logits, batch.example_ids)


def engine_of(dtype=torch.float16, max_norm=1.0, scale=None, p=0.1):
    """As much of an engine as a step asks for, around a small model with a GpuAdamW."""
    torch.manual_seed(1)
    model = BertClassifier(bert_config(16, num_labels=3, num_hidden_layers=1, hidden_dropout_prob=p, attention_probs_dropout_prob=p)).to(ON)
    model.compute_dtype = dtype
    optimizer = GpuAdamW(parameter_groups(model, 0.01), dtype, max_norm, scale, lr=1e-2)
    return SimpleNamespace(
        module=model.train(), optimizer=optimizer, lr_scheduler=linear_schedule(0, 100)(optimizer), global_steps=0, global_samples=0,
        micro_steps=0, train_batch_size=lambda: 4,
    )  # fmt: skip


def bits(step):
    return [RandomBits(key=torch.tensor([3, step], device=ON))]


class StubCapture:
    """Records by running, and replays by running anew; what the first run did to `kept` is undone, since a recording changes nothing."""

    def __init__(self, kept):
        self.kept, self.records, self.replays = kept, 0, 0

    def warm_up(self, run):
        run()

    def record(self, run):
        before = [tensor.detach().clone() for tensor in self.kept]
        outputs = run()
        with torch.no_grad():
            for tensor, value in zip(self.kept, before, strict=True):
                tensor.copy_(value)
        self.records += 1

        def replay():
            self.replays += 1
            for output, value in zip(outputs, run(), strict=True):
                output.copy_(value)

        return replay, outputs


def state_of(optimizer):
    """Every tensor that a step changes."""
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    return [*optimizer.copies, *optimizer.copies.values(), *moments, optimizer._steps, optimizer._powers, optimizer._scaler]


# ------------------------------------------------------------------------------------------------------------------- the optimizer


SHAPES = [(5, 72), (9,), (2100,), (2048,)]


def both(scale=None, max_norm=1.0, dtype=torch.float16, **settings):
    """A GpuAdamW and torch's AdamW in float64, on the same parameters in two groups."""
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape, device=ON)) for shape in SHAPES]
    theirs = [nn.Parameter(parameter.detach().double()) for parameter in ours]
    groups = lambda of: [{"params": of[:2], "weight_decay": 0.1}, {"params": of[2:], "weight_decay": 0.0, "lr": 3e-3}]  # noqa: E731
    mine = GpuAdamW(groups(ours), dtype, max_norm, scale, lr=1e-2, **settings)
    settings.pop("corrects", None)
    return mine, torch.optim.AdamW(groups(theirs), lr=1e-2, **settings), ours, theirs


def gradients(step, dtype=torch.float16):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator).to(dtype).to(ON) * (0.001 if step == 2 else 1) for shape in SHAPES]


@pytest.mark.parametrize("grad_dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("max_norm", [0.0, 1.0])
def test_steps_are_those_of_torch_in_float64(max_norm, grad_dtype):
    mine, reference, ours, theirs = both(max_norm=max_norm, betas=(0.8, 0.99), eps=1e-6)
    for step in range(6):
        given = gradients(step, grad_dtype)
        mine.take_step(given)
        for parameter, gradient in zip(theirs, given, strict=True):
            parameter.grad = gradient.double()
        if max_norm:
            nn.utils.clip_grad_norm_(theirs, max_norm)
        reference.step()
        for parameter, truth in zip(ours, theirs, strict=True):
            torch.testing.assert_close(parameter.double(), truth, rtol=2e-6, atol=2e-6)
            torch.testing.assert_close(mine.copies[parameter], parameter.half(), rtol=1e-3, atol=1e-7)


def test_a_parameter_without_a_gradient_stays_as_it_is():
    mine, _, ours, _ = both()
    before = ours[1].detach().clone()
    mine.take_step([None if index == 1 else gradient for index, gradient in enumerate(gradients(0))])
    assert torch.equal(ours[1], before) and not torch.equal(ours[0], both()[2][0])


def test_without_correction_the_moments_are_as_they_are():
    mine, reference, ours, theirs = both(corrects=False, max_norm=0.0)
    from bertfast.engine.optimizer import _leave_moments_uncorrected

    reference.register_step_pre_hook(_leave_moments_uncorrected)
    mine.take_step(gradients(0))
    for parameter, gradient in zip(theirs, gradients(0), strict=True):
        parameter.grad = gradient.double()
    reference.step()
    for parameter, truth in zip(ours, theirs, strict=True):
        torch.testing.assert_close(parameter.double(), truth, rtol=2e-6, atol=2e-6)


def test_a_loss_scale_goes_as_that_of_GradScaler():
    """With overflows at steps 1, 4 and 5: the scale, and which steps count."""
    mine, _, ours, _ = both(LossScale(first=2.0**10, window=3, hysteresis=1), max_norm=0.0)
    scaler = torch.amp.GradScaler(ON.type, init_scale=2.0**10, growth_interval=3)
    scaler._lazy_init_scale_growth_tracker(ON)
    for step in range(14):
        overflows = step in (1, 4, 5)
        before = ours[0].detach().clone()
        given = [gradient * mine.scale for gradient in gradients(step)]
        if overflows:
            given[2][7] = float("inf")
        mine.take_step([gradient.half() if not overflows else gradient for gradient in given])
        assert torch.equal(ours[0], before) == overflows
        found = torch.full((1,), float(overflows), device=ON)
        torch._amp_update_scale_(scaler._scale, scaler._growth_tracker, found, 2.0, 0.5, 3)
        assert mine.scale == scaler._scale, f"step {step}"
    assert mine.state_dict()["state"][0]["step"] == 11


@pytest.mark.parametrize("renews", [False, True])
def test_a_loss_scale_with_hysteresis_goes_down_as_that_of_DeepSpeed(renews, monkeypatch):
    """Up it goes after `window` steps, as torch's; DeepSpeed's takes one more."""
    scaling = pytest.importorskip("deepspeed.runtime.fp16.loss_scaler")
    monkeypatch.setattr(scaling.dist, "get_rank", lambda: 1)  # the first rank says what it does
    theirs = scaling.DynamicLossScaler(
        2.0**8, scale_window=1000, min_scale=4.0, delayed_shift=2, consecutive_hysteresis=renews, raise_error_at_min_scale=False
    )
    fp16 = {"initial_scale_power": 8, "loss_scale_window": 1000, "min_loss_scale": 4, "hysteresis": 2, "consecutive_hysteresis": renews}
    mine, *_ = both(loss_scale_of(fp16), max_norm=0.0)
    generator = torch.Generator().manual_seed(2)
    for step in range(24):
        overflows = torch.rand((), generator=generator).item() < (0.6 if step < 10 else 0.2)
        given = gradients(step)
        if overflows:
            given[0][0, 0] = float("nan")
        mine.take_step(given)
        theirs.update_scale(overflows)
        assert mine.scale == theirs.loss_scale, f"step {step}"


def test_state_goes_out_and_in():
    mine, _, ours, _ = both(LossScale(first=8.0))
    for step in range(3):
        mine.take_step(gradients(step))
    saved = torch.load(_through_file(mine.state_dict()), weights_only=False)
    weights = [parameter.detach().clone() for parameter in ours]
    again, _, parameters, _ = both(LossScale(first=8.0))
    with torch.no_grad():
        for parameter, value in zip(parameters, weights, strict=True):
            parameter.copy_(value)
    again.load_state_dict(saved)
    for optimizer in (mine, again):
        optimizer.take_step(gradients(3))
    assert all(torch.equal(a, b) for a, b in zip(ours, parameters, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(state_of(mine), state_of(again), strict=True))


def _through_file(saved):
    import io

    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return file


# ------------------------------------------------------------------------------------------------------------------------ the step


TWICE = ((9, 4, 30, 2), (8, 5, 29, 3))


def run(engine, step, lengths=((9, 4, 30, 2), (8, 5, 29, 3), (9, 6, 30, 3), (7, 4, 30, 4))):
    return [step.take([batch_of(list(of), seed=index).to(ON)], bits(index), loss_of, 4)[0].share.item() for index, of in enumerate(lengths)]


def test_recorded_steps_are_the_plain_ones():
    with use_backend("triton"):
        plain = engine_of(scale=LossScale(first=4.0))
        losses = run(plain, WholeStep(plain, None))
        engine = engine_of(scale=LossScale(first=4.0))
        capture = StubCapture(state_of(engine.optimizer))
        step = WholeStep(engine, capture, common_after=1)
        assert run(engine, step) == losses
    assert (step.counts["replayed"], step.counts["plain"], step.counts["graphs"]) == (3, 1, 1) and capture.replays == 3
    assert engine.global_steps == 4 and engine.lr_scheduler.last_epoch == 4
    assert all(torch.equal(a, b) for a, b in zip(state_of(plain.optimizer), state_of(engine.optimizer), strict=True))


def test_a_step_is_that_of_a_model_in_float32():
    """Without dropout, next to float32 throughout: losses agree within what 16 bits can."""
    with use_backend("triton"):
        engine = engine_of(p=0.0)
        ours = run(engine, WholeStep(engine, None))
    model = engine_of(p=0.0).module
    model.compute_dtype = None
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=1e-2)
    schedule = linear_schedule(0, 100)(optimizer)

    def take(batches, bits, loss_of, _):
        optimizer.zero_grad()
        loss = loss_of(lambda batch: model(batch, bits[0]), batches[0])
        loss.share.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        return [loss]

    with use_backend("torch"):
        theirs = run(None, SimpleNamespace(take=take))
    assert ours == pytest.approx(theirs, rel=5e-3)


def test_micro_steps_add_up():
    batch = batch_of([9, 4, 30, 2], seed=0).to(ON)
    with use_backend("triton"):
        one, two = engine_of(p=0.0), engine_of(p=0.0)
        WholeStep(one, None).take([batch], bits(0), loss_of)
        halved = lambda forward, batch: (loss := loss_of(forward, batch))._replace(share=loss.share / 2)  # noqa: E731
        WholeStep(two, None).take([batch, batch], bits(0) * 2, halved)
    for a, b in zip(one.optimizer.state.values(), two.optimizer.state.values(), strict=True):  # AdamW's first step takes signs alone
        torch.testing.assert_close(a["exp_avg"], b["exp_avg"], rtol=2e-3, atol=1e-5)


def test_a_recording_that_fails_leaves_the_plain_path_or_ends_the_run():
    class Failing(StubCapture):
        def record(self, run):
            raise RuntimeError("operation not permitted when stream is capturing")

    with use_backend("triton"):
        engine = engine_of()
        step = WholeStep(engine, Failing([]), strict=False, common_after=1)
        with pytest.warns(UserWarning, match="could not be recorded"):
            run(engine, step, TWICE)
        assert step.counts["plain"] == 2
        with pytest.raises(BertfastError, match="set bertfast.run.cuda_graphs to false"):
            run(engine, WholeStep(engine_of(), Failing([]), common_after=1), TWICE)


# -------------------------------------------------------------------------------------------------------------------- who takes it


def config(**changes):
    block = {"task": "sst2", "train_input": {"data_dir": "unused"}, "model": {"checkpoint": "unused"}}
    return load_config(
        {"optimizer": {"type": "AdamW"}, "zero_optimization": {"stage": 1}, "fp16": {"enabled": "auto"}, "bertfast": block, **changes}
    )


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, True),
        ({"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}, "fp16": {"enabled": False}}, True),
        ({"zero_optimization": {"stage": 3}}, False),
        ({"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}, False),
        ({"fp16": {"enabled": False}}, False),
        ({"optimizer": {"type": "Lamb"}, "zero_optimization": {"stage": 0}}, False),
        ({"wall_clock_breakdown": True}, False),
        ({"fp16": {"enabled": True, "fp16_master_weights_and_grads": True}}, False),
    ],
)
def test_who_takes_whole_steps(changes, taken):
    given = config(**changes)
    assert takes_whole_steps(given, 1, "cuda") is taken
    assert not takes_whole_steps(given, 2, "cuda") and not takes_whole_steps(given, 1, "cpu")
    resolved = resolve_deepspeed(given, BatchSizes(32, 32, 1, 1), 10, "cuda", 16)
    if taken:
        assert resolved["zero_optimization"]["stage"] == 0 and "fp16" not in resolved and "bf16" not in resolved


# ------------------------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("micro_steps", [1, 2])
def test_a_run_follows_that_of_DeepSpeed_and_resumes_exactly(micro_steps, tmp_path, monkeypatch):
    """The trainer's own loop in bf16, on a CPU that is told to step as a lone GPU does; then again from a checkpoint in the midst of it."""
    need_deepspeed()
    from bertfast.config import resolve
    from bertfast.engine import build
    from bertfast.training.trainer import Trainer

    config = write_task(tmp_path)
    config |= {
        "gradient_clipping": 0.1,
        "zero_optimization": {"stage": 1},
        "bf16": {"enabled": True},
        "gradient_accumulation_steps": micro_steps,
    }
    config["bertfast"]["run"] |= {
        "epochs": 2,
        "packing_invariant_dropout": True,
        "save_steps": 4,
        "keep_checkpoints": 10,
        "cuda_graphs": False,
    }
    config["bertfast"].pop("eval_input")

    def cut(optimizer):
        """Copies as Triton's interpreter writes them: it cuts float32 to bfloat16, where a GPU rounds to nearest, as torch does."""
        for parameter, copy in optimizer.copies.items():
            copy.data.copy_((parameter.detach().view(torch.int32) >> 16 << 16).view(torch.float32))

    monkeypatch.setattr(GpuAdamW, "refresh", cut)

    def fit(name, resume=False):
        config["bertfast"]["run"]["model_dir"] = str(tmp_path / name)
        return Trainer(load_config(config), device="cpu", resume=resume).fit()["training"]

    fit("theirs")
    for module in (resolve, build):
        monkeypatch.setattr(module, "takes_whole_steps", lambda *_: True)
        monkeypatch.setattr(resolve, "is_lone_cpu", lambda *_: False)
    result = fit("ours")
    assert result["zero_stage"] == 0 and result["precision"] == "bf16"
    truth, found = losses(tmp_path, "theirs"), losses(tmp_path, "ours")
    assert truth.keys() == found.keys() and len(truth) >= 8
    assert max(abs(found[step] - truth[step]) for step in truth) < 2e-2
    weights = load_file(tmp_path / "ours" / "model" / "model.safetensors")
    shutil.copytree(tmp_path / "ours", tmp_path / "again")
    for name in ("results.json", "model", "log.jsonl"):
        shutil.rmtree(tmp_path / "again" / name) if name == "model" else (tmp_path / "again" / name).unlink()
    for folder in (tmp_path / "again" / "checkpoints").iterdir():
        if folder.is_dir() and not folder.name.endswith("4"):
            shutil.rmtree(folder)
    fit("again", resume=True)
    again = load_file(tmp_path / "again" / "model" / "model.safetensors")
    assert weights.keys() == again.keys() and not [name for name in weights if not torch.equal(weights[name], again[name])]
