"""A set with several labels a text, made from AG News: the article's class, and the topics whose words it holds."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

CLASSES = ("World", "Sports", "Business", "Sci/Tech")
TOPICS = {
    "Companies": r"\b(Microsoft|Google|IBM|Intel|Apple|Yahoo|Oracle|Sony|AT&T|Boeing|Airbus|Wal-Mart)\b",
    "Election": r"\b(elections?|votes?|voters|voting|polls?|ballots?|Kerry|campaign)\b",
    "Games": r"\b(Olympics?|Athens|gold medal|championship|cup|tournament|league)\b",
    "Iraq": r"\b(Iraqi?s?|Baghdad|Najaf|Fallujah|Mosul)\b",
    "Money": r"(\$|#36;|\bdollars?\b|\bprofits?\b|\bearnings\b|\bshares\b|\bstocks?\b)",
    "Oil": r"\b(oil|crude|barrels?|OPEC)\b",
    "Security": r"\b(attacks?|bombs?|bombing|killed|militants?|terror\w*|troops|police)\b",
    "Space": r"\b(NASA|space|Mars|Saturn|Moon|orbit\w*|spacecraft)\b",
    "The net": r"\b(internet|web|online|e-?mail|browser|software|virus|hackers?)\b",
}
LABELS = (*CLASSES, *TOPICS)


def write_topics(ag_news: Path, folder: Path) -> Path:
    """Write train.jsonl and dev.jsonl (`text`, and `topics`, a list) into `folder`, from train_10k.tsv and test.csv; gives `folder`."""
    for name, rows in (("train", _train_rows(ag_news / "train_10k.tsv")), ("dev", _test_rows(ag_news / "test.csv"))):
        lines = [json.dumps({"text": text, "topics": _topics_of(int(label), text)}) for label, text in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _train_rows(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        label, _, text = line.partition("\t")
        yield label, text


def _test_rows(path: Path) -> Iterator[tuple[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        for label, title, text in csv.reader(file):
            yield label, f"{title} {text}"


def _topics_of(label: int, text: str) -> list[str]:
    return [CLASSES[label - 1], *(topic for topic, words in TOPICS.items() if re.search(words, text, re.IGNORECASE))]
