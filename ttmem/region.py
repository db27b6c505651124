"""TT-Metal's own shared-memory regions, ``tt_device_<id>_memory``: found, read and judged, never written.

A region is a table without magic, lock or sequence counter that any process of the same user may rewrite, shrink or
remove while it is read. The traps, in the order in which :func:`read_region` meets them:

1. The name may belong to anything (FIFO, link, directory, a sparse file): nothing is mapped, and at most
   ``READ_LIMIT`` bytes are read.
2. Every field is its own atomic: two reads in a row must agree, or the region is marked as not consistent.
3. People remove the file under running processes: the name is looked up again after the read.
4. The version alone does not tell the layout: a file is resized before it is initialised again.
5. Nobody removes what a killed process left until the next one attaches: totals are net of dead slots.
6. A pid belongs to its writer's namespace and may have been given out again (see :class:`ttmem.pids.ProcessTable`).
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from ttmem.errors import DeviceNotFoundError
from ttmem.pids import ProcessTable, printable, user_name

READ_LIMIT = 16384
"""The most bytes of a region that are read; the largest layout known has 9,280."""
READ_TRIES = 8
"""How often a region is read until two reads in a row agree."""
MAX_PROCESSES = 64
MAX_CHIPS = 16
SLOT_RELEASING = -1
CHIP_UNUSED = 0xFFFFFFFF
INIT_READY = 0x52454459
INIT_STATE_OFFSET = 8536
NEWEST_VERSION = 4
WRAPPED = 2**63
"""A counter from here on was taken below zero by a lost update; TT-Metal has no such clamp in every version."""
PID_LIMIT = 2**22
"""Linux gives out no pid from here on."""

CACHED_UNION = "cached union"
RESIDENT = "resident"

_NAME = re.compile(r"tt_device_(0|[1-9][0-9]{0,19})_memory", re.ASCII)
_HEADER = struct.Struct("<IIQI4xQQI4x5Q")


@dataclass(frozen=True, slots=True)
class _Layout:
    size: int  # bytes of the whole file
    header_size: int  # first byte after the totals, where the chips begin
    chip: struct.Struct
    processes_offset: int
    process: struct.Struct
    has_kernel: bool


_LAYOUT_1 = _Layout(9280, 96, struct.Struct("<II6Q"), 992, struct.Struct("<i4x7Q64s"), True)
_LAYOUT_2 = _Layout(8576, 88, struct.Struct("<II5Q"), 856, struct.Struct("<i4x6Q64s"), False)


@dataclass(frozen=True, slots=True)
class RegionChip:
    """What a region holds of one chip, as it stands there: the bytes of dead processes are still in it.

    Attributes:
        chip_id: TT-Metal's logical id of the chip.
        is_remote: True if the chip is reached through another one.
        dram_bytes, l1_bytes, l1_small_bytes, trace_bytes, cb_bytes, kernel_bytes: None where unknown.
    """

    chip_id: int
    is_remote: bool
    dram_bytes: int | None
    l1_bytes: int | None
    l1_small_bytes: int | None
    trace_bytes: int | None
    cb_bytes: int | None
    kernel_bytes: int | None


@dataclass(frozen=True, slots=True)
class RegionProcess:
    """One process slot of a region.

    Attributes:
        pid: as the process knew itself, which another pid namespace may see as another number.
        name: the process's ``comm`` at its start, made printable; None if the slot has none.
        user: owner of the living process, None if it is not alive or cannot be judged.
        state: ``live``, ``stale`` or ``unknown``; only what is ``live`` counts in the region's figures.
        dram_bytes, l1_bytes, l1_small_bytes, trace_bytes, cb_bytes, kernel_bytes: None where unknown.
        updated_ns: last change of the slot, CLOCK_REALTIME; None if it never changed.
    """

    pid: int
    name: str | None
    user: str | None
    state: str
    dram_bytes: int | None
    l1_bytes: int | None
    l1_small_bytes: int | None
    trace_bytes: int | None
    cb_bytes: int | None
    kernel_bytes: int | None
    updated_ns: int | None


@dataclass(frozen=True, slots=True)
class Region:
    """One TT-Metal region at one moment.

    Attributes:
        path: the file.
        asic_id: the number in the file's name: the chip's unique id, or the logical device id where TT-Metal had none.
        device_id: TT-Metal's logical device id, None where unknown.
        version: the layout version found, None if the file could not be read that far.
        state: ``live``, ``idle``, ``stale``, ``initializing``, ``foreign-version`` or ``unreadable``.
        dram_bytes, l1_bytes, l1_small_bytes, trace_bytes, cb_bytes: bytes in use by living processes, or None.
        kernel_bytes: the same for kernels, which only version 1 counts.
        cb_meaning: ``"cached union"`` (versions 2 and 3), ``"resident"`` (4 and later), None where it is not known.
        chips: the chips behind the device, the gateway first.
        processes: the occupied slots, the dead ones among them.
        updated_ns: last change by a living process, CLOCK_REALTIME, or None.
        consistent: True if two reads in a row agreed.
        warnings: what a reader of the figures should know.
        problem: why there are no figures and what to do, or None.
    """

    path: Path
    asic_id: int
    device_id: int | None = None
    version: int | None = None
    state: str = "unreadable"
    dram_bytes: int | None = None
    l1_bytes: int | None = None
    l1_small_bytes: int | None = None
    trace_bytes: int | None = None
    cb_bytes: int | None = None
    kernel_bytes: int | None = None
    cb_meaning: str | None = None
    chips: tuple[RegionChip, ...] = ()
    processes: tuple[RegionProcess, ...] = ()
    updated_ns: int | None = None
    consistent: bool = True
    warnings: tuple[str, ...] = ()
    problem: str | None = None


def find_regions(directory: str | Path) -> list[Path]:
    """Return the files in ``directory`` that have the name of a TT-Metal region, by rising id.

    Raises:
        PermissionError: the directory must not be listed.
    """
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [(region_asic_id(name), name) for name in names]
    return [Path(directory) / name for number, name in sorted((n, name) for n, name in found if n is not None)]


def region_asic_id(name: str) -> int | None:
    """Return the number in the file name of a region, or None if the name is no region's."""
    match = _NAME.fullmatch(name)
    number = int(match[1]) if match else 2**64
    return number if number < 2**64 else None


