"""Finds what is published on this host and reads it: read-only, without locks, without a driver or daemon."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from ttmem import region as tt_metal
from ttmem import segment
from ttmem._open_file import OpenFile
from ttmem._reading import BlockReading
from ttmem.errors import ArgumentTypeError, ClosedError, CorruptSegmentError, DeviceNotFoundError, TtmemError
from ttmem.pids import ProcessTable, user_name
from ttmem.snapshot import Figures, Part, Snapshot, figures

MAX_READ_BYTES = 1 << 28
"""No writer's figures take more; a file that claims so is forged, and is not read further."""
SETTLED_NS = 50_000_000
"""A directory that changed this recently may change again within its time stamp's tick: it is listed again."""


_user = lru_cache(maxsize=256)(user_name)


class _OpenFile:
    """A segment's file, held open between readings. It is only ever read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # O_NONBLOCK: a FIFO planted under the name must not block; O_NOFOLLOW: nor a link lead elsewhere.
        self.fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(self.fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(path))
            self.user = _user(status.st_uid)
            self.inode = (status.st_dev, status.st_ino)
            self._file = OpenFile(self.fd)
        except BaseException:
            os.close(self.fd)
            raise
        self._parts: list[Part] = []

    def close(self) -> None:
        os.close(self.fd)

    def linked(self) -> bool:
        """Tell whether the name still means this file."""
        try:
            status = os.lstat(self.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self.inode

    def _state_by_pid(self) -> str:
        """Return live, stale or unknown of a writer that could take no lock: by its pid and start time."""
        facts = self._file.facts
        if facts.boot_id != segment.boot_id() or facts.pidns_inode != segment.pid_namespace():
            return "unknown"
        return "live" if segment.start_ticks(facts.pid) == facts.start_ticks else "stale"

    def parts(self, wanted: "_Identity | None") -> list[Part]:
        """Return what the file's writer published, of one device or of all."""
        by_pid = self._state_by_pid() if self._file.facts.lock_mode != segment.LOCK_OFD else ""
        readings = self._file.read(wanted)
        state = by_pid or ("live" if self._file.locked else "stale")
        facts = self._file.facts
        if len(readings) == len(self._parts) and all(
            part.reading is reading and part.state == state and part.pid == facts.pid
            for part, reading in zip(self._parts, readings, strict=True)
        ):
            return self._parts
        if sum(reading.bytes_read for reading in readings) > MAX_READ_BYTES:
            raise CorruptSegmentError(f"the segment's figures take more than {MAX_READ_BYTES} bytes")
        self._parts = [Part(reading, facts.pid, facts.process_name, self.user, state) for reading in readings]
        return self._parts


@dataclass(frozen=True)
class _Identity:
    """Which device: by the chip's unique id, or by the logical id of a writer that does not know it."""

    asic_id: int | None
    device_id: int | None

    @classmethod
    def of(cls, reading: BlockReading) -> "_Identity":
        asic_id = reading.asic_id
        return cls(asic_id, None if asic_id is not None else reading.device_id)

    def fits(self, reading: BlockReading) -> bool:
        if self.asic_id is not None:
            return bool(reading.asic_id == self.asic_id)
        return reading.asic_id is None and reading.device_id == self.device_id


class Host:
    """The segments of one directory and namespace; keeps their files open between readings.

    Thread safety: none; use one for each thread.
    """

    def __init__(self, directory: Path | None = None, space: str | None = None) -> None:
        self.directory = segment.shm_directory() if directory is None else directory
        self._prefix = segment.file_prefix(segment.namespace() if space is None else space)
        self._files: dict[str, _OpenFile] = {}
        self.problems: dict[str, str] = {}
        self._listed: tuple[int, int] | None = None

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._listed = None

    def refresh(self) -> None:
        """Look for files that came and went, if the directory changed."""
        try:
            status = os.stat(self.directory)
        except OSError as error:
            self.close()
            self.problems = {str(self.directory): f"{self.directory}: {error.strerror}"}
            return
        stamp = (status.st_ino, status.st_mtime_ns)
        if stamp == self._listed:
            return
        # Unless it has been quiet for a while, another change could carry the same time stamp.
        self._listed = stamp if time.time_ns() - status.st_mtime_ns > SETTLED_NS else None
        unlisted = {}
        try:
            names = {entry.name for entry in os.scandir(self.directory) if entry.name.startswith(self._prefix)}
        except OSError as error:
            names = set()
            unlisted = {str(self.directory): f"{self.directory}: {error.strerror}"}
        for name in list(self._files):
            if name not in names or not self._files[name].linked():
                self._files.pop(name).close()
        self.problems = unlisted | {name: text for name, text in self.problems.items() if name in names}
        for name in sorted(names - self._files.keys()):
            self._open(name)

    def _open(self, name: str) -> None:
        path = self.directory / name
        try:
            self._files[name] = _OpenFile(path)
            self.problems.pop(name, None)
        except FileNotFoundError:
            pass
        except TtmemError as error:
            self.problems[name] = f"{path}: {error}"
        except OSError as error:
            cure = ""
            if error.errno == errno.EACCES:
                with contextlib.suppress(OSError):
                    status = os.lstat(path)
                    cure = (
                        f": the file is {status.st_mode & 0o777:04o} and owned by uid {status.st_uid} "
                        f"({_user(status.st_uid)}); run as that user or root"
                    )
            self.problems[name] = f"{path}: {error.strerror}{cure}"

    def parts(self, wanted: _Identity | None = None) -> list[Part]:
        """Return what each writer published, of one device or of all; a file that is broken costs only itself."""
        self.refresh()
        found: list[Part] = []
        for name, file in list(self._files.items()):
            try:
                found.extend(file.parts(wanted))
                self.problems.pop(name, None)
            except TtmemError as error:
                self.problems[name] = f"{file.path}: {error}"
            except OSError as error:
                self.problems[name] = f"{file.path}: {error.strerror}"
        return found

    def devices(self) -> list[tuple[_Identity, list[Part]]]:
        """Return the devices with their writers' parts, by logical id."""
        groups: dict[_Identity, list[Part]] = {}
        for part in self.parts():
            groups.setdefault(_Identity.of(part.reading), []).append(part)
        return sorted(groups.items(), key=lambda item: (item[1][0].reading.device_id, item[0].asic_id or 0))

    @property
    def found(self) -> int:
        """How many segment files there are, readable or not."""
        return len(self._files.keys() | {name for name in self.problems if name.startswith(self._prefix)})


