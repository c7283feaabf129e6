"""TensorFlow's tensor bundle: Google's own file read by other means, what is written read again, and torn files refused."""

import shutil

import numpy as np
import pytest

from bertfast.errors import CheckpointError
from bertfast.weights.tensor_bundle import TensorBundle, _masked_crc32c, write_bundle

# The variables of Google's modeling.py and run_pretraining.py, with the shapes of the tiny checkpoint (hidden 4, feed-forward 16, 2 layers).
DENSE = {"kernel": lambda size, out: (size, out), "bias": lambda size, out: (out,)}


def google_variables(hidden=4, wide=16, layers=2, vocabulary=15, positions=16):
    names = {
        "bert/embeddings/word_embeddings": (vocabulary, hidden),
        "bert/embeddings/token_type_embeddings": (2, hidden),
        "bert/embeddings/position_embeddings": (positions, hidden),
        "cls/predictions/output_bias": (vocabulary,),
        "cls/seq_relationship/output_weights": (2, hidden),
        "cls/seq_relationship/output_bias": (2,),
    }
    norms, dense = ["bert/embeddings", "cls/predictions/transform"], {"bert/pooler/dense": (hidden, hidden)}
    dense["cls/predictions/transform/dense"] = (hidden, hidden)
    for index in range(layers):
        layer = f"bert/encoder/layer_{index}"
        norms += [f"{layer}/attention/output", f"{layer}/output"]
        dense |= {f"{layer}/attention/self/{part}": (hidden, hidden) for part in ("query", "key", "value")}
        dense |= {f"{layer}/attention/output/dense": (hidden, hidden)}
        dense |= {f"{layer}/intermediate/dense": (hidden, wide), f"{layer}/output/dense": (wide, hidden)}
    for norm in norms:
        names |= {f"{norm}/LayerNorm/{part}": (hidden,) for part in ("gamma", "beta")}
    for name, sizes in dense.items():
        names |= {f"{name}/{part}": shape(*sizes) for part, shape in DENSE.items()}
    slots = {f"{name}/{slot}": shape for name, shape in names.items() for slot in ("adam_m", "adam_v")}
    return names | slots | {"global_step": ()}


def read_without_the_index(folder):
    """Every tensor of the tiny checkpoint: TensorFlow's Saver writes them sorted by name with no gap, so their shapes tell their places."""
    data, offset, tensors = (folder / "bert_model.ckpt.data-00000-of-00001").read_bytes(), 0, {}
    for name, shape in sorted(google_variables().items()):
        dtype = np.dtype("<i8" if name == "global_step" else "<f4")
        size = dtype.itemsize * int(np.prod(shape))
        tensors[name] = np.frombuffer(data[offset : offset + size], dtype).reshape(shape)
        offset += size
    assert offset == len(data)
    return tensors


def test_a_file_of_google_s_equals_an_independent_reading(data_dir):
    folder = data_dir / "tf_checkpoint_tiny"
    bundle, wanted = TensorBundle(folder / "bert_model.ckpt"), read_without_the_index(folder)
    assert sorted(bundle.names) == sorted(wanted)
    for name, values in wanted.items():
        found = bundle.tensor(name)
        assert found.shape == values.shape and found.dtype == values.dtype and np.array_equal(found, values), name


def some_tensors():
    rng = np.random.default_rng(0)
    many = {f"layer_{index}/output/dense/kernel": rng.random((3, 2)).astype(np.float32) for index in range(300)}
    return {
        **many,
        "double": rng.random(5),
        "empty": np.zeros((0, 4), np.float32),
        "half": rng.random(3).astype(np.float16),
        "long": np.arange(3),
        "scalar": np.array(7, dtype=np.int32),
        "transposed": np.arange(12, dtype=np.float32).reshape(3, 4).T,
        "wide": rng.random((200, 300)).astype(np.float32),
    }


