"""Recording: dumps of devices taken one after the other, in a compact file that any end leaves readable.

A file is a header and frames. Each frame stands on its own feet: a mark, its length, a checksum, the moment, and a
compressed payload. A writer that is killed at any byte loses at most the frame it was writing, and what is damaged in
the middle costs the moments up to the next key frame.

What devices show repeats itself: after the same operation, the same cores hold the same bytes. So each piece of a
device (a member of its JSON object, a figure of that, or one column of its cores) is stored once, when it is first seen
after a key frame, and later named by a number, for whichever device shows it. Live buffers, which never repeat, stand
in key frames only.
"""

from __future__ import annotations

import bisect
import contextlib
import fcntl
import mmap
import os
import struct
import zlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from ttmem.dumps import RECORDING_MAGIC, Dump, EmptyFileError
from ttmem.errors import TtmemError
from ttmem.frames import (
    CHECKED,
    COLUMN,
    DELTA_FRAME,
    DEPTHS,
    FRAME,
    HEADER,
    HELD_BACK,
    KEY_FRAME,
    KEY_ONLY,
    LIKE_BYTES,
    LIST,
    MARK,
    MAX_FRAME_BYTES,
    OBJECT,
    PROGRAM_IDS,
    UNKNOWN,
    VERSION,
    FrameState,
    columns_of,
    put_varint,
    text_of,
)

KEY_INTERVAL_NS = 60_000_000_000
"""A key frame comes at least this often: the most that damage costs."""
KEY_FRAMES_APART = 600
"""A key frame comes at least after so many frames: the most that a seek decodes."""
MAX_PIECES = 65536
"""A key frame comes when this many pieces are held."""


class RecordingError(TtmemError, ValueError):
    """A file is no recording that this version reads."""


