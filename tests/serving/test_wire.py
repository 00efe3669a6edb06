"""Messages of both formats are read back to the bit, and nothing but plain numbers is read from a message."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from act_kit.errors import ServingError
from act_kit.serving import wire
from act_kit.serving.wire import Message, Wire, pack, unpack

DTYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u8", "f2", "f4", "f8", ">f8")


@given(
    arrays.arrays(dtype=st.sampled_from(DTYPES), shape=arrays.array_shapes(min_dims=0, min_side=0)),
    st.sampled_from(["openpi", "vla-eval"]),
)
def test_arrays_are_read_back_to_the_bit(array: np.ndarray, fmt: Wire) -> None:
    read = unpack(pack({"a": [array, 1, "x", None]}, fmt), 10**6)["a"]
    assert (read[0].dtype, read[0].shape, read[1:]) == (array.dtype, array.shape, [1, "x", None])
    assert read[0].tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "value", [np.array(["a"]), np.array([None]), np.zeros(2, dtype="f4,f4"), np.zeros(1, "c16"), {1}]
)
def test_what_is_not_sent(value: Any) -> None:
    with pytest.raises(TypeError):
        pack({"a": value}, "openpi")


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(ServingError):
        unpack(data, 100)


def image(fmt: str, size: tuple[int, int] = (4, 3), mode: str = "RGB", **options: Any) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new(mode, size, 7 if mode == "L" else (7, 8, 9)).save(file, fmt, **options)
    return {"__image__": True, "format": fmt.lower(), "data": file.getvalue(), "shape": [size[1], size[0], 3]}


def test_images_as_vla_evals_client_sends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    read = unpack(msgpack.packb({"a": image("PNG")}), 10**6)["a"]
    assert (read.shape, read.dtype, read[0, 0].tolist()) == ((3, 4, 3), np.uint8, [7, 8, 9])
    assert unpack(msgpack.packb({"a": image("JPEG")}), 10**6)["a"].shape == (3, 4, 3)
    for wrong in (image("PNG", mode="L"), image("GIF"), {**image("PNG"), "data": b"\x89PNG"}, {"__image__": True}):
        with pytest.raises(ServingError, match="an image"):
            unpack(msgpack.packb({"a": wrong}), 10**6)
    monkeypatch.setattr(wire, "MAX_OBSERVATION_BYTES", 1000)
    with pytest.raises(ServingError, match="an image of 400 x 400 px"):  # a small file of a huge image
        unpack(msgpack.packb({"a": image("PNG", (400, 400))}), 10**6)


def test_numbers_of_openpis_numpy_scalars() -> None:
    scalar = {b"__npgeneric__": True, b"data": 1.5, b"dtype": "<f4"}
    read = unpack(msgpack.packb({"a": scalar}), 100)["a"]
    assert (type(read), read) == (np.float32, 1.5)


@pytest.mark.parametrize("value", [None, [], {"type": "hello"}, {"type": 1, "payload": {}, "seq": 0, "timestamp": 0}])
def test_what_is_no_message_of_vla_eval(value: object) -> None:
    assert Message.of(value) is None


def test_the_released_packages_read_our_messages() -> None:
    openpi = pytest.importorskip("openpi_client.msgpack_numpy")
    vla_eval = pytest.importorskip("vla_eval.protocol.messages")
    array = np.arange(6, dtype=np.float64).reshape(2, 3)
    colors = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert np.array_equal(openpi.unpackb(pack({"a": array}, "openpi"))["a"], array)
    assert np.array_equal(unpack(openpi.packb({"a": array}), 10**6)["a"], array)
    ours = pack(Message(type="action", payload={"a": array, "c": colors}, seq=3).fields(), "vla-eval")
    theirs = vla_eval.unpack_message(ours)
    assert (theirs.type.value, theirs.seq) == ("action", 3)
    assert np.array_equal(theirs.payload["a"], array)
    back = Message.of(unpack(vla_eval.pack_message(theirs), 10**6))  # the image as PNG
    assert back
    assert np.array_equal(back.payload["c"], colors)
