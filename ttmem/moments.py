"""Moments in a file: a recording, or what ``ttmem-dump --json`` wrote once or again and again."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ttmem.errors import CaptureError, TtmemError

FIGURES = frozenset(("device_id", "asic_id", "memory", "l1_accounting"))
"""The members of a device that tell its totals."""


class Frames(Protocol):
    """Moments in a file.

    Attributes:
        problems: what of it cannot be read, for people.
    """

    problems: list[str]

    def __len__(self) -> int:
        """Return how many there are."""

    def frame(self, index: int) -> dict[str, Any]:
        """Return one as the JSON object of a dump."""

    def figures(self, index: int) -> dict[str, Any]:
        """Return one with no more of its devices than :data:`FIGURES`, where that is faster."""

    def close(self) -> None:
        """Close the file."""


class DumpFile:
    """Frames in a file: objects of ``ttmem-dump --json``, one after the other, as they are or one on each line.

    Args:
        path: plain or gzip.

    Raises:
        CaptureError: there is no such file, or its first frame is none.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.problems: list[str] = []
        try:
            data = Path(path)
            self._file: BinaryIO = data.open("rb")
            if self._file.read(2) == b"\x1f\x8b":
                self._file.close()
                import gzip

                # A gzip file has no way back, so it is held in memory.
                with gzip.open(path) as packed:
                    self._file = io.BytesIO(packed.read())
        except (OSError, EOFError, zlib.error) as error:
            raise CaptureError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
        self._offsets = self._index()
        try:
            self.frame(0)
        except CaptureError:
            self._file.close()
            raise

    def _index(self) -> list[tuple[int, int]]:
        """Return where the frames lie: each line, or each object whose last brace begins a line."""
        self._file.seek(0)
        first = self._file.readline()
        try:
            json.loads(first)
            lines = True
        except ValueError:
            lines = False
        found = []
        self._file.seek(0)
        at = begin = 0
        for line in self._file:
            at += len(line)
            if line.strip() if lines else line.startswith(b"}"):
                found.append((begin, at - begin))
                begin = at
        if at > begin and not lines:
            self._file.seek(begin)
            if not found or self._file.read().strip():
                found.append((begin, at - begin))
        found = found or [(0, at)]
        if len(found) > 1:
            # A watched dump that was interrupted may leave half a line.
            self._file.seek(found[-1][0])
            try:
                json.loads(self._file.read())
            except ValueError:
                found.pop()
        return found

    def __len__(self) -> int:
        return len(self._offsets)

    def frame(self, index: int) -> dict[str, Any]:
        """Return one dump.

        Raises:
            CaptureError: it is none.
        """
        offset, length = self._offsets[index]
        self._file.seek(offset)
        where = f"{self._path}: frame {index + 1}"
        from ttmem.dumps import DumpError, dump_of_text  # so that a live screen needs no parser of captures

        try:
            dump = dump_of_text(self._file.read(length), where)
        except DumpError as error:
            raise CaptureError(f"{error}; a graph capture is shown by ttmem-replay FILE --dump") from error
        if not all("device_id" in device and isinstance(device.get("memory"), dict) for device in dump.devices):
            raise CaptureError(f"{where} is no dump: a device has no device_id or no memory")
        return dump.to_dict()

    def figures(self, index: int) -> dict[str, Any]:
        """Return one dump, whole."""
        return self.frame(index)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class RecordingFile:
    """Frames of a recording of ``python -m ttmem record``.

    Args:
        path: the file.

    Raises:
        TtmemError: it holds no moment, or cannot be read.
    """

    def __init__(self, path: str) -> None:
        from ttmem.recording import open_recording  # so that a dump needs no NumPy

        self._recording = open_recording(path)
        try:
            self._recording.require_moments()
        except TtmemError:
            self._recording.close()
            raise
        self.problems = [self._recording.damage] if self._recording.damage else []

    def __len__(self) -> int:
        return len(self._recording)

    def frame(self, index: int) -> dict[str, Any]:
        """Return one moment."""
        return self._recording.dump(index).to_dict()

    def figures(self, index: int) -> dict[str, Any]:
        """Return one moment with no more than :data:`FIGURES` of each device."""
        return self._recording.dump(index, cores=False, members=FIGURES).to_dict()

    def close(self) -> None:
        """Close the file."""
        self._recording.close()


class ReportFile:
    """The one frame of a report of ttnn or TT-Metal (see :mod:`ttmem.reports`).

    Args:
        path: the file.

    Raises:
        TtmemError: it is none.
    """

    def __init__(self, path: str) -> None:
        from ttmem.dumps import read_dump  # so that a live screen needs no parser of captures

        self._frame = read_dump(path).to_dict()
        self.problems: list[str] = []

    def __len__(self) -> int:
        return 1

    def frame(self, index: int) -> dict[str, Any]:
        """Return its state."""
        return self._frame

    figures = frame

    def close(self) -> None:
        """Need nothing closed."""


def open_frames(path: str) -> Frames:
    """Return the frames of a file; the one place that knows which kinds of file there are.

    Raises:
        TtmemError: it cannot be read, or is of no known kind.
    """
    from ttmem.dumps import RECORDING_MAGIC, is_report

    try:
        with open(path, "rb") as file:
            start = file.read(len(RECORDING_MAGIC))
    except OSError as error:
        raise CaptureError(f"{path}: {error.strerror}") from error
    if start == RECORDING_MAGIC:
        return RecordingFile(path)
    return ReportFile(path) if is_report(path) else DumpFile(path)
