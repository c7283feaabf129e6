"""How many threads a session computes with."""

import pytest

pytest.importorskip("onnxruntime")

from bertfast import machine
from bertfast_export import runtime
from bertfast_export.runtime import CPU, open_session


@pytest.mark.parametrize(
    "asked, own, expected",
    [
        pytest.param(None, 2, 2, id="the-process-is-to-use-fewer"),
        pytest.param(None, 8, 0, id="all-of-them-is-onnxruntimes-own-choice"),
        pytest.param(5, 2, 5, id="asked-for"),
    ],
)
def test_threads(monkeypatch, asked, own, expected):
    import onnxruntime

    def session(source, options, providers):
        raise ValueError(f"threads: {options.intra_op_num_threads}")

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(machine, "threads", lambda: own)
    monkeypatch.setattr(runtime.os, "cpu_count", lambda: 8)
    with pytest.raises(runtime.ExportError, match=rf"threads: {expected}\)"):
        open_session(b"", [CPU], asked)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """An int8 file, and features for it."""
    from bertfast_export.graphs.quantized import Recipe, measure, quantized_graph
    from tests.export.graphs.test_network import features, network_of
    from tests.support.tiny_bert import write_tiny_bert

    folder = tmp_path_factory.mktemp("tiny")
    network = network_of(write_tiny_bert(folder, num_labels=3, initializer_range=0.5))
    batch = features(network.config.vocab_size)
    path = folder / "model_quantized.onnx"
    path.write_bytes(quantized_graph(network, measure(network, [batch]), Recipe("all")).SerializeToString())
    return path, batch


def test_the_words_of_an_int8_file_are_read_from_the_file(quantized):
    """By every session of it; and they are the words that the file holds."""
    import gc

    import numpy as np
    import onnx

    path, batch = quantized
    session, copied = open_session(path), open_session(path.read_bytes())
    table = next(tensor for tensor in onnx.load(path).graph.initializer if tensor.name == runtime.WORDS)
    assert np.array_equal(runtime._mapped_words(path), onnx.numpy_helper.to_array(table)) and not hasattr(copied, "words")
    assert session.words.shape() == list(table.dims)
    gc.collect()
    assert np.array_equal(session.run(["logits"], batch)[0], copied.run(["logits"], batch)[0])


def test_a_file_without_words_or_cut_short_is_onnxruntimes_to_refuse(quantized, tmp_path):
    path, _ = quantized
    whole = path.read_bytes()
    for name, content in (("empty", b""), ("cut", whole[:-2000]), ("text", b"not a model" * 99)):
        torn = tmp_path / f"{name}.onnx"
        torn.write_bytes(content)
        with pytest.raises(runtime.ExportError, match=rf"{name}\.onnx: onnxruntime .* cannot open it"):
            open_session(torn)