@dataclass(frozen=True)
class HostReading:
    """Everything that is published on this host at one moment.

    Attributes:
        taken_ns: CLOCK_REALTIME.
        devices: by logical id.
        problems: what could not be read, with cause and cure.
        found: how many files there are, readable or not.
    """

    taken_ns: int
    devices: list[Snapshot]
    problems: list[str] = field(default_factory=list)
    found: int = 0


def read_host(source: str = "auto", *, host: Host | None = None) -> HostReading:
    """Read every device that anything publishes on this host.

    Args:
        source: ``auto`` (ttmem's segments, and TT-Metal's regions of chips that none of them covers), ``ttmem`` or
            ``tt-metal``.
        host: kept between readings to save opening the files anew.
    """
    own = host is None
    host = Host() if host is None else host
    taken_ns = time.time_ns()
    devices: list[Snapshot] = []
    problems: list[str] = []
    found = 0
    try:
        if source != "tt-metal":
            devices = [Snapshot(parts, taken_ns=taken_ns) for _, parts in host.devices()]
            problems = list(host.problems.values())
            found = host.found
        if source != "ttmem":
            regions = list(_regions(host.directory))
            found += len(regions)
            devices = _with_regions(devices, regions, taken_ns)
            problems += [r.problem for r in regions if r.problem is not None]
    finally:
        if own:
            host.close()
    return HostReading(taken_ns, devices, problems, found)


def _regions(directory: Path) -> Iterable[tt_metal.Region]:
    processes = ProcessTable()
    for path in tt_metal.find_regions(directory):
        with contextlib.suppress(DeviceNotFoundError):
            yield tt_metal.read_region(path, processes=processes)


def _with_regions(devices: list[Snapshot], regions: list[tt_metal.Region], taken_ns: int) -> list[Snapshot]:
    """Add TT-Metal's regions of chips that no living ttmem writer covers; where one does, say what they disagree on."""
    covered = {
        device.asic_id: device
        for device in devices
        if device.asic_id is not None and device.origin != "replay" and device.state == "live"
    }
    joined = list(devices)
    for region in regions:
        ours = covered.get(region.asic_id)
        if ours is None:
            joined.append(Snapshot.of_dict(tt_metal.to_device(region), taken_ns=taken_ns))
        elif region.state == "live":
            # What the dead left there contradicts nobody.
            ours.warn(_disagreements(ours, region))
    return sorted(joined, key=lambda device: (device.device_id is None, device.device_id or 0))


def _disagreements(ours: Snapshot, region: tt_metal.Region) -> Iterable[str]:
    cb = "resident_bytes" if region.cb_meaning == tt_metal.RESIDENT else "physical_bytes"
    memory = ours.memory
    pairs = (
        ("DRAM", memory.dram.used_bytes, region.dram_bytes),
        ("L1", memory.l1.used_bytes, region.l1_bytes),
        ("L1_SMALL", memory.l1_small.used_bytes, region.l1_small_bytes),
        ("TRACE", memory.trace.used_bytes, region.trace_bytes),
        (f"CB ({cb.removesuffix('_bytes')})", memory.cb[cb], region.cb_bytes),
    )
    for name, mine, theirs in pairs:
        if mine is not None and theirs is not None and mine != theirs:
            yield f"TT-Metal's own region says {name} {theirs} bytes, ttmem counts {mine} (the region may lag 100 ms)"


def _published(host: Host, wanted: Callable[[Snapshot], bool]) -> tuple[_Identity, Snapshot] | None:
    """Return the device that ttmem publishes: of several with one logical id a living one, the eldest of those."""
    found = [(key, Snapshot(parts)) for key, parts in host.devices()]
    return min((one for one in found if wanted(one[1])), key=lambda one: one[1].state != "live", default=None)


