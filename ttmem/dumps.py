"""Dumps: files that hold device objects, as ``ttmem-dump --json`` writes them, and what tells them from other files."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ijson  # type: ignore[import-untyped]

from ttmem.errors import CaptureError, TtmemError
from ttmem.model import BufferType

RECORDING_MAGIC = b"ttmemrec"
"""The first bytes of a recording."""
DATABASE_MAGIC = b"SQLite format 3\0"
"""The first bytes of a report's database."""
REPORT_MAGIC = b",DRAM\n,Total allocatable (B):,"
"""The first bytes of a detailed memory report."""
MAX_DUMP_BYTES = 2**30
"""The largest dump that is read; 32 devices with all their cores take about 2 MB."""

BUFFERS_MAX = 4096
"""The most live buffers that a device object lists."""


FIGURE = re.compile(
    r"(_bytes|_ns|_address|_end|_id|_per_core|_omitted)$|^(x|y|address|size|size_per_bank|count|num_cores|pid|peak_buffers|peak_programs)$"
)
"""The members of a device object and of its rows that are whole numbers, or unknown."""
TEXT = frozenset(
    ("asic_id", "arch", "source", "state", "name", "user", "kind", "buffer_type", "core_ranges", "peak_by")
)
"""The members that are texts, or unknown."""
_MEMBERS = ("device_id", "asic_id", "arch", "source", "state", "updated_ns", "programs_omitted", "buffers_omitted")


class DumpError(TtmemError, ValueError):
    """A file holds no device objects that can be read."""


class EmptyFileError(CaptureError):
    """A file is of a kind that can be read, and there is nothing in it."""


@dataclass(frozen=True, slots=True)
class Dump:
    """The devices of a host at one moment.

    Attributes:
        devices: device objects of the JSON; each may carry ``buffers``, its live buffers.
        taken_ns: CLOCK_REALTIME, or None if it is not known.
        host: the host's name, or None.
        problems: what could not be read, for people.
    """

    devices: list[dict[str, Any]]
    taken_ns: int | None = None
    host: str | None = None
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the whole object of the JSON."""
        return {"schema": 1, "host": self.host, "taken_ns": self.taken_ns, "devices": self.devices}


def kind_of_file(path: str | os.PathLike[str]) -> str:
    """Return what a file is: ``capture`` (a report too), ``dump`` or ``recording``.

    Raises:
        DumpError: it cannot be read, or is none of them.
    """
    try:
        with open(path, "rb") as raw:
            start = raw.read(len(RECORDING_MAGIC))
        if start == RECORDING_MAGIC:
            return "recording"
        if is_report(path):
            return "dump"
        opened = gzip.open if start[:2] == b"\x1f\x8b" else open
        with opened(path, "rb") as file:
            head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
            if head[:1] == b"[":
                return "capture"
            if head[:1] == b"{":
                file.seek(0)
                # A report's graph may be large: what comes first decides.
                for prefix, event, value in ijson.parse(file, use_float=True):
                    if event == "map_key" and not prefix:
                        if value in ("schema", "taken_ns", "memory"):
                            return "dump"
                        if value == "graph":
                            return "capture"
    except (OSError, EOFError, zlib.error, ijson.JSONError, ValueError, RecursionError) as error:
        raise DumpError(f"cannot read {os.fspath(path)}: {getattr(error, 'strerror', None) or error}") from error
    raise DumpError(
        f"{os.fspath(path)} is no graph capture, no dump and no recording: make a dump with `ttmem-dump --json`"
    )


def is_report(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file begins as a report of ttnn or TT-Metal does.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return file.read(len(REPORT_MAGIC)).startswith((DATABASE_MAGIC, REPORT_MAGIC))


def read_dump(path: str | os.PathLike[str]) -> Dump:
    """Return the devices of a dump, plain or gzipped, or of a report (see :mod:`ttmem.reports`).

    Raises:
        DumpError: the file is no dump.
    """
    name = os.fspath(path)
    try:
        if is_report(path):
            from ttmem.reports import read_report

            return read_report(path)
        with open(path, "rb") as raw:
            gzipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if gzipped else open(path, "rb") as file:
            text = file.read(MAX_DUMP_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DumpError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error
    if len(text) > MAX_DUMP_BYTES:
        raise DumpError(f"{name} is larger than {MAX_DUMP_BYTES} bytes: no dump is")
    return dump_of_text(text, name)


def dump_of_text(text: str | bytes, name: str) -> Dump:
    """Return the devices of a dump's text; of several dumps, one a line, the last.

    Args:
        text: the JSON.
        name: where it came from, for the error.

    Raises:
        DumpError: it is no dump.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        try:
            # What `ttmem-dump --json --watch` writes; its last line may be incomplete.
            lines = [line for line in text.splitlines() if line.strip()]
            found = json.loads(lines[-1] if len(lines) == 1 else _last_whole(lines))
        except (ValueError, IndexError, RecursionError):
            raise DumpError(f"{name} is not JSON: {error}") from None
    if isinstance(found, Mapping) and "devices" not in found and "memory" in found:
        found = {"devices": [found]}
    devices = found.get("devices") if isinstance(found, Mapping) else None
    if not isinstance(devices, list) or not all(isinstance(device, dict) for device in devices):
        raise DumpError(f'{name} is no dump: it has no list of "devices"; make one with `ttmem-dump --json`')
    for device in devices:
        _check(device, name)
    taken_ns, host = found.get("taken_ns"), found.get("host")
    return Dump(
        devices,
        taken_ns if isinstance(taken_ns, int) else None,
        host if isinstance(host, str) else None,
    )


