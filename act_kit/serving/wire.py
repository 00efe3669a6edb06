"""Messages between a policy server and its clients, in two public formats over WebSocket.

Both are MessagePack with NumPy arrays as maps of bytes, dtype and shape. In openpi's, the server sends its metadata
first, and then answers each observation with ``{"actions": (K, 4)}``; a text message is an error. In vla-eval's, every
message is a map with type, payload, number and time; the client begins with ``hello`` and announces each episode.

- openpi: ``packages/openpi-client/src/openpi_client/msgpack_numpy.py`` and
  ``src/openpi/serving/websocket_policy_server.py``
- vla-eval: ``vla_eval/protocol/`` and ``vla_eval/model_servers/serve.py``, version 0.8.0

A message is untrusted: its size is limited, its arrays hold plain numbers, and nothing in it is executed.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgpack
import numpy as np
from PIL import Image

from act_kit.errors import ServingError

Wire = Literal["openpi", "vla-eval"]

MAX_OBSERVATION_BYTES = 64 * 2**20
"""Maximum size of a message to a server: images of seven cameras at 1024 px take 22 MB."""

MAX_ANSWER_BYTES = 16 * 2**20
"""Maximum size of a message from a server: a chunk of 500 actions takes 16 kB."""

STATE_KEYS: dict[Wire, str] = {"openpi": "observation/state", "vla-eval": "state"}
PROMPT_KEYS: dict[Wire, str] = {"openpi": "prompt", "vla-eval": "task_description"}

_MAX_CONTAINERS = 100_000
"""Maximum number of maps and lists in a message."""

_DTYPE = re.compile(r"[<>=|]?[biuf][1248]")
"""Allowed dtypes: Booleans, integers and floats. An object array would be pickled."""

VLA_EVAL_KEYS = {"type", "payload", "seq", "timestamp"}
"""Keys of every message in vla-eval's format."""


def image_keys(wire: Wire, cameras: Sequence[str]) -> list[str]:
    """Return the key of each camera's image; a ``/`` in vla-eval's separates nested maps."""
    if wire == "vla-eval":
        return [f"images/{camera}" for camera in cameras]
    return ["observation/image"] if len(cameras) == 1 else [f"observation/image/{camera}" for camera in cameras]


def find(observation: Mapping[str, Any], key: str) -> Any:
    """Return the value at a key, or the one in nested maps that its ``/`` separates; None if there is none."""
    if key in observation:
        return observation[key]
    value: Any = observation
    for name in key.split("/"):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def pack(message: object, wire: Wire) -> bytes:
    """Return a message of plain values and NumPy arrays as bytes."""
    packed: bytes = msgpack.packb(message, default=_pack_openpi if wire == "openpi" else _pack_vla_eval)
    return packed


def _pack_openpi(value: Any) -> Any:
    fields = _array_fields(value)
    return {name.encode(): field for name, field in fields.items()}


def _pack_vla_eval(value: Any) -> Any:
    return _array_fields(value)


def _array_fields(value: Any) -> dict[str, Any]:
    if not isinstance(value, np.ndarray) or not _DTYPE.fullmatch(value.dtype.str):
        raise TypeError(f"{type(value).__name__} cannot be sent: expected plain values and arrays of numbers")
    return {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}


def unpack(data: bytes, max_bytes: int) -> Any:
    """Return the plain values and NumPy arrays of a message in either format.

    Raises:
        ServingError: The message is too large, is not MessagePack, or holds arrays of other types than numbers.
    """
    if len(data) > max_bytes:
        raise ServingError(f"a message of {len(data)} bytes: expected at most {max_bytes}")
    counter = itertools.count(1)

    def check_count(value: Any) -> Any:
        if next(counter) > _MAX_CONTAINERS:  # each takes a byte in the message and 60 in memory
            raise ServingError(f"a message of more than {_MAX_CONTAINERS} maps and lists")
        return value

    try:
        return msgpack.unpackb(data, object_hook=lambda value: check_count(_decode(value)), list_hook=check_count)
    except ServingError:
        raise
    except Exception as error:  # msgpack raises many types on invalid data
        reason = str(error) or type(error).__name__
        raise ServingError(f"a message of {len(data)} bytes that is not MessagePack: {reason}") from error


def _decode(value: dict[Any, Any]) -> Any:
    """Return the array or number that a map of a message describes; another map is returned as it is."""
    fields = {key.decode("ascii", "replace") if isinstance(key, bytes) else key: each for key, each in value.items()}
    if "__image__" in fields:
        return _decode_image(fields) if fields.get("format") != "raw" else _decode_array(fields)
    if "__ndarray__" in fields:
        return _decode_array(fields)
    if "__npgeneric__" in fields:
        return _dtype(fields).type(fields.get("data"))
    return value


def _dtype(fields: Mapping[str, Any]) -> np.dtype[Any]:
    text = fields.get("dtype")
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise ServingError(
            f"an array of dtype {str(text)[:40]!r}: expected Booleans, integers or floats, such as '<f4'"
        )
    return np.dtype(text)


def _decode_array(fields: Mapping[str, Any]) -> np.ndarray:
    dtype, data, shape = _dtype(fields), fields.get("data"), fields.get("shape")
    is_shape = isinstance(shape, list | tuple) and all(type(size) is int and size >= 0 for size in shape)
    if not isinstance(shape, list | tuple) or not is_shape or not isinstance(data, bytes):
        raise ServingError("an array without bytes or without a shape")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ServingError(f"an array of shape {tuple(shape)} and dtype {dtype} with {len(data)} bytes")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _decode_image(fields: Mapping[str, Any]) -> np.ndarray:
    """Return an image, uint8 (H, W, 3), that vla-eval's client compressed as PNG or JPEG."""
    data = fields.get("data")
    if not isinstance(data, bytes):
        raise ServingError("an image without bytes")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.mode != "RGB" or image.width * image.height * 3 > MAX_OBSERVATION_BYTES:
                raise ServingError(f"an image of {image.width} x {image.height} px, {image.mode}: expected RGB")
            return np.array(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ServingError(f"an image that cannot be read: {error}") from error


# -- vla-eval ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message in vla-eval's format.

    Attributes:
        type: ``hello``, ``episode_start``, ``observation``, ``action``, ``episode_end`` or ``error``.
        payload: Content.
        seq: Number of the message; an answer has that of its observation.
    """

    type: str
    payload: dict[str, Any]
    seq: int

    @classmethod
    def of(cls, value: object) -> Message | None:
        """Return the message that an unpacked value is, or None if it is not in vla-eval's format."""
        if not isinstance(value, dict) or not value.keys() >= VLA_EVAL_KEYS:
            return None
        kind, payload, seq = value["type"], value["payload"], value["seq"]
        if not isinstance(kind, str) or not isinstance(payload, dict) or type(seq) is not int:
            return None
        return cls(type=kind, payload=payload, seq=seq)

    def fields(self) -> dict[str, Any]:
        """Return the map that is sent."""
        return {"type": self.type, "payload": self.payload, "seq": self.seq, "timestamp": time.time()}


def hello(payload: Mapping[str, Any]) -> Message:
    """Return the first message of either side."""
    from importlib.metadata import version

    known = {"harness_version": f"act_kit {version('act_kit')}", "protocol_version": 1}
    return Message(type="hello", payload={**known, **payload}, seq=0)
