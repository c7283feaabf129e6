"""The sizes of a checkpoint's network, from its config.json alone: no weights, and for well-known names no network either."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertfast.errors import CheckpointError
from bertfast.weights.folder import read_config

if TYPE_CHECKING:
    from transformers import BertConfig

_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_UNCASED, _CASED = {"vocab_size": 30522}, {"vocab_size": 28996}

DEMO: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,  # two passes over the data are too few to learn it by heart
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.08,  # about hidden_size ** -0.5; BERT's own 0.02 is for 768, and slow to learn from at 128
}
DEMO_VOCABULARY = 193  # tokens of the demo's sentences

# Names of checkpoints -> where they differ from transformers' BertConfig (Devlin et al. 2019; the config.json of each on the hub).
KNOWN: dict[str, dict[str, Any]] = {
    "bert-base-uncased": _BASE | _UNCASED,
    "bert-base-cased": _BASE | _CASED,
    "bert-large-uncased": _LARGE | _UNCASED,
    "bert-large-cased": _LARGE | _CASED,
    "runs/demo/checkpoint": DEMO | {"vocab_size": DEMO_VOCABULARY},
}


def config_of_checkpoint(folder_or_name: str) -> tuple[BertConfig, str]:
    """The BertConfig of a local folder, of a name in KNOWN, or of a model on the hub, of which config.json alone is asked for; and whence it is.

    Raises:
        CheckpointError: no such folder, or a name that is unknown and that the hub does not give.
    """
    from transformers import BertConfig

    folder = Path(folder_or_name).expanduser()
    if folder.is_dir():
        return read_config(folder), str(folder / "config.json")
    name = folder_or_name.removeprefix("google-bert/")
    if name in KNOWN:
        return BertConfig(**KNOWN[name]), f"{name}, not read but known to bertfast"
    if folder.is_absolute() or folder_or_name.startswith((".", "~")) or folder_or_name.count("/") > 1:
        raise CheckpointError(f"checkpoint {folder_or_name}: no such folder")
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        cached = try_to_load_from_cache(folder_or_name, "config.json")
        file = Path(cached if isinstance(cached, str) else hf_hub_download(folder_or_name, "config.json"))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"checkpoint {folder_or_name!r}: no local folder of that name, and the hub does not give its config.json "
            f"({type(error).__name__}); give the path of a folder with config.json"
        ) from None
    return read_config(file.parent), str(file)
