"""Replays in the place of the plain forward and backward, with a stub in the place of CUDA's recorder: static memory, shapes, rules and losses."""

import json
from typing import ClassVar

import numpy as np
import pytest
import torch

from bertfast.config.load import load_config
from bertfast.config.resolve import BatchSizes
from bertfast.engine.cuda_graphs import GraphedForward, graphs_for, obstacle
from bertfast.errors import BertfastError, ConfigError
from bertfast.model.bert import BertClassifier, RandomBits
from bertfast.model.losses import loss_sum
from bertfast.packing.buckets import bucket_of, padded
from tests.model.test_bert import bert_config
from tests.packing.test_buckets import packed
from tests.support.runs import losses, need_deepspeed, write_task
from tests.support.tolerances import GRADIENT, LOSSES_ZERO_STAGES

KEY = torch.tensor([3, 4])


class StubCapture:
    """Replays by calling the function again, and writes its outputs into the memory of the first call's. As memory is shared on a GPU, each record
    and each replay destroys whatever all others have handed out as unowned."""

    made: ClassVar[list] = []

    def __init__(self, device=None):
        self.records, self.replays, self.warmed, self._lent = 0, 0, 0, []
        StubCapture.made.append(self)

    def warm_up(self, run):
        self.warmed += 1
        run()

    def record(self, run):
        assert self.warmed > self.records // 2, "recorded before it was warmed up"
        self.records += 1
        self._destroy()
        outputs = tuple(None if output is None else output.detach().clone() for output in run())

        def replay():
            self.replays += 1
            self._destroy()
            for output, value in zip(outputs, run(), strict=True):
                if output is not None:
                    output.copy_(value.detach())

        return replay, outputs

    def unowned(self, tensor):
        self._lent.append(tensor)
        return tensor

    def _destroy(self):
        for tensor in self._lent:
            tensor.fill_(float("nan"))


def tiny(p=0.1, **changes):
    torch.manual_seed(1)
    return BertClassifier(
        bert_config(16, num_labels=3, num_hidden_layers=2, hidden_dropout_prob=p, attention_probs_dropout_prob=p, **changes)
    )


def batch_of(lengths, seed=0):
    batch = packed(lengths, seed=seed)
    return padded(batch, bucket_of(batch.extent))


def gradients_of(model, batch, step):
    model.zero_grad()
    logits = model(batch, RandomBits(key=torch.tensor([3, step])))
    loss_sum(logits, batch.labels).backward()
    return logits.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


SHORT, LONG = [5, 9, 2, 7], [40, 33, 12, 20, 25]  # of two buckets


@pytest.mark.parametrize("recomputes", [False, True], ids=["", "recomputing"])
@pytest.mark.parametrize("lends", [True, False], ids=["lent", "copied"])
def test_replays_give_what_the_plain_path_gives(lends, recomputes):
    """Buckets in turn, new ids, lengths and keys each time: the static memory must hold those of now."""
    plain, model = tiny().train(), tiny().train()
    capture = StubCapture()
    model.forward = graphed = GraphedForward(model, capture, lends, common_after=1)
    model.layers[0].recomputes = recomputes
    for step in range(8):
        lengths = np.random.default_rng(step).permutation(SHORT if step % 2 else LONG).tolist()
        batch = batch_of(lengths, seed=step)
        (wanted, gradients), (ours, our_gradients) = gradients_of(plain, batch, step), gradients_of(model, batch, step)
        assert torch.equal(ours, wanted)
        assert all(torch.equal(our_gradients[name], gradients[name]) for name in gradients)
    assert graphed.counts == {"graphs": 2, "replayed": 6, "plain": 2}
    assert (capture.records, capture.warmed, capture.replays) == (4, 2, 12)


def test_micro_steps_add_up():
    plain, model = tiny().train(), tiny().train()
    model.forward = GraphedForward(model, StubCapture(), lends=False, common_after=0)
    for one in (plain, model):
        for step, lengths in enumerate([SHORT, LONG, SHORT, SHORT, LONG]):
            batch = batch_of(lengths, seed=step)
            loss_sum(one(batch, RandomBits(key=KEY)), batch.labels).backward()
    for (name, ours), wanted in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad - wanted.grad).norm() <= GRADIENT * max(wanted.grad.norm(), 1e-2), name


def test_rare_sizes_and_those_beyond_the_bound_take_the_plain_path():
    model, capture = tiny().train(), StubCapture()
    model.forward = graphed = GraphedForward(model, capture, lends=True, common_after=2, most=1)
    for lengths in (LONG, LONG, SHORT, SHORT, SHORT, LONG, LONG, SHORT):
        gradients_of(model, batch_of(lengths), 0)
    assert graphed.counts == {"graphs": 1, "replayed": 2, "plain": 6}
    assert capture.records == 2


