"""Samples: what was read of the host last, and how the devices' figures went before."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from ttmem.views.holders import Holders

BUCKET_NS = 500_000_000
"""The time that one column of a chart stands for at the finest."""
KEPT_BUCKETS = 1800
"""How much history is kept of a device: 15 minutes."""

SERIES = {"cb": "physical_bytes", "l1": "used_bytes", "dram": "used_bytes"}
"""The charted figures: members of ``memory`` and which of their values."""

Key = tuple[Any, ...]
"""What tells devices apart from one sample to the next."""


class SnapshotLike(Protocol):
    """The part of :class:`ttmem.snapshot.Snapshot` that the screen needs."""

    @property
    def cores(self) -> Any:
        """The table of cores."""

    def to_dict(self, *, cores: bool = True) -> dict[str, Any]:
        """Return the device object of the JSON."""

    def core_map(self, x: int, y: int) -> dict[str, Any]:
        """Return the address ranges of a core."""

    def buffers(self) -> list[dict[str, Any]]:
        """Return the live buffers."""


class ReadingLike(Protocol):
    """The part of :class:`ttmem.reader.HostReading` that the screen needs."""

    @property
    def taken_ns(self) -> int:
        """CLOCK_REALTIME."""

    @property
    def devices(self) -> list[Any]:
        """The snapshots."""

    @property
    def problems(self) -> list[str]:
        """What could not be read."""


class Series:
    """The largest value of a figure in each stretch of :data:`BUCKET_NS`; None where nothing is known of it."""

    def __init__(self) -> None:
        self._first = 0
        self._values: list[int | None] = []

    def add(self, taken_ns: int, value: int | None) -> None:
        """Add a sample; what lies before the oldest that is kept is left out."""
        bucket = taken_ns // BUCKET_NS
        if not self._values or bucket - self._first > 2 * KEPT_BUCKETS:
            self._first, self._values = bucket, [value]
            return
        index = bucket - self._first
        if index < 0:
            return
        if index >= len(self._values):
            self._values.extend([None] * (index - len(self._values)))
            self._values.append(value)
            if len(self._values) >= 2 * KEPT_BUCKETS:
                self._first += len(self._values) - KEPT_BUCKETS
                del self._values[:-KEPT_BUCKETS]
        elif value is not None:
            self._values[index] = max(value, self._values[index] or 0)

    def window(self, end_ns: int, count: int, group: int = 1) -> list[int | None]:
        """Return the last ``count`` values up to ``end_ns``, each the largest of ``group`` buckets.

        Groups begin at multiples of ``group``, so that a value does not change while it moves through a chart.
        """
        last = end_ns // BUCKET_NS // group
        # The bucket of end_ns itself may hold later samples while the screen is paused; all others are complete.
        found: list[int | None] = []
        for number in range(last - count + 1, last + 1):
            begin = number * group - self._first
            known = [v for v in self._values[max(0, begin) : max(0, begin + group)] if v is not None]
            found.append(max(known) if known else None)
        return found


@dataclass
class History:
    """The charted figures of one device over time."""

    series: dict[str, Series] = field(default_factory=lambda: {name: Series() for name in SERIES})
    last_ns: int = 0


class Shown:
    """One device as the screen shows it: everything from one snapshot.

    Args:
        key: see :data:`Key`.
        snapshot: where the figures come from.
        history: what was before.
    """

    def __init__(self, key: Key, snapshot: SnapshotLike, history: History) -> None:
        self.key = key
        self.snapshot = snapshot
        self.history = history

    @cached_property
    def device(self) -> dict[str, Any]:
        """The device object of the JSON without its cores."""
        return self.snapshot.to_dict(cores=False)

    @cached_property
    def full(self) -> dict[str, Any]:
        """The device object of the JSON."""
        return self.snapshot.to_dict()

    @cached_property
    def min_headroom(self) -> int | None:
        """The smallest known headroom of a core in bytes."""
        table = self.snapshot.cores
        if table is None or len(table) == 0:
            return None
        column = table["headroom_bytes"]
        # The lowest int64 stands for unknown; writers leave it on all cores or on none, but a dump may not.
        known = column[column > -(2**63)]
        return int(known.min()) if len(known) else None

    @cached_property
    def holders(self) -> Holders:
        """The names behind the address ranges."""
        return Holders(self.full, None if "buffers" in self.full else self.snapshot.buffers())

    def core_ranges(self, x: int, y: int) -> dict[str, Any] | None:
        """Return the address ranges of a core, or None where the source does not tell them."""
        names = ("cb_ranges", "l1_ranges")
        ranges = self.snapshot.core_map(x, y)
        if any(ranges.get(name) is None for name in names):
            # A file tells programs and buffers, of which the ranges are made where all are known.
            ranges = dict(self.holders.details(x, y, ranges))
        return None if any(ranges.get(name) is None for name in names) else ranges


@dataclass(frozen=True)
class View:
    """All devices at one moment.

    Attributes:
        taken_ns: CLOCK_REALTIME.
        devices: by logical id.
        problems: what could not be read.
    """

    taken_ns: int = 0
    devices: list[Shown] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def key_of(device: Mapping[str, Any]) -> Key:
    """Return what tells a device from others: its chip, else its logical id, and who tells of it."""
    # A replay hides no region of TT-Metal: the same chip may stand there twice.
    asic_id = device.get("asic_id")
    who = ("asic", asic_id) if asic_id is not None else ("id", device.get("device_id"))
    return (*who, device.get("source"))


class Model:
    """What was sampled. The sampling thread adds, the screen takes.

    Thread safety: all methods may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._histories: dict[Key, History] = {}
        self._view: View | None = None
        self.samples = 0

    def add(self, reading: ReadingLike) -> None:
        """Add a sample of the host."""
        shown: list[Shown] = []
        with self._lock:
            for snapshot in reading.devices:
                # Composed here, in the sampling thread: the screen's thread then finds it done.
                device = snapshot.to_dict(cores=False)
                key = key_of(device)
                history = self._histories.setdefault(key, History())
                memory = device["memory"]
                for name, figure in SERIES.items():
                    history.series[name].add(reading.taken_ns, memory[name][figure])
                history.last_ns = reading.taken_ns
                one = Shown(key, snapshot, history)
                one.device = device
                shown.append(one)
            kept_ns = KEPT_BUCKETS * BUCKET_NS
            for key in [k for k, h in self._histories.items() if h.last_ns < reading.taken_ns - kept_ns]:
                del self._histories[key]
            self._view = View(reading.taken_ns, shown, list(reading.problems))
            self.samples += 1

    def view(self) -> View | None:
        """Return the newest sample; None before the first."""
        with self._lock:
            return self._view
