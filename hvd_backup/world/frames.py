"""Messages on a stream socket: a header of JSON and some bytes. Pure."""

from __future__ import annotations

import json
import struct
from typing import Any, NamedTuple

_LENGTHS = struct.Struct("!II")  # of header and payload
_MOST = 1 << 30  # bytes; larger things do not travel by socket


class Frame(NamedTuple):
    """One message."""

    header: dict[str, Any]
    payload: bytes = b""


class BadFrame(ValueError):
    """What came is no message of ours."""


def encode(frame: Frame) -> bytes:
    """The bytes to send."""
    header = json.dumps(frame.header, separators=(",", ":")).encode()
    return _LENGTHS.pack(len(header), len(frame.payload)) + header + frame.payload


class Decoder:
    """From pieces of a stream, cut anywhere, to its messages."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, piece: bytes) -> list[Frame]:
        """The messages that this piece completes. Raises BadFrame for other bytes."""
        self._data += piece
        frames = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def _next(self) -> Frame | None:
        if len(self._data) < _LENGTHS.size:
            return None
        lengths: tuple[int, int] = _LENGTHS.unpack_from(self._data)
        if max(lengths) > _MOST:
            raise BadFrame(f"a message with {lengths[0]} + {lengths[1]} bytes")
        start = _LENGTHS.size + lengths[0]
        end = start + lengths[1]
        if len(self._data) < end:
            return None
        try:
            header = json.loads(self._data[_LENGTHS.size : start])
        except ValueError as error:
            raise BadFrame(f"a message whose header is no JSON: {error}") from None
        if not isinstance(header, dict):
            raise BadFrame("a message whose header is no JSON object")
        payload = bytes(self._data[start:end])
        del self._data[:end]
        return Frame(header, payload)
