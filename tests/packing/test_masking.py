"""Masks: their statistics, whole words, what is never masked, and the same for an example however it is packed."""

import itertools
from collections import Counter

import numpy as np
import pytest

from bertfast.packing.masking import Masking, mask

VOCABULARY, SPECIAL, MASK = 1000, 5, 4


def masking(share=0.15, max_predictions=None, whole_words=False):
    special = np.arange(VOCABULARY) < SPECIAL
    special[1] = False  # [UNK] is a token like any other
    continuation = (np.arange(VOCABULARY) % 3 == 0) & ~special if whole_words else None
    return Masking(share, max_predictions, MASK, special, continuation)


def examples(n=400, seed=0, longest=128):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, longest, n)
    ids = rng.integers(SPECIAL, VOCABULARY, lengths.sum()).astype(np.int32)
    ends = np.cumsum(lengths)
    ids[ends - lengths], ids[ends - 1] = 2, 3  # [CLS] and [SEP]
    return ids, lengths


def words_of(ids, lengths, masking):
    """Every word as its rows, read token by token."""
    words, row = [], 0
    for owner, length in enumerate(lengths):
        before = None
        for _ in range(length):
            if masking.is_special[ids[row]]:
                before = None
            elif before is not None and masking.is_continuation[ids[row]]:
                before.append(row)
            else:
                before = [row]
                words.append((owner, before))
            row += 1
    return words


@pytest.mark.parametrize("whole_words", [False, True], ids=["tokens", "whole-words"])
def test_statistics_are_within_three_sigma(whole_words):
    ids, lengths = examples(2000)
    masked, rows = mask(masking(whole_words=whole_words), ids, lengths, np.arange(len(lengths)), (7, 0))
    n = len(rows)
    wanted = np.maximum(1, np.rint(0.15 * lengths))
    taken = np.bincount(np.repeat(np.arange(len(lengths)), lengths)[rows], minlength=len(lengths))
    assert (taken <= wanted).all() and (whole_words or (taken == wanted).all())
    assert taken.sum() > 0.97 * wanted.sum()
    changed = masked[rows]
    for share, found in (
        (0.8, np.sum(changed == MASK)),
        (0.1, np.sum(changed == ids[rows])),
        (0.1, np.sum((changed != MASK) & (changed != ids[rows]))),
    ):
        assert abs(found - share * n) < 3 * np.sqrt(n * share * (1 - share)), share
    random = changed[(changed != MASK) & (changed != ids[rows])]
    assert abs(random.mean() - VOCABULARY / 2) < 3 * VOCABULARY / np.sqrt(12 * len(random))
    places = (rows - np.repeat(np.cumsum(lengths) - lengths, lengths)[rows]) / lengths[np.repeat(np.arange(len(lengths)), lengths)[rows]]
    assert abs(places.mean() - 0.5) < 0.01


def test_only_the_chosen_rows_change_and_never_special_tokens():
    ids, lengths = examples()
    inner = np.flatnonzero(ids >= SPECIAL)
    for begin, token in ((0, 0), (3, 4), (5, 1)):  # [PAD], [MASK] and [UNK], strewn in
        ids[inner[begin::7]] = token
    masked, rows = mask(masking(), ids, lengths, np.arange(len(lengths)), (1, 0))
    untouched = np.ones(len(ids), dtype=bool)
    untouched[rows] = False
    assert np.array_equal(masked[untouched], ids[untouched])
    assert not np.isin(ids[rows], (0, 2, 3, 4)).any() and (np.diff(rows) > 0).all()
    assert (ids[rows] == 1).any(), "[UNK] may be chosen"


def test_whole_words_are_never_split_and_taken_in_order_until_there_is_no_room():
    ids, lengths = examples()
    settings = masking(whole_words=True)
    _, rows = mask(settings, ids, lengths, np.arange(len(lengths)), (3, 0))
    chosen, taken = set(rows.tolist()), np.zeros(len(lengths), dtype=int)
    left = [[] for _ in lengths]
    for owner, word in words_of(ids, lengths, settings):
        inside = [row in chosen for row in word]
        assert all(inside) or not any(inside)
        taken[owner] += sum(inside)
        if not any(inside):
            left[owner].append(len(word))
    room = np.maximum(1, np.rint(0.15 * lengths)).astype(int) - taken
    assert (room >= 0).all()
    assert all(min(sizes) > spare for sizes, spare in zip(left, room, strict=True) if sizes), "a word that still fits was passed over"


