"""What DeepSpeed is given where the config leaves a block out, or says null."""

import copy
import json

import pytest
import torch

from bertfast.cli.parser import overrides, parse_command
from bertfast.config import resolve
from bertfast.config.deepspeed.keys import TOP_LEVEL_KEYS
from bertfast.config.files import read_json_or_yaml
from bertfast.config.load import load_config
from bertfast.config.resolve import BatchSizes, check_optimizer_fits, resolve_deepspeed, resolve_precision
from bertfast.errors import ConfigError
from tests.support import ROOT

SHIPPED = sorted((ROOT / "configs").iterdir())
MNLI = json.loads((ROOT / "configs" / "ds_mnli.json").read_text())


def resolved(config, *settings, device="cpu"):
    return resolve_deepspeed(load_config(config, list(settings)), BatchSizes(32, 32, 1, 1), 10, device, 128)


def without(config, place):
    config = copy.deepcopy(config)
    *parents, last = place.split(".")
    block = config
    for parent in parents:
        block = block[parent]
    block.pop(last, None)
    return config


@pytest.mark.parametrize("key", sorted(TOP_LEVEL_KEYS))
def test_null_for_one_of_deepspeed_s_keys_leaves_it_out(key):
    assert load_config(MNLI, [f"{key}=null"]).deepspeed == without(without(MNLI, key), "bertfast")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "place",
    [
        "scheduler",
        "optimizer",
        "fp16",
        "bf16",
        "zero_optimization",
        "gradient_clipping",
        "train_batch_size",
        "optimizer.params",
        "optimizer.params.weight_decay",
        "scheduler.params",
        "zero_optimization.offload_optimizer",
    ],
)
def test_what_is_null_is_resolved_as_what_is_left_out(place, device):
    assert resolved(MNLI, f"{place}=null", device=device) == resolved(without(MNLI, place), device=device)


def test_a_block_that_was_null_may_be_filled_again():
    given = resolved(MNLI, "scheduler=null", "scheduler.type=WarmupLR")["scheduler"]
    assert given["type"] == "WarmupLR" and "total_num_steps" not in given["params"]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_rates_by_layer_over_a_shipped_config(file):
    """All of them have a scheduler block, which sets one rate for all parameters."""
    words = ["train", "--config", str(file), "--layer_learning_rate_decay", "0.95"]
    assert "scheduler" in read_json_or_yaml(file)
    with pytest.raises(ConfigError, match="layer_learning_rate_decay = 0.95 contradicts the scheduler block.* --set scheduler=null"):
        resolved(str(file), *overrides(parse_command(words)), device="cuda")
    given = resolved(str(file), *overrides(parse_command([*words, "--set", "scheduler=null"])), device="cuda")
    assert "scheduler" not in given and given["optimizer"]["type"] == "AdamW"


BARE = {"bertfast": MNLI["bertfast"]}
PLAIN = {"type": "AdamW", "params": {"lr": 3e-5, "weight_decay": 0.01}}


@pytest.mark.parametrize(
    ("block", "wanted"),
    [
        pytest.param(None, PLAIN, id="no-block"),
        pytest.param({}, PLAIN, id="an-empty-one"),
        pytest.param({"params": {"lr": 2e-5}}, {"type": "AdamW", "params": {"lr": 2e-5, "weight_decay": 0.01}}, id="a-rate-alone"),
        pytest.param({"params": {"weight_decay": 0.1}}, {"type": "AdamW", "params": {"lr": 3e-5, "weight_decay": 0.1}}, id="decay-alone"),
        pytest.param({"params": {"weight_decay": 0}}, {"type": "AdamW", "params": {"lr": 3e-5, "weight_decay": 0}}, id="no-decay"),
        pytest.param({"params": {"eps": "auto"}}, {"type": "AdamW", "params": {**PLAIN["params"], "eps": 1e-8}}, id="an-auto"),
        pytest.param(
            {"type": "AdamW", "params": {"lr": 2e-5}}, {"type": "AdamW", "params": {"lr": 2e-5}}, id="a-type-and-deepspeed-s-decay"
        ),
        pytest.param({"type": "Lamb"}, {"type": "Lamb", "params": {"lr": 3e-5}}, id="a-type-alone"),
    ],
)
def test_an_optimizer_without_a_type_is_the_default_with_its_other_params(block, wanted):
    config = BARE if block is None else {**BARE, "optimizer": block}
    assert resolved(config)["optimizer"] == wanted


def test_a_rate_set_over_a_config_without_an_optimizer_changes_the_rate_alone():
    plain, given = resolved(BARE), resolved(BARE, "optimizer.params.lr=2e-5")
    assert given.pop("optimizer") == {"type": "AdamW", "params": {**plain.pop("optimizer")["params"], "lr": 2e-5}} and given == plain


@pytest.mark.parametrize(("value", "wanted"), [(None, 1.0), ("auto", 1.0), (0, 0), (0.5, 0.5)])
def test_clipping_is_written_down(value, wanted):
    config = BARE if value is None else {**BARE, "gradient_clipping": value}
    assert resolved(config)["gradient_clipping"] == wanted


def test_no_auto_is_left():
    """Every "auto" that is let through is worked out."""
    everywhere = {
        "fp16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "optimizer": {"type": "AdamW", "params": dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")},
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": dict.fromkeys(("warmup_num_steps", "total_num_steps", "warmup_min_lr", "warmup_max_lr"), "auto"),
        },
        "zero_optimization": dict.fromkeys(
            ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"), "auto"
        ),
    }
    for device in ("cpu", "cuda"):
        assert '"auto"' not in json.dumps(resolved({**BARE, **everywhere}, device=device))
        assert resolved({**BARE, "bf16": {"enabled": "auto"}}, device=device).get("bf16", {}).get("enabled", False) is False


