"""What an export refuses of the recipes, with the reason, before training begins; and what it takes."""

import json

import pytest
from test_model import bert_config
from tiny_bert import write_tiny_bert

from bertfast.blocks import HeadConfig
from bertfast.cli import main
from bertfast.config import load_config
from bertfast.errors import CheckpointError, ConfigError
from bertfast.heads import set_head
from bertfast.model import BertClassifier
from bertfast.resolve import check_exportable

BASE = {"task": "sst2", "model": {"checkpoint": "bert"}, "train_input": {"data_dir": "x"}, "export": {}}
REFUSED = [
    pytest.param({"head": {"pooling": "mean"}}, "bertfast.head: an exported graph", id="pooling"),
    pytest.param({"head": {"layers": [-1]}}, "bertfast.head: an exported graph", id="no-pooler"),
    pytest.param({"head": {"hidden_sizes": [8]}}, "bertfast.head: an exported graph", id="hidden-layers"),
    pytest.param({"truncation": {"strategy": "tail"}}, "bertfast.truncation.strategy = 'tail'", id="tail"),
    pytest.param({"truncation": {"strategy": "hierarchical"}}, "bertfast.truncation.strategy = 'hierarchical'", id="hierarchical"),
    pytest.param({"pretrain": {}}, "bertfast.pretrain makes an encoder", id="pre-training"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_a_training_with_an_export_refuses_before_it_begins(tmp_path, capsys, changes, message):
    (tmp_path / "config.json").write_text(json.dumps({"bertfast": {**BASE, **changes}}))
    assert main(["pretrain" if "pretrain" in changes else "train", "--config", str(tmp_path / "config.json")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head": {"layers": [3], "pooler": True}},
        {"loss": {"label_smoothing": 0.1}},
        {"optimization": {"layer_learning_rate_decay": 0.9}},
    ],
    ids=["plain", "a-lower-layer", "loss", "rates"],
)
def test_what_leaves_nothing_behind_is_taken(changes):
    check_exportable(load_config({"bertfast": {**BASE, **changes}}).bertfast)


def test_a_folder_with_another_head_or_truncation_is_refused(tmp_path):
    pytest.importorskip("onnx")
    from bertfast_export.source import Options, Source

    config = bert_config()
    set_head(config, HeadConfig(pooling="mean"))
    BertClassifier(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"its head reads the mean of the tokens of encoder layer 2"):
        Source(str(tmp_path), Options())
    folder = write_tiny_bert(tmp_path / "plain", num_labels=2)
    (folder / "bertfast.json").write_text(json.dumps({"bertfast": {**BASE, "truncation": {"strategy": "tail"}}}))
    with pytest.raises(ConfigError, match=r"truncation.strategy = 'tail'"):
        Source(str(folder), Options())
