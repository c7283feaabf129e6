"""What a load gives back: the rates are those of the config that goes on, as if it had been there from the first step."""

import pytest
import torch

from bertfast.config.load import load_config
from bertfast.config.resolve import resolve_batch_sizes
from bertfast.engine.ranks import start_ranks
from bertfast.engine.schedules import schedule
from tests.support.runs import need_deepspeed
from tests.support.tiny_bert import write_tiny_bert

SAVED, SHORT, LONG = 4, 6, 20  # the step of the checkpoint, and the lengths of the run that wrote it and of the one that goes on
RATE = 1e-3
PARTED = {"layer_learning_rate": [5e-4], "layer_learning_rate_decay": 0.5}


@pytest.fixture(scope="module")
def engine_of(tmp_path_factory):
    """engine_of(total_steps, deepspeed, **optimization): a new engine around a tiny classifier, for a run of so many steps."""
    need_deepspeed()
    from bertfast.engine.build import build_engine
    from bertfast.model.bert import BertClassifier

    folder, ranks = write_tiny_bert(tmp_path_factory.mktemp("bert"), num_labels=2), start_ranks("cpu", 1)

    def build(total_steps, deepspeed, rate=RATE, decay=0.01, **optimization):
        optimizer = {"type": "AdamW", "params": {"lr": rate, "weight_decay": decay}}
        block = {"task": "sst2", "model": {"checkpoint": str(folder)}, "train_input": {"batch_size": 4}, "optimization": optimization}
        config = load_config({"optimizer": optimizer, **deepspeed, "bertfast": block})
        return build_engine(BertClassifier.from_pretrained(str(folder)), config, resolve_batch_sizes(config, 1), total_steps, ranks, 3)

    return build


def after(engine, steps):
    """The engine's schedule after so many steps; its weights stay."""
    for _ in range(steps):
        engine.lr_scheduler.optimizer.step()  # with no gradient; torch's schedulers warn where there was none
        engine.lr_scheduler.step()
    return engine


def scheduler(kind, **params):
    return {"scheduler": {"type": kind, "params": {"warmup_num_steps": "auto", **params}}}


DIVIDED = {"zero_optimization": {"stage": 2}, "data_types": {"grad_accum_dtype": "fp32"}}
CASES = {
    "linear": ({}, {}),
    "linear-under-zero-2": (DIVIDED, {}),
    "cosine": ({}, {"schedule": "cosine"}),
    "slanted": ({}, {"schedule": "slanted_triangular"}),
    "rates-by-layer": ({}, PARTED),
    "thawing": ({}, {**PARTED, "unfreeze_epochs": 1}),
    "WarmupLR": (scheduler("WarmupLR"), {}),
    "WarmupDecayLR": (scheduler("WarmupDecayLR", total_num_steps="auto"), {}),
    "WarmupDecayLR-under-zero-2": (scheduler("WarmupDecayLR", total_num_steps="auto") | DIVIDED, {}),
    "WarmupCosineLR": (scheduler("WarmupCosineLR", total_num_steps="auto"), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_rates_after_a_load_are_those_of_the_new_length(case, engine_of, tmp_path):
    from bertfast.engine.state import load_training_state

    deepspeed, optimization = CASES[case]
    after(engine_of(SHORT, deepspeed, **optimization), SAVED).save_checkpoint(str(tmp_path), tag="state", client_state={"step": SAVED})
    resumed, truth = engine_of(LONG, deepspeed, **optimization), after(engine_of(LONG, deepspeed, **optimization), SAVED)
    assert load_training_state(resumed, tmp_path)["step"] == SAVED
    for step in range(SAVED, LONG):
        assert resumed.get_lr() == truth.get_lr(), step
        if not optimization and not deepspeed.get("scheduler"):
            assert resumed.get_lr()[0] == RATE * schedule("linear", LONG // 10, LONG)(step)
        for engine in (resumed, truth):
            after(engine, 1)


def test_another_rate_and_decay_are_not_overruled_by_the_optimizer_s_state(engine_of, tmp_path):
    """Where whoever resumes has allowed them: the state keeps the old ones with the moments."""
    from bertfast.engine.state import load_training_state

    written = after(engine_of(SHORT, {}), SAVED)
    written.save_checkpoint(str(tmp_path), tag="state", client_state={})
    resumed = engine_of(SHORT, {}, rate=3 * RATE, decay=0.5)
    load_training_state(resumed, tmp_path)
    assert resumed.get_lr() == pytest.approx([3 * rate for rate in written.get_lr()])
    assert [group["weight_decay"] for group in resumed.optimizer.param_groups] == [0.5, 0.0]


def test_a_schedule_of_torch_s_own_is_loaded_as_it_was(engine_of, tmp_path):
    from bertfast.engine.state import load_training_state, schedule_follows_config

    block = {"scheduler": {"type": "StepLR", "params": {"step_size": 3}}}
    written = after(engine_of(SHORT, block), SAVED)
    written.save_checkpoint(str(tmp_path), tag="state", client_state={})
    resumed = engine_of(LONG, block)
    load_training_state(resumed, tmp_path)
    assert not schedule_follows_config(resumed) and resumed.get_lr() == written.get_lr() == pytest.approx([RATE / 10] * 2)
    assert isinstance(resumed.lr_scheduler, torch.optim.lr_scheduler.StepLR)
