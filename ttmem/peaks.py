"""Peaks: the most that was used of a device since its publication, or since whoever watches last said so.

A writer marks its peaks itself, with the moment and with what took it there (``memory.*.peak_*`` of a device object).
:class:`Peaks` is fed with readings of a device and starts anew at any time, without a byte of the watched process being
touched: where the writer's mark rose since then, it tells the peak exactly; else the highest reading does, and what lay
between two readings may have been higher, up to the writer's older mark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

KINDS = ("dram", "l1", "l1_small", "trace", "cb")
"""The kinds of memory that have peaks; of circular buffers the physical bytes."""
HOLDERS = 5
"""How many programs or buffers are named that were there at a peak that was read."""
_TYPES = {"dram": "DRAM", "l1": "L1", "l1_small": "L1_SMALL", "trace": "TRACE"}


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that was used of one kind of memory.

    Attributes:
        kind: one of :data:`KINDS`.
        bytes: how much; None if it is not known.
        at_ns: CLOCK_REALTIME when it was reached, or read; None if it is not known.
        by: the program or buffer that took it there, as its writer marked; None if that is not known.
        count: programs (of ``cb``) or buffers of the type that there were then; None if that is not known.
        exact: whether the writer marked it; else it was read, and is the least that the peak can be.
        at_most: what the peak cannot have exceeded, if that is known.
        holders: the names of the largest that were there when it was read; empty for a peak that the writer marked.
    """

    kind: str
    bytes: int | None
    at_ns: int | None = None
    by: str | None = None
    count: int | None = None
    exact: bool = False
    at_most: int | None = None
    holders: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "peak_bytes": self.bytes,
            "peak_at_ns": self.at_ns,
            "peak_by": self.by,
            "peak_programs" if self.kind == "cb" else "peak_buffers": self.count,
            "exact": self.exact,
            "at_most_bytes": self.at_most,
            "holders": list(self.holders),
        }


@dataclass(frozen=True, slots=True)
class CorePeak:
    """The most that was used of one core.

    Attributes:
        x: column of the core.
        y: row of the core.
        cb_bytes: circular buffers, physical; None if it is not known.
        l1_bytes: L1 buffers, as read; None if it is not known.
        cb_exact: whether the writer marked ``cb_bytes``.
    """

    x: int
    y: int
    cb_bytes: int | None
    l1_bytes: int | None
    cb_exact: bool

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "x": self.x,
            "y": self.y,
            "cb_peak_bytes": self.cb_bytes,
            "l1_peak_bytes": self.l1_bytes,
            "cb_exact": self.cb_exact,
        }


@dataclass(slots=True)
class _Mark:
    """What the writer said at the last reset, and the highest that was read since."""

    before: tuple[int, int | None] | None = None
    said: tuple[int, int | None] | None = None
    read: Peak | None = None
    marked: Peak | None = None


