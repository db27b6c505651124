"""Reports: what TT-Metal and ttnn write about memory themselves, read as dumps.

Two kinds: the database of ttnn-visualizer (``db.sqlite``), of which the state after its last operation is taken, and the
``detailed_memory_usage.csv`` of ``ttnn.dump_device_memory_state``. What they do not know is None.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ttmem._publisher import Publisher
from ttmem.capture import geometry_of_entry, read_device_tensors, read_integer
from ttmem.dumps import DATABASE_MAGIC, Dump, DumpError, buffers_of
from ttmem.errors import TtmemError
from ttmem.interpreter import CaptureInterpreter
from ttmem.mesh import CaptureSink
from ttmem.model import BufferType, CircularBuffer, Geometry
from ttmem.snapshot import ACCOUNTING

MAX_CHIPS = 256
"""The most chips of one report."""
MAX_REPORT_BYTES = 2**26
"""The largest memory report that is read; a real one has some kilobytes, and a line more for each buffer."""
_FIGURE = re.compile(r",Total (allocatable|allocated|free) \(B\):,(\d{1,20})")
_BLOCK = re.compile(r"\s*\d+\s+(\d{1,20})\s+(\d{1,20})\s+\S+\s+\S+\s+(yes|no)")
_PEAK = ("peak_bytes", "peak_at_ns", "peak_by")
_SECTIONS = {kind.name: kind for kind in BufferType}
_BUFFER_NODES = frozenset(("buffer", "buffer_allocate", "buffer_deallocate"))


def read_report(path: str | os.PathLike[str]) -> Dump:
    """Return the devices of a report.

    Raises:
        DumpError: it is none, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            is_database = file.read(len(DATABASE_MAGIC)) == DATABASE_MAGIC
        return _read_database(path) if is_database else _read_table(path)
    except (OSError, sqlite3.Error, TtmemError, ValueError, TypeError, KeyError, RecursionError) as error:
        if isinstance(error, DumpError):
            raise
        raise DumpError(f"cannot read the report {os.fspath(path)}: {error}") from error


# The detailed memory report


def _read_table(path: str | os.PathLike[str]) -> Dump:
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read(MAX_REPORT_BYTES + 1)
    if len(text) > MAX_REPORT_BYTES:
        raise DumpError(f"{os.fspath(path)} is larger than {MAX_REPORT_BYTES} bytes: no memory report is")
    memory: dict[str, dict[str, int | None]] = {}
    buffers: list[dict[str, Any]] = []
    section = ""
    blocks: list[tuple[int, int, bool]] = []

    def close_section() -> None:
        figures = memory.get(section.lower())
        bank = sum(size for _, size, _ in blocks)
        if figures is None or not bank:
            return
        banks = (figures["total_bytes"] or 0) // bank
        for _, size, allocated in blocks:
            if allocated:
                buffers.append(
                    {
                        "buffer_id": len(buffers) + 1,
                        "buffer_type": section,
                        "size_bytes": size * banks,
                        # Blocks count from the beginning of a bank, and where that lies on a core is not told.
                        "address": None,
                        "size_per_bank": size,
                        "allocated_ns": None,
                        "num_cores": None,
                        "name": "",
                        "pid": None,
                    }
                )

    for line in text.splitlines():
        name = line[1:].strip() if line[:1] == "," else ""
        if name in _SECTIONS:
            close_section()
            section, blocks = name, []
            if section.lower() in memory:
                raise DumpError(f"{os.fspath(path)} tells of several devices: that is not read yet")
            memory[section.lower()] = dict.fromkeys(("used_bytes", "total_bytes", "free_bytes"))
        elif section and (figure := _FIGURE.match(line)):
            names = {"allocatable": "total_bytes", "allocated": "used_bytes", "free": "free_bytes"}
            memory[section.lower()][names[figure[1]]] = int(figure[2])
        elif section and (block := _BLOCK.fullmatch(line.rstrip())):
            blocks.append((int(block[1]), int(block[2]), block[3] == "yes"))
    close_section()
    if not memory or any(figures["used_bytes"] is None for figures in memory.values()):
        raise DumpError(f"{os.fspath(path)} has no figures of DRAM or L1 as a memory report has")
    device = _unknown_device(0, memory)
    device["buffers"] = buffers
    device["warnings"] = [
        "the report does not name its device: taken as 0",
        "sizes are of whole banks: every bank counts what the largest one holds",
    ]
    return Dump([device])


