"""The model card: what a model is, how it was made and how it scores, in the hub's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from bertfast.config import HEAD_KEY, Config, HeadConfig, resolve_optimizer
from bertfast.reporting.results import RECIPE_BLOCKS, changed
from bertfast.storage import replacing
from bertfast.tasks import Task

CARD_FILE = "README.md"

_HUB_METRICS = {"pearson": "pearsonr", "spearman": "spearmanr"}  # the hub's names where they are not ours


def _without_paths(values: dict[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (values or {}).items() if key not in ("text_files", "eval_text_files", "inputs")}


def write_model_card(folder: str | Path, results: dict[str, Any], config: Config, task: Task) -> None:
    """Write README.md into a model folder: the hub's front matter, a table of metrics, how it was trained, and how to load it.

    results: `metrics` (split -> metric -> value), and where present `training` (a flat dictionary of facts, shown as a table) and `run`
    (see `run_facts`). The license is left to whoever publishes the model. Paths of this machine are not shown.
    """
    base = config.bertfast.model.checkpoint
    base_name = Path(base).name if _is_local(base) else base
    own_head, pretrain = _own_head(Path(folder)), config.bertfast.pretrain
    kind = "regressor" if task.is_regression else "multi-label classifier" if task.is_multilabel else "classifier"
    what = (
        f"# {base_name}, fine-tuned on {task.name}",
        (f"A BERT {kind} of {'sentence pairs' if task.is_pair else 'single texts'}, fine-tuned from `{base_name}` with bertfast."),
    )
    if pretrain is not None:
        objective = "masked language modelling" + (" and next-sentence prediction" if pretrain.next_sentence else "")
        what = (
            f"# {base_name}, pre-trained further",
            f"A BERT encoder, pre-trained further from `{base_name}` by {objective} with bertfast.",
        )
    parts = [
        "---",
        yaml.safe_dump(_front_matter(results, config, task, own_head is not None), sort_keys=False, allow_unicode=True).rstrip(),
        "# license: to be filled in by whoever publishes this model",
        "---",
        "",
        what[0],
        "",
        what[1],
        "",
        *_reading(config, own_head),
        *([] if pretrain is not None else _labels(task)),
        "## Results",
        "",
        *_metrics_table(results.get("metrics", {})),
        "",
        "## Training",
        "",
        *_table(["", ""], [[name, _shown(value)] for name, value in _set_up(results, config).items()]),
        "",
        "## Use",
        "",
        *(_usage(config, task, own_head is not None) if pretrain is None else _pretrained_usage()),
    ]
    with replacing(Path(folder) / CARD_FILE) as file:
        file.write("\n".join(parts) + "\n")


def _own_head(folder: Path) -> dict[str, Any] | None:
    """The head that config.json describes, where it is not transformers' own."""
    file = folder / "config.json"
    return json.loads(file.read_text(encoding="utf-8")).get(HEAD_KEY) if file.is_file() else None


def _reading(config: Config, own_head: dict[str, Any] | None) -> list[str]:
    """What the model makes of a text, where that is not what everyone expects."""
    truncation = config.bertfast.truncation
    sentences = []
    if own_head is not None:
        sentences.append(
            f"The head reads {HeadConfig.model_validate(own_head).describe()}. transformers has no such head: load the model with bertfast. "
            "`AutoModel` loads the encoder alone; `AutoModelForSequenceClassification` would put a new, untrained head on it."
        )
    if truncation.is_hierarchical:
        length = config.bertfast.train_input.max_sequence_length if config.bertfast.train_input else 512
        sentences.append(
            f"A text of more than {length} tokens is read in pieces of {length}, whose features are combined by "
            f"{config.bertfast.head.pieces}; bertfast does so, transformers would read the first piece alone."
        )
    elif truncation.strategy != "head":
        parts = "its tail" if truncation.strategy == "tail" else f"its first {truncation.head_tokens or 'half'} and its last tokens"
        sentences.append(f"Of a text that is too long, it reads {parts}; bertfast does so, transformers' tokenizer would read its head.")
    return [line for sentence in sentences for line in (sentence, "")]


