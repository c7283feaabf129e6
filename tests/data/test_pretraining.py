"""Pre-training examples: where documents begin and end, what pairs are made of, what is cached, and how much memory it takes."""

import resource
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from bertfast.config.blocks import InputConfig, PretrainConfig
from bertfast.config.load import load_config
from bertfast.config.schema import TaskConfig
from bertfast.data import corpus as corpus_module
from bertfast.data.corpus import DOCUMENT_LINES, Corpus, documents_of_files, documents_of_texts
from bertfast.data.pretraining import load_pretraining_set, pairs, stretches
from bertfast.errors import ConfigError, DataError
from bertfast.readers import lines as lines_module
from bertfast.readers import sources
from bertfast.tasks.catalogue import get_task

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
    places = {}
    for document in range(len(corpus)):
        bounds = corpus.bounds(document).tolist()
        for sentence, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
            places |= {token: (document, sentence, place) for place, token in enumerate(corpus.ids[begin:end].tolist(), begin)}
    return places


def test_blank_lines_and_files_part_documents(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo \n\n \n\nthree\r\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("\nfour\n")
    files = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    assert list(documents_of_files(files)) == [["one", "two"], ["three"], ["four"]]
    with pytest.raises(DataError, match=r"c\.txt: cannot be read"):
        list(documents_of_files([str(tmp_path / "c.txt")]))


def test_lines_of_files_are_cut_into_sentences(tmp_path):
    (tmp_path / "a.txt").write_text("One here. Two there!\nThree\n\nFour? Five.\n")
    file = str(tmp_path / "a.txt")
    assert list(documents_of_files([file], in_sentences=True)) == [["One here.", "Two there!", "Three"], ["Four?", "Five."]]
    assert list(documents_of_files([file])) == [["One here. Two there!", "Three"], ["Four? Five."]]


def test_a_document_of_very_many_lines_is_cut(tmp_path):
    lines = [f"line {number}" for number in range(2 * DOCUMENT_LINES + 3)]
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n")
    found = list(documents_of_files([str(tmp_path / "a.txt")]))
    assert [len(document) for document in found] == [DOCUMENT_LINES, DOCUMENT_LINES, 3] and sum(found, []) == lines


def test_texts_are_cut_into_sentences():
    texts = ["One here. Two there!  Three? 4.5 stays", "  ", "five"]
    assert list(documents_of_texts(texts)) == [["One here.", "Two there!", "Three?", "4.5 stays"], ["five"]]


@pytest.mark.parametrize("block", [1, 7, 1 << 19], ids=["a-sentence-at-once", "a-few", "all"])
def test_a_corpus_holds_the_tokenizer_s_ids(tokenizer, tmp_path, monkeypatch, block):
    monkeypatch.setattr(corpus_module, "_BLOCK_CHARACTERS", block)
    documents = [[""], ["w0 w1", "", "w2"], [""], ["w3 w4 w5", ""]]
    corpus = Corpus(documents, tokenizer, tmp_path, "test")
    assert len(corpus) == 2 and corpus.n_tokens == 6
    assert [corpus.bounds(index).tolist() for index in range(2)] == [[0, 2, 3], [3, 6]]
    assert corpus.tokens(0).tolist() == [5, 6, 7] and corpus.tokens(1).tolist() == [8, 9, 10]
    assert [corpus.place(token) for token in range(6)] == [(0, 3), (0, 3), (2, 3), (3, 6), (3, 6), (3, 6)]
    assert not list(tmp_path.iterdir()), "the files have no name"
    with pytest.raises(DataError, match="there is no text in it"):
        Corpus([[""]], tokenizer, tmp_path, "test")


def test_a_folder_that_cannot_be(tokenizer, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=f"cache folder {tmp_path}/file/cache: cannot be written.*set cache_dir or"):
        Corpus([["w0"]], tokenizer, tmp_path / "file" / "cache", "test")


def test_a_full_disk(tokenizer, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(DataError, match=f"cache folder {tmp_path}: cannot be written.*make room, or set cache_dir"):
            Corpus([["w0 w1 w2 w3"] * 1000], tokenizer, tmp_path, "test")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------------------- examples


def test_stretches_cover_every_token_once(corpus):
    found = list(stretches(corpus, 10))
    assert [token for ids, *_ in found for token in ids.tolist()] == sorted(document_of(corpus))
    for ids, second, label, document in found:
        assert second is None and label == 0 and {document_of(corpus)[token][0] for token in ids.tolist()} == {document}
    sizes = [len(ids) for ids, *_ in found]
    ends = [index for index, (_, _, _, document) in enumerate(found) if index + 1 == len(found) or found[index + 1][3] != document]
    assert all(size == 10 for index, size in enumerate(sizes) if index not in ends)


@pytest.mark.parametrize("short", [0.0, 0.5])
def test_pairs_are_neighbours_or_strangers_and_every_token_is_read_once(corpus, short):
    where, labels = document_of(corpus), Counter()
    at_sentence = {int(bound) for document in range(len(corpus)) for bound in corpus.bounds(document)}
    for seed in range(40):
        own = []
        for first, second, is_random, document in pairs(corpus, 24, short, np.random.default_rng(seed)):
            labels[is_random] += 1
            assert len(first) and len(second) and len(first) + len(second) <= 24
            a, b = ([where[token] for token in part.tolist()] for part in (first, second))
            for part in (a, b):
                assert [place for _, _, place in part] == list(range(part[0][2], part[0][2] + len(part)))
            assert {place[0] for place in a} == {document} and len({place[0] for place in b}) == 1
            assert (b[0][0] == document) == (not is_random) and (is_random or b[0][2] == a[-1][2] + 1)
            assert b[0][2] in at_sentence or short or len(first) == 12, "a second part begins with a sentence, where there is one"
            own += first.tolist() + ([] if is_random else second.tolist())
        assert own == list(where), "what a stranger takes the place of is used for the next pair"
    assert abs(labels[1] / labels.total() - 0.5) < 0.03


def test_a_text_without_sentences_has_neighbours_too(tokenizer, tmp_path):
    corpus = Corpus([[" ".join(WORDS[:200])], [" ".join(WORDS[200:])]], tokenizer, tmp_path, "test")
    found = list(pairs(corpus, 20, 0.0, np.random.default_rng(0)))
    assert {len(first) for first, *_ in found} == {10} and {is_random for _, _, is_random, _ in found} == {0, 1}
    for first, second, is_random, _ in found:
        assert is_random == ((first[0] < 5 + 200) != (second[0] < 5 + 200)) and (is_random or second[0] == first[-1] + 1)


def test_documents_of_one_sentence_have_strangers_alone(tokenizer, tmp_path):
    corpus = Corpus([[" ".join(WORDS[begin : begin + 1 + begin % 20])] for begin in range(0, 380, 19)], tokenizer, tmp_path, "test")
    found = list(pairs(corpus, 20, 0.0, np.random.default_rng(0)))
    assert {is_random for _, _, is_random, _ in found} == {1}, "a sentence is not its own neighbour"
    assert np.array_equal(np.concatenate([first for first, *_ in found]), corpus.ids)


def test_strangers_are_drawn_by_their_length(tokenizer, tmp_path):
    """A heading, as a document of its own, is no more likely than any other stretch of its length."""
    corpus = Corpus([[" ".join(WORDS[:30])] * 2, *([word] for word in WORDS[30:130])], tokenizer, tmp_path, "test")
    seconds = [second for _, second, is_random, document in pairs(corpus, 40, 0.0, np.random.default_rng(0)) if is_random and document]
    assert 0.25 < np.mean([second[0] < 5 + 30 for second in seconds]) < 0.5  # 60 tokens of 160


def test_real_text(data_dir, tmp_path):
    """WikiText-2: paragraphs a line, and headings as documents of their own."""
    from transformers import BertTokenizerFast

    text, vocabulary = data_dir / "wikitext2" / "wiki.valid.txt", data_dir / "bert_uncased_vocab" / "vocab.txt"
    if not text.is_file() or not vocabulary.is_file():
        pytest.skip("BERTFAST_DATA holds no wikitext2 or bert_uncased_vocab")
    corpus = Corpus(documents_of_files([str(text)], in_sentences=True), BertTokenizerFast(str(vocabulary)), tmp_path, "test")
    found = list(pairs(corpus, 125, 0.1, np.random.default_rng(42)))
    own = [part for first, second, is_random, _ in found for part in ((first,) if is_random else (first, second))]
    assert np.array_equal(np.concatenate(own), corpus.ids)
    assert abs(np.mean([is_random for _, _, is_random, _ in found]) - 0.5) < 0.03


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


def test_a_cached_task_s_text_is_not_read_again(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\nw1 w2. w3\t0\nw4\t1\n")
    source = InputConfig(data_file=str(tmp_path / "a.tsv"), cache_dir=str(tmp_path / "cache"), max_sequence_length=16)
    inputs = PretrainConfig(inputs=[{"task": "cola", "data_file": str(tmp_path / "a.tsv")}])
    data = load_pretraining_set(get_task("sst2"), source, "train", inputs, tokenizer, len(tokenizer), 1)
    monkeypatch.setattr(sources, "read_tsv", lambda *arguments: pytest.fail("the file is read again"))
    again = load_pretraining_set(get_task("sst2"), source, "train", inputs, tokenizer, len(tokenizer), 1)
    assert np.array_equal(again.lengths, data.lengths) and again.source == data.source


def test_text_files_and_the_text_of_tasks(tokenizer, tmp_path):
    (tmp_path / "b.tsv").write_text("sentence\tlabel\nw5 w6 w7\t0\nw8\t1\n")
    (tmp_path / "a.txt").write_text("w1 w2\n\nw3\n")
    inputs = [{"task": "cola", "data_file": str(tmp_path / "b.tsv")}]
    data = load(tmp_path, tokenizer, text_files=[str(tmp_path / "a.txt")], inputs=inputs, next_sentence=False)
    batch = data.batch(np.arange(len(data)))
    ids = batch.input_ids.clone()
    ids[batch.masked_rows] = batch.masked_labels.int()
    assert tokenizer.batch_decode(ids.split(data.lengths.tolist()), skip_special_tokens=True) == ["w1 w2", "w3", "w5 w6 w7", "w8"]
    assert data.source == f"{tmp_path / 'a.txt'}, {tmp_path / 'b.tsv'}"


@pytest.mark.parametrize(
    "entry, words",
    [
        pytest.param({"task": "mine"}, "task 'mine' is not one of the known ones .*: .*sst2.*Text of your own goes into", id="own-task"),
        pytest.param({"task": "ax"}, "task 'ax' is not one of the known ones that have training text", id="no-training-text"),
    ],
)
def test_inputs_that_cannot_be(tokenizer, tmp_path, entry, words):
    with pytest.raises(ConfigError, match=f"bertfast.pretrain.inputs: .*{words}"):
        load(tmp_path, tokenizer, text_files=[write_text(tmp_path)], inputs=[entry])


@pytest.mark.parametrize(
    "entry, words",
    [
        pytest.param({"data_dir": "x"}, r"bertfast.pretrain.inputs.0.task is missing", id="no-task"),
        pytest.param(
            {"task": "sst2", "data_dirs": "x"}, "unknown key 'data_dirs' in bertfast.pretrain.inputs.0; did you mean 'data_dir'", id="key"
        ),
        pytest.param(
            {"task": "sst2", "input_fn": "a:b"}, "unknown key 'input_fn' in bertfast.pretrain.inputs.0; known keys: data_dir", id="function"
        ),
        pytest.param({"task": "sst2", "data_dir": "x", "data_file": "y"}, "inputs.0: give one of data_dir and data_file", id="two-sources"),
    ],
)
def test_inputs_are_held_against_their_keys_with_the_config(entry, words):
    config = {"bertfast": {"model": {"checkpoint": "bert"}, "pretrain": {"text_files": ["a.txt"], "inputs": [entry]}}}
    with pytest.raises(ConfigError, match=words):
        load_config(config)


@pytest.mark.parametrize("split, key, files", [("train", "train_input", "text_files"), ("dev", "eval_input", "eval_text_files")])
def test_an_input_function_has_no_text(tokenizer, tmp_path, split, key, files):
    source = InputConfig(input_fn="package.module:function", cache_dir=str(tmp_path))
    with pytest.raises(
        ConfigError, match=rf"bertfast\.{key}\.input_fn = 'package.module:function'.*data_file, or as bertfast.pretrain.{files}"
    ):
        load_pretraining_set(TASK, source, split, PretrainConfig(), tokenizer, len(tokenizer), 1)
    text = PretrainConfig(**{files: [write_text(tmp_path)]})
    assert len(load_pretraining_set(TASK, source, split, text, tokenizer, len(tokenizer), 1)), "of the input, nothing is read"


def test_max_examples_are_a_random_subset(tokenizer, tmp_path):
    text = PretrainConfig(text_files=[write_text(tmp_path)])

    def cut(max_examples, seed=1):
        source = InputConfig(max_sequence_length=32, cache_dir=str(tmp_path / "cache"), max_examples=max_examples)
        return load_pretraining_set(TASK, source, "train", text, tokenizer, len(tokenizer), seed)

    whole, few = cut(None), cut(7)
    chosen = np.sort(np.random.default_rng(1).choice(len(whole), 7, replace=False))  # as a task's rows are chosen
    assert len(few) == 7 and np.array_equal(few.lengths, whole.lengths[chosen]) and np.array_equal(few.labels, whole.labels[chosen])
    assert [few.where(index) for index in range(7)] == [whole.where(int(index)) for index in chosen]
    batch, truth = few.training_batch(np.array([3, -1, 0]), 0), whole.batch(chosen[[3, 0]])
    original, wanted = ([part.input_ids.clone(), part.masked_rows, part.masked_labels.int()] for part in (batch, truth))
    for ids, rows, labels in (original, wanted):
        ids[rows] = labels
    sizes = few.lengths[[3, 0]].tolist()
    parts = original[0].split([sizes[0], 2, sizes[1]])
    assert parts[1].tolist() == [2, 3] and np.array_equal(np.concatenate([parts[0], parts[2]]), wanted[0])
    assert batch.example_ids.tolist() == [3, -1, 0], "the numbers that `where` takes"
    assert len(cut(10**6)) == len(whole) and len(list((tmp_path / "cache").glob("*.arrow"))) == 1, "the subset is not cached"
    assert not np.array_equal(cut(7, seed=2).lengths, few.lengths)


def test_too_few_neighbours_are_told_of(tokenizer, tmp_path):
    alone = "\n\n".join(WORDS[:60])
    (tmp_path / "a.txt").write_text(alone + "\n")
    fault = load(tmp_path, tokenizer, text_files=[str(tmp_path / "a.txt")]).next_sentence_fault
    assert "a.txt: 100% of the pairs have a random second part" in fault and "set bertfast.pretrain.next_sentence to false" in fault
    assert load(tmp_path, tokenizer, text_files=[str(tmp_path / "a.txt")], next_sentence=False).next_sentence_fault == ""
    assert load(tmp_path, tokenizer, text_files=[write_text(tmp_path)]).next_sentence_fault == ""


# --------------------------------------------------------------------------------------------------------------------------- memory


def peak(work):
    """The most bytes that Python and numpy held for `work` at a time."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("in_sentences", [True, False], ids=["sentences", "lines"])
def test_memory_does_not_grow_with_a_file_without_blank_lines(tokenizer, tmp_path, monkeypatch, in_sentences):
    monkeypatch.setattr(lines_module, "BLOCK_BYTES", 1 << 14)
    monkeypatch.setattr(corpus_module, "_BLOCK_CHARACTERS", 1 << 14)
    peaks = []
    for n in (3, 12):
        (tmp_path / "a.txt").write_text("w1 w2 w3. w4 w5.\n" * (n * DOCUMENT_LINES))

        def work(n=n):
            corpus = Corpus(documents_of_files([str(tmp_path / "a.txt")], in_sentences), tokenizer, tmp_path, "test")
            assert len(corpus) == n and sum(1 for _ in pairs(corpus, 60, 0.1, np.random.default_rng(0))) > 100 * n

        peaks.append(peak(work))
    assert peaks[1] < 1.1 * peaks[0]


def test_memory_does_not_grow_with_the_number_of_documents(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "_BLOCK_CHARACTERS", 1 << 14)
    peaks = []
    for n in (20, 80):
        documents = ([f"w{number} w1 w2 w3 w4 w5"] * 200 for number in range(n))
        peaks.append(peak(lambda documents=documents: Corpus(documents, tokenizer, tmp_path, "test")))
    assert peaks[1] < 1.1 * peaks[0]


def test_a_pair_takes_no_memory_of_its_document_s_length(tokenizer, tmp_path):
    """What is computed for a pair does not grow with the document, so a document takes time in proportion to its length."""
    corpus = Corpus([["w1 w2"] * 20_000, ["w3 w4"] * 20_000], tokenizer, tmp_path, "test")
    examples = pairs(corpus, 60, 0.1, np.random.default_rng(0))
    assert peak(lambda: [None for _ in zip(range(20), examples, strict=False)]) < 20_000


def test_slow_tokenizers_are_refused(tmp_path):
    class Slow:
        is_fast = False

    with pytest.raises(ConfigError, match="needs a fast tokenizer; Slow is none"):
        Corpus([["a"]], Slow(), tmp_path, "test")
