"""Pre-training examples: where documents begin and end, what pairs are made of, and what is cached."""

from collections import Counter

import numpy as np
import pytest

from bertfast.blocks import PretrainConfig
from bertfast.config import InputConfig, TaskConfig
from bertfast.corpus import Corpus, documents_of_files, documents_of_texts
from bertfast.errors import ConfigError, DataError
from bertfast.pretraining_data import load_pretraining_set, pairs, stretches
from bertfast.tasks import get_task

WORDS = [f"w{index}" for index in range(400)]
TASK = get_task(TaskConfig(text_columns=["text"]))


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer):
    return make_tokenizer(" ".join(WORDS))


@pytest.fixture
def corpus(tokenizer, tmp_path):
    """Documents whose every word occurs once in the corpus, so that an id tells its place."""
    rng, words = np.random.default_rng(0), iter(WORDS)
    documents = [[" ".join(next(words) for _ in range(rng.integers(1, 9))) for _ in range(rng.integers(1, 9))] for _ in range(14)]
    return Corpus(documents, tokenizer, tmp_path / "cache", "test")


def document_of(corpus):
    """id -> (its document, its sentence, its place among all tokens)."""
    places, place = {}, 0
    for document in range(len(corpus)):
        for sentence in range(corpus.n_sentences(document)):
            for token in corpus.tokens(document, sentence, sentence + 1).tolist():
                places[token] = (document, sentence, place)
                place += 1
    return places