def _unknown_device(device_id: int, memory: Mapping[str, Mapping[str, int | None]]) -> dict[str, Any]:
    regions = ("used_bytes", "total_bytes", "free_bytes", *_PEAK, "peak_buffers")
    return {
        "device_id": device_id,
        "asic_id": None,
        "arch": None,
        "source": "tt-metal",
        "origin": "replay",
        "state": "live",
        "grid": None,
        "updated_ns": None,
        "consistent": True,
        "memory": {
            **{name: {**dict.fromkeys(regions), **memory.get(name, {})} for name in ("dram", "l1", "trace")},
            "l1_small": {**dict.fromkeys(regions), **memory.get("l1_small", {}), "peak_span_bytes": None},
            "cb": dict.fromkeys(("physical_bytes", "logical_bytes", "resident_bytes", *_PEAK, "peak_programs")),
            "kernel": dict.fromkeys(("used_bytes", "persistent_bytes")),
        },
        "l1_accounting": {f"{name}_bytes": None for name in ACCOUNTING},
        "cores": None,
        "programs": None,
        "processes": None,
        "warnings": [],
    }


# The database of ttnn-visualizer


class _Programs(CaptureSink):
    """Records the programs of a graph with the publishers of their chips; buffers come from the table of them."""

    def __init__(self, publishers: Mapping[int, Publisher]) -> None:
        self._publishers = publishers
        self._ids: dict[tuple[int, int], int] = {}

    def add_program(self, chip: int, program_key: int, circular_buffers: tuple[CircularBuffer, ...], name: str) -> None:
        """Record a program."""
        publisher = self._publishers.get(chip)
        if publisher is not None:
            self._ids[chip, program_key] = publisher.add_program(list(circular_buffers), name=name)

    def dispatch(self, chip: int, program_key: int) -> None:
        """Record that it was dispatched."""
        if (chip, program_key) in self._ids:
            self._publishers[chip].dispatch(self._ids[chip, program_key])


class _Database:
    """A database that is open for reading, of any schema version: missing tables and columns are empty."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._connection.row_factory = sqlite3.Row

    def rows(self, table: str, order: str = "rowid") -> Iterator[dict[str, Any]]:
        """Yield the rows of a table, of the first rank only."""
        try:
            found = self._connection.execute(f"SELECT * FROM {table} ORDER BY {order}")
        except sqlite3.OperationalError:
            return
        for row in found:
            values = dict(row)
            if not values.get("rank"):
                yield values

    def nodes(self) -> Iterator[dict[str, Any]]:
        """Yield the nodes of every operation's graph, in order."""
        for row in self.rows("captured_graph", "operation_id"):
            graph = json.loads(row["captured_graph"])
            if isinstance(graph, list):
                yield from (node for node in graph if isinstance(node, dict))


def _read_database(path: str | os.PathLike[str]) -> Dump:
    uri = f"file:{quote(os.path.abspath(path))}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        return _of_database(_Database(connection), Path(path))


