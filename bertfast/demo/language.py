"""A small natural-language-inference language, whose labels are right by construction; the demo trains on it.

A sentence describes one scene: who, of what size and colour, does what, where and when. Each of these is a slot, and each phrase of a slot
stands for a set of possibilities: "dog" for {dog}, "animal" for every animal; a slot left out stands for all that it could hold. A sentence
is a product of such sets. With both sentences taken to describe the same scene, as in SNLI (Bowman et al. 2015), the label follows:
entailment where the premise's set lies within the hypothesis's, contradiction where the two are disjoint, neutral otherwise.

The slots are put into sentence templates. No template of the dev set, however many of its slots are left out, is one of the training set's.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

LABEL_NAMES = ("entailment", "neutral", "contradiction")

# Slot -> the general phrase -> the phrases under it. Phrases of a slot exclude each other, but for those under a general one.
_HIERARCHIES: dict[str, dict[str | None, tuple[str, ...]]] = {
    "who": {"animal": ("dog", "cat", "horse"), "person": ("man", "woman", "child")},
    "action": {"moving": ("running", "jumping", "swimming"), "resting": ("sleeping", "sitting")},
    "size": {None: ("big", "small")},
    "colour": {None: ("black", "white", "brown")},
    "place": {"outdoors": ("in the park", "in the forest"), "indoors": ("in the kitchen", "in the office")},
    "time": {"during the day": ("in the morning", "at noon"), "after dark": ("in the evening", "at midnight")},
}
SLOTS = tuple(_HIERARCHIES)
_SAID = {"who": 1.0, "action": 1.0, "size": 0.35, "colour": 0.35, "place": 0.5, "time": 0.35}  # how often a sentence fills the slot
_OTHER_DIFFERENCE = 0.08  # how often a slot that does not decide the label differs, too

TRAIN_TEMPLATES = (
    "{who} is {action} {place} {time}",
    "{place} , {who} is {action} {time}",
    "{time} , {who} is {action} {place}",
    "{time} {place} {who} was {action}",
    "there is {who} {action} {place} {time}",
    "there is {who} {place} , {action} {time}",
    "{time} there is {who} {action} {place}",
    "we saw {who} {action} {place} {time}",
    "{place} we saw {who} {action} {time}",
    "{who} was seen {action} {place} {time}",
    "{time} , {who} was seen {place} , {action}",
    "the picture shows {who} {action} {place} {time}",
    "{place} , the picture shows {who} {action} {time}",
    "{who} , {action} {place} , can be seen {time}",
    "{place} {who} can be seen {action} {time}",
    "they say that {who} is {action} {place} {time}",
    "they say that {time} {who} was {action} {place}",
    "it is {who} that is {action} {place} {time}",
)
DEV_TEMPLATES = (
    "they say that there is {who} {action} {place} {time}",
    "{time} , they say , {who} is {action} {place}",
    "the picture shows that {who} is {action} {place} {time}",
    "it was {who} that we saw {action} {place} {time}",
    "we can say that {who} was {action} {time} {place}",
    "{time} it was {who} that was seen {action} {place}",
    "there can be seen {place} {who} , {action} {time}",
    "we say that {place} there was {who} {action} {time}",
)

Scene = Mapping[str, str]  # slot -> phrase; a slot that is not there is left open


class Pair(NamedTuple):
    """One row of the set."""

    premise: str
    hypothesis: str
    label: str


def meanings(slot: str) -> dict[str | None, frozenset[str]]:
    """Every phrase of a slot, and None for the open slot, with the possibilities that it stands for."""
    general: dict[str | None, frozenset[str]] = {
        phrase: frozenset(members) for phrase, members in _HIERARCHIES[slot].items() if phrase is not None
    }
    particular = [phrase for members in _HIERARCHIES[slot].values() for phrase in members]
    return {**{phrase: frozenset([phrase]) for phrase in particular}, **general, None: frozenset(particular)}


_MEANINGS = {slot: meanings(slot) for slot in SLOTS}


def label_of(premise: Scene, hypothesis: Scene) -> str:
    """Whether the hypothesis is entailed by the premise, contradicts it, or neither."""
    pairs = [(_MEANINGS[slot][premise.get(slot)], _MEANINGS[slot][hypothesis.get(slot)]) for slot in SLOTS]
    if any(said.isdisjoint(claimed) for said, claimed in pairs):
        return "contradiction"
    return "entailment" if all(said <= claimed for said, claimed in pairs) else "neutral"


def _differences(slot: str) -> dict[str, list[tuple[str | None, str | None]]]:
    """Label -> the pairs of unlike phrases of one slot that give it, (in the premise, in the hypothesis)."""
    phrases = [phrase for phrase in _MEANINGS[slot] if phrase is not None or _SAID[slot] < 1]
    found: dict[str, list] = {label: [] for label in LABEL_NAMES}
    for said, claimed in itertools.permutations(phrases, 2):
        sides = ({slot: phrase} if phrase else {} for phrase in (said, claimed))
        found[label_of(*sides)].append((said, claimed))
    return found


_DIFFERENCES = {slot: _differences(slot) for slot in SLOTS}


def draw_scenes(label: str, rng: random.Random) -> tuple[Scene, Scene]:
    """A premise and a hypothesis that stand in the relation `label`: one slot decides it, and the others seldom differ."""
    deciding = rng.choice(SLOTS)
    premise, hypothesis = {}, {}
    for slot in SLOTS:
        if slot == deciding:
            said, claimed = rng.choice(_DIFFERENCES[slot][label])
        elif rng.random() < _OTHER_DIFFERENCE:
            harmless = "entailment" if label == "entailment" else rng.choice(("entailment", "neutral"))
            said, claimed = rng.choice(_DIFFERENCES[slot][harmless])
        else:
            said = rng.choice([phrase for phrase in _MEANINGS[slot] if phrase]) if rng.random() < _SAID[slot] else None
            claimed = said
        premise.update({slot: said} if said else {})
        hypothesis.update({slot: claimed} if claimed else {})
    return premise, hypothesis


def frame(template: str, scene: Scene) -> str:
    """The template without the slots that the scene leaves open."""
    for slot in ("place", "time"):
        if slot not in scene:
            template = template.replace(f"{{{slot}}}", "")
    return re.sub(r"\s+", " ", template).strip(" ,")


def write_sentence(template: str, scene: Scene, article: str = "a") -> str:
    """The scene in words: lower case, punctuation set off by spaces."""
    described = " ".join(scene[slot] for slot in ("size", "colour", "who") if slot in scene)
    if article == "a" and described[0] in "aeiou":
        article = "an"
    return frame(template, scene).format(**{**scene, "who": f"{article} {described}"})


def generate(rows: int, templates: Sequence[str], seed: int) -> list[Pair]:
    """`rows` random pairs in sentences of these templates, with labels drawn evenly; the same seed gives the same rows."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(rows):
        label = rng.choice(LABEL_NAMES)
        scenes = draw_scenes(label, rng)
        premise, hypothesis = (write_sentence(rng.choice(templates), scene, rng.choice(("a", "the"))) for scene in scenes)
        pairs.append(Pair(premise, hypothesis, label))
    return pairs


def frames(templates: Sequence[str]) -> set[str]:
    """Every sentence frame that the templates can give: place and time each said or left out."""
    scenes = [dict.fromkeys(said, "") for count in range(3) for said in itertools.combinations(("place", "time"), count)]
    return {frame(template, scene) for template in templates for scene in scenes}
