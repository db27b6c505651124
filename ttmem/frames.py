"""Frames: what stands in the file of a recording, byte by byte.

Layout, integers little-endian:
    header  8 bytes "ttmemrec", u32 version, u32 0
    frame   4 bytes mark, u32 payload length, u32 CRC-32 of what follows, u8 kind, 7 bytes 0, u64 taken_ns, payload
    payload zlib, behind a key frame with the end of its payload as dictionary; varints: new pieces (count, then length
    and bytes of each), number of the shape's piece, changed slots
            (count, then gap and piece number of each), then for each device its updated_ns: 0 for none, else 1 + zigzag
            of the difference to the one before
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

VERSION = 1
KEY_FRAME, DELTA_FRAME = 1, 2
MAX_FRAME_BYTES = 2**28
MAX_PAYLOAD_BYTES = 2**30
LIKE_BYTES = 32768
"""The end of a key frame's payload that the frames after it are compressed like; zlib looks back no further."""

_ENCODER = json.JSONEncoder(separators=(",", ":"))
HEADER = struct.Struct("<8sII")
FRAME = struct.Struct("<4sIIB7xQ")
CHECKED = 12
"""The checksum covers a frame from this byte on."""
MARK = b"\xf5TTM"
UNKNOWN = np.iinfo(np.int64).min
COLUMN = "cores."
OBJECT, LIST = 0, 1
"""The first byte of a piece that is composed of others; the JSON of any other begins with neither."""
DEPTHS = {"memory": 1, "l1_accounting": 1, "processes": 2}
"""How deep the members of a device are taken apart."""
PROGRAM_IDS = "programs.ids"
KEY_ONLY = ("buffers", "buffers_omitted")
HELD_BACK = frozenset(("cores", "updated_ns", "programs", *KEY_ONLY))


def put_varint(out: bytearray, value: int) -> None:
    """Append a number that is not negative, seven bits a byte, the lowest first."""
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def unpack(packed: bytes, like: bytes) -> bytes:
    """Return a payload; what claims to be larger than any is refused before it fills the memory."""
    unpacker = zlib.decompressobj(zdict=like)
    payload = unpacker.decompress(packed, MAX_PAYLOAD_BYTES)
    if not unpacker.eof:
        raise ValueError("the payload is cut off or too large")
    return payload


class Varints:
    """Reads what :func:`put_varint` wrote."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def next(self) -> int:
        """Return the next number.

        Raises:
            IndexError: the data ends within it.
            ValueError: it has too many bytes.
        """
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 70:
                raise ValueError("a number has too many bytes")

    def take(self, length: int) -> bytes:
        """Return the next bytes.

        Raises:
            ValueError: there are fewer.
        """
        piece = self.data[self.at : self.at + length]
        if len(piece) != length:
            raise ValueError("a piece is cut off")
        self.at += length
        return piece


def columns_of(cores: Any) -> list[tuple[str, bytes]] | None:
    """Return the columns of a device's cores, unknown being the lowest int64; None if they are not plain numbers."""
    if isinstance(cores, np.ndarray):
        columns = []
        for name in cores.dtype.names or ():
            column = np.ascontiguousarray(cores[name])
            if name not in ("x", "y", "headroom_bytes"):
                # Snapshot.cores writes -1 for unknown; only headroom can be negative.
                column = np.where(column == -1, UNKNOWN, column)
            columns.append((name, column.tobytes()))
        return columns
    names = list(cores[0]) if cores else []
    columns = []
    for name in names:
        values = [row.get(name, "") for row in cores]
        if not all(value is None or (type(value) is int and -(2**62) < value < 2**62) for value in values):
            return None
        columns.append((name, np.array([UNKNOWN if v is None else v for v in values], np.int64).tobytes()))
    return columns if all(len(row) == len(names) for row in cores) else None


def text_of(value: Any) -> bytes:
    """Return a value as the shortest JSON."""
    return _ENCODER.encode(value).encode()


@dataclass(slots=True)
class FrameState:
    """What the frames up to one of them say."""

    index: int = -1
    pieces: list[bytes] = field(default_factory=list)
    shape_number: int = -1
    host: str | None = None
    shape: list[list[str]] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    like: bytes = b""
    updated: list[int] = field(default_factory=list)
    updated_ns: list[int | None] = field(default_factory=list)

    def value(self, number: int) -> Any:
        """Return what a piece of JSON says.

        Raises:
            ValueError: it contradicts itself.
            IndexError: it names a piece that is not there.
        """
        return json.loads(self._joined(number, 0))

    def _joined(self, number: int, depth: int) -> bytes:
        piece = self.pieces[number]
        if not piece or piece[0] not in (OBJECT, LIST):
            return piece
        if depth > 2:
            raise ValueError("pieces are composed too deeply")
        reader = Varints(piece)
        reader.at = 1
        parts = []
        while reader.at < len(piece):
            parts.append(self._joined(reader.next(), depth + 1))
        joined = b",".join(parts)
        return b"{" + joined + b"}" if piece[0] == OBJECT else b"[" + joined + b"]"

    def apply(self, packed: bytes, *, key: bool) -> None:
        """Take the next frame.

        Args:
            packed: its payload, compressed.
            key: whether it is a key frame.

        Raises:
            ValueError: it contradicts itself.
            zlib.error: it is not compressed as it should be.
        """
        payload = unpack(packed, b"" if key else self.like)
        reader = Varints(payload)
        if key:
            self.like = payload[-LIKE_BYTES:]
            self.pieces = []
            self.shape_number = -1
        for _ in range(reader.next()):
            self.pieces.append(reader.take(reader.next()))
        number = reader.next()
        if number != self.shape_number:
            self.host, self.shape = json.loads(self.pieces[number])
            self.shape_number = number
            self.slots = [-1] * sum(len(names) for names in self.shape)
            self.updated = [0] * len(self.shape)
        index = -1
        for _ in range(reader.next()):
            index += reader.next() + 1
            self.slots[index] = reader.next()
        self.updated_ns = []
        for device in range(len(self.shape)):
            value = reader.next()
            if not value:
                self.updated_ns.append(None)
                continue
            value -= 1
            self.updated[device] += -((value + 1) >> 1) if value & 1 else value >> 1
            self.updated_ns.append(self.updated[device])
