"""What a folder's own files say of its tokenizer, held against what transformers has made of them.

transformers 5 builds a BertTokenizer anew: of tokenizer.json it takes the vocabulary alone. Lower case, accents and Chinese characters it takes from
tokenizer_config.json, and where that says nothing, from defaults (lower case is one); all other parts are BERT's.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from bertfast.errors import CheckpointError

_CASED_SHARE = 0.01  # of the words with a capital: bert-base-cased has a third; an uncased vocabulary may hold a few that were added to it
_SETTINGS = {"lowercase": "do_lower_case", "strip_accents": "strip_accents", "handle_chinese_chars": "tokenize_chinese_chars"}
_MODEL = ("continuing_subword_prefix", "max_input_chars_per_word")


class Written(NamedTuple):
    """The files of a tokenizer, as far as they are there: tokenizer_config.json, tokenizer.json (None: not there), the lines of vocab.txt."""

    settings: dict[str, Any]
    whole: dict[str, Any] | None
    words: list[str]

    @classmethod
    def of(cls, folder: Path) -> Written:
        settings, whole = (_json(folder / name) for name in ("tokenizer_config.json", "tokenizer.json"))
        if whole is not None or not (folder / "vocab.txt").is_file():  # where tokenizer.json is, nobody reads vocab.txt
            return cls(settings or {}, whole, [])
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
        return cls(settings or {}, None, [line.rstrip() for line in (lines if lines[-1] else lines[:-1])])

    @property
    def highest(self) -> int:
        """The highest number that the files give to a word: more than the number of words where one stands there twice."""
        vocabulary = (self.whole or {}).get("model", {}).get("vocab")
        return max(vocabulary.values(), default=-1) if isinstance(vocabulary, dict) else len(self.words) - 1

    def keeps_capitals(self) -> bool | None:
        """Whether a vocab.txt is a cased model's, of which nothing says whether text is put in lower case; None where something does.
        Many old folders are of this kind (BioBERT, SciBERT, Google's own), and in lower case their words with capitals are never found."""
        if not self.words or "do_lower_case" in self.settings:
            return None
        words = [word for word in self.words if not word.startswith("[")]
        return sum(word != word.lower() for word in words) > _CASED_SHARE * len(words)


def check_as_written(tokenizer: Any, written: Written, folder: Path) -> None:
    """Raise CheckpointError where a tokenizer of transformers is not what its files say: other programs read them as they are."""
    if len(tokenizer) < len(set(written.words)):
        raise CheckpointError(
            f"{folder}: vocab.txt has {len(set(written.words)):,} words, of which {type(tokenizer).__name__} knows but {len(tokenizer):,}; "
            "give the tokenizer_class of tokenizer_config.json that the vocabulary was made for (BertTokenizer, say)"
        )
    if written.whole is None or not tokenizer.is_fast:
        return
    backend, model = tokenizer.backend_tokenizer, written.whole.get("model", {})
    for name in ("normalizer", "pre_tokenizer"):
        _compare(name, written.whole.get(name), _state(getattr(backend, name)), written.settings, folder)
    made = {"type": type(backend.model).__name__} | {key: getattr(backend.model, key, None) for key in _MODEL}
    _compare("model", {key: model.get(key, made[key]) for key in made}, made, {}, folder)
    around, made_around = _places(written.whole.get("post_processor")), _places(_state(backend.post_processor))
    if "token_type_ids" not in tokenizer.model_input_names:
        around, made_around = _in_segment_0(around), _in_segment_0(made_around)
    _compare("post_processor", around, made_around, {}, folder)


def drop_segments(tokenizer: Any, folder: Path) -> None:
    """Number both texts of a pair 0 where the tokenizer gives its model no token_type_ids: transformers' BERT then takes them all for 0."""
    if "token_type_ids" in tokenizer.model_input_names or not tokenizer.is_fast:
        return
    backend = tokenizer.backend_tokenizer
    if not any(backend.encode("a", "a").type_ids):
        return
    from tokenizers.processors import TemplateProcessing

    places = _in_segment_0(_places(_state(backend.post_processor)))
    if not isinstance(places, tuple):
        raise CheckpointError(
            f'{folder}: gives its model no token_type_ids, though it makes them; write "model_input_names": ["input_ids", "token_type_ids", '
            '"attention_mask"] into tokenizer_config.json'
        )
    single, pair, ids_of = places
    special = [{"id": name, "ids": ids, "tokens": [backend.id_to_token(index) for index in ids]} for name, ids in ids_of.items()]
    backend.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=special)
    warnings.warn(
        f"{folder}: its tokenizer ({type(tokenizer).__name__}) gives BERT no token_type_ids, so both texts of a pair are segment 0, as in "
        'transformers; for segments 0 and 1 write "model_input_names": ["input_ids", "token_type_ids", "attention_mask"] into '
        "tokenizer_config.json",
        stacklevel=2,
    )


def _json(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _state(part: Any) -> Any:
    """A part of the Rust backend as tokenizer.json writes it."""
    return None if part is None else json.loads(part.__getstate__())


def _compare(part: str, said: Any, made: Any, settings: dict[str, Any], folder: Path) -> None:
    """settings: those of tokenizer_config.json, which go before what tokenizer.json says."""
    if part == "normalizer" and said is not None and made is not None and said.get("type") == made["type"] == "BertNormalizer":
        silent = [key for key, name in _SETTINGS.items() if name not in settings and said.get(key) != made[key]]
        if silent:
            name = _SETTINGS[silent[0]]
            raise CheckpointError(
                f"{folder / 'tokenizer.json'}: its normalizer has {silent[0]} = {json.dumps(said.get(silent[0]))}, but tokenizer_config.json "
                f'does not say so, and transformers takes {json.dumps(made[silent[0]])}; write "{name}": {json.dumps(said.get(silent[0]))} into '
                "tokenizer_config.json if the model was trained so"
            )
        said = said | {key: made[key] for key in _SETTINGS}
    if said != made:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'}: its {part} is {_short(said)}, but of tokenizer_class and BERT's defaults transformers makes "
            f'{_short(made)}; write "tokenizer_class": "PreTrainedTokenizerFast" into tokenizer_config.json, which takes tokenizer.json as it is'
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else f"{text[:157]}..."


def _places(processor: Any) -> Any:
    """What a post-processor puts around texts, in the notation of tokenizers: pieces of a text ("[CLS]:0", "$A:0"), of a pair, and the ids of
    each special token. A kind that has no template is given back as it is."""
    if processor is None:
        return ["$A:0"], ["$A:0", "$B:1"], {}
    if processor["type"] == "BertProcessing":  # of the first releases; TemplateProcessing took its place
        (cls, cls_id), (sep, sep_id) = processor["cls"], processor["sep"]
        single = [f"{cls}:0", "$A:0", f"{sep}:0"]
        return single, [*single, "$B:1", f"{sep}:1"], {cls: [cls_id], sep: [sep_id]}
    if processor["type"] != "TemplateProcessing":
        return processor
    single, pair = ([_piece(*next(iter(piece.items()))) for piece in processor[name]] for name in ("single", "pair"))
    return single, pair, {name: token["ids"] for name, token in processor["special_tokens"].items()}


def _in_segment_0(places: Any) -> Any:
    if not isinstance(places, tuple):
        return places
    return *([f"{piece.rpartition(':')[0]}:0" for piece in pieces] for pieces in places[:2]), places[2]


def _piece(kind: str, value: dict[str, Any]) -> str:
    return f"{'$' if kind == 'Sequence' else ''}{value['id']}:{value['type_id']}"
