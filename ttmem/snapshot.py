"""A device at one moment, put together from what its writers published."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ttmem._core_table import core_table
from ttmem._reading import BlockReading, cbs_of
from ttmem.cores import CoreCoord
from ttmem.model import CB_KINDS

CORE_FIELDS = (
    "x",
    "y",
    "cb_physical_bytes",
    "cb_logical_bytes",
    "cb_resident_bytes",
    "cb_region_end",
    "l1_used_bytes",
    "l1_lowest_address",
    "headroom_bytes",
    "overlap_bytes",
    "cb_peak_bytes",
)
CORE_WORDS = len(CORE_FIELDS)
UNKNOWN_HEADROOM = -(2**63)
PROGRAMS_MAX = 1024
SCHEMA = 1
"""The number of the JSON's schema."""

CB, DRAM, L1, _SYSTEM, L1_SMALL, TRACE, KERNEL, TABLES = range(8)
NOTES = (
    "programs that were laid out before it began to follow are not known",
    "what was allocated before it began to follow is not known",
    "its figures are taken in windows and may lag",
    "events that contradict each other were left out",
)
"""What the bits of a writer's notes say (``enum ttm_note``)."""
ACCOUNTING = ("total", "reserved", "cb", "buffer", "l1_small", "overlap", "free")


