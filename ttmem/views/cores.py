"""The cores of a device object: which there are, what is known of each, and the fixed addresses of their L1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ttmem.views.notes import get
from ttmem.views.text import Device

METRICS = {
    "cb_physical": ("cb_physical_bytes", "physical CB of each core"),
    "cb_resident": ("cb_resident_bytes", "resident CB of each core"),
    "cb_peak": ("cb_peak_bytes", "peak of the physical CB of each core since publish"),
    "cb_logical": ("cb_logical_bytes", "logical CB of each core"),
    "l1_used": ("l1_used_bytes", "L1 buffers of each core"),
    "headroom": ("headroom_bytes", "headroom of each core: lowest L1 buffer (else top) minus CB region end"),
}
"""Figures that a heat map can show: the JSON name and a title."""


def cores_of(device: Device) -> dict[tuple[int, int], Mapping[str, Any]]:
    """Return the listed cores of a device by (x, y)."""
    return {(core["x"], core["y"]): core for core in device.get("cores") or ()}


def grid_of(device: Device) -> tuple[int, int, int, int] | None:
    """Return (first x, first y, last x, last y) of the grid, or the box around the listed cores where it is unknown."""
    grid = device.get("grid")
    if grid:
        return 0, 0, grid["x"] - 1, grid["y"] - 1
    cores = cores_of(device)
    if not cores:
        return None
    xs, ys = [x for x, _ in cores], [y for _, y in cores]
    return min(xs), min(ys), max(xs), max(ys)


@dataclass(frozen=True, slots=True)
class CoreLayout:
    """The fixed addresses of a core's L1 in bytes; None is unknown.

    Attributes:
        size: the end of L1.
        base: where CBs may begin; below it lies what is reserved.
        small: the size of the L1_SMALL region at the top.
    """

    size: int | None
    base: int | None
    small: int | None


def layout_of(device: Device) -> CoreLayout:
    """Return a core's addresses, from the account of all cores."""
    grid = device.get("grid")
    count = grid["x"] * grid["y"] if grid else len(device.get("cores") or ())

    def each(name: str) -> int | None:
        total = get(device, f"l1_accounting.{name}_bytes")
        return total // count if total is not None and count and total % count == 0 else None

    return CoreLayout(each("total"), each("reserved"), each("l1_small"))
