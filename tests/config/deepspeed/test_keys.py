"""Every key of the installed DeepSpeed is honoured, refused or passed on; what is honoured is shown to arrive."""

import json

import pytest

from bertfast.config.deepspeed.keys import HONOURED, NESTED_KEYS, TOP_LEVEL_KEYS, VALUES
from bertfast.config.deepspeed.places import at
from bertfast.config.deepspeed.refused import REFUSED
from bertfast.config.load import load_config
from bertfast.config.resolve import BatchSizes, resolve_batch_sizes, resolve_deepspeed
from bertfast.errors import ConfigError

BASE = {"bertfast": {"task": "mnli", "model": {"checkpoint": "bert-base-uncased"}}}
NO_DEEPSPEED = "deepspeed is not installed: its own classes are the truth here"


def given(place, value):
    return load_config(BASE, [f"{place}={json.dumps(value)}"])


# ------------------------------------------------------------------------------------------------------------ the tables are whole


class Asked(dict):
    """A block that notes which of its keys DeepSpeed asks for, in whatever way."""

    def __init__(self, values=(), asked=None):
        super().__init__(values)
        self.asked = set() if asked is None else asked

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key):
        self.asked.add(key)
        return super().__contains__(key)

    def keys(self):
        return self

    def __copy__(self):
        return Asked(super().items(), self.asked)


READ_BY_HAND = {
    "aio": {},
    "checkpoint": {"writer": None},
    "data_types": {},
    "flops_profiler": {},
    "timers": {"throughput": {}},
    "optimizer": {"type": "AdamW", "params": {}},
    "scheduler": {"type": "WarmupLR", "params": {}},
}


def test_the_keys_are_those_that_the_installed_deepspeed_asks_for():
    """A new release that asks for another key fails here: it is to be honoured, refused or passed on."""
    config = pytest.importorskip("deepspeed.runtime.config", reason=NO_DEEPSPEED)
    blocks = {name: Asked(values) for name, values in READ_BY_HAND.items()}
    raw = Asked({"train_batch_size": 1, **blocks})
    config.DeepSpeedConfig(raw)
    assert raw.asked | {"sequence_parallel_size"} == TOP_LEVEL_KEYS  # which it asks for where there is a process group
    assert {name: block.asked for name, block in blocks.items()} == {name: NESTED_KEYS[name] for name in READ_BY_HAND}


def models():
    from deepspeed.monitor import config as monitor
    from deepspeed.runtime import precision_config
    from deepspeed.runtime.zenflow.zenflow_config import ZenFlowConfig
    from deepspeed.runtime.zero import config as zero
    from deepspeed.runtime.zero.leaf_module_config import DeepSpeedZeroLeafModuleConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    return {
        "bf16": precision_config.DeepSpeedBF16Config,
        "fp16": precision_config.DeepSpeedFP16Config,
        "zero_optimization": zero.DeepSpeedZeroConfig,
        "zero_optimization.leaf_module": DeepSpeedZeroLeafModuleConfig,
        "zero_optimization.offload_param": zero.DeepSpeedZeroOffloadParamConfig,
        "zero_optimization.offload_optimizer": zero.DeepSpeedZeroOffloadOptimizerConfig,
        "zero_optimization.zenflow": ZenFlowConfig,
        "timers.throughput": DeepSpeedThroughputTimerConfig,
        "tensorboard": monitor.TensorBoardConfig,
        "csv_monitor": monitor.CSVConfig,
        "wandb": monitor.WandbConfig,
        "comet": monitor.CometConfig,
    }


def test_the_blocks_are_the_models_of_the_installed_deepspeed():
    pytest.importorskip("deepspeed", reason=NO_DEEPSPEED)
    removed = {place.rpartition(".")[2] for place, refused in REFUSED.items() if refused.removed}
    for block, model in models().items():
        fields = model.model_fields
        read = set(fields) | {field.alias for field in fields.values() if field.alias}
        assert read == NESTED_KEYS[block] - removed, block
    assert set(models()) | set(READ_BY_HAND) == set(NESTED_KEYS)


def test_a_key_is_one_of_three():
    places = TOP_LEVEL_KEYS | {f"{block}.{key}" for block, known in NESTED_KEYS.items() for key in known}
    assert places >= HONOURED
    assert places | {"optimizer.params.max_grad_norm"} >= set(REFUSED)
    assert not HONOURED & set(REFUSED)
    assert {place for place in VALUES if not place.startswith(("optimizer.params.", "scheduler.params."))} <= places
    assert not set(VALUES) & set(REFUSED) - {"fp16.auto_cast"} - {place for place in REFUSED if place.startswith("zero_optimization.")}