class Peaks:
    """The peaks of one device, since its publication or since :meth:`reset`.

    Thread safety: none; use one for each thread.
    """

    def __init__(self) -> None:
        self.device: Mapping[str, Any] | None = None
        """The last reading, None before the first."""
        self.since_ns: int | None = None
        """The reading at which it was reset; None: since the device was published."""
        self._taken_ns: int | None = None
        self._marks = {kind: _Mark() for kind in KINDS}
        self._cores: dict[tuple[int, int], list[int | None]] = {}
        self._core_said: dict[tuple[int, int], int | None] = {}
        self._core_before: dict[tuple[int, int], int | None] = {}

    def add(self, device: Any, *, taken_ns: int | None = None) -> None:
        """Take a reading.

        Args:
            device: a Snapshot, or a device object of the JSON.
            taken_ns: CLOCK_REALTIME of a device object's reading; a Snapshot knows its own.
        """
        if not isinstance(device, Mapping):
            taken_ns = device.taken_ns if taken_ns is None else taken_ns
            device = device.to_dict()
        for kind, mark in self._marks.items():
            self._add(kind, mark, device, taken_ns)
        for row in device.get("cores") or ():
            self._add_core(row)
        self.device, self._taken_ns = device, taken_ns

    def _add(self, kind: str, mark: _Mark, device: Mapping[str, Any], taken_ns: int | None) -> None:
        figures = (device.get("memory") or {}).get(kind) or {}
        highest, at_ns = figures.get("peak_bytes"), figures.get("peak_at_ns")
        counted = figures.get("peak_programs" if kind == "cb" else "peak_buffers")
        if highest is not None:
            said = (highest, at_ns)
            if mark.said is not None and highest < mark.said[0]:
                # The writer began anew, or another one came: its mark is younger than our reset.
                mark.before = None
            mark.said = said
            fresh = mark.before is None or highest > mark.before[0] or _later(at_ns, mark.before[1])
            if fresh and (mark.marked is None or highest >= (mark.marked.bytes or 0)):
                # Several writers have marks of their own, whose sum is no more than an upper bound.
                several = sum(row.get("state") == "live" for row in device.get("processes") or ()) > 1
                if not several:
                    mark.marked = Peak(kind, highest, at_ns, figures.get("peak_by"), counted, True, highest)
        read = _read(kind, device, taken_ns)
        if read is not None and (mark.read is None or (read.bytes or 0) > (mark.read.bytes or 0)):
            mark.read = read

    def _add_core(self, row: Mapping[str, Any]) -> None:
        core = row["x"], row["y"]
        said, now = row.get("cb_peak_bytes"), row.get("cb_physical_bytes")
        before = self._core_said.get(core)
        if said is not None and before is not None and said < before:
            self._core_before.pop(core, None)
        self._core_said[core] = said
        found = self._cores.setdefault(core, [None, None, None])
        found[0] = _most(found[0], now)
        found[1] = _most(found[1], row.get("l1_used_bytes"))
        floor = self._core_before.get(core)
        if said is not None and (floor is None or said > floor):
            found[2] = _most(found[2], said)

    def reset(self) -> None:
        """Start anew at what there is now: the last reading. Nothing of what is watched is touched."""
        device = self.device or {}
        for kind, mark in self._marks.items():
            mark.before, mark.marked, mark.read = mark.said, None, _read(kind, device, self._taken_ns)
        self._core_before, self._cores = dict(self._core_said), {}
        for row in device.get("cores") or ():
            self._add_core(row)
        self.since_ns = self._taken_ns

    def peak(self, kind: str) -> Peak:
        """Return the peak of a kind of memory.

        Raises:
            KeyError: it is none of :data:`KINDS`.
        """
        mark = self._marks[kind]
        if mark.marked is not None and (mark.read is None or (mark.marked.bytes or 0) >= (mark.read.bytes or 0)):
            return mark.marked
        if mark.read is None:
            return Peak(kind, None)
        if mark.said is None and self.since_ns is None and not mark.read.bytes:
            # Of a writer that marks no peaks a reading is the least that there was since publication: 0 tells nothing.
            return Peak(kind, None)
        bound = None if mark.said is None else max(mark.said[0], mark.read.bytes or 0)
        exact = bound == mark.read.bytes
        read = mark.read
        return Peak(kind, read.bytes, read.at_ns, None, read.count, exact, bound, read.holders)

    def cores(self) -> list[CorePeak]:
        """Return the peaks of the cores, row by row; empty where the device does not tell its cores."""
        return [
            CorePeak(x, y, _most(read, marked), l1, marked is not None and marked >= (read or 0))
            for (x, y), (read, l1, marked) in sorted(self._cores.items(), key=lambda item: item[0][::-1])
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the row of a device in the JSON of ``python -m ttmem peaks``."""
        device = self.device or {}
        return {
            "device_id": device.get("device_id"),
            "asic_id": device.get("asic_id"),
            "since_ns": self.since_ns,
            "memory": {kind: self.peak(kind).to_dict() for kind in KINDS},
            "cores": [core.to_dict() for core in self.cores()] or None,
        }


def _later(at_ns: int | None, before_ns: int | None) -> bool:
    return at_ns is not None and before_ns is not None and at_ns > before_ns


def _most(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else max(a, b)


def _read(kind: str, device: Mapping[str, Any], taken_ns: int | None) -> Peak | None:
    """Return what a reading says is used now; None if it does not."""
    figures = (device.get("memory") or {}).get(kind) or {}
    used = figures.get("physical_bytes" if kind == "cb" else "used_bytes")
    if used is None:
        return None
    return Peak(kind, used, taken_ns, None, _count(kind, device), holders=_holders(kind, device))


def _count(kind: str, device: Mapping[str, Any]) -> int | None:
    rows = device.get("programs") if kind == "cb" else device.get("buffers")
    if rows is None or device.get("programs_omitted" if kind == "cb" else "buffers_omitted"):
        return None
    if kind == "cb":
        return sum(int(row.get("count") or 1) for row in rows)
    return sum(1 for row in rows if row.get("buffer_type") == _TYPES[kind])


def _holders(kind: str, device: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the largest programs or buffers of a reading, each once."""
    rows: Sequence[Mapping[str, Any]] = device.get("programs" if kind == "cb" else "buffers") or ()
    if kind != "cb":
        rows = [row for row in rows if row.get("buffer_type") == _TYPES[kind]]
        rows = sorted(rows, key=lambda row: -(row.get("size_bytes") or 0))
    # Programs come largest first.
    return tuple(dict.fromkeys(str(row.get("name") or "unnamed") for row in rows))[:HOLDERS]


@dataclass(slots=True)
class HostPeaks:
    """The peaks of all devices of a host or a recording; devices come and go."""

    devices: dict[tuple[object, object], Peaks] = field(default_factory=dict)

    def add(self, devices: Sequence[Mapping[str, Any]], taken_ns: int | None) -> None:
        """Take a reading of all of them.

        Args:
            devices: device objects of the JSON.
            taken_ns: CLOCK_REALTIME of the reading.
        """
        for device in devices:
            key = (device.get("asic_id"), None if device.get("asic_id") else device.get("device_id"))
            self.devices.setdefault(key, Peaks()).add(device, taken_ns=taken_ns)
