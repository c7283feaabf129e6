"""Truncation: the paper's four ways to cut a text, pieces of documents, and the network over packed pieces against one document at a time."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from bertfast.config.blocks import HeadConfig, InputConfig, TruncationConfig
from bertfast.config.schema import TaskConfig
from bertfast.data.load import encode, load_dataset_for
from bertfast.data.truncation import num_pieces, piece_lengths, pieces
from bertfast.errors import ConfigError
from bertfast.model.bert import BertClassifier, RandomBits
from bertfast.model.heads import set_head
from bertfast.model.losses import loss_sum
from bertfast.packing.batch import IGNORE_LABEL
from bertfast.readers.splits import RawSplit
from bertfast.tasks.catalogue import get_task
from tests.model.test_bert import bert_config
from tests.model.test_heads import an_encoder, ours_of
from tests.support.tolerances import GRADIENT, LOGITS

WORDS = [f"w{index}" for index in range(60)]
TASK = TaskConfig(text_columns=["text"], label_names=["no", "yes"])
PAIR = TaskConfig(text_columns=["a", "b"], label_names=["no", "yes"])


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer):
    return make_tokenizer(" ".join(WORDS))


def ids_of(first, last):
    """The ids of the words first to last (not included): 5 special tokens come before them."""
    return [5 + index for index in range(first, last)]


def texts(*lengths):
    return [" ".join(WORDS[index % 60] for index in range(length)) for length in lengths]


def encoded(tokenizer, tmp_path, lengths, truncation, size=12, text_b=None):
    task = get_task(PAIR if text_b else TASK)
    raw = RawSplit.from_texts(task, texts(*lengths), text_b and texts(*text_b), np.arange(len(lengths), dtype=np.int32) % 2)
    return encode(raw, tokenizer, size, cache_dir=tmp_path, truncation=truncation)


def sequences(batch):
    return [part.tolist() for part in batch.input_ids.split(batch.cu_seqlens.diff().tolist())]


@pytest.mark.parametrize(
    ("truncation", "wanted"),
    [
        pytest.param({}, [ids_of(0, 10), ids_of(0, 10), ids_of(0, 4), []], id="head"),
        pytest.param({"strategy": "tail"}, [ids_of(20, 30), ids_of(1, 11), ids_of(0, 4), []], id="tail"),
        pytest.param(
            {"strategy": "head_tail"}, [ids_of(0, 5) + ids_of(25, 30), ids_of(0, 5) + ids_of(6, 11), ids_of(0, 4), []], id="half-and-half"
        ),
        pytest.param(
            {"strategy": "head_tail", "head_tokens": 3},
            [ids_of(0, 3) + ids_of(23, 30), ids_of(0, 3) + ids_of(4, 11), ids_of(0, 4), []],
            id="three-and-the-tail",
        ),
        pytest.param(
            {"strategy": "head_tail", "head_tokens": 99}, [ids_of(0, 10), ids_of(0, 10), ids_of(0, 4), []], id="more-head-than-room"
        ),
    ],
)
def test_which_tokens_are_read(tokenizer, tmp_path, truncation, wanted):
    data = encoded(tokenizer, tmp_path, [30, 11, 4, 0], TruncationConfig(**truncation))
    assert sequences(data.batch(np.arange(4))) == [[2, *ids, 3] for ids in wanted]


def test_an_odd_room_gives_the_tail_one_more(tokenizer, tmp_path):
    data = encoded(tokenizer, tmp_path, [30], TruncationConfig(strategy="head_tail"), size=11)
    assert sequences(data.batch(np.arange(1))) == [[2, *ids_of(0, 4), *ids_of(25, 30), 3]]


def test_each_text_of_a_pair_keeps_its_tail(tokenizer, tmp_path):
    data = encoded(tokenizer, tmp_path, [30, 2], TruncationConfig(strategy="tail"), size=11, text_b=[20, 20])
    assert sequences(data.batch(np.arange(2))) == [
        [2, *ids_of(26, 30), 3, *ids_of(16, 20), 3],
        [2, *ids_of(0, 2), 3, *ids_of(14, 20), 3],
    ]


@pytest.mark.parametrize(
    ("length", "settings", "wanted"),
    [
        pytest.param(25, {}, [(0, 10), (10, 20), (20, 25)], id="the-last-is-short"),
        pytest.param(20, {}, [(0, 10), (10, 20)], id="no-piece-is-empty"),
        pytest.param(10, {}, [(0, 10)], id="one-full-piece"),
        pytest.param(0, {}, [(0, 0)], id="no-token"),
        pytest.param(25, {"overlap": 4}, [(0, 10), (6, 16), (12, 22), (18, 25)], id="overlapping"),
        pytest.param(22, {"overlap": 4}, [(0, 10), (6, 16), (12, 22)], id="overlapping-to-the-end"),
        pytest.param(58, {"max_pieces": 2}, [(0, 10), (10, 20)], id="the-first-two"),
    ],
)
def test_pieces_of_a_document(tokenizer, tmp_path, length, settings, wanted):
    truncation = TruncationConfig(strategy="hierarchical", **settings)
    assert pieces(ids_of(0, length), 10, truncation) == [ids_of(*bounds) for bounds in wanted]
    data = encoded(tokenizer, tmp_path, [3, length, 12], truncation)
    batch = data.batch(np.array([1, -1, 0]))
    assert sequences(batch) == [*([2, *ids_of(*bounds), 3] for bounds in wanted), [2, 3], [2, *ids_of(0, 3), 3]]
    n = len(wanted)
    assert batch.cu_pieces.tolist() == [0, n, n + 1, n + 2]
    assert batch.piece_ids.tolist() == [*range(1, 1 + n), -1, 0] and batch.example_ids.tolist() == [1, -1, 0]
    assert batch.labels.tolist() == [1, IGNORE_LABEL, 0] and batch.max_seqlen == max(map(len, sequences(batch)))
    assert batch.position_ids.tolist() == [place for part in sequences(batch) for place in range(len(part))]
    assert data.lengths.tolist() == [5, sum(map(len, sequences(batch)[:n])), 12 + 4 if not settings else data.lengths[2]]


def test_lengths_tell_the_pieces():
    lengths = np.array([12, 13, 2, 36, 25])
    assert num_pieces(lengths, 12).tolist() == [1, 2, 1, 3, 3]
    assert piece_lengths(lengths, 12).tolist() == [12, 12, 1, 2, 12, 12, 12, 12, 12, 1]


def test_each_way_has_a_cache_of_its_own(tokenizer, tmp_path):
    ways = [{}, {"strategy": "tail"}, {"strategy": "head_tail"}, {"strategy": "head_tail", "head_tokens": 2}, {"strategy": "hierarchical"}]
    found = [encoded(tokenizer, tmp_path, [30], TruncationConfig(**way)) for way in ways]
    assert len({data.fingerprint for data in found}) == len(ways) == len(list(tmp_path.glob("*.arrow")))
    again = encoded(tokenizer, tmp_path, [30], TruncationConfig(strategy="hierarchical"))
    assert sequences(again.batch(np.arange(1))) == sequences(found[-1].batch(np.arange(1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "tail", "head_tokens": 3}, "head_tokens is for strategy 'head_tail'"),
        ({"overlap": 3}, "overlap is for strategy 'hierarchical'"),
        ({"strategy": "middle"}, "head_tail"),
    ],
    ids=["head-tokens", "overlap", "unknown"],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        TruncationConfig(**settings)


def test_what_cannot_be_in_pieces_is_refused(tokenizer, tmp_path):
    hierarchical = TruncationConfig(strategy="hierarchical")
    with pytest.raises(ConfigError, match="takes pairs of texts"):
        encoded(tokenizer, tmp_path, [3], hierarchical, text_b=[3])
    with pytest.raises(ConfigError, match=r"overlap = 10, but a piece has room for 10 tokens"):
        encoded(tokenizer, tmp_path, [3], TruncationConfig(strategy="hierarchical", overlap=10))
    with pytest.raises(ConfigError, match="what input_fn x:y yields is cut already"):
        load_dataset_for(TASK, InputConfig(input_fn="x:y"), "train", tokenizer, 0, hierarchical)


# ---------------------------------------------------------------------------------------------------------------- the network


DOCUMENTS = [35, 4, 10, 0, 58, 21, 11, 44]


def documents(tokenizer, tmp_path):
    return encoded(tokenizer, tmp_path, DOCUMENTS, TruncationConfig(strategy="hierarchical"))


def slow_document_logits(encoder, model, part):
    """One document: each piece alone through transformers' encoder and the head's pooler, then combined."""
    vectors = []
    for ids in part:
        states = encoder(input_ids=torch.tensor([ids])).last_hidden_state[0]
        if model.head.pooling == "cls":
            vectors.append(torch.tanh(encoder.pooler.dense(states[0])))
        else:
            vectors.append(torch.cat([states.mean(0), states.max(0).values]))
    stacked = torch.stack(vectors)
    if model.head.pieces == "attention":
        attention = model.features.pieces
        scores = attention.score(torch.tanh(attention.inner(stacked)))
        combined = (torch.softmax(scores, 0) * stacked).sum(0)
    else:
        combined = stacked.mean(0) if model.head.pieces == "mean" else stacked.max(0).values
    return model.classifier(combined)


@pytest.mark.parametrize("pooling", ["cls", "mean_max"])
@pytest.mark.parametrize("how", ["mean", "max", "attention"])
def test_documents_in_packed_pieces_equal_one_piece_at_a_time(tokenizer, tmp_path, how, pooling):
    encoder, data = an_encoder(4), documents(tokenizer, tmp_path)
    model = ours_of(encoder, HeadConfig(pieces=how, pooling=pooling)).eval()
    with torch.no_grad():
        wanted = torch.stack(
            [slow_document_logits(encoder, model, sequences(data.batch(np.array([index])))) for index in range(len(DOCUMENTS))]
        )
        for order in ([0, 1, 2, 3, 4, 5, 6, 7], [4, 3, 7, 0, 6, 5, 2, 1]):
            assert (model(data.batch(np.array(order))) - wanted[order]).abs().max() < LOGITS


@pytest.mark.parametrize("how", ["mean", "max", "attention"])
def test_gradients_with_dropout_do_not_depend_on_which_documents_share_a_batch(tokenizer, tmp_path, how):
    data = documents(tokenizer, tmp_path)
    config = bert_config(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.1)
    set_head(config, HeadConfig(pieces=how))
    torch.manual_seed(5)
    model = BertClassifier(config).double().train()

    def gradients(parts):
        model.zero_grad()
        for part in parts:
            batch = data.batch(np.array(part))
            loss_sum(model(batch, RandomBits(key=torch.tensor((1, 2)))), batch.labels).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    whole = gradients([list(range(8))])
    for parts in ([[3, 7, 0, 1], [6, 5, 2, 4]], [[7, 6, -1], [5, 4, 3, 2, 1, 0]]):
        assert (gradients(parts) - whole).norm() <= GRADIENT * whole.norm()


def test_pieces_of_one_document_meet_different_dropout(tokenizer, tmp_path):
    data = encoded(tokenizer, tmp_path, [20], TruncationConfig(strategy="hierarchical"), size=7)
    batch = data.batch(np.array([0]))
    for ids in batch.input_ids.view(4, 7)[1:]:
        ids.copy_(batch.input_ids[:7])  # the same words in each piece
    torch.manual_seed(6)
    model = BertClassifier(bert_config(hidden_dropout_prob=0.5)).train()
    seen = []
    model.features.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0][0]))
    model(batch, RandomBits(key=torch.tensor((1, 2))))
    assert len({tuple(row.tolist()) for row in seen[0]}) == 4