# -------------------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("place", sorted(REFUSED))
def test_a_refused_key_is_named_with_what_to_write(place):
    refused = REFUSED[place]
    on = {"enabled": True} if "." not in place else True
    for value in (on, "on", 7):
        with pytest.raises(ConfigError) as error:
            given(place, value)
        assert str(error.value) == f"--set {place}={json.dumps(value)}: {place} = {json.dumps(value)}: {refused.why}"
    for value in (False, {}, {"enabled": False}) if refused.removed else ():
        with pytest.raises(ConfigError, match="even where it is off"):
            given(place, value)
    for value in refused.fine:
        given(place, value)
    if not place.startswith("optimizer.params."):
        given(place, None)


@pytest.mark.parametrize("place", sorted(place for place, refused in REFUSED.items() if not refused.removed and "." not in place))
@pytest.mark.parametrize("value", [False, {}, {"enabled": False, "more": 3}, {"one": False, "two": None}], ids=str)
def test_what_is_off_changes_nothing_and_is_let_through(place, value):
    assert given(place, value).deepspeed.keys() == {place}


def test_removed_are_the_keys_that_deepspeed_has_removed():
    config = pytest.importorskip("deepspeed.runtime.config", reason=NO_DEEPSPEED)
    zero = {f"zero_optimization.{key}" for key in config._REMOVED_ZERO_CONFIG_KEYS}
    assert {place for place, refused in REFUSED.items() if refused.removed} == set(config._REMOVED_TOP_LEVEL_CONFIG_KEYS) | zero


# --------------------------------------------------------------------------------------------------------------------------- values


def values_of(place):
    block, _, key = place.rpartition(".")
    for value in (-1, 0, 1, 0.5, 2.0, 5e8, True, False, "x", "cpu", "0", [], {}):
        yield block, key, value


def test_a_value_that_is_let_through_is_one_that_deepspeed_takes():
    pytest.importorskip("deepspeed", reason=NO_DEEPSPEED)
    from pydantic import ValidationError

    known, checked = models(), 0
    for place, (can_be, _) in VALUES.items():
        for block, key, value in values_of(place):
            if block in known and can_be(value):
                checked += 1
                try:
                    fault = known[block](**{key: value}) and None
                except ValidationError as error:
                    fault = [item["msg"] for item in error.errors() if item["loc"] == (key,)]  # others are of keys that go together
                assert not fault, (place, value, fault)
    assert checked > 100


@pytest.mark.parametrize(
    "settings, words",
    [
        pytest.param(["zero_optimization.reduce_bucket_size=0"], "= 0: it must be a whole number from 1 on", id="no-bucket"),
        pytest.param(["zero_optimization.overlap_comm=yes"], '= "yes": it must be true or false', id="not-a-switch"),
        pytest.param(["fp16.loss_scale=-1"], "it must be a number from 0 on", id="loss-scale"),
        pytest.param(["log_level=loud"], "'debug', 'info', 'warning', 'error' or 'critical'", id="log-level"),
        pytest.param(["checkpoint.tag_validation=x"], "'Warn', 'Ignore' or 'Fail'", id="tag-validation"),
        pytest.param(["scheduler.type=WarmupLR", "scheduler.params.warmup_type=cubic"], "'linear' or 'log'", id="warmup"),
        pytest.param(["scheduler.type=WarmupLR", "scheduler.params.warmup_num_steps=2.5"], "whole number", id="half-a-step"),
        pytest.param(["zero_optimization.sub_group_size=auto"], "bertfast does not know what that would be", id="auto"),
        pytest.param(["zero_optimization.offload_optimizer.device=cpu"], "it needs ZeRO stage 1 or more, not 0", id="offload-at-0"),
        pytest.param(
            ["zero_optimization.stage=2", "zero_optimization.offload_param.device=cpu"],
            "it needs ZeRO stage 3, not 2",
            id="parameters-at-2",
        ),
        pytest.param(
            ["zero_optimization.stage=2", 'zero_optimization.offload_optimizer={"device": "nvme", "nvme_path": "x"}'],
            "it needs ZeRO stage 3, not 2",
            id="disk-at-2",
        ),
        pytest.param(
            ["zero_optimization.stage=3", "zero_optimization.offload_optimizer.device=nvme"], "nvme_path is missing", id="no-disk"
        ),
        pytest.param(
            ["zero_optimization.stage=2", 'zero_optimization.offload_optimizer={"device": "cpu", "ratio": 0.5}'],
            "ratio = 0.5: it needs ZeRO stage 3",
            id="a-part-at-2",
        ),
        pytest.param(["bf16.bf16_master_weights_and_grads=true"], "it needs ZeRO stage 1 or more", id="masters-at-0"),
        pytest.param(["zero_optimization.stage=1", "bf16.bf16_optimizer_states=true"], "bf16_master_weights_and_grads=true", id="states"),
    ],
)
def test_values_that_deepspeed_would_refuse_after_the_data_was_read(settings, words):
    with pytest.raises(ConfigError) as error:
        load_config(BASE, settings)
    assert str(error.value).startswith("--set ") and words in str(error.value) and "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------------------------- honoured


