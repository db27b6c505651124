"""Lockstep: whether devices that run the same program hold the same, and by what an outlier differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_MEMORY = (
    ("dram", "used_bytes"),
    ("l1", "used_bytes"),
    ("l1_small", "used_bytes"),
    ("trace", "used_bytes"),
    ("cb", "physical_bytes"),
    ("cb", "logical_bytes"),
    ("cb", "resident_bytes"),
    ("kernel", "used_bytes"),
)
_CORE = ("cb_physical_bytes", "cb_resident_bytes", "cb_region_end", "l1_used_bytes", "l1_lowest_address")


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure in which a device differs from most.

    Attributes:
        name: the figure's path in the JSON, of ``programs`` and ``cores`` with what it is about.
        value: on this device; None is unknown.
        expected: on most devices.
        holders: on how many it is that.
    """

    name: str
    value: int | None
    expected: int | None
    holders: int = field(default=0, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {"field": self.name, "value": self.value, "expected": self.expected}


@dataclass(frozen=True, slots=True)
class Outlier:
    """A device that is out of step.

    Attributes:
        device_id: its logical id.
        asic_id: its chip, or None.
        differences: memory first, then programs, then cores.
    """

    device_id: int | None
    asic_id: str | None
    differences: tuple[Difference, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "device_id": self.device_id,
            "asic_id": self.asic_id,
            "differences": [difference.to_dict() for difference in self.differences],
        }


def outliers(devices: Sequence[Mapping[str, Any]]) -> list[Outlier]:
    """Return the devices that differ from most of the others.

    What most devices show is taken figure by figure; among equally many the device that comes first decides.

    Args:
        devices: device objects of the JSON that should hold the same; those without cores are compared without.
    """
    tables = [_figures(device) for device in devices]
    names = dict.fromkeys(name for table in tables for name in table)
    for table, device in zip(tables, devices, strict=True):
        if device.get("programs") is not None:
            # A program that is on no row is in no cache.
            for name in names:
                if isinstance(name, tuple) and name[0] == "program":
                    table.setdefault(name, 0)
    expected = {name: Counter(table.get(name) for table in tables).most_common(1)[0] for name in names}
    found = []
    for device, table in zip(devices, tables, strict=True):
        differences = tuple(
            Difference(_label(name), table.get(name), value, holders)
            for name, (value, holders) in expected.items()
            if table.get(name) != value
        )
        if differences:
            found.append(Outlier(device.get("device_id"), device.get("asic_id"), differences))
    return found


def _figures(device: Mapping[str, Any]) -> dict[Hashable, int | None]:
    memory = device.get("memory") or {}
    table: dict[Hashable, int | None] = {
        f"memory.{kind}.{name}": (memory.get(kind) or {}).get(name) for kind, name in _MEMORY
    }
    programs: Counter[tuple[Any, ...]] = Counter()
    for row in device.get("programs") or ():
        programs[str(row.get("name")), row.get("num_cores"), row.get("cb_bytes_per_core")] += row.get("count") or 1
    table.update({("program", *key): count for key, count in programs.items()})
    for row in device.get("cores") or ():
        table.update({("core", row["x"], row["y"], name): row.get(name) for name in _CORE})
    return table


def _label(name: Hashable) -> str:
    if not isinstance(name, tuple):
        return str(name)
    if name[0] == "program":
        return f"programs: {name[1]} on {name[2]} cores, {name[3]} bytes per core"
    return f"core {name[1]},{name[2]}: {name[3]}"


def lasting(before: Sequence[Outlier], after: Sequence[Outlier]) -> list[Outlier]:
    """Return those outliers of ``after`` that differed in the same figures and values before.

    Devices are never read at one instant: what they are only on the way to is gone at the next look.
    """
    held = {
        (old.device_id, old.asic_id, difference.name, difference.value)
        for old in before
        for difference in old.differences
    }
    found = []
    for new in after:
        kept = tuple(d for d in new.differences if (new.device_id, new.asic_id, d.name, d.value) in held)
        if kept:
            found.append(Outlier(new.device_id, new.asic_id, kept))
    return found
