"""Made-up sentence pairs as files that the trainer reads: each word is one token, so that an example has exactly the length that it was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.cases.workloads import NUM_LABELS, write_model

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_DEV_SHARE = 20  # one dev pair for so many training pairs, as MNLI has


def write_pairs(folder: Path, size: str, lengths: np.ndarray, seed: int) -> dict[str, Any]:
    """Write a model with its tokenizer, train.tsv and dev.tsv; returns a config of one epoch on them.

    lengths: tokens of each training pair, [CLS] and two [SEP] included, and at least 5 (shorter ones are given 5).
    """
    from transformers import BertConfig, BertTokenizerFast

    model = folder / "model"
    write_model(size, model, seed)
    words = [f"w{number}" for number in range(BertConfig.from_pretrained(model).vocab_size - len(_SPECIAL))]
    (model / "vocab.txt").write_text("\n".join([*_SPECIAL, *words]) + "\n")
    BertTokenizerFast(str(model / "vocab.txt")).save_pretrained(model)
    rng = np.random.default_rng(seed)
    dev = lengths[: max(len(lengths) // _DEV_SHARE, 1)]
    for name, wanted in (("train", lengths), ("dev", dev)):
        with open(folder / f"{name}.tsv", "w", encoding="utf-8") as file:
            file.write("a\tb\tlabel\n")
            for length in np.maximum(wanted, 5):
                drawn = [words[index] for index in rng.integers(0, len(words), length - 3)]
                file.write(f"{' '.join(drawn[: len(drawn) // 2])}\t{' '.join(drawn[len(drawn) // 2 :])}\tc{rng.integers(NUM_LABELS)}\n")
    source = {"max_sequence_length": 128, "cache_dir": str(folder / "cache")}
    return {
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 2e-5, "weight_decay": 0.01}},
        "bertfast": {
            "task": {"text_columns": ["a", "b"], "label_names": [f"c{label}" for label in range(NUM_LABELS)]},
            "model": {"checkpoint": str(model), "is_pretrained_checkpoint": True},
            "train_input": {"data_file": str(folder / "train.tsv"), **source},
            "eval_input": {"data_file": str(folder / "dev.tsv"), "batch_size": 256, **source},
            "run": {"epochs": 1},
        },
    }