def test_blank_lines_and_files_part_documents(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo \n\n \n\nthree\r\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("\nfour\n")
    files = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    assert list(documents_of_files(files)) == [["one", "two"], ["three"], ["four"]]
    with pytest.raises(DataError, match=r"c\.txt: cannot be read"):
        list(documents_of_files([str(tmp_path / "c.txt")]))


def test_texts_are_cut_into_sentences():
    texts = ["One here. Two there!  Three? 4.5 stays", "  ", "five"]
    assert list(documents_of_texts(texts)) == [["One here.", "Two there!", "Three?", "4.5 stays"], ["five"]]


def test_a_corpus_holds_the_tokenizer_s_ids(tokenizer, tmp_path):
    documents = [["w0 w1", "", "w2"], [""], ["w3 w4 w5"]]
    corpus = Corpus(documents, tokenizer, tmp_path, "test")
    assert len(corpus) == 2 and corpus.n_tokens == 6
    assert [corpus.n_sentences(index) for index in range(2)] == [2, 1] and corpus.lengths(0).tolist() == [2, 1]
    assert corpus.tokens(0).tolist() == [5, 6, 7] and corpus.tokens(0, 1).tolist() == [7] and corpus.tokens(1).tolist() == [8, 9, 10]
    assert not list(tmp_path.iterdir()), "the files have no name"
    with pytest.raises(DataError, match="there is no text in it"):
        Corpus([[""]], tokenizer, tmp_path, "test")


def test_stretches_cover_every_token_once(corpus):
    found = list(stretches(corpus, 10))
    assert [token for ids, *_ in found for token in ids.tolist()] == sorted(document_of(corpus))
    for ids, second, label, document in found:
        assert second is None and label == 0 and {document_of(corpus)[token][0] for token in ids.tolist()} == {document}
    sizes = [len(ids) for ids, *_ in found]
    ends = [index for index, (_, _, _, document) in enumerate(found) if index + 1 == len(found) or found[index + 1][3] != document]
    assert all(size == 10 for index, size in enumerate(sizes) if index not in ends)


@pytest.mark.parametrize("short", [0.0, 0.5])
def test_pairs_are_neighbours_or_strangers(corpus, short):
    where, labels, covered = document_of(corpus), Counter(), Counter()
    for seed in range(40):
        seen = set()
        for first, second, is_random, document in pairs(corpus, 24, short, np.random.default_rng(seed)):
            labels[is_random] += 1
            assert len(first) and len(second) and len(first) + len(second) <= 24
            a, b = ([where[token] for token in part.tolist()] for part in (first, second))
            for part in (a, b):
                assert [place for _, _, place in part] == list(range(part[0][2], part[0][2] + len(part)))
            assert {place[0] for place in a} == {document}
            assert ({place[0] for place in b} == {document}) == (not is_random)
            if not is_random:
                assert b[0][1] > a[-1][1] and b[0][1] - a[-1][1] <= 24
            seen |= {place[2] for place in a} | ({place[2] for place in b} if not is_random else set())
        covered.update(seen)
    assert 0.5 <= labels[1] / labels.total() < 0.75, "a document of one sentence has strangers alone"
    assert len(covered) == len(where), "every token is used by some seed"


def test_untrimmed_neighbours_touch(corpus):
    where, own = document_of(corpus), []
    for first, second, is_random, _ in pairs(corpus, 200, 0.0, np.random.default_rng(1)):
        own += first.tolist() + ([] if is_random else second.tolist())
        if not is_random:
            assert where[int(second[0])][2] == where[int(first[-1])][2] + 1
    assert own == list(where), "what a stranger takes the place of is used for the next pair"


def test_one_document_has_no_strangers(tokenizer, tmp_path):
    with pytest.raises(DataError, match="needs two documents or more"):
        list(pairs(Corpus([["w1", "w2"]], tokenizer, tmp_path, "test"), 8, 0.0, np.random.default_rng(0)))


def write_text(folder, n=30, seed=0):
    rng = np.random.default_rng(seed)
    documents = ["\n".join(" ".join(rng.choice(WORDS, rng.integers(3, 9))) for _ in range(rng.integers(2, 7))) for _ in range(n)]
    (folder / "text.txt").write_text("\n\n".join(documents) + "\n")
    return str(folder / "text.txt")


def load(folder, tokenizer, split="train", length=32, **options):
    source = InputConfig(max_sequence_length=length, cache_dir=str(folder / "cache"))
    return load_pretraining_set(TASK, source, split, PretrainConfig(**options), tokenizer, len(tokenizer), 1)


def test_examples_are_framed_and_masked_anew_each_epoch(tokenizer, tmp_path):
    data = load(tmp_path, tokenizer, text_files=[write_text(tmp_path)])
    indices = np.arange(len(data))
    epochs = [data.training_batch(indices, epoch) for epoch in range(2)]
    assert not np.array_equal(epochs[0].masked_rows, epochs[1].masked_rows)
    batch = data.batch(indices)
    assert np.array_equal(batch.masked_rows, epochs[0].masked_rows)
    original = batch.input_ids.clone()
    original[batch.masked_rows] = batch.masked_labels.int()
    for ids, types in zip(original.split(data.lengths.tolist()), batch.token_type_ids.split(data.lengths.tolist()), strict=True):
        ids, types = ids.tolist(), types.tolist()
        assert ids[0] == 2 and ids[-1] == 3 and ids.count(3) == 2 and len(ids) <= 32
        middle = ids.index(3)
        assert types == [0] * (middle + 1) + [1] * (len(ids) - middle - 1)
    assert set(data.labels.tolist()) == {0, 1}


def test_static_copies_have_masks_and_pairs_of_their_own(tokenizer, tmp_path):
    file = write_text(tmp_path)
    once, thrice = load(tmp_path, tokenizer, text_files=[file]), load(tmp_path, tokenizer, text_files=[file], dupe_factor=3)
    assert 2.5 * len(once) < len(thrice) < 3.5 * len(once)
    indices = np.arange(len(thrice))
    assert np.array_equal(thrice.training_batch(indices, 0).masked_rows, thrice.training_batch(indices, 5).masked_rows)


def test_held_out_text_keeps_its_masks(tokenizer, tmp_path):
    file = write_text(tmp_path)
    data = load(tmp_path, tokenizer, "dev", text_files=["absent"], eval_text_files=[file], next_sentence=False)
    indices = np.arange(len(data))
    assert np.array_equal(data.training_batch(indices, 0).masked_rows, data.training_batch(indices, 1).masked_rows)
    assert (data.labels == 0).all() and (data.batch(indices).token_type_ids == 0).all()


def test_the_cache_knows_what_it_was_cut_from(tokenizer, tmp_path):
    file = write_text(tmp_path)
    variants = [{}, {"next_sentence": False}, {"dupe_factor": 2}, {"short_seq_prob": 0.5}, {"length": 16}]
    for variant in variants:
        load(tmp_path, tokenizer, text_files=[file], **variant)
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == len(variants)
    load(tmp_path, tokenizer, text_files=[file], masked_lm_prob=0.3, whole_word_mask=True)
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == len(variants), "masks are not cached"
    write_text(tmp_path, seed=1)
    load(tmp_path, tokenizer, text_files=[file])
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == len(variants) + 1


def test_a_task_s_own_text_and_that_of_others(tokenizer, tmp_path):
    for name, words in (("a", "w1 w2. w3"), ("b", "w5 w6! w7")):
        (tmp_path / f"{name}.tsv").write_text(f"sentence\tlabel\n{words}\t0\n{words}\t1\n")
    source = InputConfig(data_file=str(tmp_path / "a.tsv"), cache_dir=str(tmp_path / "cache"), max_sequence_length=16)
    task = get_task("sst2")
    alone = load_pretraining_set(task, source, "train", PretrainConfig(next_sentence=False), tokenizer, len(tokenizer), 1)
    assert len(alone) == 2
    both = PretrainConfig(next_sentence=False, inputs=[{"task": "cola", "data_file": str(tmp_path / "b.tsv")}])
    assert len(load_pretraining_set(task, source, "train", both, tokenizer, len(tokenizer), 1)) == 4


def test_slow_tokenizers_are_refused(tmp_path):
    class Slow:
        is_fast = False

    with pytest.raises(ConfigError, match="needs a fast tokenizer; Slow is none"):
        Corpus([["a"]], Slow(), tmp_path, "test")