class Reader:
    """Reads one device again and again; made by :func:`attach`."""

    def __init__(
        self,
        host: Host,
        identity: _Identity | None,
        path: Path | None,
        first: Snapshot,
        wanted: Callable[[Snapshot], bool],
    ) -> None:
        self._host: Host | None = host
        self._identity = identity
        self._path = path
        self._last = first
        self._wanted = wanted

    def snapshot(self) -> Snapshot:
        """Return the device as it is now, writers that came after :func:`attach` among them.

        Where only TT-Metal published it, and a process does so with ttmem now, that is what is told while it lives.

        When all writers have left, the device is ``stale`` and uses nothing.

        Raises:
            ClosedError: the reader was closed.
        """
        if self._host is None:
            raise ClosedError("the reader was closed")
        if self._identity is None:
            # Who publishes with ttmem by now knows more than TT-Metal's region; a replay hides none.
            ours = _published(self._host, self._wanted)
            if ours is not None and ours[1].state == "live" and ours[1].origin != "replay":
                self._identity = ours[0]
        if self._identity is not None:
            parts = self._host.parts(self._identity)
            if parts or self._path is None:
                current = Snapshot(parts, last=None if parts else self._last)
                if parts:
                    self._last = current
                return current
            self._identity = None
        self._last = self._region_snapshot()
        return self._last

    def _region_snapshot(self) -> Snapshot:
        assert self._path is not None
        try:
            return Snapshot.of_dict(tt_metal.to_device(tt_metal.read_region(self._path)))
        except DeviceNotFoundError:
            gone = self._last.to_dict()
            gone.update(state="stale", updated_ns=None, processes=[])
            return Snapshot.of_dict(gone)

    def close(self) -> None:
        """Let go of all files. Closing twice does nothing."""
        if self._host is not None:
            self._host.close()
            self._host = None

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def attach(device_id: int | None = None, *, asic_id: int | None = None) -> Reader:
    """Open a device for reading: one that ttmem publishes, else one that TT-Metal itself does.

    Args:
        device_id: the logical id.
        asic_id: the chip's unique id; tells chips apart that different processes call by the same logical id.

    Returns:
        A context manager with ``snapshot()``.

    Raises:
        DeviceNotFoundError: nothing on this host publishes it.
        ArgumentTypeError: neither id was given.
    """
    if device_id is None and asic_id is None:
        raise ArgumentTypeError("attach needs a device_id or an asic_id")

    def wanted(snapshot: Snapshot) -> bool:
        return (device_id is None or snapshot.device_id == device_id) and (
            asic_id is None or snapshot.asic_id == asic_id
        )

    host = Host()
    try:
        ours = _published(host, wanted)
        if ours is not None and ours[1].state == "live":
            return Reader(host, ours[0], None, ours[1], wanted)
        regions = [(r.path, Snapshot.of_dict(tt_metal.to_device(r))) for r in _regions(host.directory)]
        for path, snapshot in sorted((r for r in regions if wanted(r[1])), key=lambda r: r[1].state != "live"):
            return Reader(host, None, path, snapshot, wanted)
        if ours is not None:
            return Reader(host, ours[0], None, ours[1], wanted)
    except BaseException:
        host.close()
        raise
    problems = "".join(f"\n  {text}" for text in host.problems.values())
    host.close()
    name = f"device {device_id}" if asic_id is None else f"the device with asic_id {asic_id:#x}"
    raise DeviceNotFoundError(
        f"nothing publishes {name} in {host.directory}: start a process that calls ttmem.publish or uses TT-Metal, "
        f"or see `ttmem-dump` for what there is{problems}"
    )


def devices() -> list[Figures]:
    """Return every device that anything publishes on this host: the JSON's device objects, without their cores."""
    return [figures(device.to_dict(cores=False)) for device in read_host().devices]


def snapshot_of_publisher(path: Path | None, device_id: int) -> Snapshot:
    """Return what a reader gets of a device that the segment at ``path`` publishes, all its writers included."""
    assert path is not None
    host = Host(path.parent, path.name[len(segment.PREFIX) :].partition(".")[0])
    try:
        groups = host.devices()
        for key, parts in groups:
            if any(part.pid == os.getpid() and part.reading.device_id == device_id for part in parts):
                return Snapshot(host.parts(key))
        raise DeviceNotFoundError(f"device {device_id} is not published in {path}")
    finally:
        host.close()


def snapshot_of_bytes(block: bytes, device_id: int) -> Snapshot:
    """Return the snapshot of a block that lies in memory, of a publisher that could not publish."""
    fd = os.memfd_create("ttmem-private", os.MFD_CLOEXEC)
    try:
        os.write(fd, block)
        reading = BlockReading(fd, 0, len(block))
        reading.load(fd, 0)
    finally:
        os.close(fd)
    name = Path("/proc/self/comm").read_text(errors="replace").strip()
    return Snapshot([Part(reading, os.getpid(), name, _user(os.getuid()), "live")])
