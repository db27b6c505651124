"""Playback: a recording, published as if what it shows happened now.

A recording holds figures, not events. So each moment is turned into programs, buffers and kernels that have exactly
these figures. What the recording names (buffers in key frames, programs whose circular buffers are all known) is
published under its name, as long as it adds up to the recorded figures; else stand-ins called "recorded" take its
place: on each group of cores that show the same, one program and one or two buffers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ttmem.cores import CoreRangeSet, rectangles_of
from ttmem.dumps import EmptyFileError
from ttmem.errors import InvalidArgumentError, TtmemError
from ttmem.frames import UNKNOWN
from ttmem.model import CB_KINDS, BufferType, CircularBuffer, Geometry
from ttmem.recording import Recording
from ttmem.replay import MAX_DEVICE_ID, MAX_DEVICES

STAND_IN = "recorded"
"""The name of what takes the place of that which the recording does not name."""
_TYPES = {
    "dram": BufferType.DRAM,
    "l1": BufferType.L1,
    "l1_small": BufferType.L1_SMALL,
    "trace": BufferType.TRACE,
}
_CB_COLUMNS = ("cb_physical_bytes", "cb_logical_bytes", "cb_region_end")
_L1_COLUMNS = ("l1_used_bytes", "l1_lowest_address", "overlap_bytes")
_CORELESS_BYTES = 1 << 20
_MAX_PROGRAMS = 65536

Columns = Mapping[str, "np.ndarray[Any, Any]"]
Interval = tuple[int, int]


@dataclass(frozen=True, slots=True)
class PlaybackProgress:
    """How far a playback has come.

    Attributes:
        moments: published so far.
        of: how many there are.
    """

    moments: int
    of: int


@dataclass(slots=True)
class PlaybackSummary:
    """What a playback did.

    Attributes:
        moments: how many were published.
        device_ids: the published ids.
        duration_ns: the time from the first moment to the last.
        warnings: one text for each kind of thing that people should know.
        error: why the recording could not be played to its end; None if it was.
    """

    moments: int
    device_ids: list[int]
    duration_ns: int
    warnings: list[str]
    error: TtmemError | None


def geometry_of(device: Mapping[str, Any], columns: Columns) -> Geometry:
    """Return what a device object tells of its geometry; it tells sizes as sums over the cores.

    Args:
        device: a device object.
        columns: its cores, by column; empty where they are not known.

    Raises:
        ValueError: the figures contradict each other.
    """
    grid, accounting, memory = device.get("grid"), device.get("l1_accounting") or {}, device.get("memory") or {}
    count = grid["x"] * grid["y"] if grid else 0

    def of_a_core(total: int | None) -> int | None:
        return total // count if total is not None and count else None

    base = of_a_core(accounting.get("reserved_bytes"))
    if base is None and "cb_region_end" in columns:
        # The region of a core without circular buffers ends where it begins.
        ends = columns["cb_region_end"][(columns["cb_physical_bytes"] == 0) & (columns["cb_region_end"] != UNKNOWN)]
        base = int(ends[0]) if ends.size else None
    return Geometry.of(
        # Without its cores, what is laid on cores is no more than a stand-in: L1's true size must not refuse it.
        arch=device.get("arch") if columns else None,
        grid=(grid["x"], grid["y"]) if grid else None,
        worker_l1_size=of_a_core(accounting.get("total_bytes")),
        l1_cb_base=base,
        l1_small_size=of_a_core((memory.get("l1_small") or {}).get("total_bytes")),
        dram_size=(memory.get("dram") or {}).get("total_bytes"),
        trace_region_size=(memory.get("trace") or {}).get("total_bytes"),
    )


def _groups(columns: Columns, names: Sequence[str]) -> Iterator[tuple[CoreRangeSet, tuple[int | None, ...]]]:
    """Return the cores that have the same figures in these columns, with the figures."""
    count = len(columns["x"])
    table = np.stack([columns.get(name, np.zeros(count, np.int64)) for name in names], axis=1)
    rows, which = np.unique(table, axis=0, return_inverse=True)
    which = which.reshape(-1)
    for number, row in enumerate(rows.tolist()):
        there = which == number
        cores = rectangles_of(zip(columns["x"][there].tolist(), columns["y"][there].tolist(), strict=True))
        yield cores, tuple(None if value == UNKNOWN else value for value in row)


def _without(intervals: Sequence[Interval], begin: int, end: int) -> list[Interval]:
    """Return what sorted intervals leave free between two addresses."""
    free, at = [], begin
    for low, high in intervals:
        if low > at:
            free.append((at, min(low, end)))
        at = max(at, high)
    return [(low, high) for low, high in [*free, (at, end)] if low < high]


def _take(intervals: Sequence[Interval], size: int) -> list[Interval]:
    """Return the first bytes of sorted intervals."""
    taken = []
    for low, high in intervals:
        if size <= 0:
            break
        taken.append((low, min(high, low + size)))
        size -= high - low
    return taken


def place_buffers(lowest: int, used: int, overlap: int, claimed: Sequence[Interval], top: int) -> list[Interval]:
    """Return intervals that stand for the L1 buffers of a core, merged.

    Args:
        lowest: where the first of them begins.
        used: bytes that they cover.
        overlap: how many of these circular buffers claim too.
        claimed: what circular buffers claim, merged and sorted.
        top: an address that none may exceed.
    """
    shared = [(max(low, lowest), min(high, top)) for low, high in claimed if high > lowest and low < top]
    free = _without(shared, lowest, top)
    found = sorted(_take(shared, overlap) + _take(free, used - overlap))
    if found and found[0][0] > lowest:
        # The lowest byte is of the other sort than what was taken: give one byte of that up for it.
        found[-1] = (found[-1][0], found[-1][1] - 1)
        found.insert(0, (lowest, lowest + 1))
    merged: list[Interval] = []
    for low, high in found:
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        elif high > low:
            merged.append((low, high))
    return merged


def _stand_in_program(cores: CoreRangeSet, physical: int, logical: int, end: int) -> list[CircularBuffer]:
    """Return circular buffers that cover so many bytes below ``end`` and are so large in sum."""
    found = [CircularBuffer(end - physical, physical, cores)]
    rest = logical - physical
    while rest > 0:
        size = min(rest, physical)
        found.append(CircularBuffer(end - size, size, cores))
        rest -= size
    return found


class _Player:
    """One device: what is published of it, by what it was made from."""

    def __init__(self, publisher: Any, geometry: Geometry) -> None:
        self.publisher = publisher
        self.geometry = geometry
        self.programs: dict[Any, int] = {}
        self.buffers: dict[Any, int] = {}
        self.kernels: dict[Any, int] = {}
        self.resident: dict[tuple[int, int], int] = {}
        self.shown: object = None
        self.trusts_programs = True

    def show(self, device: Mapping[str, Any], columns: Columns) -> list[str]:
        """Publish a moment; return what of it could not be had."""
        named = _named_programs(device) if columns and self.trusts_programs else None
        held = _named_buffers(device)
        missing = self._show(device, columns, named, held)
        if missing and "l1" in held:
            # Buffers that lie on some cores only: the recording does not say on which.
            del held["l1"]
            missing = self._show(device, columns, named, held)
        if missing and named is not None:
            self.trusts_programs = False
            missing = self._show(device, columns, None, held)
        return missing

    def _show(
        self,
        device: Mapping[str, Any],
        columns: Columns,
        named: dict[Any, list[CircularBuffer]] | None,
        held: Mapping[str, list[Mapping[str, Any]]],
    ) -> list[str]:
        memory = device.get("memory") or {}
        programs = self._coreless(memory) if not columns else self._stand_ins(columns) if named is None else named
        with self.publisher.batch():
            # What goes goes first: the peaks must not count both.
            self._exchange(self.programs, programs, self.publisher.remove_program, ())
            self._exchange(
                self.buffers,
                buffers := self._wanted_buffers(memory, columns, programs, held),
                self.publisher.deallocate,
                (),
            )
            self._exchange(self.programs, programs, None, programs)
            self._exchange(self.buffers, buffers, None, buffers)
            self._show_kernels(memory.get("kernel") or {})
            if columns:
                self._show_resident(columns)
            else:
                self._show_coreless_resident((memory.get("cb") or {}).get("resident_bytes"))
        return self._missing(device, columns)

    def _exchange(self, there: dict[Any, int], wanted: Mapping[Any, Any], remove: Any, add: Any) -> None:
        if remove is not None:
            for key in [key for key in there if key not in wanted]:
                remove(there.pop(key))
        for key in add:
            if key not in there:
                what = wanted[key]
                there[key] = what() if callable(what) else self.publisher.add_program(what, name=key[1])

    # Programs

    def _stand_ins(self, columns: Columns) -> dict[Any, list[CircularBuffer]]:
        return {
            ("stand-in", STAND_IN, cores, figures): _stand_in_program(cores, *figures)  # type: ignore[arg-type]
            for cores, figures in _groups(columns, _CB_COLUMNS)
            if None not in figures and figures[0]
        }

    def _coreless(self, memory: Mapping[str, Any]) -> dict[Any, list[CircularBuffer]]:
        """Return a program of as many bytes as a source without cores tells, over as many cores as that takes."""
        total = (memory.get("cb") or {}).get("physical_bytes") or 0
        return {("coreless", STAND_IN, total): self._spread(total)} if total else {}

    def _spread(self, total: int) -> list[CircularBuffer]:
        width, height = self.geometry.grid or (32, 32)
        found: list[CircularBuffer] = []
        while total and len(found) < width * height:
            where = rectangles_of([(len(found) % width, len(found) // width)])
            found.append(CircularBuffer(self.geometry.l1_cb_base or 0, min(total, _CORELESS_BYTES), where))
            total -= found[-1].size
        return found

    def _show_coreless_resident(self, total: int | None) -> None:
        if total is None or total == sum(self.resident.values()):
            return
        footprint = self._spread(total)
        now = {(core.x, core.y): cb.size for cb in footprint for core in cb.core_ranges}
        gone = self.resident.keys() - now
        if gone:
            footprint.append(CircularBuffer(0, 0, rectangles_of(gone)))
        self._leave(footprint)
        self.resident = now

    def _leave(self, footprint: list[CircularBuffer]) -> None:
        """Leave on cores what a dispatch leaves there: a program is dispatched and taken away again."""
        program_id = self.publisher.add_program(footprint, name=STAND_IN)
        self.publisher.dispatch(program_id)
        self.publisher.remove_program(program_id)

    def _show_resident(self, columns: Columns) -> None:
        """Leave on each core what dispatches left there."""
        column = columns.get("cb_resident_bytes")
        if column is None:
            return
        now = dict(zip(zip(columns["x"].tolist(), columns["y"].tolist(), strict=True), column.tolist(), strict=True))
        now.update((core, 0) for core in self.resident if core not in now)
        changed = {core: size for core, size in now.items() if size != UNKNOWN and size != self.resident.get(core, 0)}
        if not changed:
            return
        ends = columns["cb_region_end"].tolist()
        end_of = dict(zip(now, ends, strict=False))
        kinds: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for core, size in changed.items():
            end = end_of.get(core, UNKNOWN)
            # Within what is claimed anyway, where there is enough of it.
            kinds.setdefault((size, end - size if end >= size else 0), []).append(core)
        footprint = [CircularBuffer(at, size, rectangles_of(cores)) for (size, at), cores in kinds.items()]
        self._leave(footprint)
        self.resident.update(changed)

    # Buffers and kernels

    def _wanted_buffers(
        self,
        memory: Mapping[str, Any],
        columns: Columns,
        programs: Mapping[Any, list[CircularBuffer]],
        held: Mapping[str, list[Mapping[str, Any]]],
    ) -> dict[Any, Callable[[], int]]:
        allocate = self.publisher.allocate
        wanted: dict[Any, Callable[[], int]] = {}

        def want(key: Any, *args: Any, **options: Any) -> None:
            wanted[key] = lambda: int(allocate(*args, **options))

        for name, buffer_type in _TYPES.items():
            if name in held:
                for row in held[name]:
                    key = (name, row.get("pid"), row.get("buffer_id"), row["size_bytes"], row.get("address"))
                    options = {option: row.get(option) for option in ("address", "size_per_bank")}
                    want(key, buffer_type, row["size_bytes"], name=str(row.get("name") or ""), **options)
                continue
            used = (memory.get(name) or {}).get("used_bytes")
            if used:
                want((name, used), buffer_type, used, name=STAND_IN)
            if name == "l1" and columns:
                for cores, begin, end in self._l1_intervals(columns, programs):
                    # The bytes of the whole buffers stand above: these only lie on the cores.
                    want(
                        (name, cores, begin, end), buffer_type, 0, address=begin, size_per_bank=end - begin,
                        core_ranges=cores, name=STAND_IN,
                    )  # fmt: skip
        return wanted

    def _l1_intervals(
        self, columns: Columns, programs: Mapping[Any, list[CircularBuffer]]
    ) -> Iterator[tuple[CoreRangeSet, int, int]]:
        size, small = self.geometry.worker_l1_size, self.geometry.l1_small_size or 0
        top = 2**22 if size is None else size - small
        for cores, (used, lowest, overlap, end) in _groups(columns, (*_L1_COLUMNS, "cb_region_end")):
            if not used or lowest is None:
                continue
            if end is None or lowest >= end:
                yield cores, lowest, lowest + used
                continue
            pieces: dict[tuple[Interval, ...], list[tuple[int, int]]] = {}
            for core in cores:
                pieces.setdefault(_claimed(core, programs), []).append((core.x, core.y))
            for claimed, alike in pieces.items():
                where = rectangles_of(alike)
                for low, high in place_buffers(lowest, used, overlap or 0, claimed, top):
                    yield where, low, high

    def _show_kernels(self, figures: Mapping[str, Any]) -> None:
        used, persistent = figures.get("used_bytes"), figures.get("persistent_bytes") or 0
        wanted = {} if used is None else {(False, used - persistent): 0, (True, persistent): 0}
        for key in [key for key in self.kernels if key not in wanted]:
            self.publisher.unload_kernel(self.kernels.pop(key))
        for key in wanted:
            if key not in self.kernels:
                staying, size = key
                self.kernels[key] = self.publisher.load_kernel(size, persistent=staying, name=STAND_IN)

    # Is it so?

    def _missing(self, device: Mapping[str, Any], columns: Columns) -> list[str]:
        """Return what a reader now sees otherwise than it was recorded."""
        if not getattr(self.publisher, "published", True):
            return []
        seen = self.publisher.snapshot()
        texts = []
        names = (*_CB_COLUMNS, *_L1_COLUMNS, "cb_resident_bytes") if columns else ()
        cores = seen.cores
        for name in names:
            if name not in columns:
                continue
            known = columns[name] != UNKNOWN
            if len(cores) != len(known) or not np.array_equal(cores[name][known], columns[name][known]):
                texts.append(f"{name} of its cores")
        memory = device.get("memory") or {}
        totals = (*((name, "used_bytes") for name in _TYPES), ("cb", "physical_bytes"), ("cb", "resident_bytes"))
        for kind, figure in totals:
            want = (memory.get(kind) or {}).get(figure)
            if want is not None and want != seen.memory[kind][figure]:
                texts.append(f"{kind}.{figure}")
        return texts


def _claimed(core: Any, programs: Mapping[Any, list[CircularBuffer]]) -> tuple[Interval, ...]:
    """Return what circular buffers claim of a core, merged."""
    merged: list[Interval] = []
    for low, high in sorted(
        (cb.address or 0, (cb.address or 0) + cb.size)
        for footprint in programs.values()
        for cb in footprint
        if core in cb.core_ranges
    ):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def _named_programs(device: Mapping[str, Any]) -> dict[Any, list[CircularBuffer]] | None:
    """Return the programs of a device with their circular buffers; None where these are not all known."""
    rows = device.get("programs")
    if rows is None or device.get("programs_omitted"):
        return None
    found: dict[Any, list[CircularBuffer]] = {}
    for row in rows:
        listed = row.get("circular_buffers")
        if listed is None or (not listed and row.get("cb_bytes_per_core")) or len(found) > _MAX_PROGRAMS:
            return None
        try:
            footprint = [
                CircularBuffer(
                    cb["address"],
                    cb["size"],
                    cb["core_ranges"],
                    kind=cb["kind"] if cb["kind"] in CB_KINDS else CB_KINDS[0],
                )
                for cb in listed
            ]
        except (TtmemError, ValueError, LookupError, TypeError):
            return None
        name = str(row.get("name") or "")
        for number in range(min(int(row.get("count") or 1), _MAX_PROGRAMS)):
            found["program", name, tuple((cb.address, cb.size, str(cb.core_ranges)) for cb in footprint), number] = (
                footprint
            )
    return found


def _named_buffers(device: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the live buffers by kind of memory, of those kinds only whose buffers add up to what is used."""
    rows = device.get("buffers")
    if rows is None:
        return {}
    found: dict[str, list[Mapping[str, Any]]] = {}
    for name, buffer_type in _TYPES.items():
        listed = [row for row in rows if row.get("buffer_type") == buffer_type.name]
        used = ((device.get("memory") or {}).get(name) or {}).get("used_bytes")
        if used is not None and sum(row.get("size_bytes") or 0 for row in listed) == used:
            found[name] = listed
    return found


