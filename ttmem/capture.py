"""Capture: the nodes of a ttnn graph capture or report file, read as a stream.

Memory use does not grow with the file. What the nodes mean is the work of :mod:`ttmem.interpreter`.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO

import ijson  # type: ignore[import-untyped]

from ttmem.cores import CoreRangeSet, as_core_range_set
from ttmem.errors import CaptureError, InvalidIntervalError
from ttmem.model import BufferType, Geometry

# Python's int() may refuse 640 digits and more, and ijson's C backend crashes the process where int() refuses.
MAX_DIGITS = 512
"""A run of this many digits makes a file unreadable; no field of a capture has more than 20."""
MAX_RANGES_TEXT = 16384
"""The longest text of core ranges that is parsed; TT-Metal's longest has a few hundred characters."""

_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_UNREADABLE = (OSError, EOFError, zlib.error, ijson.JSONError, ArithmeticError, ValueError, RecursionError)


class _Checked:
    """A binary file whose reads are searched for absurd numbers before a parser sees them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._tail = b""

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        zeros = self._tail + data.translate(_DIGITS_TO_ZERO)
        if b"0" * MAX_DIGITS in zeros:
            raise ValueError(f"a number has {MAX_DIGITS} digits or more")
        self._tail = zeros[-(MAX_DIGITS - 1) :]
        return data


class CaptureReader:
    """Reads the nodes of one file: a list of nodes, or a report with "graph" and "devices"; plain or gzipped.

    Args:
        path: the file.

    Raises:
        CaptureError: the file cannot be opened, or starts like neither.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._raw: IO[bytes] | None = None
        self._position_bytes = 0
        try:
            self.size_bytes = os.stat(self.path).st_size
            with open(self.path, "rb") as file:
                self._gzipped = file.read(2) == b"\x1f\x8b"
            with self._open() as file:
                start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        except (OSError, EOFError, zlib.error) as error:
            raise CaptureError(f"cannot read {self.path}: {getattr(error, 'strerror', None) or error}") from error
        if start not in (b"[", b"{"):
            raise CaptureError(
                f"{self.path} is no graph capture: expected a JSON list of nodes or a report, found "
                + (f"{start!r} first" if start else "nothing")
            )
        self.is_report = start == b"{"

    @property
    def position_bytes(self) -> int:
        """How far :meth:`nodes` has read, in bytes of the file on disk (of ``size_bytes``)."""
        if self._raw is not None and not self._raw.closed:
            self._position_bytes = self._raw.tell()
        return self._position_bytes

    def _open(self, *, track: bool = False) -> IO[bytes]:
        raw = open(self.path, "rb")  # noqa: SIM115 - closed by gzip or by the caller
        if track:
            self._raw = raw
        if not self._gzipped:
            return raw
        file = gzip.GzipFile(fileobj=raw)
        file.myfileobj = raw  # type: ignore[assignment]  # so that closing the one closes the other
        return file  # type: ignore[return-value]

    def nodes(self) -> Iterator[object]:
        """Yield every node in the order of the file, as JSON has it and unchecked.

        Raises:
            CaptureError: the file cannot be read on, or none of what it holds is a node; all before was yielded.
        """
        count = 0
        is_capture = False
        try:
            with self._open(track=True) as file, ExitStack() as stack:
                # The last position outlives the file.
                stack.callback(lambda: self.position_bytes)
                prefix = "graph.item" if self.is_report else "item"
                for node in ijson.items(_Checked(_skip_mark(file)), prefix, use_float=True):
                    count += 1
                    is_capture = is_capture or (isinstance(node, Mapping) and isinstance(node.get("node_type"), str))
                    yield node
                    # The rest of a report can be a hundred times larger than its graph.
                    if self.is_report and isinstance(node, Mapping) and node.get("node_type") == "capture_end":
                        return
        except _UNREADABLE as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CaptureError(f"{self.path} breaks off after {count} nodes: {reason}") from error
        if not is_capture:
            where = ' under "graph"' if self.is_report else ""
            found = f"none of its {count} entries{where} is a node" if count else f"it has no nodes{where}"
            raise CaptureError(f"{self.path} is no graph capture: {found}")

    def geometries(self) -> dict[int, Geometry]:
        """Return what a report's "devices" tells, by chip id; nothing for a bare list of nodes.

        Raises:
            CaptureError: the file breaks off before its devices.
        """
        if not self.is_report:
            return {}
        try:
            with self._open() as file:
                found = next(iter(ijson.items(_Checked(_skip_mark(file)), "devices", use_float=True)), None)
        except _UNREADABLE as error:
            raise CaptureError(f"{self.path} breaks off before its devices: {error}") from error
        entries = found.values() if isinstance(found, Mapping) else found if isinstance(found, list) else ()
        result: dict[int, Geometry] = {}
        for entry in entries:
            chip = read_integer(entry.get("device_id")) if isinstance(entry, Mapping) else None
            if chip is not None and chip >= 0:
                result[chip] = geometry_of_entry(entry)
        return result

    @cached_property
    def has_wide_core(self) -> bool:
        """Whether any program uses a core with x above 7, which Wormhole does not have; the nodes are read for it once."""
        try:
            # Another reader: this one may be in the middle of its nodes.
            for node in CaptureReader(self.path).nodes():
                params = node.get("params") if isinstance(node, Mapping) else None
                if isinstance(params, Mapping) and "core_range_set" in params:
                    core_ranges = read_core_ranges(params["core_range_set"])
                    box = core_ranges.bounding_box if core_ranges is not None else None
                    if box is not None and box.end.x > 7:
                        return True
        except CaptureError:
            # The file breaks off; what came before has no such core.
            pass
        return False


