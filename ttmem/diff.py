"""Diff: what changed between two dumps, by device, type, program, process and buffer; sizes are bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ttmem.dumps import Dump

FIGURES = {
    "dram": "used_bytes",
    "l1": "used_bytes",
    "l1_small": "used_bytes",
    "trace": "used_bytes",
    "cb": "physical_bytes",
    "kernel": "used_bytes",
}
"""What is compared of each kind of memory."""
LEAKING = ("dram", "l1", "l1_small", "trace")
"""The kinds in which growth may be a leak: CBs and kernels belong to programs, which their cache keeps on purpose."""
OLDEST = 10
"""How many of the oldest live buffers are listed for each device."""
_PROCESS_FIGURES = (
    "dram_bytes",
    "l1_bytes",
    "l1_small_bytes",
    "trace_bytes",
    "cb_physical_bytes",
    "kernel_bytes",
)
_TYPE_OF = {"dram": "DRAM", "l1": "L1", "l1_small": "L1_SMALL", "trace": "TRACE"}


@dataclass(frozen=True, slots=True)
class Change:
    """A figure before and after; None is unknown.

    Attributes:
        before: bytes, or a number of things.
        after: the same, later.
    """

    before: int | None
    after: int | None

    @property
    def delta(self) -> int | None:
        """What was added; None where either is unknown."""
        return None if self.before is None or self.after is None else self.after - self.before

    def to_dict(self) -> dict[str, int | None]:
        """Return it as JSON has it."""
        return {"before": self.before, "after": self.after, "delta": self.delta}


@dataclass(frozen=True, slots=True)
class Row:
    """A program, process or group of buffers that changed.

    Attributes:
        key: what names it, by field.
        changes: what changed, by field.
    """

    key: Mapping[str, Any]
    changes: Mapping[str, Change]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {**self.key, **{name: change.to_dict() for name, change in self.changes.items()}}


@dataclass(frozen=True, slots=True)
class DeviceDiff:
    """What changed on one device.

    Attributes:
        device_id: its logical id.
        asic_id: its chip, or None.
        presence: ``both``, ``a`` or ``b``.
        memory: by kind; every kind is listed.
        programs: those whose number in the cache changed; None where a side does not tell.
        cached: how many programs the cache held; None where a side does not tell.
        processes: those that came, went or changed.
        buffers: groups of one name and type whose bytes or number changed; None where a side does not tell.
        oldest: the oldest live buffers of B, with their age in ns.
    """

    device_id: int | None
    asic_id: str | None
    presence: str
    memory: Mapping[str, Change]
    programs: Sequence[Row] | None
    cached: Change
    processes: Sequence[Row]
    buffers: Sequence[Row] | None
    oldest: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    @property
    def leaks(self) -> dict[str, int]:
        """Bytes that are held in B and were not in A, by kind of memory."""
        return {
            kind: delta for kind in LEAKING for delta in (self.memory[kind].delta,) if delta is not None and delta > 0
        }

    @property
    def program_cache_growth(self) -> int | None:
        """Physical CB bytes that the program cache added; None where either is unknown."""
        return self.memory["cb"].delta

    def culprits(self, kind: str) -> list[Row]:
        """Return the groups of buffers of a kind that grew, the largest growth first."""
        grown = [
            row
            for row in self.buffers or ()
            if row.key["buffer_type"] == _TYPE_OF[kind] and (row.changes["size_bytes"].delta or 0) > 0
        ]
        return sorted(grown, key=lambda row: -(row.changes["size_bytes"].delta or 0))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "device_id": self.device_id,
            "asic_id": self.asic_id,
            "presence": self.presence,
            "memory": {kind: change.to_dict() for kind, change in self.memory.items()},
            "leaks": [
                {"type": kind, "bytes": size, "buffers": [row.to_dict() for row in self.culprits(kind)]}
                for kind, size in self.leaks.items()
            ],
            "program_cache": {
                "programs": self.cached.to_dict(),
                "cb_growth_bytes": self.program_cache_growth,
                "changed": None if self.programs is None else [row.to_dict() for row in self.programs],
            },
            "processes": [row.to_dict() for row in self.processes],
            "buffers": None if self.buffers is None else [row.to_dict() for row in self.buffers],
            "oldest_buffers": list(self.oldest),
        }


def diff(a: Dump, b: Dump) -> list[DeviceDiff]:
    """Return what changed from A to B, for every device of either.

    Devices are the same where their ``asic_id`` is, else, where a side does not tell it, their ``device_id``.
    """
    pairs: list[tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]] = []
    left = list(b.devices)
    for old in a.devices:
        new = next((d for d in left if _same(old, d)), None)
        if new is not None:
            left.remove(new)
        pairs.append((old, new))
    pairs += [(None, new) for new in left]
    return [_device(old, new, b.taken_ns) for old, new in pairs]


def _same(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    chips = old.get("asic_id"), new.get("asic_id")
    if None not in chips:
        return chips[0] == chips[1]
    return old.get("device_id") is not None and old.get("device_id") == new.get("device_id")


def _device(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None, taken_ns: int | None) -> DeviceDiff:
    one = new if new is not None else old
    assert one is not None
    memory = {kind: Change(_figure(old, kind, name), _figure(new, kind, name)) for kind, name in FIGURES.items()}
    before, after = _rows(old, "programs"), _rows(new, "programs")
    programs: list[Row] | None = None
    cached = Change(None, None)
    if before is not None and after is not None:
        counts = [_counts(before), _counts(after)]
        programs = _changed(
            counts[0], counts[1], ("name", "num_cores", "cb_bytes_per_core", "cb_region_end"), ("count",)
        )
        omitted = [(device or {}).get("programs_omitted") or 0 for device in (old, new)]
        cached = Change(*(sum(n for (n,) in c.values()) + o for c, o in zip(counts, omitted, strict=True)))
    were, are = _rows(old, "processes") or (), _rows(new, "processes") or ()
    states = [{(row.get("pid"), row.get("name")): row.get("state") for row in rows} for rows in (were, are)]
    held, holds = _rows(old, "buffers"), _rows(new, "buffers")
    buffers = None
    if held is not None and holds is not None:
        buffers = _changed(_groups(held), _groups(holds), ("buffer_type", "name"), ("count", "size_bytes"))
    return DeviceDiff(
        one.get("device_id"),
        one.get("asic_id"),
        "both" if old is not None and new is not None else "a" if old is not None else "b",
        memory,
        programs,
        cached,
        _changed(_processes(were), _processes(are), ("pid", "name"), _PROCESS_FIGURES, states),
        buffers,
        _oldest(holds or (), taken_ns),
    )


def _figure(device: Mapping[str, Any] | None, kind: str, name: str) -> int | None:
    # A device that is not there uses nothing.
    if device is None:
        return 0
    value = ((device.get("memory") or {}).get(kind) or {}).get(name)
    return value if isinstance(value, int) else None


def _rows(device: Mapping[str, Any] | None, name: str) -> Sequence[Mapping[str, Any]] | None:
    return () if device is None else device.get(name)


def _counts(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], tuple[int, ...]]:
    counts: dict[tuple[Any, ...], tuple[int, ...]] = {}
    for row in rows:
        key = (row.get("name"), row.get("num_cores"), row.get("cb_bytes_per_core"), row.get("cb_region_end"))
        counts[key] = (counts.get(key, (0,))[0] + (row.get("count") or 1),)
    return counts


def _processes(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], tuple[int | None, ...]]:
    return {(row.get("pid"), row.get("name")): tuple(row.get(name) for name in _PROCESS_FIGURES) for row in rows}


def _groups(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], tuple[int, ...]]:
    groups: dict[tuple[Any, ...], tuple[int, ...]] = {}
    for row in rows:
        key = (row.get("buffer_type"), row.get("name") or "")
        count, size = groups.get(key, (0, 0))
        groups[key] = (count + 1, size + (row.get("size_bytes") or 0))
    return groups


def _changed(
    old: Mapping[tuple[Any, ...], tuple[int | None, ...]],
    new: Mapping[tuple[Any, ...], tuple[int | None, ...]],
    keys: Sequence[str],
    names: Sequence[str],
    states: Sequence[Mapping[tuple[Any, ...], Any]] = (),
) -> list[Row]:
    """Return what differs between two tables, the largest growth of the last field first.

    Args:
        old: values by key.
        new: the same, later.
        keys: the names of a key's fields.
        names: the names of the values.
        states: what each key was in, before and later; without it none is told.
    """
    zero = (0,) * len(names)
    rows = []
    for key in dict.fromkeys((*old, *new)):
        before, after = old.get(key, zero), new.get(key, zero)
        found = [table.get(key) for table in states]
        if before == after and len(set(found)) < 2:
            continue
        named = dict(zip(keys, key, strict=True))
        named.update(zip(("state_before", "state_after"), found, strict=False))
        changes = {n: Change(b, a) for n, b, a in zip(names, before, after, strict=True)}
        rows.append(Row(named, changes))
    return sorted(rows, key=lambda row: -(row.changes[names[-1]].delta or 0))


def _oldest(rows: Iterable[Mapping[str, Any]], taken_ns: int | None) -> list[dict[str, Any]]:
    """Return the buffers that have been live for longest, with their age in ns where the clock is known."""
    # The clock of the stamps ticks every few milliseconds; ids ascend within a process.
    dated = sorted(
        (row for row in rows if row.get("allocated_ns")),
        key=lambda row: (row["allocated_ns"], row.get("buffer_id") or 0),
    )
    return [
        {
            "buffer_type": row.get("buffer_type"),
            "name": row.get("name") or "",
            "size_bytes": row.get("size_bytes"),
            "pid": row.get("pid"),
            "age_ns": None if taken_ns is None else max(0, taken_ns - row["allocated_ns"]),
        }
        for row in dated[:OLDEST]
    ]