@pytest.mark.parametrize("most", [1, 5])
def test_max_predictions_is_a_limit(most):
    ids, lengths = examples()
    _, rows = mask(masking(max_predictions=most), ids, lengths, np.arange(len(lengths)), (1, 0))
    taken = np.bincount(np.repeat(np.arange(len(lengths)), lengths)[rows], minlength=len(lengths))
    assert (taken == np.minimum(most, np.maximum(1, np.rint(0.15 * lengths)))).all()


@pytest.mark.parametrize("whole_words", [False, True], ids=["tokens", "whole-words"])
def test_an_example_s_masks_do_not_depend_on_its_batch(whole_words):
    ids, lengths = examples(40)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    settings = masking(whole_words=whole_words)
    masked, rows = mask(settings, ids, lengths, np.arange(40), (5, 2))
    order = np.random.default_rng(1).permutation(40)
    shuffled = np.concatenate([ids[bounds[i] : bounds[i + 1]] for i in order])
    again, _ = mask(settings, shuffled, lengths[order], order, (5, 2))
    assert np.array_equal(again, np.concatenate([masked[bounds[i] : bounds[i + 1]] for i in order]))
    others = [mask(settings, ids, lengths, np.arange(40), key)[1] for key in ((5, 3), (6, 2))]
    assert all(len(np.intersect1d(rows, other)) < 0.4 * len(rows) for other in others)


def test_an_example_without_words_has_no_mask():
    _, rows = mask(masking(), np.array([2, 3, 2, 9, 3], dtype=np.int32), np.array([2, 3]), np.array([0, 1]), (1, 0))
    assert rows.tolist() == [3]
    assert mask(masking(), np.array([2, 3], dtype=np.int32), np.array([2]), np.array([0]), (1, 0))[1].tolist() == []


@pytest.mark.parametrize("whole_words", [False, True], ids=["tokens", "whole-words"])
def test_what_a_tokenizer_tells(make_tokenizer, whole_words):
    tokenizer = make_tokenizer("un ##break ##able the # ##s")  # from 5 on
    found = Masking.of(tokenizer, 14, 0.2, 7, whole_words)
    assert (found.share, found.max_predictions, found.mask_id) == (0.2, 7, 4)
    assert len(found.is_special) == 14 and np.flatnonzero(found.is_special).tolist() == [0, 2, 3, 4]
    assert (found.is_continuation is not None) == whole_words
    if whole_words:
        assert len(found.is_continuation) == 14 and np.flatnonzero(found.is_continuation).tolist() == [6, 7, 10]


def masked_words(tokenizer, texts, epochs):
    """(tokens, masked ones among them) of each word of each text in each epoch, the words as the tokenizer itself counts them; and of what
    is no word."""
    settings = Masking.of(tokenizer, len(tokenizer), 0.15, None, whole_words=True)
    encodings = [tokenizer(text) for text in texts]
    ids, lengths = np.concatenate([encoding["input_ids"] for encoding in encodings]), [len(encoding["input_ids"]) for encoding in encodings]
    owners = [(text, word) for text, encoding in enumerate(encodings) for word in encoding.word_ids()]
    words, others = [], 0
    for epoch in range(epochs):
        _, rows = mask(settings, ids, np.array(lengths), np.arange(len(lengths)), (0, epoch))
        sizes, chosen = Counter(owners), Counter(owners[row] for row in rows)
        words += [(size, chosen[owner]) for owner, size in sizes.items() if owner[1] is not None]
        others += sum(count for owner, count in chosen.items() if owner[1] is None)
    return words, others


def test_whole_words_of_a_small_vocabulary(make_tokenizer):
    tokenizer = make_tokenizer("un ##break ##able the film ##s is good dog")
    words, others = masked_words(tokenizer, ["The unbreakable films. Dogs? Good, the film is unbreakable!", "unbreakable " * 30], 20)
    assert not others and all(chosen in (0, size) for size, chosen in words)
    assert {size for size, chosen in words if chosen} == {1, 2, 3}


def test_whole_words_of_real_text(data_dir):
    from transformers import BertTokenizerFast

    text, vocabulary = data_dir / "wikitext2" / "wiki.valid.txt", data_dir / "bert_uncased_vocab" / "vocab.txt"
    if not text.is_file() or not vocabulary.is_file():
        pytest.skip("BERTFAST_DATA holds no wikitext2 or bert_uncased_vocab")
    with open(text, encoding="utf-8") as file:
        lines = [line for line in itertools.islice(file, 200) if len(line) > 100]
    words, others = masked_words(BertTokenizerFast(str(vocabulary)), lines, 2)
    assert not others and all(chosen in (0, size) for size, chosen in words)
    assert sum(size > 1 and chosen > 0 for size, chosen in words) > 100
