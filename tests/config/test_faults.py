"""No fault of a config is told in pydantic's words: every key of every block is given what it cannot be."""

import pytest
from pydantic import ValidationError

from bertfast.config.faults import WORDS
from bertfast.config.load import load_config
from bertfast.config.schema import BertfastConfig
from bertfast.config.unknown import own_places
from bertfast.errors import ConfigError

BLOCK = {"task": {"text_columns": ["text"]}, "model": {"checkpoint": "bert"}}
BAD = (-1, -2.5, 1.5, 2, 10**30, float("inf"), "", "three", True, [], ["a"], ["a", "b", "c"], [None], {}, {"a": 1}, [{"a": 1}], [1.5], [0])


def block_with(place: str, value: object) -> dict:
    block: dict = {name: dict(part) for name, part in BLOCK.items()}
    *parents, last = place.split(".")[1:]
    node = block
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    return block


@pytest.mark.parametrize("place", [*own_places()])
def test_every_key_says_in_our_words_what_it_must_be(place):
    refused = 0
    for value in BAD:
        block = block_with(place, value)
        try:
            BertfastConfig.model_validate(block)
        except ValidationError as error:
            theirs = [item["msg"] for item in error.errors() if item["type"] in WORDS or item["type"] == "model_type"]
            with pytest.raises(ConfigError) as caught:
                load_config({"bertfast": block})
            said = str(caught.value)
            refused += 1
            assert said and all(line.startswith("config: bertfast") or "unknown key" in line for line in said.splitlines()), said
            assert not any(words in said for words in theirs) and not {"Input", "Tuple", "tuple[", "literal[", "constrained-"} & {
                *said.split()
            }, said
            assert place in said or place.rpartition(".")[2] in said or "multitask" in said, said
    assert refused > 2


@pytest.mark.parametrize(
    "override, said",
    [
        pytest.param("bertfast.run.epochs=three", 'epochs = "three": it must be a number', id="number"),
        pytest.param("bertfast.run.epochs=0", "epochs = 0: it must be greater than 0", id="greater"),
        pytest.param("bertfast.run.seed=4294967296", "seed = 4294967296: it must be less than 4294967296", id="less"),
        pytest.param("bertfast.run.seed=1.5", "seed = 1.5: it must be a whole number", id="whole"),
        pytest.param("bertfast.train_input.batch_size=null", "it must be a whole number; leave the key out for what is usual", id="null"),
        pytest.param("bertfast.train_input.shuffle=maybe", 'shuffle = "maybe": it must be true or false', id="switch"),
        pytest.param("bertfast.train_input.planner=foo", "it must be 'examples' or 'tokens'", id="choice"),
        pytest.param("bertfast.model.gradient_checkpointing=true", "it must be false or 'selective'", id="choice-with-a-switch"),
        pytest.param("bertfast.head.layers=[a]", 'layers.0 = "a": it must be a whole number', id="in-a-list"),
        pytest.param("bertfast.head.layers=[]", "layers = []: it must be a list of at least 1", id="short"),
        pytest.param(
            "bertfast.loss.class_weights=foo",
            "it must be a list, such as [a, b], or numbers by name, such as {a: 1}, or 'balanced'",
            id="one-of-several",
        ),
        pytest.param("bertfast.loss.class_weights=[a]", 'class_weights.0 = "a": it must be a number', id="the-one-that-is-meant"),
        pytest.param('bertfast.loss.class_weights={"no": "a"}', 'class_weights.no = "a": it must be a number', id="by-name"),
        pytest.param("bertfast.optimization.frozen_layers=some", "it must be a whole number or 'all'", id="one-of-two-numbers"),
    ],
)
def test_words(override, said):
    with pytest.raises(ConfigError) as caught:
        load_config({"bertfast": BLOCK}, [override])
    assert str(caught.value).startswith(f"--set {override}: bertfast.") and str(caught.value).endswith(said), caught.value
    assert len(str(caught.value).splitlines()) == 1
