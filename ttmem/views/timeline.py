"""The figures of devices over time, as many moments as a page can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ttmem.views.dump import used_l1
from ttmem.views.notes import get
from ttmem.views.text import Device

POINTS_MAX = 16_000
"""Moments over all devices; beyond it neighbours are joined."""
_LEAST = 250
"""Moments that a device keeps however many there are: a chart has about as many columns."""
SERIES: tuple[tuple[str, Callable[[Device], int | None]], ...] = (
    ("Total L1", used_l1),
    ("CB", lambda device: get(device, "memory.cb.physical_bytes")),
    ("CB resident", lambda device: get(device, "memory.cb.resident_bytes")),
    ("L1 buffers", lambda device: get(device, "memory.l1.used_bytes")),
    ("L1 Small", lambda device: get(device, "memory.l1_small.used_bytes")),
    ("Kernels", lambda device: get(device, "memory.kernel.used_bytes")),
    ("DRAM", lambda device: get(device, "memory.dram.used_bytes")),
    ("Trace", lambda device: get(device, "memory.trace.used_bytes")),
)
"""The charted figures: a name, and what takes it from a device."""

_Key = tuple[Any, Any]


def _highest(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else max(a, b)


class Timeline:
    """Takes moments one after the other, and joins neighbours to the highest of both when they become too many.

    So a peak is never lost, whatever the length, and memory stays bounded. A device that is not there at a moment has
    no value then: it is not 0.
    """

    def __init__(self) -> None:
        self.moments = 0
        """How many were added."""
        self.fullest_index = 0
        """Number of the moment at which the devices together held most, the first of equal ones."""
        self._most = -1
        self._step = 1
        self._times_ns: list[int] = []
        self._devices: dict[_Key, list[list[int | None]]] = {}

    def add(self, taken_ns: int, devices: Sequence[Device]) -> None:
        """Add a moment; it must not lie before the last one."""
        if self.moments % self._step == 0:
            self._times_ns.append(taken_ns)
        count = len(self._times_ns)
        held = 0
        for device in devices:
            key = device.get("device_id"), device.get("asic_id")
            lines = self._devices.setdefault(key, [[] for _ in SERIES])
            values = [figure(device) for _, figure in SERIES]
            for line, value in zip(lines, values, strict=True):
                # A device that was not there before has no value for the time before.
                line += [None] * (count - len(line))
                line[-1] = _highest(line[-1], value)
            total_l1, cb, _, buffers, *_ = values
            held += total_l1 if total_l1 is not None else (cb or 0) + (buffers or 0)
        if held > self._most:
            self._most, self.fullest_index = held, self.moments
        self.moments += 1
        if count >= max(_LEAST, POINTS_MAX // max(1, len(self._devices))) and self.moments % self._step == 0:
            self._halve()

    def _halve(self) -> None:
        count = len(self._times_ns)
        self._times_ns = self._times_ns[::2]
        for lines in self._devices.values():
            for number, line in enumerate(lines):
                line += [None] * (count - len(line))
                lines[number] = [
                    _highest(line[i], line[i + 1]) if i + 1 < count else line[i] for i in range(0, count, 2)
                ]
        self._step *= 2

    def to_dict(self) -> dict[str, Any] | None:
        """Return what the page holds, or None if there is no more than one moment.

        Series that are alike, as those of chips in step are, stand there once; each is a list of runs (value, count).
        """
        if self.moments < 2:
            return None
        begin_ns = self._times_ns[0]
        count = len(self._times_ns)
        lists: list[list[int | None]] = []
        index: dict[tuple[int | None, ...], int] = {}
        devices = []
        for (device_id, asic_id), lines in sorted(self._devices.items(), key=lambda item: _order(item[0])):
            numbers = []
            for line in lines:
                whole = (*line, *([None] * (count - len(line))))
                if whole not in index:
                    index[whole] = len(lists)
                    lists.append(_runs(whole))
                numbers.append(index[whole])
            devices.append({"device_id": device_id, "asic_id": asic_id, "series": numbers})
        return {
            "names": [name for name, _ in SERIES],
            "begin_ns": begin_ns,
            "moments": self.moments,
            "step": self._step,
            # Milliseconds: the nanoseconds of a date are beyond what a script counts exactly.
            "ms": [round((taken_ns - begin_ns) / 1e6, 3) for taken_ns in self._times_ns],
            "lists": lists,
            "devices": devices,
        }


def _order(key: _Key) -> tuple[bool, Any, str]:
    return key[0] is None, key[0] if isinstance(key[0], int) else 0, str(key[1])


def _runs(values: Sequence[int | None]) -> list[int | None]:
    """Return values as runs: value, count, value, count, ..."""
    runs: list[int | None] = []
    for value in values:
        if runs and runs[-2] == value:
            runs[-1] = (runs[-1] or 0) + 1
        else:
            runs += [value, 1]
    return runs


def timeline_of(dumps: Sequence[Mapping[str, Any]]) -> Timeline:
    """Return the timeline of objects of ``ttmem-dump --json``, oldest first."""
    timeline = Timeline()
    for dump in dumps:
        timeline.add(dump["taken_ns"], dump["devices"])
    return timeline