@pytest.mark.parametrize("kind", ["WarmupLR", "WarmupDecayLR", "WarmupCosineLR"])
def test_deepspeed_s_warm_ups_rise_linearly_to_the_rate_and_fall_by_the_end(kind):
    schedules = pytest.importorskip("deepspeed.runtime.lr_schedules", reason="deepspeed is not installed")
    block = resolved(BARE, f"scheduler.type={kind}", "scheduler.params.warmup_num_steps=4", "optimizer.params.lr=0.5")["scheduler"]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler, rates = getattr(schedules, kind)(optimizer, **block["params"]), []
    for step in range(11):
        scheduler.step(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:4] == pytest.approx([0, 0.125, 0.25, 0.375])
    assert rates[4] == pytest.approx(0.5, rel=0.1)  # its cosine is one step ahead
    assert rates[10] == pytest.approx(0.5 if kind == "WarmupLR" else 0, abs=1e-4)


FITS = [
    pytest.param({"type": "Lamb"}, {}, "cpu", "compiles it for GPUs alone", id="lamb-on-a-cpu"),
    pytest.param({"type": "Lamb"}, {"zero_allow_untested_optimizer": True}, "cuda", None, id="lamb-on-a-gpu"),
    pytest.param({"type": "lion"}, {}, "cpu", "set optimizer.type=AdamW", id="lion-on-a-cpu"),
    pytest.param({"type": "lion"}, {"offload": True}, "cpu", None, id="lion-on-the-host"),
    pytest.param({"type": "SGD"}, {"zero_optimization": {"stage": 1}}, "cuda", "set zero_allow_untested_optimizer=true", id="untested"),
    pytest.param({"type": "SGD"}, {"zero_optimization": {"stage": 1}}, "lone cpu", None, id="untested-with-nothing-to-divide"),
    pytest.param({"type": "Muon"}, {"zero_optimization": {"stage": 1}}, "cuda", "gradient_clipping = 1, so that", id="muon-clips-unsaid"),
    pytest.param(
        {"type": "muon"}, {"zero_optimization": {"stage": 2}, "gradient_clipping": 2.0}, "cpu", "set gradient_clipping=0", id="muon-2"
    ),
    pytest.param(
        {"type": "Muon"}, {"zero_optimization": {"stage": 3}, "gradient_clipping": 0}, "cuda", "reduce_scatter=false", id="muon-3"
    ),
    pytest.param({"type": "Muon"}, {"zero_optimization": {"stage": 2}, "gradient_clipping": 0}, "cuda", None, id="muon-unclipped"),
    pytest.param({"type": "Muon"}, {"zero_optimization": {"stage": 2}}, "lone cpu", None, id="muon-with-nothing-to-divide"),
    pytest.param({"type": "Muon"}, {}, "cuda", None, id="muon-undivided"),
    pytest.param({}, {"zero_optimization": {"stage": 1, "compute_grad_norm": False}}, "cuda", "clips at 1", id="norm-for-clipping"),
    pytest.param({}, {"zero_optimization": {"stage": 1, "compute_grad_norm": False}, "gradient_clipping": 0}, "cuda", None, id="no-norm"),
    pytest.param({}, {"zero_optimization": {"stage": 0, "compute_grad_norm": False}}, "lone cpu", "has stage 0", id="norm-undivided"),
]


@pytest.mark.parametrize(("optimizer", "more", "device", "words"), FITS)
def test_an_optimizer_that_deepspeed_cannot_build_or_divide_is_refused(optimizer, more, device, words):
    if more.get("offload"):
        more = {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}
    config = load_config({**BARE, **more, "optimizer": optimizer})
    place = (1, "cpu") if device == "lone cpu" else (2, device)
    if words is None:
        check_optimizer_fits(config, *place)
    else:
        with pytest.raises(ConfigError) as error:
            check_optimizer_fits(config, *place)
        assert words in str(error.value) and "\n" not in str(error.value)


def test_precisions_of_deepspeed_s_copies_keep_its_copies():
    block = {"enabled": True, "bf16_master_weights_and_grads": True}
    given = resolved({**BARE, "zero_optimization": {"stage": 1}, "bf16": block})
    assert given["bf16"] == block and given["zero_optimization"]["stage"] == 1


@pytest.mark.parametrize(
    ("bf16", "fp16", "device", "has", "precision"),
    [
        ("auto", None, "cpu", True, "bf16"),
        ("auto", None, "cpu", False, "fp32"),
        ("auto", "auto", "cpu", True, "bf16"),
        ("auto", "auto", "cuda", True, "fp16"),
        ("auto", None, "cuda", True, "fp32"),
        (None, "auto", "cpu", True, "fp32"),
        (False, None, "cpu", True, "fp32"),
        (True, None, "cpu", False, "bf16"),
    ],
)
def test_auto_is_bf16_on_a_cpu_that_has_its_instructions(bf16, fp16, device, has, precision, monkeypatch):
    monkeypatch.setattr(resolve, "has_bf16", lambda: has)
    given = {name: {"enabled": value} for name, value in (("bf16", bf16), ("fp16", fp16)) if value is not None}
    assert resolve_precision(given, device) == precision
