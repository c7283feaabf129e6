"""CRC-32C against RFC 3720's examples and the bit by bit definition."""

import numpy as np
import pytest

from bertfast.weights.crc32c import crc32c, masked_crc32c


def bit_by_bit(data: bytes) -> int:
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        pytest.param(bytes(32), 0x8A9136AA, id="zeros"),
        pytest.param(b"\xff" * 32, 0x62A8AB43, id="ones"),
        pytest.param(bytes(range(32)), 0x46DD794E, id="rising"),
        pytest.param(b"123456789", 0xE3069283, id="digits"),
    ],
)
def test_published_examples(data, crc):
    assert crc32c(data) == crc


@pytest.mark.parametrize("size", [0, 1, 3, 4, 7, 8, 63, 64, 65, 127, 128, 200, 1000, 4097, 20_011])
def test_any_length_equals_the_definition(size):
    data = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8)
    assert crc32c(data.tobytes()) == bit_by_bit(data.tobytes())
    assert crc32c(data) == crc32c(data.tobytes())


def test_arrays_count_by_their_bytes():
    values = np.arange(300, dtype=np.float32).reshape(20, 15)
    assert crc32c(values) == bit_by_bit(values.tobytes())


def test_the_mask_turns_and_adds():
    crc = crc32c(b"foo")
    assert masked_crc32c(b"foo") == ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32
