"""Three tiny tasks for the tests of training on several: a yes and no of single texts, three classes of pairs, and a regression."""

from __future__ import annotations

import random
from pathlib import Path

from tests.support.runs import write_task
from tests.support.tiny_bert import WORDS

SIZES = {"verdict": 96, "relation": 48, "score": 24}
QUIET = ("--set", "bertfast.model.hidden_dropout_prob=0", "--set", "bertfast.model.attention_probs_dropout_prob=0")


def write_tasks(folder: Path, **multitask) -> dict:
    """The files of the tasks and a checkpoint; the config of 2 epochs of 10 and a half steps on them."""
    config, rng = write_task(folder), random.Random(5)

    def words(most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))

    for split, share in (("train", 1), ("dev", 0.25)):
        pairs, scores = ["first\tsecond\tlabel"], ["text\tlabel"]
        for _ in range(int(SIZES["relation"] * share)):
            first, second = words(9), words(9)
            label = "more" if len(first) > len(second) + 8 else "less" if len(second) > len(first) + 8 else "same"
            pairs.append(f"{first}\t{second}\t{label}")
        for _ in range(int(SIZES["score"] * share)):
            text = words(12)
            scores.append(f"{text}\t{len(text.split()) / 6:.2f}")
        (folder / f"relation-{split}.tsv").write_text("\n".join(pairs) + "\n")
        (folder / f"score-{split}.tsv").write_text("\n".join(scores) + "\n")
    files = {"verdict": ("train.tsv", "dev.tsv")} | {name: (f"{name}-train.tsv", f"{name}-dev.tsv") for name in ("relation", "score")}
    blocks = {
        "verdict": {"text_columns": ["text"], "label_names": ["no", "yes"]},
        "relation": {"text_columns": ["first", "second"], "metric": "macro_f1"},
        "score": {"text_columns": ["text"], "metric": "pearson"},
    }
    tasks = [
        {
            "task": {"name": name, **block},
            "train_input": {"data_file": str(folder / files[name][0])},
            "eval_input": {"data_file": str(folder / files[name][1])},
        }
        for name, block in blocks.items()
    ]
    block = config["bertfast"]
    del block["task"], block["train_input"]["data_file"], block["eval_input"]["data_file"]
    block["multitask"] = {"tasks": tasks, **multitask}
    return config