def _skip_mark(file: IO[bytes]) -> IO[bytes]:
    """Return the file behind a UTF-8 byte order mark, if it begins with one."""
    if file.read(3) != b"\xef\xbb\xbf":
        file.seek(0)
    return file


def geometry_of_entry(entry: Mapping[str, object]) -> Geometry:
    """Return what one entry of a report's devices tells; what contradicts itself is left out."""

    def number(*names: str) -> int | None:
        values = (read_integer(entry.get(name)) for name in names)
        return next((value for value in values if value is not None and value > 0), None)

    worker = number("worker_l1_size")
    base = number("address_at_first_l1_cb_buffer")
    bank = number("l1_bank_size")
    columns = number("num_x_compute_cores")
    rows = number("num_y_compute_cores")
    channels = number("num_dram_channels")
    channel_size = number("dram_size_per_channel")
    small = None
    # Storage cores with several banks would make this difference anything; L1_SMALL never takes half of a core.
    if worker and base and bank and 0 <= worker - base - bank < worker // 2:
        small = worker - base - bank
    arch = entry.get("arch")
    values: dict[str, object] = {
        "arch": arch.rpartition(".")[2].lower() if isinstance(arch, str) else None,
        "grid": (columns, rows) if columns and rows else None,
        "worker_l1_size": worker,
        "l1_cb_base": base,
        "l1_small_size": small,
        "dram_size": channels * channel_size if channels and channel_size else None,
    }
    result: dict[str, object] = {}
    for name, value in values.items():
        try:
            Geometry.of(**{**result, name: value})  # type: ignore[arg-type]
        except ValueError:
            continue
        result[name] = value
    return Geometry.of(**result)  # type: ignore[arg-type]


def read_integer(value: object) -> int | None:
    """Return an integer that a capture spells as a number or as text; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, str) and len(value) <= MAX_DIGITS:
        text = value.strip()
        if text.isascii() and text.removeprefix("-").isdigit():
            return int(text)
    return None


def read_text(value: object) -> str | None:
    """Return a text that can be written as UTF-8; None for anything but text."""
    # JSON may hold half a surrogate pair, which no publisher could encode.
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else None


def read_flag(value: object) -> bool | None:
    """Return a flag that a capture spells as "0", "1", "true", "false", 0, 1 or a boolean; None for anything else."""
    if isinstance(value, str):
        return {"0": False, "1": True, "false": False, "true": True}.get(value.strip().lower())
    if isinstance(value, (bool, int)) and value in (0, 1):
        return bool(value)
    return None


def read_buffer_type(params: Mapping[str, object]) -> BufferType | None:
    """Return the type of a buffer node: its ``buffer_type``, else the coarser ``type``; None if neither is one."""
    for name in ("buffer_type", "type"):
        value = params.get(name)
        number = read_integer(value)
        try:
            if number is not None:
                return BufferType.parse(number)
            if isinstance(value, str):
                return BufferType.parse(value)
        except ValueError:
            continue
    return None


def read_core_ranges(value: object) -> CoreRangeSet | None:
    """Return the core ranges of a node, in any spelling; None for anything else."""
    if not isinstance(value, (str, list)) or len(value) > MAX_RANGES_TEXT:
        return None
    try:
        return as_core_range_set(value)
    except (InvalidIntervalError, RecursionError):
        return None


def read_device_tensors(value: object) -> list[tuple[int, int]] | None:
    """Return the (mesh id, chip id) pairs of a tensor's ``device_tensors``; None if it is no such list."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, list):
        return None
    pairs = []
    for entry in value:
        if not isinstance(entry, Mapping):
            return None
        mesh, chip = read_integer(entry.get("mesh_device_id")), read_integer(entry.get("device_id"))
        if mesh is None or chip is None or mesh < 0 or not 0 <= chip < 2**31:
            return None
        pairs.append((mesh, chip))
    return pairs


@dataclass(slots=True)
class Warnings:
    """What was wrong with a capture, counted; a bounded table, for there are few kinds and fields.

    Attributes:
        counts: how often each (kind, field) was met.
        first: for each, a text that names the first node.
    """

    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    first: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, kind: str, name: str, counter: object, detail: str = "") -> None:
        """Count one fault of the kind in the field ``name`` of the node ``counter``."""
        key = (kind, name)
        if key not in self.counts:
            self.first[key] = f"node {counter}, {name}: {kind}" + (f" ({detail[:200]})" if detail else "")
        self.counts[key] = self.counts.get(key, 0) + 1

    @property
    def total(self) -> int:
        """The number of faults."""
        return sum(self.counts.values())

    def texts(self) -> list[str]:
        """Return one line for each kind and field: where it was first met, and how often."""
        return [
            text + (f", {self.counts[key]} times" if self.counts[key] > 1 else "") for key, text in self.first.items()
        ]
