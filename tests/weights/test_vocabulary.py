"""Folders whose tokenizer files say something out of the ordinary: the ids are those of transformers' AutoTokenizer, or bertfast refuses by name."""

import json
import warnings
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer, BertTokenizer

from bertfast.data.tokenizing import tokenise
from bertfast.errors import CheckpointError
from bertfast.weights.tokenizer import load_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PLAIN = "a the film is good us i turkey café cafe 中 国 中国 <s> </s> <pad> <x> ! , . ' t b c d ##s ##k"
UNCASED = [*SPECIAL, *PLAIN.split()]
CASED = [*UNCASED, "Turkey", "US", "I", "Film"]
TEXTS = [
    "I like Turkey!",
    "the Films is good.",
    "café, cafe",
    "中国 is good",
    "a <x> film [SEP] us",
    "",
    "good " * 30,
    " Film​good b\t\n x",
    "it's US",
]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 440473133\n"


def vocabulary(words=CASED, end="\n", size=None, **settings):
    """Writes config.json and vocab.txt, and tokenizer_config.json where there are settings."""

    def write(folder):
        sizes = {"vocab_size": size or len(words), "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
        (folder / "config.json").write_text(json.dumps({"model_type": "bert", **sizes}))
        (folder / "vocab.txt").write_bytes("".join(f"{word}{end}" for word in words).encode())
        if settings:
            (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    return write


def saved(words=CASED, lower=False, leave_out=(), whole=None, **settings):
    """Writes tokenizer.json and tokenizer_config.json as transformers saves them, and then changes the one and the other."""

    def write(folder):
        vocabulary(words)(folder)
        BertTokenizer(str(folder / "vocab.txt"), do_lower_case=lower).save_pretrained(folder)
        (folder / "vocab.txt").unlink()
        for name, changes in (("tokenizer.json", whole or {}), ("tokenizer_config.json", settings)):
            values = json.loads((folder / name).read_text()) | changes
            (folder / name).write_text(json.dumps({key: value for key, value in values.items() if key not in leave_out}))

    return write


def then(write, name, content):
    def both(folder):
        write(folder)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))

    return both


def without(write, name):
    def both(folder):
        write(folder)
        (folder / name).unlink()

    return both


BERT_PROCESSING = {"post_processor": {"type": "BertProcessing", "cls": ["[CLS]", 2], "sep": ["[SEP]", 3]}}
LEFT = {"direction": "Left", "max_length": 6, "strategy": "LongestFirst", "stride": 0}
WORD_LEVEL = {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {word: index for index, word in enumerate(UNCASED)}}
NFKC = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}
LOWER = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": True, "lowercase": True}