def _last_whole(lines: list[Any]) -> Any:
    for line in lines[-1:-3:-1]:
        try:
            json.loads(line)
        except ValueError:
            continue
        return line
    raise ValueError("no whole line")


def _check(device: Mapping[str, Any], name: str) -> None:
    """Refuse a device whose tables are not tables, or whose figures no figures, so that nothing behind this looks again."""
    _check_row(device, name, "a device", _MEMBERS)
    for key in ("cores", "programs", "processes", "buffers"):
        _check_rows(device, key, name)
    for row in device.get("programs") or ():
        _check_rows(row, "circular_buffers", name)
    for row in device.get("cores") or ():
        if row.get("x") is None or row.get("y") is None:
            raise DumpError(f'{name} is no dump: one of "cores" has no x and y')
    for key in ("memory", "l1_accounting", "grid"):
        if device.get(key) is not None and not isinstance(device[key], Mapping):
            raise DumpError(f'{name} is no dump: "{key}" of a device is no object')
        _check_row(device.get(key) or {}, name, f'"{key}"')
    memory = device.get("memory") or {}
    for kind, figures in memory.items():
        if not isinstance(figures, Mapping):
            raise DumpError(f'{name} is no dump: "memory" of a device holds something that is no object')
        _check_row(figures, name, f'"memory.{kind}"')
    grid = device.get("grid")
    if grid is not None and not all(isinstance(grid.get(axis), int) and grid[axis] > 0 for axis in "xy"):
        raise DumpError(f'{name} is no dump: "grid" of a device is no x and y above 0')


def _check_rows(device: Mapping[str, Any], key: str, name: str) -> None:
    rows = device.get(key)
    if rows is None:
        return
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise DumpError(f'{name} is no dump: "{key}" of a device is no list of objects')
    for row in rows:
        _check_row(row, name, f'"{key}"')


def _check_row(row: Mapping[str, Any], name: str, what: str, members: Iterable[str] | None = None) -> None:
    for member in row if members is None else members:
        value = row.get(member)
        expected = str if member in TEXT else int if FIGURE.search(member) else None
        # bool is an int to Python, and no figure.
        if value is not None and expected is not None and type(value) is not expected:
            said = "a text" if expected is str else "a whole number"
            raise DumpError(f'{name} is no dump: "{member}" of {what} is {json.dumps(value)[:40]}, not {said}')


def read_live(*, source: str = "auto", host: Any = None, buffers: bool = True, cores: bool = True) -> Dump:
    """Return the devices of this host as they are now.

    Args:
        source: as of :func:`ttmem.reader.read_host`.
        host: a :class:`ttmem.reader.Host` that is kept between readings.
        buffers: whether each device carries its live buffers.
        cores: whether each device carries its cores.
    """
    import socket

    from ttmem.reader import read_host

    reading = read_host(source=source, host=host)
    devices = []
    for snapshot in reading.devices:
        device = snapshot.to_dict(cores=cores)
        if buffers:
            device.update(buffers_of(snapshot))
        devices.append(device)
    return Dump(devices, reading.taken_ns, socket.gethostname(), list(reading.problems))


def dump_of_snapshots(snapshots: Sequence[Any], *, taken_ns: int) -> dict[str, Any]:
    """Return the JSON object of ``ttmem-dump --json``."""
    from ttmem.snapshot import whole

    return whole([{**snapshot.to_dict(), **buffers_of(snapshot)} for snapshot in snapshots], taken_ns=taken_ns)


def buffers_of(snapshot: Any) -> dict[str, Any]:
    """Return what a device object says of the live buffers of a snapshot.

    Returns:
        ``buffers``, their types by name, at most BUFFERS_MAX, and of more than that the largest; and
        ``buffers_omitted``, how many live ones are not among them. None where the source does not know them.
    """
    omitted = snapshot.buffers_omitted
    if omitted is None:
        return {"buffers": None, "buffers_omitted": None}
    rows = snapshot.buffers()
    if len(rows) > BUFFERS_MAX:
        omitted += len(rows) - BUFFERS_MAX
        rows = sorted(rows, key=lambda row: -row["size_bytes"])[:BUFFERS_MAX]
    named = [
        {**row, "buffer_type": row["buffer_type"] if isinstance(row["buffer_type"], str) else _type_name(row)}
        for row in rows
    ]
    return {"buffers": named, "buffers_omitted": omitted}


def _type_name(row: Mapping[str, Any]) -> str:
    try:
        return BufferType(row["buffer_type"]).name
    except ValueError:
        return "UNKNOWN"


def cb_base_of(device: Mapping[str, Any]) -> int | None:
    """Return the CB base of a device object, which its accounting implies; None if it is unknown."""
    reserved, grid = (device.get("l1_accounting") or {}).get("reserved_bytes"), device.get("grid")
    if reserved is None or not grid:
        return None
    return int(reserved) // int(grid["x"] * grid["y"])


def l1_limits_of(device: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return the end of the region that L1 buffers may take, and the size of L1, of one core; None is unknown."""
    accounting, grid = device.get("l1_accounting") or {}, device.get("grid")
    total, small = accounting.get("total_bytes"), accounting.get("l1_small_bytes")
    if not grid or total is None:
        return None, None
    count = grid["x"] * grid["y"]
    # L1_SMALL lies above.
    return None if small is None else (total - small) // count, total // count
