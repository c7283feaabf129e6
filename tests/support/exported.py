"""A tiny classifier, its data and its graphs, for the tests of the exporter."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.support.tiny_bert import WORDS, write_tiny_bert

LABELS = ("no", "yes", "maybe")


def write_classifier(folder: Path, num_labels: int = 3, seed: int = 1, **config) -> Path:
    """A tiny classifier whose every weight, biases and norms among them, is a random number that matters."""
    import torch
    from transformers import BertForSequenceClassification

    write_tiny_bert(folder, num_labels=num_labels, **({"id2label": dict(enumerate(LABELS))} if num_labels == 3 else {}), **config)
    model = BertForSequenceClassification.from_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim == 2 else 0.2
            start = parameter if "LayerNorm.weight" in name else torch.zeros_like(parameter)
            parameter.copy_(start + spread * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def write_data(path: Path, rows: int = 60, seed: int = 1, labels: tuple[str, ...] = LABELS) -> Path:
    """A TSV of random sentences with random labels."""
    rng = random.Random(seed)
    lines = [f"{' '.join(rng.choices(WORDS, k=rng.randint(1, 40)))}\t{rng.choice(labels)}" for _ in range(rows)]
    path.write_text("\n".join(["text\tlabel", *lines]) + "\n")
    return path


def write_config(folder: Path, data: Path, model: Path) -> Path:
    """The config of the classifier's task, with the data to judge on."""
    source = {"data_file": str(data), "cache_dir": str(folder / "cache"), "max_sequence_length": 32}
    task = {"text_columns": ["text"], "label_names": list(LABELS)}
    path = folder / "config.json"
    path.write_text(json.dumps({"bertfast": {"task": task, "model": {"checkpoint": str(model)}, "eval_input": source}}))
    return path