@pytest.mark.parametrize("block", [1 << 18, 200], ids=["one-block", "many-blocks"])
def test_what_is_written_reads_the_same(tmp_path, monkeypatch, block):
    monkeypatch.setattr("bertfast.weights.tensor_bundle._BLOCK_BYTES", block)
    tensors = some_tensors()
    write_bundle(tmp_path / "x", tensors)
    bundle = TensorBundle(tmp_path / "x")
    assert bundle.names == sorted(tensors)
    for name, values in tensors.items():
        found = bundle.tensor(name)
        assert found.shape == values.shape and found.dtype == values.dtype and np.array_equal(found, values), name


def test_a_file_of_google_s_written_again_has_the_same_bytes(data_dir, tmp_path):
    source = data_dir / "tf_checkpoint_tiny" / "bert_model.ckpt"
    bundle = TensorBundle(source)
    write_bundle(tmp_path / "bert_model.ckpt", {name: bundle.tensor(name) for name in bundle.names})
    ours, theirs = (
        [(folder / f"bert_model.ckpt.{part}").read_bytes() for part in ("data-00000-of-00001", "index")]
        for folder in (tmp_path, source.parent)
    )
    assert ours[0] == theirs[0]
    entries = theirs[1].rindex(b"h", 0, -48)  # TensorFlow shortens the last key, global_step, to "h" where the index points at its block
    assert len(ours[1]) > entries > 4000 and ours[1][: entries - 3] == theirs[1][: entries - 3]
    assert ours[1][entries - 2 :].startswith(b"\x0b\x03global_step")


def torn(path, how):
    data = bytearray(path.read_bytes())
    if how == "cut":
        data = data[: len(data) // 2]
    else:
        data[len(data) // 3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["cut", "changed"])
@pytest.mark.parametrize("part", ["index", "data-00000-of-00001"])
def test_a_torn_file_is_named(data_dir, tmp_path, part, how):
    for file in (data_dir / "tf_checkpoint_tiny").iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    torn(tmp_path / f"bert_model.ckpt.{part}", how)
    with pytest.raises(CheckpointError, match=rf"bert_model.ckpt.{part}: .*(torn|cut short|changed)"):
        bundle = TensorBundle(tmp_path / "bert_model.ckpt")
        for name in bundle.names:
            bundle.tensor(name)


@pytest.mark.parametrize("data", [b"", b"x" * 100, bytes(40) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"], ids=["empty", "text", "magic-only"])
def test_another_file_is_refused(tmp_path, data):
    (tmp_path / "x.index").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.index"):
        TensorBundle(tmp_path / "x")


def test_a_missing_file_is_named(data_dir, tmp_path):
    with pytest.raises(CheckpointError, match=r"x\.index: cannot be read"):
        TensorBundle(tmp_path / "x")
    shutil.copyfile(data_dir / "tf_checkpoint_tiny" / "bert_model.ckpt.index", tmp_path / "x.index")
    with pytest.raises(CheckpointError, match=r"x\.data-00000-of-00001: cannot be read"):
        TensorBundle(tmp_path / "x").tensor("global_step")


def bit_by_bit(data: bytes) -> int:
    """CRC-32C by its definition."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        pytest.param(bytes(32), 0x8A9136AA, id="zeros"),
        pytest.param(b"\xff" * 32, 0x62A8AB43, id="ones"),
        pytest.param(bytes(range(32)), 0x46DD794E, id="rising"),
        pytest.param(b"123456789", 0xE3069283, id="digits"),
    ],
)
def test_the_checksum_of_published_examples(data, crc):
    """RFC 3720, B.4."""
    assert bit_by_bit(data) == crc and _masked_crc32c(data) == masked(crc)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 7, 8, 63, 64, 65, 127, 128, 200, 1000, 4097, 20_011])
def test_the_checksum_of_any_length_equals_the_definition(size):
    data = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8)
    assert _masked_crc32c(data.tobytes()) == _masked_crc32c(data) == masked(bit_by_bit(data.tobytes()))


def test_the_checksum_counts_arrays_by_their_bytes():
    values = np.arange(300, dtype=np.float32).reshape(20, 15)
    assert _masked_crc32c(values) == masked(bit_by_bit(values.tobytes()))