class RecordingWriter:
    """Appends dumps to a recording; a context manager.

    Args:
        path: the file; made if it is not there. An existing recording is continued, behind its last whole frame.

    Raises:
        RecordingError: the file is there and is no recording of this version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.frames = 0
        """Frames written by this writer."""
        self._forget()
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RecordingError(f"another process records into {self.path}: name another file") from None
            self.size_bytes = self._continue()
            """Bytes of the file."""
        except BaseException:
            os.close(self._file)
            raise

    def _forget(self) -> None:
        self._pieces: dict[bytes, int] = {}
        self._shape_number = -1
        self._slots: list[int] = []
        self._like = b""
        self._updated: list[int] = []
        self._since_key = 0
        self._key_ns = 0

    def _continue(self) -> int:
        size = os.fstat(self._file).st_size
        header = HEADER.pack(RECORDING_MAGIC, VERSION, 0)
        if os.pread(self._file, len(header), 0) != header:
            if size and not header.startswith(os.pread(self._file, len(header) + 1, 0)):
                raise RecordingError(
                    f"{self.path} is there and is no recording of version {VERSION}: name another file"
                )
            os.pwrite(self._file, header, 0)
            size = len(header)
        elif size > len(header):
            with open_recording(self.path) as before:
                size = before.end_bytes
        os.ftruncate(self._file, size)
        return os.lseek(self._file, size, os.SEEK_SET)

    def key_due(self, taken_ns: int) -> bool:
        """Tell whether a moment would be written as a key frame, the only one that holds live buffers."""
        return (
            self._shape_number < 0
            or self._since_key >= KEY_FRAMES_APART
            or not 0 <= taken_ns - self._key_ns < KEY_INTERVAL_NS
            or len(self._pieces) > MAX_PIECES
        )

    def write(self, dump: Dump, *, key: bool = False) -> int:
        """Append one moment and return the bytes that it took.

        Args:
            dump: the devices; ``cores`` of one may be the array of ``Snapshot.cores``.
            key: whether to write a key frame, which holds the live buffers too.
        """
        try:
            return self._write(dump, key)
        except BaseException:
            # The frames to come must name no piece that was only to be written.
            self._forget()
            raise

    def _write(self, dump: Dump, key: bool) -> int:
        taken_ns = dump.taken_ns or 0
        key = key or self.key_due(taken_ns)
        if key:
            self._forget()
            self._key_ns = taken_ns
        self._since_key += 1
        new: list[bytes] = []
        shape, slots = self._slots_of(dump, new, key)
        body = bytearray()
        shape_number = self._number(text_of([dump.host, shape]), new)
        changed = list(enumerate(slots))
        if shape_number == self._shape_number:
            changed = [(i, number) for i, number in changed if self._slots[i] != number]
        else:
            self._updated = [0] * len(dump.devices)
        put_varint(body, shape_number)
        put_varint(body, len(changed))
        before = -1
        for index, number in changed:
            put_varint(body, index - before - 1)
            put_varint(body, number)
            before = index
        for index, device in enumerate(dump.devices):
            updated_ns = device.get("updated_ns")
            if updated_ns is None:
                put_varint(body, 0)
                continue
            delta = int(updated_ns) - self._updated[index]
            put_varint(body, 1 + (delta * 2 if delta >= 0 else -delta * 2 - 1))
            self._updated[index] = int(updated_ns)
        self._shape_number, self._slots = shape_number, slots
        head = bytearray()
        put_varint(head, len(new))
        for piece in new:
            put_varint(head, len(piece))
            head += piece
        payload = bytes(head + body)
        if key:
            self._like = payload[-LIKE_BYTES:]
            return self._append(KEY_FRAME, taken_ns, zlib.compress(payload, 6))
        packer = zlib.compressobj(6, zdict=self._like)
        return self._append(DELTA_FRAME, taken_ns, packer.compress(payload) + packer.flush())

    def _slots_of(self, dump: Dump, new: list[bytes], key: bool) -> tuple[tuple[tuple[str, ...], ...], list[int]]:
        shape: list[tuple[str, ...]] = []
        slots: list[int] = []
        for device in dump.devices:
            pieces = [
                (name, self._composed(value, DEPTHS.get(name, 0), new))
                for name, value in device.items()
                if name not in HELD_BACK
            ]
            if "updated_ns" in device:
                pieces.append(("updated_ns", b""))
            if "programs" in device:
                pieces += self._programs(device["programs"], new)
            cores = device.get("cores")
            columns = None if cores is None or not len(cores) else columns_of(cores)
            if columns is not None:
                pieces += [(COLUMN + name, column) for name, column in columns]
            elif "cores" in device:
                pieces.append(("cores", text_of(cores if cores is None else list(cores))))
            pieces += [(name, text_of(device[name]) if key else b"null") for name in KEY_ONLY if name in device]
            shape.append(tuple(name for name, _ in pieces))
            slots += [self._number(piece, new) for _, piece in pieces]
        return tuple(shape), slots

    def _programs(self, rows: Any, new: list[bytes]) -> list[tuple[str, bytes]]:
        """Return the pieces of a device's programs: a loop makes the same programs again, but with ids of their own."""
        if not rows or not all(type(row.get("program_id")) is int for row in rows):
            return [("programs", text_of(rows))]
        first = rows[0]["program_id"]
        return [
            ("programs", self._composed([{**row, "program_id": 0} for row in rows], 1, new)),
            (PROGRAM_IDS, text_of([row["program_id"] - first for row in rows])),
            (PROGRAM_IDS, text_of(first)),
        ]

    def _composed(self, value: Any, depth: int, new: list[bytes]) -> bytes:
        """Return the piece of a value, its members being pieces of their own down to ``depth``.

        Two moments mostly differ in a few figures; what a combination of known ones costs is their numbers.
        """
        if depth == 0 or not value or not isinstance(value, (dict, list)):
            return text_of(value)
        out = bytearray((OBJECT if isinstance(value, dict) else LIST,))
        if isinstance(value, dict):
            for key, member in value.items():
                name = text_of(str(key)) + b":"
                put_varint(out, self._number(name + self._composed(member, 0, new), new))
        else:
            for item in value:
                put_varint(out, self._number(self._composed(item, depth - 1, new), new))
        return bytes(out)

    def _number(self, piece: bytes, new: list[bytes]) -> int:
        number = self._pieces.get(piece)
        if number is None:
            number = self._pieces[piece] = len(self._pieces)
            new.append(piece)
        return number

    def _append(self, kind: int, taken_ns: int, payload: bytes) -> int:
        frame = bytearray(FRAME.pack(MARK, len(payload), 0, kind, taken_ns)) + payload
        struct.pack_into("<I", frame, 8, zlib.crc32(frame[CHECKED:]))
        written = 0
        try:
            while written < len(frame):
                written += os.write(self._file, frame[written:])
        except BaseException:
            # A full disk or an interrupt must not leave half a frame before the next one.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self.size_bytes)
                os.lseek(self._file, self.size_bytes, os.SEEK_SET)
            raise
        self.frames += 1
        self.size_bytes += len(frame)
        return len(frame)

    def close(self) -> None:
        """Close the file; nothing is left to write."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> "RecordingWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Recording:
    """A recording that is read: a sequence of :class:`~ttmem.dumps.Dump`, one for each moment.

    Attributes:
        times_ns: the moment of each frame.
        damaged_bytes: bytes that belong to no whole frame, but for one at the end that was not finished.
        end_bytes: where the last whole frame ends.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.times_ns: list[int] = []
        self.damaged_bytes = 0
        self.end_bytes = HEADER.size
        self._frames: list[tuple[int, int, int]] = []
        self._keys: list[int] = []
        self._state = FrameState()
        self._map: mmap.mmap | None = None
        try:
            with open(path, "rb") as file:
                header = file.read(HEADER.size)
                if len(header) == HEADER.size:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise RecordingError(f"cannot read {self.path}: {error.strerror or error}") from error
        if not RECORDING_MAGIC.startswith(header[:8]):
            self.close()
            raise RecordingError(f"{self.path} is no recording: make one with python -m ttmem record -o FILE")
        if self._map is not None:
            version = HEADER.unpack(header)[1]
            if version != VERSION:
                self.close()
                raise RecordingError(f"{self.path} has version {version}, this ttmem reads {VERSION}: upgrade ttmem")
            self._index(self._map)

    def _index(self, data: mmap.mmap) -> None:
        """Find every whole frame that can be decoded: by hopping, and by its mark behind damage."""
        at, end = HEADER.size, len(data)
        usable = False
        while at + FRAME.size <= end:
            mark, length, checksum, kind, taken_ns = FRAME.unpack_from(data, at)
            stop = at + FRAME.size + length
            whole = (
                mark == MARK
                and kind in (KEY_FRAME, DELTA_FRAME)
                and length <= MAX_FRAME_BYTES
                and stop <= end
                and zlib.crc32(data[at + CHECKED : stop]) == checksum
            )
            if not whole:
                found = data.find(MARK, at + 1)
                if found < 0:
                    break
                self.damaged_bytes += found - at
                usable = False
                at = found
                continue
            if kind == KEY_FRAME:
                usable = True
                self._keys.append(len(self._frames))
            if usable:
                self._frames.append((at + FRAME.size, stop, kind))
                self.times_ns.append(taken_ns)
            at = stop
            self.end_bytes = stop
        if at < end and not self._unfinished(data, at):
            self.damaged_bytes += end - at

    @staticmethod
    def _unfinished(data: mmap.mmap, at: int) -> bool:
        """Tell whether the end of the file is the beginning of a frame, as a recorder leaves it that is killed."""
        if at + FRAME.size > len(data):
            return MARK.startswith(data[at : at + len(MARK)])
        mark, length, *_ = FRAME.unpack_from(data, at)
        return bool(mark == MARK and at + FRAME.size + length > len(data))

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def damage(self) -> str:
        """What is damaged, for people; empty if nothing is."""
        return f"{self.damaged_bytes} bytes of {self.path} are damaged and left out" if self.damaged_bytes else ""

    def require_moments(self) -> None:
        """Make sure that there is a moment to read.

        Raises:
            EmptyFileError: there is none.
            RecordingError: there is none that is whole.
        """
        if not len(self) and self.damaged_bytes:
            raise RecordingError(f"no moment of {self.path} can be read: {self.damaged_bytes} bytes are damaged")
        if not len(self):
            raise EmptyFileError(f"{self.path}: the recording holds no moment yet")

    def __getitem__(self, index: int) -> Dump:
        """Return the dump of one moment; negative counts from the end."""
        return self.dump(index)

    def __iter__(self) -> Iterator[Dump]:
        for index in range(len(self)):
            yield self.dump(index)

    def seek(self, taken_ns: int) -> int:
        """Return the index of the last moment that is not after ``taken_ns``, 0 if all are."""
        return max(0, bisect.bisect_right(self.times_ns, taken_ns) - 1)

    def key_before(self, index: int) -> int:
        """Return the index of the last key frame up to ``index``; no other frame holds live buffers."""
        return self._keys[bisect.bisect_right(self._keys, index) - 1]

    def dump(self, index: int, *, cores: bool = True, members: Collection[str] | None = None) -> Dump:
        """Return one moment.

        Args:
            index: of ``times_ns``; negative counts from the end.
            cores: whether to list the cores, which takes most of the time.
            members: of the device objects, those that are wanted; None is all.

        Raises:
            IndexError: there is no such moment.
            RecordingError: the frame contradicts itself.
        """
        state = self._at(index)
        devices = []
        first = 0
        try:
            for number, names in enumerate(state.shape):
                slots = state.slots[first : first + len(names)]
                first += len(names)
                devices.append(self._device(state, number, names, slots, cores, members))
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise RecordingError(f"{self.path}: moment {state.index} contradicts itself: {error}") from error
        return Dump(devices, self.times_ns[state.index], state.host)

    def core_columns(self, index: int) -> list[dict[str, np.ndarray[Any, Any]]]:
        """Return the columns of the cores of each device, int64, unknown being the lowest int64."""
        state = self._at(index)
        found = []
        first = 0
        for names in state.shape:
            slots = state.slots[first : first + len(names)]
            first += len(names)
            found.append(
                {
                    name.removeprefix(COLUMN): np.frombuffer(state.pieces[number], np.int64)
                    for name, number in zip(names, slots, strict=True)
                    if name.startswith(COLUMN)
                }
            )
        return found

    def marks(self, index: int) -> list[object]:
        """Return for each device what is equal as long as its figures are; only ``updated_ns`` may differ then.

        Marks of moments with a key frame between them differ in any case.
        """
        state = self._at(index)
        key = bisect.bisect_right(self._keys, state.index)
        marks: list[object] = []
        first = 0
        for names in state.shape:
            marks.append((key, tuple(names), tuple(state.slots[first : first + len(names)])))
            first += len(names)
        return marks

    def _at(self, index: int) -> FrameState:
        count = len(self)
        index = index + count if index < 0 else index
        if not 0 <= index < count:
            raise IndexError(f"the recording has {count} moments, there is no {index}")
        if self._map is None:
            raise RecordingError(f"{self.path} is closed")
        state = self._state
        key = self.key_before(index)
        if not key <= state.index <= index:
            state = self._state = FrameState(key - 1)
        while state.index < index:
            begin, stop, kind = self._frames[state.index + 1]
            try:
                state.apply(self._map[begin:stop], key=kind == KEY_FRAME)
            except (zlib.error, ValueError, LookupError, TypeError, RecursionError) as error:
                self._state = FrameState()
                raise RecordingError(f"{self.path}: moment {state.index + 1} contradicts itself: {error}") from error
            state.index += 1
        return state

    def _device(
        self,
        state: FrameState,
        number: int,
        names: Sequence[str],
        slots: Sequence[int],
        cores: bool,
        members: Collection[str] | None,
    ) -> dict[str, Any]:
        device: dict[str, Any] = {}
        columns: dict[str, list[int | None]] = {}
        ids: list[Any] = []
        for name, slot in zip(names, slots, strict=True):
            if members is not None and name.partition(".")[0] not in members:
                continue
            piece = state.pieces[slot]
            if name.startswith(COLUMN):
                if cores:
                    values = np.frombuffer(piece, np.int64).tolist()
                    columns[name.removeprefix(COLUMN)] = [None if value == UNKNOWN else value for value in values]
            elif name == PROGRAM_IDS:
                ids.append(state.value(slot))
            elif name == "updated_ns":
                device[name] = state.updated_ns[number]
            elif name == "cores":
                if cores:
                    device[name] = state.value(slot)
            elif name in KEY_ONLY:
                # Between key frames the buffers are not known, which is not the same as none.
                if piece != b"null":
                    device[name] = state.value(slot)
            else:
                device[name] = state.value(slot)
        if ids:
            for row, offset in zip(device["programs"], ids[0], strict=True):
                row["program_id"] = ids[1] + offset
        if columns:
            device["cores"] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return device

    def close(self) -> None:
        """Close the file."""
        if self._map is not None:
            self._map.close()
            self._map = None

    def __enter__(self) -> "Recording":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_recording(path: str | os.PathLike[str]) -> Recording:
    """Open a recording for reading: a sequence of dumps, with ``seek`` for a moment.

    Raises:
        RecordingError: it is none, or of another version.
    """
    return Recording(path)


def read_host_for_recording(host: Any, *, source: str = "auto", buffers: bool = True) -> Dump:
    """Return the devices of this host as a recording takes them fastest: the cores as arrays.

    Args:
        host: a :class:`ttmem.reader.Host` that is kept between readings.
        source: as of :func:`ttmem.reader.read_host`.
        buffers: whether to take the live buffers too, which only a key frame holds.
    """
    import socket

    from ttmem.dumps import buffers_of
    from ttmem.reader import read_host

    reading = read_host(source=source, host=host)
    devices: list[dict[str, Any]] = []
    for snapshot in reading.devices:
        device: dict[str, Any] = snapshot.to_dict(cores=False)
        device["cores"] = snapshot.cores
        device.update(buffers_of(snapshot) if buffers else {"buffers": None, "buffers_omitted": None})
        devices.append(device)
    return Dump(devices, reading.taken_ns, socket.gethostname(), list(reading.problems))