class Figures(dict[str, Any]):
    """A JSON object whose members can also be had as attributes."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        try:
            value = self[name]
        except KeyError:
            raise AttributeError(f"no figure is called {name!r}: there are {', '.join(self)}") from None
        return figures(value)


def figures(value: Any) -> Any:
    """Return JSON data with attribute access at every level."""
    if isinstance(value, dict) and not isinstance(value, Figures):
        return Figures(value)
    if isinstance(value, list):
        return [figures(item) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class Part:
    """What one writer published of a device.

    Attributes:
        reading: its block, taken out of the file.
        pid: of the writer, in the writer's pid namespace.
        process_name: of the writer.
        user: whom the file belongs to.
        state: ``live``, ``stale`` or ``unknown`` (cannot be judged from here).
    """

    reading: BlockReading
    pid: int
    process_name: str
    user: str
    state: str


def _sum(values: list[int | None]) -> int | None:
    return None if any(value is None for value in values) else sum(values)  # type: ignore[arg-type]


def _less(total: int | None, used: int | None) -> int | None:
    return None if total is None or used is None else total - used


class Snapshot:
    """An immutable picture of one device; its figures are attributes named as in the JSON.

    ``snapshot.memory.cb.physical_bytes`` is a number of bytes, or None where it is unknown. :attr:`cores` is a NumPy
    structured array, one row a core, int64 columns, -1 unknown (headroom: the lowest int64).
    """

    def __init__(self, parts: list[Part], *, taken_ns: int | None = None, last: "Snapshot | None" = None) -> None:
        self.taken_ns = time.time_ns() if taken_ns is None else taken_ns
        self._parts = sorted(parts, key=lambda part: part.reading.published_ns)
        self._live = [part for part in self._parts if part.state == "live"]
        self._last = last
        self._given: dict[str, Any] | None = None
        self._table: memoryview | None = None
        self._object: Figures | None = None
        self._geometry: dict[str, Any] | None = None

    @classmethod
    def of_dict(cls, device: dict[str, Any], *, taken_ns: int | None = None) -> "Snapshot":
        """Return a snapshot made of a device object: of TT-Metal's region, of a dump, of a recording."""
        snapshot = cls([], taken_ns=taken_ns)
        snapshot._given = device
        return snapshot

    # What stands in the JSON

    def to_dict(self, *, cores: bool = True) -> dict[str, Any]:
        """Return the device object of the JSON.

        Args:
            cores: whether to list the cores.
        """
        device = dict(self._figures())
        if cores:
            device["cores"] = self._core_objects()
        else:
            device.pop("cores", None)
        return device

    def warn(self, texts: Iterable[str]) -> None:
        """Add to `warnings` what only somebody who sees more than the writers can tell."""
        self._figures()["warnings"].extend(texts)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name == "grid":
            grid = self._figures()["grid"]
            return None if grid is None else CoreCoord(grid["x"], grid["y"])
        if name == "asic_id":
            text = self._figures()["asic_id"]
            return None if text is None else int(text, 16)
        return getattr(self._figures(), name)

    def __repr__(self) -> str:
        device = self._figures()
        return f"<ttmem.Snapshot of device {device['device_id']}, {device['state']}, source {device['source']}>"

    @property
    def cores(self) -> Any:
        """The figures per core: a structured array with the columns of :data:`CORE_FIELDS`; None if there are none."""
        # Not at the top: nothing else needs it, and it takes longer to import than all of ttmem.
        import numpy as np

        dtype = np.dtype([(name, np.int64) for name in CORE_FIELDS])
        if self._given is None:
            words = self._core_words()
            return np.frombuffer(words, dtype) if words else np.empty(0, dtype)
        rows = self._given.get("cores")
        if rows is None:
            return None
        table = np.full(len(rows), -1, dtype)
        for index, row in enumerate(rows):
            for name in CORE_FIELDS:
                unknown = UNKNOWN_HEADROOM if name == "headroom_bytes" else -1
                value = row.get(name)
                table[index][name] = unknown if value is None else value
        return table

    def core_map(self, x: int, y: int) -> dict[str, Any]:
        """Return the merged address ranges of a core over the living writers.

        Returns:
            ``cb_ranges`` and ``l1_ranges``, lists of [begin, end); None where they are not all known.
        """
        answer: dict[str, Any] = {}
        for index, name in enumerate(("cb_ranges", "l1_ranges")):
            lists = [part.reading.core_ranges(x, y)[index] for part in self._live]
            answer[name] = None if self._given is not None or any(found is None for found in lists) else _merged(lists)
        return answer

    def buffers(self) -> list[dict[str, Any]]:
        """Return the live buffers that the writers' tables hold, each with its pid; see :attr:`buffers_omitted`."""
        if self._given is not None:
            return list(self._given.get("buffers") or ())
        names = (
            "buffer_id",
            "buffer_type",
            "size_bytes",
            "address",
            "size_per_bank",
            "allocated_ns",
            "num_cores",
            "name",
        )
        return [
            {**dict(zip(names, row, strict=True)), "pid": part.pid}
            for part in self._live
            for row in part.reading.buffers()
        ]

    @property
    def buffers_omitted(self) -> int | None:
        """How many live buffers count in the totals and are not listed; None where no list is known."""
        if self._given is not None:
            return None if self._given.get("buffers") is None else self._given.get("buffers_omitted")
        tables = [part.reading.total(TABLES) for part in self._live]
        return _sum([None if words is None else words[4] for words in tables])

    # How it is put together

    def _figures(self) -> Figures:
        if self._given is not None:
            return Figures(self._given)
        if self._object is None:
            self._object = Figures(self._compose())
        return self._object

    def _known_geometry(self) -> dict[str, Any]:
        if self._geometry is None:
            self._geometry = self._join_geometry()
        return self._geometry

    def _join_geometry(self) -> dict[str, Any]:
        """Take each field from the oldest living writer that knows it; name those that say otherwise."""
        known: dict[str, Any] = dict.fromkeys(
            (
                "grid",
                "arch",
                "asic_id",
                "worker_l1_size",
                "l1_cb_base",
                "l1_small_size",
                "dram_size",
                "trace_region_size",
            )
        )
        told_by: dict[str, int] = {}
        warnings = []
        for part in self._live or self._parts:
            reading = part.reading
            said = {"grid": reading.grid, "arch": reading.arch, "asic_id": reading.asic_id, **reading.geometry}
            for name, value in said.items():
                if value is None:
                    continue
                if known[name] is None:
                    known[name], told_by[name] = value, part.pid
                elif known[name] != value:
                    warnings.append(
                        f"process {part.pid} says {name} is {value}, "
                        f"the older process {told_by[name]} says {known[name]}"
                    )
        known["warnings"] = warnings
        return known

    def _core_words(self) -> memoryview:
        """Return the table of cores as int64 words, :data:`CORE_WORDS` a core."""
        if self._table is None:
            self._table = memoryview(self._core_table()).toreadonly().cast("q")
        return self._table

    def _column(self, name: str) -> int | None:
        """Return the sum over the cores; None if that of one is unknown."""
        values = self._core_words()[CORE_FIELDS.index(name) :: CORE_WORDS].tolist()
        return None if any(value < 0 for value in values) else sum(values)

    def _core_table(self) -> bytearray:
        geometry = self._known_geometry()
        readings = [part.reading for part in self._live]
        grid = geometry["grid"]
        if grid is None:
            sizes = [reading.record_grid for reading in readings] or [(0, 0)]
            grid = (max(x for x, _ in sizes), max(y for _, y in sizes))
        # Cores that only a contradicting writer has still count; those that none has do not exist.
        width = max([grid[0], *(r.grid[0] for r in readings if r.grid)])
        height = max([grid[1], *(r.grid[1] for r in readings if r.grid)])
        table = bytearray(width * height * CORE_WORDS * 8)
        base, size, small = (geometry[name] for name in ("l1_cb_base", "worker_l1_size", "l1_small_size"))
        top = -1 if size is None or small is None else size - small
        core_table(readings, width, height, -1 if base is None else base, top, table)
        kept = None
        if any(r.grid != (width, height) for r in readings if r.grid):
            sizes = [grid, *(r.grid for r in readings if r.grid)]
            kept = [any(x < size[0] and y < size[1] for size in sizes) for y in range(height) for x in range(width)]
        if geometry["grid"] is None:
            # The grid is not known: list the cores on which anything ever was.
            words = memoryview(table).cast("q")
            logical, resident = (
                words[CORE_FIELDS.index(name) :: CORE_WORDS] for name in ("cb_logical_bytes", "cb_resident_bytes")
            )
            touched = [any(pair) for pair in zip(logical, resident, strict=True)]
            kept = touched if kept is None else [a and b for a, b in zip(kept, touched, strict=True)]
        if kept is None:
            return table
        row = 8 * CORE_WORDS
        return bytearray(b"".join(table[row * i : row * (i + 1)] for i, wanted in enumerate(kept) if wanted))

    def _core_objects(self) -> list[dict[str, Any]] | None:
        if self._given is not None:
            rows: list[dict[str, Any]] | None = self._given.get("cores")
            return rows
        values = self._core_words().tolist()
        return [
            {
                name: None if (value == UNKNOWN_HEADROOM if name == "headroom_bytes" else value == -1) else value
                for name, value in zip(CORE_FIELDS, values[start : start + CORE_WORDS], strict=True)
            }
            for start in range(0, len(values), CORE_WORDS)
        ]

    def _total(self, record: int, word: int) -> int | None:
        values = []
        for part in self._live:
            words = part.reading.total(record)
            values.append(None if words is None else words[word])
        return _sum(values)

    def _peak(self, record: int, what: str) -> dict[str, Any]:
        """Return a total's peak: how high, and when, by what and of how many; all but the first unknown where peaks add up."""
        highest = self._total(record, 3 if record == CB else 1)
        peak = self._live[0].reading.peak(record) if len(self._live) == 1 else None
        # Without one cut the record may be of another peak than the total.
        if peak is None or not peak[1] or peak[0] != highest:
            return {"peak_bytes": highest, "peak_at_ns": None, "peak_by": None, f"peak_{what}s": None}
        by = peak[4] or f"{what} {peak[2]}"
        return {"peak_bytes": highest, "peak_at_ns": peak[1], "peak_by": by, f"peak_{what}s": peak[3]}

    def _span(self) -> int | None:
        """Return how many bytes of a bank lie between the first and the last that L1_SMALL ever held; None if unknown."""
        lowest: list[int] = []
        ends: list[int] = []
        for part in self._live:
            words = part.reading.total(L1_SMALL)
            # Layout 1.0 has a peak, and no word of where it lay.
            if words is None or words[5] or (words[1] and not words[4]):
                return None
            if words[4]:
                lowest.append(words[3])
                ends.append(words[4])
        return max(ends) - min(lowest) if ends else 0

    def _physical(self) -> int | None:
        if len(self._live) == 1:
            return self._total(CB, 0)
        return self._column("cb_physical_bytes")

    def _compose(self) -> dict[str, Any]:
        if not self._parts and self._last is not None:
            return self._gone()
        geometry = self._known_geometry()
        grid, size, base, small = (geometry[n] for n in ("grid", "worker_l1_size", "l1_cb_base", "l1_small_size"))
        cores = None if grid is None else grid[0] * grid[1]

        def region(record: int, total: int | None) -> dict[str, int | None]:
            used = self._total(record, 0)
            return {
                "used_bytes": used,
                "total_bytes": total,
                "free_bytes": _less(total, used),
                **self._peak(record, "buffer"),
            }

        l1_total = None if None in (cores, size, base, small) else cores * (size - base - small)
        updated = [part.reading.updated_ns for part in self._live if part.reading.updated_ns]
        readings = [part.reading for part in self._live]
        asic_id = geometry["asic_id"]
        oldest = (self._live or self._parts)[0].reading
        programs, omitted = self._programs()
        origins = {part.reading.origin for part in self._live or self._parts}
        return {
            "device_id": oldest.device_id,
            "asic_id": None if asic_id is None else f"{asic_id:#x}",
            "arch": geometry["arch"],
            "source": "ttmem",
            "origin": "live" if "live" in origins else "replay",
            "state": self._state(),
            "grid": None if grid is None else {"x": grid[0], "y": grid[1]},
            "updated_ns": max(updated, default=None),
            "consistent": all(reading.consistent for reading in readings),
            "memory": {
                "dram": region(DRAM, geometry["dram_size"]),
                "l1": region(L1, l1_total),
                "l1_small": {
                    **region(L1_SMALL, None if cores is None or small is None else cores * small),
                    "peak_span_bytes": self._span(),
                },
                "trace": region(TRACE, geometry["trace_region_size"]),
                "cb": {
                    "physical_bytes": self._physical(),
                    "logical_bytes": self._total(CB, 1),
                    "resident_bytes": self._total(CB, 2),
                    **self._peak(CB, "program"),
                },
                # A capture tells nothing of kernels.
                "kernel": dict.fromkeys(("used_bytes", "persistent_bytes"))
                if origins == {"replay"}
                else {"used_bytes": self._total(KERNEL, 0), "persistent_bytes": self._total(KERNEL, 1)},
            },
            "l1_accounting": self._accounting(cores, size, base, small),
            "cores": None,
            "programs": programs,
            "programs_omitted": omitted,
            "processes": [_process(part) for part in self._parts],
            "warnings": [*geometry["warnings"], *self._warnings(omitted)],
        }

    def _state(self) -> str:
        if self._live:
            return "live"
        return "stale" if any(part.state == "stale" for part in self._parts) else "unreadable"

    def _accounting(self, cores: int | None, size: Any, base: Any, small: Any) -> dict[str, int | None]:
        if None in (cores, size, base, small):
            return {f"{name}_bytes": None for name in ACCOUNTING}
        assert cores is not None
        physical = self._physical()
        buffers, overlap = self._column("l1_used_bytes"), self._column("overlap_bytes")
        total, reserved, l1_small = cores * size, cores * base, cores * small
        free = None
        if physical is not None and buffers is not None and overlap is not None:
            free = total - reserved - physical - buffers - l1_small + overlap
        values = (total, reserved, physical, buffers, l1_small, overlap, free)
        return {f"{name}_bytes": value for name, value in zip(ACCOUNTING, values, strict=True)}

    def _programs(self) -> tuple[list[dict[str, Any]], int]:
        rows = []
        omitted = 0
        for part in self._live:
            tables = part.reading.total(TABLES)
            omitted += 0 if tables is None else tables[1]
            for program_id, name, cores, per_core, end, count, logical, cbs in part.reading.programs():
                rows.append(
                    (
                        -logical,
                        program_id,
                        {
                            "program_id": program_id,
                            "name": name,
                            "num_cores": cores,
                            "cb_bytes_per_core": per_core,
                            "cb_region_end": end,
                            "count": count,
                            "pid": part.pid,
                            "circular_buffers": None if cbs is None else [dict(cb) for cb in _circular_buffers(cbs)],
                        },
                    )
                )
        rows.sort(key=lambda row: row[:2])
        omitted += max(0, len(rows) - PROGRAMS_MAX)
        return [row[2] for row in rows[:PROGRAMS_MAX]], omitted

    def _warnings(self, omitted: int) -> Iterator[str]:
        for part in self._live:
            yield from (
                f"process {part.pid}: {text}" for bit, text in enumerate(NOTES) if part.reading.notes >> bit & 1
            )
            if part.reading.damaged:
                yield f"{part.reading.damaged} records of process {part.pid} match no checksum and are left out"
            if part.reading.dropped:
                yield f"process {part.pid} could not publish {part.reading.dropped} records: shared memory was full"
        if omitted:
            yield f"{omitted} programs are counted in the totals and not listed"
        if len(self._live) > 1:
            yield f"peaks are sums over {len(self._live)} processes: upper bounds, for they need not have coincided"
        unknown = [part.pid for part in self._parts if part.state == "unknown"]
        if unknown:
            yield f"whether processes {unknown} live cannot be told from here: they are in no total"

    def _gone(self) -> dict[str, Any]:
        """Return what is left of a device whose writers have all left: its geometry, and zeros."""
        assert self._last is not None
        before = self._last._figures()
        empty = {
            kind: {
                name: (0 if name in ("used_bytes", "persistent_bytes") or kind == "cb" else value)
                for name, value in record.items()
            }
            for kind, record in before["memory"].items()
        }
        for record in empty.values():
            if record.get("total_bytes") is not None:
                record["free_bytes"] = record["total_bytes"]
            if "peak_bytes" in record:
                record.update({name: None for name in record if name.startswith("peak_")}, peak_bytes=0)
        accounting = dict(before["l1_accounting"])
        if accounting["total_bytes"] is not None:
            for name in ("cb", "buffer", "overlap"):
                accounting[f"{name}_bytes"] = 0
            accounting["free_bytes"] = (
                accounting["total_bytes"] - accounting["reserved_bytes"] - accounting["l1_small_bytes"]
            )
        self._geometry = self._last._known_geometry()
        return {
            **before,
            "state": "stale",
            "updated_ns": None,
            "consistent": True,
            "memory": empty,
            "l1_accounting": accounting,
            "programs": [],
            "programs_omitted": 0,
            "processes": [],
            "warnings": ["no process publishes the device any more"],
        }


