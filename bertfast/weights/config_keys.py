"""What a model's config.json says, key by key: computed as transformers computes it, without an effect on any logit, or refused by name.

The keys are the fields of transformers' BertConfig and of its base class, and what transformers' code for loading, masking and BERT reads of a
config beside them. A key that stands in no table changes nothing in transformers either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch

from bertfast.config import HEAD_KEY, HeadConfig
from bertfast.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import BertConfig

Values = Mapping[str, Any]
Rule = Callable[[Any, Values], str | None]  # a value, and all of its config -> what is wrong and what to do, or None

GELU_FORMS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
OWN_ARCHITECTURE = "BertfastClassifier"  # what config.json calls a model with a head that transformers has not
_CLASSIFIERS = ("BertForSequenceClassification", "TFBertForSequenceClassification", "FlaxBertForSequenceClassification", OWN_ARCHITECTURE)
MULTILABEL = "multi_label_classification"  # what transformers calls a classifier with several labels a text
_PROBLEM_TYPES = ("single_label_classification", "regression", MULTILABEL)
_NEW_HEAD = "take problem_type and id2label out of it to train a new head on its encoder"


def _count(value: Any, values: Values) -> str | None:
    return None if _is_int(value) and value >= 1 else "give a whole number of 1 or more"


def _heads(value: Any, values: Values) -> str | None:
    if (fault := _count(value, values)) is not None:
        return fault
    size = values["hidden_size"]
    return f"hidden_size {size} does not divide into {value} attention heads; give a divisor of it" if size % value else None


def _activation(value: Any, values: Values) -> str | None:
    return (
        None
        if isinstance(value, str) and value in GELU_FORMS
        else f"bertfast computes {', '.join(GELU_FORMS)}; give a checkpoint with one of these"
    )


def _dropout(value: Any, values: Values) -> str | None:
    return None if _is_number(value) and 0 <= value < 1 else "give a number from 0 to below 1"


def _dropout_or_none(value: Any, values: Values) -> str | None:
    return None if value is None else _dropout(value, values)


def _scale(value: Any, values: Values) -> str | None:
    return None if _is_number(value) and value >= 0 else "give a number of 0 or more"


def _padding(value: Any, values: Values) -> str | None:
    size = values["vocab_size"]
    return None if value is None or (_is_int(value) and -size <= value < size) else f"give the id of one of the {size:,} tokens, or null"


def _positions(value: Any, values: Values) -> str | None:
    return None if value == "absolute" else "only 'absolute' is supported; give a checkpoint with position embeddings that are added"


def _causal(value: Any, values: Values) -> str | None:
    fix = "give an encoder's checkpoint, or take the key out if this was trained as one"
    return f"in it a token attends to those before it alone, and in bertfast's encoder to all; {fix}" if value else None


def _no_cross_attention(value: Any, values: Values) -> str | None:
    return "bertfast computes an encoder without cross-attention; give an encoder's checkpoint" if value else None


def _alike(value: Any, values: Values) -> str | None:
    return "bertfast's encoder layers are all alike; give a checkpoint whose layers are" if value else None


def _unpruned(value: Any, values: Values) -> str | None:
    return "bertfast's layers have all their attention heads; give the checkpoint from before they were pruned" if value else None


# What BERT's network is built from. None: every value that BertConfig takes is computed as transformers computes it, or changes no logit.
NETWORK: dict[str, Rule | None] = {
    "vocab_size": _count,
    "hidden_size": _count,
    "num_hidden_layers": _count,
    "num_attention_heads": _heads,
    "intermediate_size": _count,
    "max_position_embeddings": _count,
    "type_vocab_size": _count,
    "hidden_act": _activation,
    "hidden_dropout_prob": _dropout,
    "attention_probs_dropout_prob": _dropout,
    "classifier_dropout": _dropout_or_none,
    "initializer_range": _scale,
    "layer_norm_eps": _scale,
    "pad_token_id": _padding,  # read of the masks nowhere; transformers' training leaves that row of the embeddings as it is
    "position_embedding_type": _positions,  # transformers 5 reads it no more, and takes relative positions for absolute ones
    "is_decoder": _causal,
    "is_causal": _causal,  # no field of BertConfig, but transformers' BertModel goes by it
    "add_cross_attention": _no_cross_attention,
    "per_layer_config": _alike,
    "pruned_heads": _unpruned,  # transformers 5 prunes no more; 4 did when it loaded
    "chunk_size_feed_forward": None,  # the same sums in several parts
    "is_encoder_decoder": None,  # of a decoder's cache
    "use_cache": None,  # of a decoder
    "bos_token_id": None,  # of a decoder
    "eos_token_id": None,  # of a decoder
    "tie_word_embeddings": None,  # of the MLM decoder: see `check_tied`
    "output_hidden_states": None,  # what more is given back
    "output_attentions": None,
    "return_dict": None,
    "transformers_version": None,
}


def _labels(value: Any, values: Values) -> str | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not value:
        return 'give an object of class numbers and names, {"0": "no", "1": "yes"} say'
    if sorted(map(str, value)) != sorted(map(str, range(len(value)))):
        return f"its {len(value)} classes must be numbered from 0 to {len(value) - 1}"
    names = [str(name) for name in value.values()]
    twice = [name for name in names if names.count(name) > 1]
    return f"two classes are called {twice[0]!r}; give each a name of its own" if twice else None


def _numbers_of_labels(value: Any, values: Values) -> str | None:
    """transformers names its answers by id2label. Where label2id numbers one of its names otherwise, one of both is wrong."""
    if value is None:
        return None
    if not isinstance(value, dict):
        return 'give an object of class names and numbers, {"no": 0, "yes": 1} say'
    for index, name in (values["id2label"] or {}).items():
        if str(value.get(str(name), index)) != str(index):
            return f"{name!r} is class {value[str(name)]} there, and class {index} in id2label; correct the one that is wrong"
    return None


def _number_of_labels(value: Any, values: Values) -> str | None:
    """transformers goes by this number where id2label names another, and calls the classes LABEL_0, LABEL_1 ..."""
    if (fault := _count(value, values)) is not None:
        return fault
    n = len(values["id2label"])
    return None if n == value else f"id2label names {n} classes; correct the one that is wrong"


def _problem(value: Any, values: Values) -> str | None:
    if value is None:
        return None
    if value not in _PROBLEM_TYPES:
        return f"give {', '.join(_PROBLEM_TYPES)} or null"
    n = len(values["id2label"])
    if value == MULTILABEL and n == 1:
        return f"there is one label in id2label, and bertfast takes two or more of which several may hold; {_NEW_HEAD}"
    if value == "regression" and n > 1:
        return f"a regression of {n} numbers; bertfast answers with one class a text, or one number; {_NEW_HEAD}"
    if value == "single_label_classification" and n == 1:
        return "there is one class in id2label; give 'regression' for a score, or name all classes"
    return None


def _own_head(value: Any, values: Values) -> str | None:
    try:
        HeadConfig.model_validate(value or {})
    except ValueError as error:
        return f"no head of bertfast's ({' '.join(str(error).split())}); give the value that training wrote"
    return None


def _bert(value: Any, values: Values) -> str | None:
    return None if value == "bert" else "bertfast fine-tunes BERT encoders (model_type 'bert')"


def _names_of_classes(value: Any, values: Values) -> str | None:
    names = value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))
    return None if names else "give a list of transformers' classes, as save_pretrained writes it"


def _number_format(value: Any, values: Values) -> str | None:
    dtype = getattr(torch, value, None) if isinstance(value, str) else None
    is_read = value is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize >= 2)
    return None if is_read else "bertfast reads float32, float64, float16 and bfloat16; give the checkpoint in one of these"


def _unquantized(value: Any, values: Values) -> str | None:
    method = value.get("quant_method", "unknown") if isinstance(value, dict) else "unknown"
    fix = "give the checkpoint that it was made from, or its weights as floats (transformers' dequantize)"
    return None if value is None else f"its weights are quantized (quant_method {method}); {fix}"


def _no_code(value: Any, values: Values) -> str | None:
    fix = "take auto_map out of it if transformers' own BERT is meant"
    return f"the model has code of its own, which bertfast does not run; {fix}" if value else None


def _usual_weights(value: Any, values: Values) -> str | None:
    return (
        None
        if value in (None, "model.safetensors")
        else "bertfast reads model.safetensors; give that file to the weights, and take the key out"
    )


def _one_config(value: Any, values: Values) -> str | None:
    return "another file is the config of newer versions; put that one in the place of config.json" if value else None


# What else of a model's folder goes by its config.json: what the answers mean, and how the weights lie.
FOLDER: dict[str, Rule | None] = {
    "model_type": _bert,
    "architectures": _names_of_classes,  # see `head_of_another`
    "id2label": _labels,
    "num_labels": _number_of_labels,
    "label2id": _numbers_of_labels,
    "problem_type": _problem,
    "dtype": _number_format,
    "torch_dtype": _number_format,
    "quantization_config": _unquantized,
    "compression_config": _unquantized,  # what compressed-tensors once called it
    "auto_map": _no_code,
    "transformers_weights": _usual_weights,
    "configuration_files": _one_config,
    HEAD_KEY: _own_head,
}


def config_from(values: Any, where: str) -> BertConfig:
    """The BertConfig of the values of a config.json, each held against the tables.

    Raises:
        CheckpointError: naming `where` and the key, and what to do.
    """
    from transformers import BertConfig

    if not isinstance(values, dict):
        raise CheckpointError(f"{where}: holds no JSON object; give the config.json that transformers' save_pretrained wrote")
    labels = values.get("id2label")
    if labels is None:  # as BertConfig counts the classes
        n = values.get("num_labels", 2)
        labels = {index: f"LABEL_{index}" for index in range(n if _is_int(n) else 2)}
    whole = BertConfig().to_dict() | values | {"id2label": labels}
    _check(NETWORK | FOLDER, {key: whole[key] for key in whole if key in values or key in NETWORK}, whole, where)
    try:
        return BertConfig.from_dict(values)
    except Exception as error:  # huggingface_hub's own kinds for a value of another type, and Python's for the rest
        raise CheckpointError(f"{where}: transformers cannot use it ({' '.join(str(error).split())}); correct that value") from None


def check_config(config: BertConfig) -> None:
    """Raise CheckpointError where the encoder that `config` describes is none that bertfast computes."""
    values = config.to_dict()
    _check(NETWORK, values, values, "the model's config")


def check_tied(config: BertConfig, source: str) -> None:
    """Raise CheckpointError where the MLM decoder is a matrix of its own, for which bertfast has no place."""
    if not config.tie_word_embeddings:
        raise CheckpointError(
            f"{source}: tie_word_embeddings is {config.tie_word_embeddings}: bertfast's pre-training decodes with the word embeddings; "
            "take the key out to train them as the decoder too"
        )


def head_of_another(config: BertConfig) -> str | None:
    """The class of transformers that a config names, where its head answers something else than a text's class or score; else None."""
    names = config.architectures or []
    return None if not names or any(name in _CLASSIFIERS for name in names) else names[0]


def _check(rules: Mapping[str, Rule | None], given: Values, whole: Values, where: str) -> None:
    for key, rule in rules.items():
        if rule is not None and key in given and (fault := rule(given[key], whole)) is not None:
            raise CheckpointError(f"{where}: {key} is {shorten(repr(given[key]), 80)}: {fault}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