def _front_matter(results: dict[str, Any], config: Config, task: Task, own_head: bool) -> dict[str, Any]:
    base = config.bertfast.model.checkpoint
    card: dict[str, Any] = {"library_name": "bertfast" if own_head else "transformers", "pipeline_tag": "text-classification"}
    if not _is_local(base):
        card["base_model"] = base
    if config.bertfast.pretrain is not None:
        return {**card, "pipeline_tag": "fill-mask", "tags": ["bertfast", "bert"]}
    if task.hub:
        card["datasets"] = [task.hub.name]
    card["metrics"] = [_HUB_METRICS.get(name, name) for name in task.metrics]
    card["tags"] = ["bertfast", "bert"]
    evaluations = [
        {
            "task": {"type": "text-classification"},
            "dataset": _dataset(task, split),
            "metrics": [{"type": _HUB_METRICS.get(name, name), "value": round(value, 6)} for name, value in metrics.items()],
        }
        for split, metrics in results.get("metrics", {}).items()
    ]
    if evaluations and not (config.bertfast.eval_input and config.bertfast.eval_input.max_examples):  # a subset's score is not the set's
        card["model-index"] = [{"name": Path(config.bertfast.run.model_dir).name, "results": evaluations}]
    return card


def _dataset(task: Task, split: str) -> dict[str, str]:
    if not task.hub:
        return {"name": task.name, "type": task.name, "split": split}
    config = {"config": task.hub.config} if task.hub.config else {}
    return {"name": task.name, "type": task.hub.name, **config, "split": task.hub.splits.get(split, split)}


def _labels(task: Task) -> list[str]:
    if task.is_regression:
        return []
    several = ["Any number of them may hold of a text, each with a probability of its own: the sigmoid of its logit.", ""]
    return [
        "## Labels",
        "",
        *(several if task.is_multilabel else []),
        *_table(["id", "label"], [[str(index), name] for index, name in enumerate(task.class_names)]),
        "",
    ]


def _metrics_table(metrics: dict[str, dict[str, float]]) -> list[str]:
    if not metrics:
        return ["Not evaluated."]
    names = list(dict.fromkeys(name for split in metrics.values() for name in split))
    rows = [[split, *(_shown(values[name]) if name in values else "" for name in names)] for split, values in metrics.items()]
    return _table(["split", *names], rows)


def _set_up(results: dict[str, Any], config: Config) -> dict[str, Any]:
    block, optimizer = config.bertfast, resolve_optimizer(config.deepspeed)
    facts: dict[str, Any] = {
        "training examples at most": block.train_input.max_examples if block.train_input else None,
        "evaluation examples at most": block.eval_input.max_examples if block.eval_input else None,
        "max_sequence_length": block.train_input.max_sequence_length if block.train_input else None,
        "optimizer": optimizer["type"],
        "learning_rate": optimizer["params"]["lr"],
        "weight_decay": optimizer["params"].get("weight_decay", 0.0),
        "seed": block.run.seed,
        **{name: json.dumps(values) for name in RECIPE_BLOCKS if (values := _without_paths(changed(getattr(block, name))))},
        **results.get("training", {}),
    }
    run = results.get("run", {})
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in run.get("versions", {}).items() if version) or None
    facts["commit"] = run.get("commit")
    facts["trained on"] = run.get("finished")
    return {name.replace("_", " "): value for name, value in facts.items() if value is not None}


def _usage(config: Config, task: Task, own_head: bool) -> list[str]:
    texts = '"The first text.", "The second text."' if task.is_pair else '"A text to judge."'
    length = config.bertfast.train_input.max_sequence_length if config.bertfast.train_input else 512
    answer = "logits.item()" if task.is_regression else "model.config.id2label[logits.argmax(-1).item()]"
    if task.is_multilabel:
        answer = "[model.config.id2label[index] for index in logits[0].gt(0).nonzero().flatten().tolist()]"
    classes = ["from transformers import AutoModelForSequenceClassification, AutoTokenizer"]
    load, call = "AutoModelForSequenceClassification", "model(**features).logits"
    if own_head:
        classes = ["from bertfast import BertClassifier, PackedBatch", "from transformers import AutoTokenizer"]
        load, call = "BertClassifier", "model(PackedBatch.from_features(features))"
    return [
        "```python",
        "import torch",
        *classes,
        "",
        'folder = "."  # where this file lies',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = {load}.from_pretrained(folder).eval()",
        f'features = tokenizer({texts}, truncation=True, max_length={length}, return_tensors="pt")',
        "with torch.no_grad():",
        f"    logits = {call}",
        f"print({answer})",
        "```",
        "",
        "Or, for whole files, at the speed of packed batches: `bertfast predict --checkpoint_path . --input texts.txt`",
    ]


def _pretrained_usage() -> list[str]:
    return [
        "Fine-tune it: `bertfast train --config ds_mnli.json --checkpoint_path .`, or fill in masks:",
        "",
        "```python",
        "from transformers import pipeline",
        "",
        'print(pipeline("fill-mask", model=".")("A [MASK] to fill."))',
        "```",
    ]


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    cells = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]


def _shown(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _is_local(checkpoint: str) -> bool:
    return Path(checkpoint).expanduser().exists() or checkpoint.startswith((".", "/", "~"))