def read_region(
    path: str | Path, *, processes: ProcessTable | None = None, before_read: Callable[[int], object] | None = None
) -> Region:
    """Return what a TT-Metal region holds; a file that is none, or not readable, is told in ``state`` and ``problem``.

    Args:
        path: the file; its name has to be that of a region.
        processes: to share one look at this host's processes between regions.
        before_read: called with the number of each reading before it is made, for tests.

    Raises:
        DeviceNotFoundError: there is no such file, or no more.
        ValueError: the name is not that of a region.
    """
    path = Path(path)
    asic_id = region_asic_id(path.name)
    if asic_id is None:
        raise ValueError(f"{path} is not named like a TT-Metal region: expected tt_device_<number>_memory")
    try:
        data, file, consistent = _read_file(path, before_read)
    except _NotReadableError as error:
        return Region(path, asic_id, problem=str(error))
    return _Parser(path, asic_id, data, file, consistent, processes or ProcessTable()).region()


class _NotReadableError(Exception):
    """The file cannot be read as a region; the text says why and what to do."""


def _read_file(path: Path, before_read: Callable[[int], object] | None) -> tuple[bytes, os.stat_result, bool]:
    """Return the first bytes of the file, its stat, and whether two readings of one file agreed."""
    previous: tuple[int, int, int, bytes] | None = None
    for attempt in range(READ_TRIES):
        if before_read is not None:
            before_read(attempt)
        data, file = _read_once(path)
        current = (file.st_dev, file.st_ino, file.st_size, data)
        if current == previous:
            return data, file, True
        previous = current
    return data, file, False


