"""What cannot be exported, said before anything is asked of the model."""

import pytest

from tests.support.exported import write_classifier

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from bertfast.errors import CheckpointError, ConfigError
from bertfast_export.bundle.source import Candidate
from bertfast_export.contract import Options


@pytest.mark.parametrize("length", [0, -5, 1])
def test_a_length_without_room_for_a_text(length):
    with pytest.raises(ConfigError, match=rf"max_sequence_length = {length}: \[CLS\] and \[SEP\] alone are 2 tokens; give more"):
        Options(max_sequence_length=length)


def test_a_length_without_room_for_a_pair(tmp_path):
    model = str(write_classifier(tmp_path / "model"))
    assert Candidate(model, Options(max_sequence_length=2)).max_sequence_length == 2
    with pytest.raises(ConfigError, match="max_sequence_length = 2: the special tokens alone are 3; give more"):
        Candidate(model, Options(max_sequence_length=2), is_pair=True)


def test_pairs_of_a_model_with_one_segment(tmp_path):
    """The grid folds its segments into those that there are, and would pass it."""
    model = str(write_classifier(tmp_path / "model", type_vocab_size=1))
    with pytest.raises(
        CheckpointError, match=r"the second text of a pair is of segment 1 .* the model has 1 segment .*export it without --pairs"
    ):
        Candidate(model, Options(), is_pair=True)
    assert not Candidate(model, Options()).task.is_pair


def test_a_tokenizer_that_clients_cannot_have(tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    model = write_classifier(tmp_path / "model")
    AutoTokenizer.from_pretrained(model, split_special_tokens=True).save_pretrained(model)
    with pytest.raises(CheckpointError, match=r"split_special_tokens in its tokenizer_config\.json: .* do not export it"):
        Candidate(str(model), Options())
    monkeypatch.setattr("transformers.BertTokenizer.is_fast", False)
    with pytest.raises(CheckpointError, match=r"its tokenizer \(BertTokenizer\) has no tokenizer\.json"):
        Candidate(str(model), Options())


def test_classes_have_the_names_of_the_task(tmp_path):
    """A folder whose config.json calls them LABEL_0 and LABEL_1 may be exported with a config that knows better."""
    from bertfast.config import BertfastConfig

    model = write_classifier(tmp_path / "model", num_labels=2)
    assert Candidate(str(model), Options()).labels() == ["LABEL_0", "LABEL_1"]
    block = BertfastConfig(task={"text_columns": ("text",), "label_names": ("no", "yes")}, model={"checkpoint": "x"})
    assert Candidate(str(model), Options(), block).labels() == ["no", "yes"]