def _merged(lists: list[Any]) -> list[list[int]]:
    merged: list[list[int]] = []
    for begin, end in sorted(interval for found in lists for interval in found):
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    return merged


@lru_cache(maxsize=2048)
def _circular_buffers(packed: bytes) -> list[dict[str, Any]]:
    """Return the CBs of a program as objects: the same programs come at every reading, and on every chip of a mesh."""
    return [_circular_buffer(cb) for cb in cbs_of(packed)]


def _circular_buffer(cb: tuple[int, int, int, list[tuple[int, int, int, int]]]) -> dict[str, Any]:
    begin, end, kind, rectangles = cb
    return {
        "address": begin,
        "size": end - begin,
        "core_ranges": "{" + ", ".join(f"[{x}-{y} - {end_x}-{end_y}]" for x, y, end_x, end_y in rectangles) + "}",
        "kind": CB_KINDS[kind] if kind < len(CB_KINDS) else "unknown",
    }


def _process(part: Part) -> dict[str, Any]:
    def word(record: int, index: int = 0) -> int | None:
        words = part.reading.total(record)
        return None if words is None else words[index]

    return {
        "pid": part.pid,
        "name": part.process_name,
        "user": part.user,
        "state": part.state,
        "dram_bytes": word(DRAM),
        "l1_bytes": word(L1),
        "l1_small_bytes": word(L1_SMALL),
        "trace_bytes": word(TRACE),
        "cb_physical_bytes": word(CB),
        "kernel_bytes": None if part.reading.origin == "replay" else word(KERNEL),
    }


def whole(devices: list[dict[str, Any]], *, taken_ns: int) -> dict[str, Any]:
    """Return the JSON object around device objects."""
    import socket

    return {"schema": SCHEMA, "host": socket.gethostname(), "taken_ns": taken_ns, "devices": devices}