def _read_once(path: Path) -> tuple[bytes, os.stat_result]:
    # Each reading opens the name anew, so a file that was replaced in between is never taken for its successor.
    try:
        _check_regular(path, os.lstat(path))
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise DeviceNotFoundError(f"{path} is not there, or no more") from None
    except PermissionError:
        raise _NotReadableError(_permission_problem(path)) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _NotReadableError(f"{path} is a symbolic link, which TT-Metal never makes: remove it") from None
        raise _NotReadableError(f"{path} cannot be opened: {error.strerror}") from None
    try:
        file = os.fstat(descriptor)
        _check_regular(path, file)
        return os.pread(descriptor, READ_LIMIT, 0), file
    except OSError as error:
        raise _NotReadableError(f"{path} cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _check_regular(path: Path, file: os.stat_result) -> None:
    if stat.S_ISREG(file.st_mode):
        return
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a FIFO"}
    kind = kinds.get(stat.S_IFMT(file.st_mode), "no regular file")
    raise _NotReadableError(f"{path} is {kind}, which TT-Metal never makes: remove it")


def _permission_problem(path: Path) -> str:
    try:
        file = os.lstat(path)
    except OSError:
        return f"{path} must not be read by uid {os.geteuid()}: run as root or as the user of the device"
    owner = user_name(file.st_uid)
    named = f"uid {file.st_uid}" if owner == str(file.st_uid) else f"uid {file.st_uid} ({owner})"
    return f"{path} has mode {stat.S_IMODE(file.st_mode):04o} and is owned by {named}: run as that user or as root"


_Counters = tuple[int | None, int | None, int | None, int | None, int | None, int | None]


class _Parser:
    """Turns the bytes of one region into a :class:`Region`."""

    def __init__(
        self, path: Path, asic_id: int, data: bytes, file: os.stat_result, consistent: bool, processes: ProcessTable
    ) -> None:
        self._path = path
        self._asic_id = asic_id
        self._data = data
        self._file = file
        self._consistent = consistent
        self._processes = processes
        self._warnings: list[str] = []

    def region(self) -> Region:
        size = self._file.st_size
        if len(self._data) < 4:
            if size == 0:
                return self._without_figures(
                    "initializing", None, "is empty: a process is creating it, or died doing so"
                )
            return self._without_figures("unreadable", None, f"has {size} bytes, too few for a region")
        (version,) = struct.unpack_from("<I", self._data)
        known_sizes = (_LAYOUT_1.size, _LAYOUT_2.size)
        if version == 0 and size in known_sizes:
            return self._without_figures(
                "initializing", 0, "is not written yet: a process is creating it, or died doing so"
            )
        if version == 0 or version > NEWEST_VERSION:
            return self._foreign(version)
        layout = _LAYOUT_1 if version == 1 else _LAYOUT_2
        if size != layout.size or len(self._data) < layout.size:
            text = f"has {size} bytes, but layout version {version} has {layout.size}: it is being resized, or damaged"
            return self._without_figures("unreadable", version, text)
        if version == 4:
            (init_state,) = struct.unpack_from("<I", self._data, INIT_STATE_OFFSET)
            if init_state != INIT_READY:
                text = f"is not ready (init_state {init_state:#x}): a process is creating it, or died doing so"
                return self._without_figures("initializing", version, text)
        return self._parse(version, layout)

    def _without_figures(self, state: str, version: int | None, text: str) -> Region:
        problem = f"{self._path} {text}"
        return Region(
            self._path, self._asic_id, version=version, state=state, consistent=self._consistent, problem=problem
        )

    def _foreign(self, version: int) -> Region:
        """Return the figures of an unknown version if all that later versions kept so far is where it was."""
        if version == 0 or len(self._data) < _LAYOUT_2.size or not self._prefix_fits():
            text = f"has layout version {version}; ttmem reads 1 to {NEWEST_VERSION}: upgrade ttmem"
            state = "foreign-version" if version else "unreadable"
            if not version:
                text = f"has {self._file.st_size} bytes and no layout version: it is no region of TT-Metal, or damaged"
            return self._without_figures(state, version, text)
        self._warnings.append(
            f"{self._path} has layout version {version}, read as version {NEWEST_VERSION} because its known part fits; "
            "upgrade ttmem to be sure of the figures"
        )
        return self._parse(version, _LAYOUT_2, state="foreign-version")

    def _prefix_fits(self) -> bool:
        header = _HEADER.unpack_from(self._data)
        if header[5] != self._asic_id or header[1] > MAX_PROCESSES or header[3] > MAX_PROCESSES * 1024:
            return False
        if any(value >= 2**50 for value in header[7:12]):
            return False
        for index in range(MAX_CHIPS):
            chip = _LAYOUT_2.chip.unpack_from(self._data, _LAYOUT_2.header_size + index * _LAYOUT_2.chip.size)
            if chip[1] > 1 or any(value >= 2**50 for value in chip[2:]):
                return False
        for index in range(MAX_PROCESSES):
            offset = _LAYOUT_2.processes_offset + index * _LAYOUT_2.process.size
            pid, *values, name = _LAYOUT_2.process.unpack_from(self._data, offset)
            if not -1 <= pid < PID_LIMIT or any(value >= 2**50 for value in values[:5]):
                return False
            if pid > 0 and (b"\0" not in name or not name.partition(b"\0")[0].isascii()):
                return False
        return True

    def _parse(self, version: int, layout: _Layout, state: str | None = None) -> Region:
        header = _HEADER.unpack_from(self._data)
        _, _, updated, references, board_serial, header_id, device_id = header[:7]
        self._check_identity(version, board_serial, header_id, device_id)
        totals = self._counters(layout, struct.unpack_from("<6Q", self._data, 48), "the device")
        chips = self._chips(version, layout, device_id)
        processes = self._slots(version, layout)
        live = [process for process in processes if process.state == "live"]
        found = self._state(version, references, processes, totals)
        if state is None:
            state = found
        net = self._net(version, found, totals, processes)
        times = [process.updated_ns for process in live if process.updated_ns is not None]
        # The header's time is also that of changes by the dead, so it stands only where there are none.
        header_time = self._time(version, updated)
        if header_time is not None and len(live) == len(processes):
            times.append(header_time)
        unknown = [process.pid for process in processes if process.state == "unknown"]
        if unknown:
            self._warnings.append(
                f"pids {', '.join(map(str, unknown))} belong to another pid namespace and cannot be judged: their "
                "bytes are not counted; run ttmem in the host's pid namespace (docker run --pid=host)"
            )
        if not self._consistent:
            self._warnings.append(
                f"{self._path} changed between all {READ_TRIES} readings: figures may not fit together"
            )
        return Region(
            self._path,
            self._asic_id,
            None if device_id >= 2**31 else device_id,
            version,
            state,
            *net,
            {1: None, 2: CACHED_UNION, 3: CACHED_UNION}.get(version, RESIDENT),
            chips,
            processes,
            max(times) if times and (live or found == "live") else None,
            self._consistent,
            tuple(self._warnings),
        )

    def _check_identity(self, version: int, board_serial: int, header_id: int, device_id: int) -> None:
        # Version 1 and one early build of version 2 split the number; without an id the name has the device id.
        split = version <= 2 and board_serial << 8 | header_id == self._asic_id
        if header_id != self._asic_id and not split and device_id != self._asic_id:
            self._warnings.append(f"{self._path} holds the id {header_id}, not the number in its name")
        if device_id >= 2**31:
            self._warnings.append(f"{self._path} holds no usable device id ({device_id})")

    def _state(self, version: int, references: int, processes: tuple[RegionProcess, ...], totals: _Counters) -> str:
        states = {process.state for process in processes}
        if references == 0:
            if "live" in states:
                self._warnings.append(f"{self._path} has a living process, but TT-Metal counts none in it")
            return "idle"
        if not states:
            if version >= NEWEST_VERSION or not any(totals[:5]):
                return "idle"
            self._warnings.append(f"{self._path} is in use, but names no process: nothing tells whether they live")
            return "live"
        return "stale" if states == {"stale"} else "live"

    def _net(self, version: int, state: str, totals: _Counters, processes: tuple[RegionProcess, ...]) -> _Counters:
        """Return the totals without what slots of dead or unknown processes hold."""
        gone = [process for process in processes if process.state != "live"]
        any_live = len(gone) < len(processes)
        if state in ("stale", "idle") and not any_live:
            nothing: list[int | None] = [0] * 5
            return (*nothing, 0 if version == 1 else None)  # type: ignore[return-value]
        net: list[int | None] = []
        for index, total in enumerate(totals):
            lost = [_values(process)[index] for process in gone]
            if index == 4 and version in (2, 3):
                # The last caller stored the figure of the whole device; slots hold copies of it, not shares.
                net.append(total if any_live or not processes else 0)
            elif total is None or None in lost:
                net.append(None)
            else:
                net.append(max(0, total - sum(value for value in lost if value is not None)))
        return tuple(net)  # type: ignore[return-value]

    def _chips(self, version: int, layout: _Layout, device_id: int) -> tuple[RegionChip, ...]:
        chips = []
        for index in range(MAX_CHIPS):
            fields = layout.chip.unpack_from(self._data, layout.header_size + index * layout.chip.size)
            chip_id, is_remote, *values = fields
            if chip_id == CHIP_UNUSED:
                continue
            # Up to version 2 an unused slot may hold 0, which is a chip too: the gateway, or one with something in it.
            if version <= 2 and chip_id == 0 and not (is_remote or any(values)) and not (index == 0 and device_id == 0):
                continue
            counters = self._counters(layout, tuple(values), f"chip {chip_id}")
            chips.append(RegionChip(chip_id, bool(is_remote), *counters))
        return tuple(chips)

    def _slots(self, version: int, layout: _Layout) -> tuple[RegionProcess, ...]:
        processes = []
        for index in range(MAX_PROCESSES):
            offset = layout.processes_offset + index * layout.process.size
            pid, *values, updated, raw_name = layout.process.unpack_from(self._data, offset)
            if pid in (0, SLOT_RELEASING):
                continue
            if pid < 0 or pid >= PID_LIMIT:
                self._warnings.append(f"{self._path} has no possible pid in slot {index} ({pid}): the slot is left out")
                continue
            name = printable(raw_name.partition(b"\0")[0].decode("utf-8", "replace")) or None
            time_ns = self._time(version, updated)
            known_name = None if name == "unknown" else name
            state, user = self._processes.judge(pid, known_name, time_ns, self._file)
            counters = self._counters(layout, tuple(values), f"pid {pid}")
            processes.append(RegionProcess(pid, name, user, state, *counters, time_ns))
        return tuple(processes)

    def _counters(self, layout: _Layout, values: tuple[int, ...], whose: str) -> _Counters:
        """Return the five or six counters, None for kernels without a counter and for what fell below zero."""
        counters: list[int | None] = list(values[: 6 if layout.has_kernel else 5])
        if any(value is not None and value >= WRAPPED for value in counters):
            self._warnings.append(f"{self._path}: a counter of {whose} fell below zero in TT-Metal and is not known")
            counters = [None if value is not None and value >= WRAPPED else value for value in counters]
        return tuple(counters if layout.has_kernel else [*counters, None])  # type: ignore[return-value]

    @staticmethod
    def _time(version: int, updated: int) -> int | None:
        # Version 1 used a clock that starts with the host: such a small number is no date.
        if updated == 0 or updated >= WRAPPED or (version == 1 and updated < 10**18):
            return None
        return updated


def _values(item: Region | RegionProcess) -> _Counters:
    return (item.dram_bytes, item.l1_bytes, item.l1_small_bytes, item.trace_bytes, item.cb_bytes, item.kernel_bytes)


def to_device(region: Region) -> dict[str, object]:
    """Return the region as the device object of the JSON; what a region does not know is None.

    Beyond the common names the object has ``region``: the file, its layout version, what its CB figure means, and its
    chips.
    """

    def memory(used: int | None) -> dict[str, int | None]:
        unknown = ("total_bytes", "free_bytes", "peak_bytes", "peak_at_ns", "peak_by", "peak_buffers")
        return {"used_bytes": used, **dict.fromkeys(unknown)}

    resident = region.cb_meaning == RESIDENT
    accounting = ("total", "reserved", "cb", "buffer", "l1_small", "overlap", "free")
    has_slots = region.state not in ("unreadable", "initializing") and region.problem is None
    return {
        "device_id": region.device_id,
        "asic_id": f"{region.asic_id:#x}",
        "arch": None,
        "source": "tt-metal",
        "origin": "live",
        "state": region.state,
        "grid": None,
        "updated_ns": region.updated_ns,
        "consistent": region.consistent,
        "memory": {
            "dram": memory(region.dram_bytes),
            "l1": memory(region.l1_bytes),
            "l1_small": {**memory(region.l1_small_bytes), "peak_span_bytes": None},
            "trace": memory(region.trace_bytes),
            "cb": {
                "physical_bytes": None if resident else region.cb_bytes,
                "logical_bytes": None,
                "resident_bytes": region.cb_bytes if resident else None,
                **dict.fromkeys(("peak_bytes", "peak_at_ns", "peak_by", "peak_programs")),
            },
            "kernel": {"used_bytes": region.kernel_bytes, "persistent_bytes": None},
        },
        "l1_accounting": {f"{name}_bytes": None for name in accounting},
        "cores": None,
        "programs": None,
        "processes": [_process_object(process, resident) for process in region.processes] if has_slots else None,
        "warnings": [*region.warnings, *([region.problem] if region.problem else [])],
        "region": {
            "path": str(region.path),
            "version": region.version,
            "cb_meaning": region.cb_meaning,
            "chips": [_chip_object(chip) for chip in region.chips],
        },
    }


def _process_object(process: RegionProcess, resident: bool) -> dict[str, object]:
    return {
        "pid": process.pid,
        "name": process.name,
        "user": process.user,
        "state": process.state,
        "dram_bytes": process.dram_bytes,
        "l1_bytes": process.l1_bytes,
        "l1_small_bytes": process.l1_small_bytes,
        "trace_bytes": process.trace_bytes,
        "cb_physical_bytes": None if resident else process.cb_bytes,
        "cb_resident_bytes": process.cb_bytes if resident else None,
        "kernel_bytes": process.kernel_bytes,
        "updated_ns": process.updated_ns,
    }


def _chip_object(chip: RegionChip) -> dict[str, object]:
    return {field.name: getattr(chip, field.name) for field in fields(chip)}