def test_evaluation_and_batches_that_are_not_padded_or_have_no_key_take_the_plain_path():
    model, capture = tiny().train(), StubCapture()
    model.forward = GraphedForward(model, capture, lends=True, common_after=0)
    gradients_of(model, packed(SHORT), 0)
    batch = batch_of(SHORT)
    model(batch, None)
    with torch.no_grad():
        model(batch, RandomBits(key=KEY))
    logits = model.eval()(batch)
    assert capture.records == 0 and torch.equal(logits, tiny().eval()(batch))


def test_frozen_and_unused_parameters_have_no_gradient():
    model = tiny(bertfast_head={"pooler": True}).train()
    model.embeddings.requires_grad_(False)
    model.spare = torch.nn.Parameter(torch.zeros(3))
    model.forward = GraphedForward(model, StubCapture(), lends=True, common_after=0)
    _, gradients = gradients_of(model, batch_of(SHORT), 0)
    assert "spare" not in gradients and not any(name.startswith("embeddings") for name in gradients) and "classifier.weight" in gradients


def test_weights_that_moved_are_recorded_anew():
    model, capture = tiny(p=0.0).train(), StubCapture()
    model.forward = GraphedForward(model, capture, lends=True, common_after=0)
    before, _ = gradients_of(model, batch_of(SHORT), 0)
    model.classifier.weight.data = model.classifier.weight.data * 2
    after, _ = gradients_of(model, batch_of(SHORT), 0)
    assert capture.records == 4
    assert torch.allclose(after, 2 * before, atol=1e-6)


def test_a_backward_that_comes_too_late_is_an_error():
    model = tiny().train()
    model.forward = GraphedForward(model, StubCapture(), lends=True, common_after=0)
    batch = batch_of(SHORT)
    first = model(batch, RandomBits(key=KEY))
    model(batch, RandomBits(key=KEY))
    with pytest.raises(RuntimeError, match="between a forward and its backward"):
        first.sum().backward()


class FaultyCapture(StubCapture):
    def record(self, run):
        raise RuntimeError("operation not permitted when stream is capturing")


def test_a_recording_that_fails_ends_the_run_only_where_it_was_asked_for():
    batch, model = batch_of(SHORT), tiny().train()
    plain = model.forward
    model.forward = graphed = GraphedForward(model, FaultyCapture(), lends=True, strict=False, common_after=0)
    wanted, _ = gradients_of(tiny().train(), batch, 5)
    with pytest.warns(UserWarning, match="off from here on.*not permitted"):
        assert torch.equal(gradients_of(model, batch, 5)[0], wanted)
    assert "not permitted" in graphed.fault and graphed.counts["plain"] == 1
    model.forward = plain
    model.forward = GraphedForward(model, FaultyCapture(), lends=True, strict=True, common_after=0)
    with pytest.raises(BertfastError, match="tokens=64.*not permitted.*cuda_graphs to false"):
        gradients_of(model, batch, 5)


# ------------------------------------------------------------------------------------------------------------------------------- the rules


def config_of(deepspeed=None, **blocks):
    return load_config(
        {
            **(deepspeed or {}),
            "bertfast": {"model": {"checkpoint": "bert"}, **({"task": "sst2"} if "multitask" not in blocks else {}), **blocks},
        }
    )