def _of_database(database: _Database, path: Path) -> Dump:
    entries = {row["device_id"]: row for row in database.rows("devices")}
    if not entries:
        raise DumpError(f"{path} is a database without devices: it is no report of ttnn-visualizer")
    chips_of, chips, sizes = _of_graph(database)
    last = max((row["operation_id"] for row in database.rows("operations")), default=None)
    live = [row for row in database.rows("buffers") if row["operation_id"] == last]
    for row in live:
        chips_of.setdefault(int(row["device_id"]), [int(row["device_id"])])
    every = sorted({*chips, *(chip for row in live for chip in chips_of[int(row["device_id"])])})[:MAX_CHIPS]
    arch = _arch(path.parent / "cluster_descriptor.yaml")
    warnings = [] if last is None else [f"the state after operation {last}, the last one of the report"]
    traced = any(True for table in ("buffer_chunks", "buffer_pages") for _ in database.rows(table))
    if not traced:
        warnings.append(
            "buffers from before the report began are missing: ttnn.graph.enable_detailed_buffer_tracing() has them written"
        )
    devices = []
    publishers: dict[int, Publisher] = {}
    with contextlib.ExitStack() as stack:
        for chip in every or sorted(entries)[:MAX_CHIPS]:
            geometry = _geometry(entries.get(chip) or next(iter(entries.values())), arch)
            publishers[chip] = stack.enter_context(Publisher(chip, geometry, "replay"))
        interpreter = CaptureInterpreter(_Programs(publishers))
        for node in database.nodes():
            if node.get("node_type") not in _BUFFER_NODES:
                interpreter.feed(node)
        interpreter.finish()
        for chip, publisher in publishers.items():
            mine = [row for row in live if chip in chips_of[int(row["device_id"])]]
            unknown = _allocate(publisher, mine, sizes)
            if not traced:
                unknown = {BufferType.DRAM, BufferType.L1, BufferType.L1_SMALL, BufferType.TRACE}
            snapshot = publisher.snapshot()
            device = {**snapshot.to_dict(), **buffers_of(snapshot)}
            memory = device["memory"]
            for kind in unknown - {BufferType.SYSTEM_MEMORY}:
                memory[kind.name.lower()].update(used_bytes=None, free_bytes=None)
            for figures in memory.values():
                # Neither moments nor peaks are those of the report.
                figures.update({key: None for key in figures if key.startswith("peak")})
            for row in device.get("buffers") or ():
                row.update(allocated_ns=None, pid=None)
            device.update(updated_ns=None, processes=None, warnings=[*device["warnings"], *warnings])
            for row in device.get("programs") or ():
                row.pop("pid", None)
            devices.append(device)
    taken = next(
        (row["value"] for row in database.rows("report_metadata") if row["key"] == "capture_timestamp_ns"), None
    )
    return Dump(devices, read_integer(taken))


def _geometry(entry: Mapping[str, Any], arch: str | None) -> Geometry:
    return geometry_of_entry({**entry, "arch": arch})


def _arch(path: Path) -> str | None:
    """Return the architecture in a cluster descriptor, if it has one only."""
    with contextlib.suppress(OSError):
        found = set(
            re.findall(r"^\s+\d+:\s*(grayskull|wormhole_b0|blackhole)\s*$", path.read_text()[:65536], re.M | re.I)
        )
        if len(found) == 1:
            return str(found.pop()).lower()
    return None


def _of_graph(database: _Database) -> tuple[dict[int, list[int]], set[int], dict[tuple[int, int, int], int]]:
    """Return the chips of each mesh, all chips, and the sizes of buffers by mesh, type and address."""
    chips_of: dict[int, list[int]] = {}
    chips: set[int] = set()
    sizes: dict[tuple[int, int, int], int] = {}
    for node in database.nodes():
        params = node.get("params")
        if not isinstance(params, Mapping):
            continue
        for mesh, chip in read_device_tensors(params.get("device_tensors")) or ():
            found = chips_of.setdefault(mesh, [])
            if chip not in found:
                found.append(chip)
            chips.add(chip)
        if node.get("node_type") == "circular_buffer_allocate":
            number = read_integer(params.get("device_id"))
            if number is not None and read_integer(params.get("address")):
                chips.add(number)
        place = tuple(read_integer(params.get(name)) for name in ("device_id", "buffer_type", "address"))
        size = read_integer(params.get("size"))
        if size is not None and None not in place:
            sizes[place] = size  # type: ignore[index]
    return chips_of, chips, sizes


def _allocate(
    publisher: Publisher, rows: list[dict[str, Any]], sizes: Mapping[tuple[int, int, int], int]
) -> set[BufferType]:
    """Allocate the buffers of one chip, and return the types of which not all sizes are known."""
    unknown: set[BufferType] = set()
    # A tensor and a view of it have a row each.
    for mesh, number, address, per_bank in {
        (int(row["device_id"]), int(row["buffer_type"]), int(row["address"]), int(row["max_size_per_bank"]))
        for row in rows
    }:
        kind = BufferType.parse(number)
        size = sizes.get((mesh, number, address))
        if size is None:
            unknown.add(kind)
        in_l1 = kind in (BufferType.L1, BufferType.L1_SMALL)
        publisher.allocate(kind, size or 0, address=address, size_per_bank=per_bank if in_l1 else None)
    return unknown
