"""The ids are those of transformers' own call, whatever the text."""

from __future__ import annotations

import copy
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertfast.data import tokenizing
from bertfast.data.tokenizing import tokenise, tokenizer_fingerprint
from bertfast.errors import DataError

AWKWARD = [
    pytest.param("", id="empty"),
    pytest.param("   \t  ", id="only-blanks"),
    pytest.param("the film " * 150, id="long"),
    pytest.param("x" * 500, id="one-very-long-word"),
    pytest.param("good 😀👩‍👩‍👧 film 🇩🇪", id="emoji"),
    pytest.param("nul \0 within \0", id="nul"),
    pytest.param("a [SEP] b [CLS] [PAD] [MASK] [UNK] [sep]", id="literal-special-tokens"),
    pytest.param("naïve Ünïcödé ßŞİ", id="accents"),
    pytest.param("e\u0301 \u0130 \ufb01", id="combining-and-ligature"),
    pytest.param("\u200b\u200d\ufeff\u2028\x85", id="invisible"),
    pytest.param("北京 東京 한국어 Ελλάδα Россия", id="scripts"),
    pytest.param("\u202eevil \U0010ffff \ue000", id="direction-marks-and-private-use"),
    pytest.param("## ##s #hash can't U.S.A. $5.00", id="punctuation"),
]


@pytest.fixture(scope="module")
def tokenizer(models_dir):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(models_dir / "all-MiniLM-L6-v2")


def examples(blocks) -> list[tuple[list[int], list[int]]]:
    """The ids and token types of each example."""
    result = []
    for block in blocks:
        assert (block.input_ids.dtype, block.token_type_ids.dtype, block.lengths.dtype) == (np.int32, np.uint8, np.int32)
        cuts = np.cumsum(block.lengths)[:-1]
        result += [
            (ids.tolist(), types.tolist())
            for ids, types in zip(np.split(block.input_ids, cuts), np.split(block.token_type_ids, cuts), strict=False)
        ]
    return result


def expected(tokenizer, text_a, text_b, length):
    """What transformers' own call gives, on a tokenizer of its own."""
    features = copy.deepcopy(tokenizer)(text_a, text_b, truncation=True, max_length=length, return_token_type_ids=True)
    return list(zip(features["input_ids"], features["token_type_ids"], strict=True))


@pytest.mark.parametrize("length", [3, 4, 5, 16, 128, 512])
@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_texts(tokenizer, text, length):
    other = [param.values[0] for param in AWKWARD]
    texts = [text] * len(other)
    assert examples(tokenise(texts, None, tokenizer, length)) == expected(tokenizer, texts, None, length)
    assert examples(tokenise(texts, other, tokenizer, length)) == expected(tokenizer, texts, other, length)


def test_two_very_long_texts_take_no_more_memory_than_they_hold(tokenizer):
    (block,) = tokenise(["the " * 6000] * 4, ["film " * 6000] * 4, tokenizer, 4)
    assert block.input_ids.tolist() == [101, 102, tokenizer.convert_tokens_to_ids("film"), 102] * 4


def test_every_small_length(make_tokenizer):
    tokenizer = make_tokenizer()
    text_a, text_b = map(list, zip(*((("a " * a), ("b " * b)) for a in range(9) for b in range(9)), strict=True))
    for length in range(3, 20):
        for side in ("right", "left"):
            tokenizer.truncation_side = side
            assert examples(tokenise(text_a, text_b, tokenizer, length)) == expected(tokenizer, text_a, text_b, length)
            assert examples(tokenise(text_a, None, tokenizer, length)) == expected(tokenizer, text_a, None, length)


@pytest.mark.runs
@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(st.tuples(st.text(max_size=60), st.text(max_size=60)), min_size=1, max_size=8), length=st.integers(3, 40))
def test_any_text(tokenizer, pairs, length):
    text_a, text_b = map(list, zip(*pairs, strict=True))
    assert examples(tokenise(text_a, text_b, tokenizer, length)) == expected(tokenizer, text_a, text_b, length)


@pytest.mark.parametrize("length", [12, 64, 128])
def test_real_pairs(tokenizer, data_dir, length):
    rows = [line.split("\t") for line in (data_dir / "glue/MNLI/dev_matched.tsv").read_text(encoding="utf-8").split("\n")[1:2001]]
    text_a, text_b = [row[1] for row in rows], [row[2] for row in rows]
    assert examples(tokenise(text_a, text_b, tokenizer, length)) == expected(tokenizer, text_a, text_b, length)


