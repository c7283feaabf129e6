"""Parameter groups: every trained parameter in exactly one, with the rate and decay that its depth asks for."""

import pytest
import torch
from pydantic import ValidationError

from bertfast.config.blocks import HeadConfig, OptimizationConfig
from bertfast.engine.optimizer import adamw, freeze, groups_by_depth, parameter_groups
from bertfast.errors import ConfigError
from bertfast.model.bert import BertClassifier
from bertfast.model.heads import set_head
from tests.model.test_bert import bert_config


def a_model(head=None):
    config = bert_config()
    set_head(config, head or HeadConfig())
    return BertClassifier(config)


def rates_of(model, groups):
    """name of each parameter -> (rate, weight decay); each stands in one group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [(names[id(parameter)], (group["lr"], group["weight_decay"])) for group in groups for parameter in group["params"]]
    assert len(dict(found)) == len(found)
    return dict(found)


HEADS = [
    pytest.param(HeadConfig(), id="plain"),
    pytest.param(HeadConfig(pooling="attention", hidden_sizes=(8,), pieces="attention"), id="own-head"),
]


@pytest.mark.parametrize("head", HEADS)
def test_rates_are_rate_times_decay_to_the_depth(head):
    model = a_model(head)
    found = rates_of(model, groups_by_depth(model, 0.01, 2e-5, OptimizationConfig(layer_learning_rate_decay=0.9)))
    assert found.keys() == dict(model.named_parameters()).keys()
    wanted = {"layers.2.": 2e-5, "layers.1.": 2e-5 * 0.9, "layers.0.": 2e-5 * 0.9**2, "embeddings.": 2e-5 * 0.9**3}
    for name, parameter in model.named_parameters():
        rate = next((rate for part, rate in wanted.items() if name.startswith(part)), 2e-5)
        assert found[name] == (rate, 0.01 if parameter.ndim > 1 else 0.0), name


def test_the_head_may_have_a_rate_of_its_own():
    model = a_model()
    options = OptimizationConfig(layer_learning_rate=[1e-5], layer_learning_rate_decay=0.5)
    groups = groups_by_depth(model, 0.01, 2e-4, options)
    by_name = {(group["name"], group["depth"]): group["lr"] for group in groups}
    assert by_name == {
        ("head", 0): 2e-4,
        ("layer 2", 0): 1e-5,
        ("layer 1", 1): 0.5e-5,
        ("layer 0", 2): 0.25e-5,
        ("embeddings", 3): 0.125e-5,
    }


def test_a_rate_for_each_layer():
    model = a_model()
    groups = groups_by_depth(model, 0.01, 9.0, OptimizationConfig(layer_learning_rate=[1.0, 2.0, 3.0]))
    assert {group["name"]: group["lr"] for group in groups} == {
        "head": 9.0,
        "layer 2": 3.0,
        "layer 1": 2.0,
        "layer 0": 1.0,
        "embeddings": 1.0,
    }
    with pytest.raises(ConfigError, match="holds 2 rates, but the model has 3 layers"):
        groups_by_depth(model, 0.01, 9.0, OptimizationConfig(layer_learning_rate=[1.0, 2.0]))


@pytest.mark.parametrize(
    ("frozen", "wanted"),
    [
        (None, ()),
        (0, ("embeddings.",)),
        (2, ("embeddings.", "layers.0.", "layers.1.")),
        ("all", ("embeddings.", "layers.0.", "layers.1.", "layers.2.")),
    ],
)
def test_what_is_frozen_stands_in_no_group(frozen, wanted):
    model = a_model()
    freeze(model, frozen)
    left = {name for name in dict(model.named_parameters()) if not (wanted and name.startswith(wanted))}
    assert rates_of(model, groups_by_depth(model, 0.01, 1.0, OptimizationConfig())).keys() == left
    assert sum(len(group["params"]) for group in parameter_groups(model, 0.01)) == len(left)


def test_settings_that_cannot_be_are_named():
    with pytest.raises(ConfigError, match="frozen_layers = 4, but the model has 3 layers"):
        freeze(a_model(), 4)
    with pytest.raises(ValidationError, match="there are several"):
        OptimizationConfig(layer_learning_rate=[1.0, 2.0], layer_learning_rate_decay=0.5)
    with pytest.raises(ValidationError, match="0 or more"):
        OptimizationConfig(layer_learning_rate=[-1.0])


# ---------------------------------------------------------------------------------------------------------------------------- AdamW


def steps_of(params, gradients, *, stop=None):
    """The weights after each step. stop: after so many steps, the state moves to a new optimizer, as in a resumed run."""
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 6).reshape(2, 3))
    optimizer, found = adamw([{"params": [weight]}], params), []
    for step, gradient in enumerate(gradients):
        if step == stop:
            state, optimizer = optimizer.state_dict(), adamw([{"params": [weight]}], params)
            optimizer.load_state_dict(state)
        weight.grad = gradient.clone()
        optimizer.step()
        found.append(weight.detach().clone())
    return torch.stack(found)


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_adamw_is_the_papers_in_float64(corrected, amsgrad):
    """Loshchilov and Hutter 2019, algorithm 2; Reddi et al. 2018 for amsgrad; without correction as in the code of Devlin et al. 2019."""
    torch.manual_seed(0)
    gradients = torch.randn(7, 2, 3) * torch.tensor([1.0, 3, 1, 0.1, 1, 0.1, 1]).reshape(7, 1, 1)
    rate, beta1, beta2, eps, decay = 0.1, 0.8, 0.7, 1e-3, 0.2
    params = {"lr": rate, "betas": [beta1, beta2], "eps": eps, "weight_decay": decay, "amsgrad": amsgrad, "bias_correction": corrected}
    weight = torch.linspace(-1, 1, 6).reshape(2, 3).double()
    mean = square = most = torch.zeros(2, 3, dtype=torch.float64)
    wanted = []
    for step, gradient in enumerate(gradients.double(), 1):
        mean, square = beta1 * mean + (1 - beta1) * gradient, beta2 * square + (1 - beta2) * gradient**2
        most = torch.maximum(most, square) if amsgrad else square
        by_mean, by_square = (1 - beta1**step, 1 - beta2**step) if corrected else (1, 1)
        weight = weight - rate * (mean / by_mean / ((most / by_square).sqrt() + eps) + decay * weight)
        wanted.append(weight)
    for stop in (None, 3):
        assert torch.allclose(steps_of(params, gradients, stop=stop).double(), torch.stack(wanted), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "more", [{"lr": 0.2}, {"betas": [0.5, 0.5]}, {"eps": 0.1}, {"weight_decay": 0.5}, {"amsgrad": True}, {"bias_correction": False}]
)
def test_every_param_of_our_adamw_changes_a_step(more):
    gradients = torch.tensor([3.0, 0.1, 0.1]).reshape(3, 1, 1) * torch.ones(3, 2, 3)
    base = {"lr": 0.1, "betas": [0.9, 0.5]}
    assert not torch.allclose(steps_of(base, gradients), steps_of({**base, **more}, gradients))