@dataclass(slots=True)
class Playback:
    """Feeds a recording through publishers, one per device, and keeps them open until it is closed.

    The chips' own ids are not published: a device that lives on this host must not be taken for the same one.

    Args:
        path: the recording.
        publish: makes a publisher from a device id, an origin and the fields of a Geometry; ``ttmem.publish``.
        device_id: added to every recorded device id.
        geometry: what the user tells; it stands above what the recording tells.
        speed: how many times faster than recorded; None is as fast as it can.
        on_progress: called now and then with a PlaybackProgress.
        sleep: waits for so many seconds.
        clock_ns: a monotonic clock.

    Raises:
        RecordingError: the file is none.
        InvalidArgumentError: ``device_id`` or ``speed`` is out of range.
    """

    path: str | os.PathLike[str]
    publish: Callable[..., Any]
    device_id: int = 0
    geometry: Geometry = field(default_factory=Geometry)
    speed: float | None = None
    on_progress: Callable[[PlaybackProgress], None] | None = None
    sleep: Callable[[float], None] = time.sleep
    clock_ns: Callable[[], int] = time.monotonic_ns
    _recording: Recording = field(init=False)
    _players: dict[tuple[object, object], _Player] = field(default_factory=dict, init=False)
    _ids: dict[tuple[object, object], int] = field(default_factory=dict, init=False)
    _warnings: dict[str, None] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.device_id <= MAX_DEVICE_ID:
            raise InvalidArgumentError(f"device_id must be between 0 and {MAX_DEVICE_ID}, got {self.device_id}")
        if self.speed is not None and not 0 < self.speed < float("inf"):
            raise InvalidArgumentError(f"speed must be a positive number, got {self.speed}")
        self._recording = Recording(self.path)

    def run(self) -> PlaybackSummary:
        """Play the recording from its beginning, once. Damage is passed over, and the summary says so."""
        times = self._recording.times_ns
        started_ns, moments = self.clock_ns(), 0
        error: TtmemError | None = None
        if self._recording.damage:
            self._warn(self._recording.damage)
        try:
            self._recording.require_moments()
        except EmptyFileError as caught:
            self._warn(str(caught))
        except TtmemError as caught:
            error = caught
        for index, taken_ns in enumerate(times):
            if self.speed is not None:
                wait_ns = started_ns + max(0, taken_ns - times[0]) / self.speed - self.clock_ns()
                if wait_ns > 0:
                    self.sleep(wait_ns / 1e9)
            try:
                self._show(index)
            except TtmemError as caught:
                error = caught
                break
            moments += 1
            if self.on_progress is not None:
                self.on_progress(PlaybackProgress(moments, len(times)))
        duration_ns = max(0, times[-1] - times[0]) if times else 0
        ids = [self._ids[key] for key in self._players]
        return PlaybackSummary(moments, ids, duration_ns, list(self._warnings), error)

    def _show(self, index: int) -> None:
        marks = self._recording.marks(index)
        devices = self._recording.dump(index, cores=False).devices
        columns = self._recording.core_columns(index)
        there = set()
        for place, device in enumerate(devices):
            if device.get("state") not in ("live", "idle", None):
                # The dead use nothing, and of what is unreadable nothing is known.
                continue
            key = (device.get("device_id"), device.get("asic_id"))
            there.add(key)
            player = self._players.get(key) or self._begin(key, device, columns[place])
            if player is None or player.shown == marks[place]:
                continue
            player.shown = marks[place]
            cb = (device.get("memory") or {}).get("cb") or {}
            if not columns[place] and (cb.get("physical_bytes") or cb.get("resident_bytes")):
                self._warn(f"device {self._ids[key]} was recorded without cores: where its CBs lie is made up")
            for text in player.show(device, columns[place]):
                self._warn(f"device {self._ids[key]}: {text} cannot be shown as recorded")
        for key in self._players.keys() - there:
            self._players.pop(key).publisher.close()

    def _begin(self, key: tuple[object, object], device: Mapping[str, Any], columns: Columns) -> _Player | None:
        wanted = self.device_id + (device["device_id"] if isinstance(device.get("device_id"), int) else 0)
        taken = {number for other, number in self._ids.items() if other != key}
        number = self._ids.get(key, wanted)
        while number in taken:
            number += 1
        if len(self._players) >= MAX_DEVICES or number > MAX_DEVICE_ID:
            self._warn(f"more than {MAX_DEVICES} devices, or an id beyond {MAX_DEVICE_ID}: left out")
            return None
        if number != wanted:
            self._warn(
                f"two recorded chips have the logical id {wanted - self.device_id}: one is published as {number}"
            )
        try:
            geometry = Geometry.of(**{**geometry_of(device, columns).known(), **self.geometry.known()})  # type: ignore[arg-type]
        except ValueError as error:
            self._warn(f"device {number}: {error}: published without the recorded geometry")
            geometry = self.geometry
        memory = device.get("memory") or {}
        unknown = [kind for kind in _TYPES if (memory.get(kind) or {}).get("used_bytes") is None]
        if unknown:
            self._warn(f"device {number} shows 0 for what the recording does not know: {', '.join(unknown)}")
        known = (memory.get("kernel") or {}).get("used_bytes") is not None
        origin = "recording" if known else "replay"
        self._ids[key] = number
        player = self._players[key] = _Player(self.publish(number, origin=origin, **geometry.known()), geometry)
        return player

    def _warn(self, text: str) -> None:
        if len(self._warnings) < 64:
            self._warnings[text] = None

    def close(self) -> None:
        """Withdraw every device that was published, and close the file."""
        while self._players:
            self._players.popitem()[1].publisher.close()
        self._recording.close()

    def __enter__(self) -> "Playback":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