OBSTACLES = [
    pytest.param({"zero_optimization": {"stage": 3}}, {}, "stage 3", id="zero-3"),
    pytest.param({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, {}, "offload_optimizer moves", id="offload"),
    pytest.param({"flops_profiler": {"enabled": True}}, {}, "flops_profiler counts", id="profiler"),
    pytest.param({}, {"head": {"pooling": "mean"}}, "'mean'", id="pooled-head"),
    pytest.param({}, {"truncation": {"strategy": "hierarchical"}}, "hierarchical", id="documents-in-pieces"),
    pytest.param({}, {"loss": {"r_drop": 1.0}}, "r_drop", id="r-drop"),
    pytest.param({}, {"pretrain": {}}, "pre-training", id="pre-training"),
    pytest.param(
        {},
        {"multitask": {"tasks": [{"task": "rte", "train_input": {"data_dir": "x"}}, {"task": "sst2", "train_input": {"data_dir": "y"}}]}},
        "several tasks",
        id="several-tasks",
    ),
]


@pytest.mark.parametrize(("deepspeed", "blocks", "reason"), OBSTACLES)
def test_what_stands_in_the_way_is_named(deepspeed, blocks, reason):
    cuda, sizes = torch.device("cuda"), BatchSizes(32, 32, 1, 1)
    assert reason in obstacle(config_of(deepspeed, **blocks), cuda, True)
    graphed, line = graphs_for(None, config_of(deepspeed, **blocks, run={"cuda_graphs": "auto"}), sizes, cuda, True)
    assert graphed is None and line.startswith("CUDA graphs: off, because ") and reason in line
    with pytest.raises(ConfigError, match="cuda_graphs is true, but"):
        graphs_for(None, config_of(deepspeed, **blocks, run={"cuda_graphs": True}), sizes, cuda, True)


def test_a_plain_config_has_no_obstacle_on_a_gpu_and_one_on_a_cpu():
    sizes, cpu = BatchSizes(32, 32, 1, 1), torch.device("cpu")
    for stage in range(3):
        assert obstacle(config_of({"zero_optimization": {"stage": stage}}), torch.device("cuda"), True) is None
    assert "by key" in obstacle(config_of(), torch.device("cuda"), False)
    assert graphs_for(None, config_of(run={"cuda_graphs": "auto"}), sizes, cpu, False) == (None, None)
    graphed, line = graphs_for(None, config_of(), sizes, torch.device("cuda"), True)
    assert graphed is None and "only where the config says true" in line
    assert graphs_for(None, config_of(run={"cuda_graphs": False}), sizes, torch.device("cuda"), True) == (None, None)
    with pytest.raises(ConfigError, match="the device is a CPU"):
        graphs_for(None, config_of(run={"cuda_graphs": True}), sizes, cpu, True)


# ------------------------------------------------------------------------------------------------------------------- whole runs, DeepSpeed

RUNS = [
    pytest.param({"zero_optimization": {"stage": 0}}, {}, id="zero-0"),
    pytest.param({"zero_optimization": {"stage": 1}}, {}, id="zero-1"),
    pytest.param({"zero_optimization": {"stage": 2}}, {}, id="zero-2"),
    pytest.param({"zero_optimization": {"stage": 0}, "gradient_accumulation_steps": 2}, {}, id="zero-0-two-micro-steps"),
    pytest.param({"zero_optimization": {"stage": 1}, "gradient_accumulation_steps": 2}, {}, id="zero-1-two-micro-steps"),
    pytest.param({"zero_optimization": {"stage": 2}, "gradient_accumulation_steps": 2}, {}, id="zero-2-two-micro-steps"),
    pytest.param({"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}}, {}, id="zero-1-bf16"),
    pytest.param({}, {"planner": "tokens", "tokens_per_batch": 256}, id="planned-by-tokens"),
]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("task"))


@pytest.mark.parametrize(("deepspeed", "source"), RUNS)
def test_a_run_follows_the_plain_one(task, deepspeed, source, tmp_path, monkeypatch):
    """24 steps with dropout and clipping (to a norm that bites). The lone rank divides what it has, as a lone GPU does."""
    need_deepspeed()
    from bertfast.config import resolve
    from bertfast.training import trainer
    from bertfast.training.trainer import Trainer

    monkeypatch.setattr(resolve, "is_lone_cpu", lambda *_: False)
    config = json.loads(json.dumps(task)) | {"gradient_clipping": 0.1} | deepspeed
    config["bertfast"]["train_input"] |= source
    config["bertfast"]["run"] |= {"epochs": 4, "packing_invariant_dropout": True, "save_steps": 1000}
    config["bertfast"].pop("eval_input")
    results = {}
    for name, capture in (("plain", None), ("replayed", StubCapture)):
        config["bertfast"]["run"] |= {"model_dir": str(tmp_path / name), "cuda_graphs": capture is not None}
        monkeypatch.setattr(trainer.Trainer, "capture", capture)
        results[name] = Trainer(load_config(config), device="cpu").fit()["training"]
    truth, found = losses(tmp_path, "plain"), losses(tmp_path, "replayed")
    assert len(truth) >= 20 and truth.keys() == found.keys()
    tolerance = 2e-2 if "bf16" in deepspeed else LOSSES_ZERO_STAGES
    assert max(abs(found[step] - truth[step]) for step in truth) < tolerance
    counts, capture = results["replayed"]["cuda_graphs"], StubCapture.made[-1]
    micro_steps = len(truth) * deepspeed.get("gradient_accumulation_steps", 1)
    assert counts["replayed"] + counts["plain"] == micro_steps and counts["replayed"] > micro_steps // 4
    assert results["replayed"]["zero_stage"] == deepspeed.get("zero_optimization", {"stage": 0})["stage"]
    assert capture.records == 2 * counts["graphs"] and capture.replays == 2 * counts["replayed"]
    assert "cuda_graphs" not in results["plain"] and results["plain"]["tokens_per_second"] > 0
    assert results["replayed"]["real_token_share_if_padded"] == results["plain"]["real_token_share_if_padded"]