EQUAL = {
    "an-uncased-vocabulary": vocabulary(UNCASED),
    "an-uncased-vocabulary-with-a-capital": vocabulary([*UNCASED, *(f"word{index}" for index in range(100)), "URL"]),
    **{f"lower-{lower}": vocabulary(do_lower_case=lower) for lower in (True, False)},
    **{f"{key}-{value}": vocabulary(do_lower_case=False, **{key: value})
       for key, value in (("strip_accents", True), ("tokenize_chinese_chars", False), ("do_basic_tokenize", False), ("model_max_length", 8),
                          ("padding_side", "left"), ("truncation_side", "left"), ("split_special_tokens", True), ("unk_token", "[PAD]"))},
    "other-special-tokens": vocabulary(do_lower_case=False, cls_token="<s>", sep_token="</s>", pad_token="<pad>"),
    "special_tokens_map": then(vocabulary(do_lower_case=False), "special_tokens_map.json", {"cls_token": "<s>", "sep_token": "</s>"}),
    "added_tokens": then(vocabulary(size=50, do_lower_case=False), "added_tokens.json", {"like": len(CASED), "<x>": len(CASED) + 1}),
    "cr-lf": vocabulary(end="\r\n", do_lower_case=False),
    "a-word-twice": vocabulary([*UNCASED, "film", *CASED[-4:]], do_lower_case=False),
    "blank-lines": vocabulary([*UNCASED, "", "", *CASED[-4:]], do_lower_case=False),
    **{f"class-{name}": vocabulary(do_lower_case=False, tokenizer_class=name)
       for name in ("BertTokenizerFast", "ElectraTokenizer", "DistilBertTokenizer")},
    "japanese": vocabulary(do_lower_case=False, tokenizer_class="BertJapaneseTokenizer", word_tokenizer_type="basic",
                           subword_tokenizer_type="character"),
    "saved": saved(),
    "saved-uncased": without(saved(UNCASED, lower=True), "tokenizer_config.json"),
    "saved-and-the-settings-say-otherwise": saved(do_lower_case=True, strip_accents=False, tokenize_chinese_chars=False),
    "saved-left": saved(whole={"truncation": LEFT}, leave_out=("truncation_side",)),
    "as-it-is": saved(tokenizer_class="PreTrainedTokenizerFast"),
    "as-it-is-nfkc": saved(tokenizer_class="PreTrainedTokenizerFast", whole={"normalizer": NFKC}),
    "as-it-is-of-the-first-releases": saved(tokenizer_class="PreTrainedTokenizerFast", whole=BERT_PROCESSING),
    "as-it-is-with-no-special-tokens": saved(tokenizer_class="PreTrainedTokenizerFast", whole={"post_processor": None}),
    "of-the-first-releases": saved(whole=BERT_PROCESSING),
    "no-segments": saved(model_input_names=["input_ids", "attention_mask"]),
    "segments": saved(tokenizer_class="PreTrainedTokenizerFast", model_input_names=["input_ids", "token_type_ids", "attention_mask"]),
    "another-vocab-txt-beside": then(saved(), "vocab.txt", "\n".join(reversed(CASED))),
}  # fmt: skip

REFUSED = {
    **{f"pointer-{name}": (then(write(), name, POINTER), f"{name}: is a Git LFS pointer")
       for write, name in ((vocabulary, "vocab.txt"), (saved, "tokenizer.json"), (saved, "tokenizer_config.json"))},
    "silent-lower-case": (saved(leave_out=("do_lower_case",)), r'lowercase = false, but .* takes true; write "do_lower_case": false into'),
    "tokenizer.json-alone": (without(saved(), "tokenizer_config.json"), "its normalizer has lowercase = false"),
    "silent-accents": (saved(UNCASED, whole={"normalizer": LOWER}, do_lower_case=True, leave_out=("strip_accents",)), '"strip_accents": true'),
    "another-normalizer": (saved(whole={"normalizer": NFKC}), 'its normalizer is .*NFKC.*write "tokenizer_class": "PreTrainedTokenizerFast"'),
    "another-pre-tokenizer": (saved(whole={"pre_tokenizer": {"type": "WhitespaceSplit"}}), "its pre_tokenizer is .*WhitespaceSplit"),
    "another-post-processor": (saved(whole={"post_processor": None}), "its post_processor is"),
    "another-model": (saved(UNCASED, lower=True, whole={"model": WORD_LEVEL}), 'its model is {"type": "WordLevel"'),
    "a-class-that-reads-no-vocab-txt": (vocabulary(do_lower_case=False, tokenizer_class="RobertaTokenizer"), "RobertaTokenizer knows but 5"),
    "no-token-for-unknown-words": (vocabulary(CASED[2:], do_lower_case=False), r"cannot be loaded \(.*\[UNK\]"),
    "an-empty-vocabulary": (vocabulary([], size=9), "cannot be loaded"),
    "torn-settings": (then(vocabulary(), "tokenizer_config.json", "{"), "cannot be loaded"),
    "added-beyond-the-embeddings": (then(vocabulary(do_lower_case=False), "added_tokens.json", {"like": len(CASED)}), r"has \d+ tokens, but the model has"),
    "a-word-twice-beyond-the-embeddings": (vocabulary([*CASED, "film"], size=len(CASED), do_lower_case=False), rf"{len(CASED) + 1} tokens, but the model has"),
}  # fmt: skip


