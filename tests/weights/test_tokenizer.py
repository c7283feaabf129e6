"""A tokenizer and a head must belong to the checkpoint they are used with."""

import pytest

from bertfast.errors import CheckpointError
from bertfast.model.bert import BertClassifier
from bertfast.weights.folder import read_config
from bertfast.weights.tokenizer import load_tokenizer
from tests.support.tiny_bert import write_tiny_bert


@pytest.fixture
def bert(tmp_path):
    write_tiny_bert(tmp_path / "bert")
    return tmp_path / "bert"


def rewritten(folder, change):
    """The tokenizer of a folder with another vocabulary."""
    from transformers import BertTokenizer

    own = load_tokenizer(folder, read_config(folder)).get_vocab()
    words = change(sorted(own, key=own.get))
    target = folder.parent / "tokenizer"
    target.mkdir()
    (target / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(str(target / "vocab.txt")).save_pretrained(target)
    return target


def test_a_tokenizer_that_numbers_words_otherwise_is_refused(bert):
    other = rewritten(bert, lambda words: words[:5] + words[:4:-1])
    with pytest.raises(CheckpointError, match="another word's embedding; leave out bertfast.model.tokenizer"):
        load_tokenizer(other, read_config(bert), belongs_to=bert)


def test_a_tokenizer_with_a_word_in_place_of_another_is_taken(bert):
    other = rewritten(bert, lambda words: [*words[:-1], "neologism"])
    assert "neologism" in load_tokenizer(other, read_config(bert), belongs_to=bert).get_vocab()


def test_a_head_of_another_size_is_kept_only_on_purpose(bert, tmp_path):
    BertClassifier.from_pretrained(bert, 3).save_pretrained(tmp_path / "three")
    with pytest.raises(CheckpointError, match=r"classifier.weight: \[3, \d+\], the model wants \[2"):
        BertClassifier.from_pretrained(tmp_path / "three", 2)
    assert BertClassifier.from_pretrained(tmp_path / "three", 2, new_head=True).num_labels == 2
    assert BertClassifier.from_pretrained(tmp_path / "three", 2, strict=False).num_labels == 2