def parsed(settings, device="cpu"):
    """What DeepSpeed has read of a config that says so, of 2 ranks."""
    from deepspeed.runtime.config import DeepSpeedConfig

    resolved = resolve_deepspeed(load_config(BASE, settings), BatchSizes(32, 16, 1, 2), 10, device, 128)
    return DeepSpeedConfig({**resolved, "train_batch_size": 16})


HOLDERS = {  # block -> the part of DeepSpeed's config that holds it
    "fp16": "float16_config",
    "bf16": "bfloat16_config",
    "tensorboard": "monitor_config.tensorboard",
    "csv_monitor": "monitor_config.csv_monitor",
    "wandb": "monitor_config.wandb",
    "comet": "monitor_config.comet",
    "flops_profiler": "flops_profiler_config",
    "timers.throughput": "timers_config",
    "zero_optimization": "zero_config",
    "zero_optimization.offload_optimizer": "zero_config.offload_optimizer",
    "zero_optimization.offload_param": "zero_config.offload_param",
    "": "",
}
SHOWN = {  # place -> a value that is not the default
    "bf16.enabled": True,
    **{f"fp16.{key}": 3 for key in ("hysteresis", "initial_scale_power", "loss_scale", "loss_scale_window", "min_loss_scale")},
    "fp16.enabled": True,
    "fp16.consecutive_hysteresis": True,
    **{f"{block}.enabled": True for block in ("tensorboard", "csv_monitor", "wandb", "comet", "flops_profiler")},
    **{f"{block}.{key}": "x" for block in ("tensorboard", "csv_monitor") for key in ("job_name", "output_path")},
    **{f"wandb.{key}": "x" for key in ("group", "project", "team")},
    **{f"comet.{key}": "x" for key in ("api_key", "experiment_key", "experiment_name", "mode", "project", "workspace")},
    "comet.online": False,
    "comet.samples_log_interval": 7,
    **{f"flops_profiler.{key}": 3 for key in ("module_depth", "profile_step", "recompute_fwd_factor", "top_modules")},
    "flops_profiler.detailed": False,
    "flops_profiler.output_file": "x",
    "timers.throughput.enabled": False,
    "timers.throughput.synchronized": False,
    "zero_optimization.stage": 3,
    "zero_optimization.offload_optimizer.device": "cpu",
    "zero_optimization.offload_param.device": "cpu",
    "gradient_clipping": 0.5,
    "log_level": "error",
    "steps_per_print": 7,
    **dict.fromkeys(("disable_python_gc", "dump_state", "memory_breakdown", "wall_clock_breakdown", "zero_allow_untested_optimizer"), True),
}
NAMED = {  # what arrives in other words, or is shown below
    "optimizer.type": ("SGD", "optimizer_name"),
    "scheduler.type": ("WarmupLR", "scheduler_name"),
}
BATCH = {"gradient_accumulation_steps", "train_batch_size", "train_micro_batch_size_per_gpu"}


def test_every_honoured_key_is_shown_to_arrive():
    assert set(SHOWN) | set(NAMED) | BATCH == HONOURED


@pytest.mark.parametrize("place", sorted(SHOWN))
def test_an_honoured_key_arrives(place):
    pytest.importorskip("deepspeed", reason=NO_DEEPSPEED)
    block, _, key = place.rpartition(".")
    needs = ["zero_optimization.stage=3"] if "offload" in place else []
    settings, device = [*needs, f"{place}={json.dumps(SHOWN[place])}"], "cuda" if block == "fp16" else "cpu"

    def arrived(settings):
        found = parsed(settings, device)
        for part in [*filter(None, HOLDERS[block].split(".")), key]:
            found = getattr(found, part, None)
        return found

    assert arrived(needs) != SHOWN[place] == arrived(settings)


@pytest.mark.parametrize("place", sorted(NAMED))
def test_an_honoured_type_arrives(place):
    pytest.importorskip("deepspeed", reason=NO_DEEPSPEED)
    value, attribute = NAMED[place]
    assert getattr(parsed([]), attribute) != value == getattr(parsed([f"{place}={value}"]), attribute)


@pytest.mark.parametrize(
    "settings, expected",
    [
        ([], (32, 16, 1)),
        (["train_batch_size=64"], (64, 32, 1)),
        (["train_micro_batch_size_per_gpu=4", "train_batch_size=64"], (64, 4, 8)),
        (["gradient_accumulation_steps=4"], (32, 4, 4)),
    ],
)
def test_batch_sizes_arrive(settings, expected):
    assert resolve_batch_sizes(load_config(BASE, settings), 2) == BatchSizes(*expected, 2)


def test_a_place_is_found_where_it_is_and_nowhere_else():
    assert at({"a": {"b": 0}}, "a.b") == 0 and at({"a": 3}, "a.b") is None and at({}, "a") is None