def embeddings(folder):
    return SimpleNamespace(vocab_size=json.loads((folder / "config.json").read_text())["vocab_size"])


def ours(tokenizer, first, second):
    """(ids, token_type_ids) of each text or pair, by bertfast."""
    block = next(tokenise(first, second, tokenizer, 12, 1))
    ends = block.lengths.cumsum()
    return [
        (block.input_ids[end - n : end].tolist(), block.token_type_ids[end - n : end].tolist())
        for end, n in zip(ends, block.lengths, strict=True)
    ]


def theirs(tokenizer, first, second):
    """The same by transformers; a BERT that is given no token_type_ids takes all for 0."""
    found = tokenizer(first, second, truncation=True, max_length=12)
    ids = found["input_ids"]
    return list(zip(ids, found.get("token_type_ids", [[0] * len(row) for row in ids]), strict=True))


@pytest.mark.parametrize("write", EQUAL.values(), ids=EQUAL)
@pytest.mark.filterwarnings("ignore:.*gives BERT no token_type_ids")
def test_ids_are_those_of_transformers(tmp_path, write):
    write(tmp_path)
    tokenizer, expected = load_tokenizer(tmp_path, embeddings(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)
    for second in (None, TEXTS[::-1]):
        assert ours(tokenizer, TEXTS, second) == theirs(expected, TEXTS, second)


@pytest.mark.parametrize(("write", "words"), REFUSED.values(), ids=REFUSED)
def test_other_folders_are_refused_by_name(tmp_path, write, words):
    write(tmp_path)
    with pytest.raises(CheckpointError, match=words) as refusal:
        load_tokenizer(tmp_path, embeddings(tmp_path))
    assert str(tmp_path) in str(refusal.value)


@pytest.mark.parametrize("settings", [{}, {"model_max_length": 128}], ids=["nothing", "no-word-of-case"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "cr-lf"])
def test_a_cased_vocabulary_keeps_its_capitals_and_says_so(tmp_path, settings, end):
    """As old repositories have them: config.json, vocab.txt, and nothing of lower case. transformers would lower it, so the truth is its
    tokenizer with the word said."""
    vocabulary(end=end, **settings)(tmp_path)
    with pytest.warns(UserWarning, match='nothing says whether text is put in lower case.*"do_lower_case" into tokenizer_config.json'):
        tokenizer = load_tokenizer(tmp_path, embeddings(tmp_path))
    expected = AutoTokenizer.from_pretrained(tmp_path, do_lower_case=False)
    assert ours(tokenizer, TEXTS, None) == theirs(expected, TEXTS, None)
    assert tokenizer.tokenize("I US") == ["I", "US"]
    tokenizer.save_pretrained(tmp_path)
    with warnings.catch_warnings(action="error"):
        assert load_tokenizer(tmp_path, embeddings(tmp_path)).tokenize("I US") == ["I", "US"]


@pytest.mark.parametrize("name", ["DistilBertTokenizer", "PreTrainedTokenizerFast"])
def test_a_tokenizer_without_segments_says_so_and_can_be_saved(tmp_path, name):
    saved(tokenizer_class=name)(tmp_path)
    with pytest.warns(UserWarning, match=r"gives BERT no token_type_ids, .*\"model_input_names\""):
        tokenizer = load_tokenizer(tmp_path, embeddings(tmp_path))
    before = ours(tokenizer, TEXTS, TEXTS)
    assert not any(any(types) for _, types in before)
    tokenizer.save_pretrained(tmp_path)
    with warnings.catch_warnings(action="ignore"):
        assert ours(load_tokenizer(tmp_path, embeddings(tmp_path)), TEXTS, TEXTS) == before