@pytest.mark.parametrize("workers", [1, 2, 5, None])
@pytest.mark.parametrize("block", [1, 7, 512])
def test_order_is_kept(make_tokenizer, monkeypatch, workers, block):
    monkeypatch.setattr(tokenizing, "BLOCK_EXAMPLES", block)
    tokenizer = make_tokenizer()
    texts = [" ".join(["film"] * (index % 9)) for index in range(50)]
    found = examples(tokenise(texts, None, tokenizer, 8, workers))
    assert [len(ids) for ids, _ in found] == [min(index % 9 + 2, 8) for index in range(50)]


@pytest.mark.parametrize("workers, used", [(None, 3), (5, 5)])
def test_threads_left_out_are_those_of_the_process(make_tokenizer, monkeypatch, workers, used):
    seen = []

    def ahead(work, items, threads, most):
        seen.append(threads)
        yield from map(work, items)

    monkeypatch.setattr(tokenizing, "ahead", ahead)
    monkeypatch.setattr(tokenizing, "threads", lambda: 3)
    list(tokenizing.tokenise(["a"], None, make_tokenizer(), 8, workers))
    assert seen == [used]


def test_truncation_side(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.truncation_side = "left"
    ids = [ids for ids, _ in examples(tokenise(["a b c d e"], None, tokenizer, 4))]
    assert ids == [[2, *tokenizer.convert_tokens_to_ids(["d", "e"]), 3]]


def test_split_special_tokens(models_dir):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models_dir / "all-MiniLM-L6-v2", split_special_tokens=True)
    texts = ["a [SEP] b"]
    assert examples(tokenise(texts, None, tokenizer, 32)) == expected(tokenizer, texts, None, 32)
    assert examples(tokenise(texts, None, tokenizer, 32))[0][0].count(tokenizer.sep_token_id) == 1


def test_the_tokenizer_is_left_as_it_was(make_tokenizer, monkeypatch):
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(5, stride=1, strategy="only_first")
    tokenizer.backend_tokenizer.enable_padding(length=7)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    before = tokenizer.backend_tokenizer.to_str()
    assert examples(tokenise(["a b c d e film film"], ["a"], tokenizer, 9))[0][0].count(0) == 0, "no padding"
    tokenizer_fingerprint(tokenizer)
    assert tokenizer.backend_tokenizer.to_str() == before
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


def test_a_caller_that_stops_early_gets_its_environment_back(make_tokenizer, monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    blocks = tokenise(["a"] * 20_000, None, make_tokenizer(), 8)
    next(blocks)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    blocks.close()
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_a_tokenizer_without_a_rust_backend(data_dir):
    from transformers import BertTokenizerLegacy

    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = BertTokenizerLegacy(str(data_dir / "bert_uncased_vocab" / "vocab.txt"), model_input_names=inputs)
    assert not tokenizer.is_fast
    texts, others = ["The film is good", "", "naïve " * 100], ["Really?", "one", ""]
    assert examples(tokenise(texts, others, tokenizer, 16)) == expected(tokenizer, texts, others, 16)
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(copy.deepcopy(tokenizer))
    fingerprint = tokenizer_fingerprint(tokenizer)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    assert tokenizer_fingerprint(tokenizer) != fingerprint
    assert "token_type_ids" not in tokenizer(texts, others), "so its model takes every token for segment 0"
    assert not any(block.token_type_ids.any() for block in tokenise(texts, others, tokenizer, 16))


@pytest.mark.parametrize(("pair", "length"), [(False, 1), (True, 2)])
def test_no_room_for_the_special_tokens(make_tokenizer, pair, length):
    with pytest.raises(DataError, match=rf"max_sequence_length is {length}, but the special tokens of a .* alone are {length + 1}"):
        list(tokenise(["a"], ["b"] if pair else None, make_tokenizer(), length))


def test_fingerprint(make_tokenizer):
    tokenizer = make_tokenizer()
    fingerprint = tokenizer_fingerprint(tokenizer)
    assert fingerprint == tokenizer_fingerprint(make_tokenizer()), "it is of the contents"
    tokenizer(["a b c d"], truncation=True, max_length=3, padding=True)
    left = tokenizer.backend_tokenizer.to_str()
    assert fingerprint == tokenizer_fingerprint(tokenizer), "truncation and padding left by another call do not count"
    assert tokenizer.backend_tokenizer.to_str() == left and '"truncation":{' in left and '"padding":{' in left, "and are left as they were"
    others = [make_tokenizer("a b c d e good bad film the ##t"), make_tokenizer(), make_tokenizer(), make_tokenizer()]
    others[1].truncation_side = "left"
    others[2].split_special_tokens = True
    others[3].add_tokens(["extra"])
    assert len({fingerprint, *map(tokenizer_fingerprint, others)}) == 5
