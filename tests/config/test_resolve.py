"""What DeepSpeed is given where the config leaves a block out, or says null."""

import copy
import json

import pytest

from bertfast.cli.parser import overrides, parse_command
from bertfast.config.deepspeed_keys import TOP_LEVEL_KEYS
from bertfast.config.files import read_json_or_yaml
from bertfast.config.load import load_config
from bertfast.config.resolve import BatchSizes, resolve_deepspeed
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
