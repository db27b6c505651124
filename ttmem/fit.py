"""Fit: whether circular buffers that do not exist yet would find room, and how large they may be.

Addresses are bytes of L1, intervals half-open, core ranges inclusive. Circular buffers are placed as TT-Metal does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ttmem.cores import CoreCoord, CoreRange, CoreRangeSet, as_core_range_set
from ttmem.errors import InvalidIntervalError
from ttmem.model import MAX_ADDRESS, CircularBuffer
from ttmem.placement import place, region_ends
from ttmem.units import parse_size

_PRODUCT = re.compile(r"(\d+)x(\d+)(?:x(\d+))?", re.IGNORECASE)
_CORNERS = re.compile(r"(\d+)[-,](\d+)(?::(\d+)[-,](\d+))?")


@dataclass(frozen=True, slots=True)
class CbSpec:
    """A circular buffer as a user writes it.

    Attributes:
        tiles: tiles (or pages) that one buffer of it holds; of a plain size, its bytes.
        tile_bytes: bytes of a tile; 1 of a plain size.
        buffers: how often it is buffered: 2 is double buffering.
        core_ranges: its cores.
    """

    tiles: int
    tile_bytes: int
    buffers: int
    core_ranges: CoreRangeSet

    @property
    def size(self) -> int:
        """Bytes on each core."""
        return self.tiles * self.tile_bytes * self.buffers

    def with_tiles(self, tiles: int) -> "CbSpec":
        """Return the same circular buffer with another number of tiles."""
        return CbSpec(tiles, self.tile_bytes, self.buffers, self.core_ranges)


def parse_cores(text: str) -> CoreRangeSet:
    """Return the cores that ``0-0:7-7`` names, both corners inclusive.

    Several rectangles are joined by ``+``, one core is ``3-4``; TT-Metal's text is taken too.

    Raises:
        ValueError: it is neither.
    """
    text = text.strip()
    if text[:1] in ("{", "["):
        return as_core_range_set(text)
    ranges = []
    for part in text.split("+"):
        match = _CORNERS.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"cannot read cores from {text!r}: expected two corners, as in 0-0:7-7")
        numbers = [int(number) for number in match.groups() if number is not None]
        ranges.append(CoreRange((numbers[0], numbers[1]), (numbers[-2], numbers[-1])))
    return CoreRangeSet(*ranges)


def parse_cb(text: str, cores: CoreRangeSet | None) -> CbSpec:
    """Return the circular buffer that ``TILESxTILE_BYTES[xBUFFERS][@CORES]`` or ``SIZE[@CORES]`` names.

    ``8x2048x2`` holds 8 tiles of 2048 bytes, double buffered: 32768 bytes on each core.

    Args:
        text: what the user wrote.
        cores: where it lies unless the text tells.

    Raises:
        ValueError: the text names none, or no cores are told.
    """
    body, at, where = text.partition("@")
    core_ranges = parse_cores(where) if at else cores
    if core_ranges is None or not core_ranges.ranges:
        raise ValueError(f"no cores are told for {text!r}: give --cores 0-0:7-7, or {body}@0-0:7-7")
    match = _PRODUCT.fullmatch(body.strip())
    if match is not None:
        tiles, tile_bytes, buffers = int(match[1]), int(match[2]), int(match[3] or 1)
    else:
        try:
            tiles, tile_bytes, buffers = parse_size(body), 1, 1
        except ValueError:
            raise ValueError(
                f"cannot read a circular buffer from {text!r}: expected tiles x bytes of a tile x buffers, as in "
                "8x2048x2, or a size, as in 64KiB"
            ) from None
    if min(tiles, tile_bytes, buffers) <= 0:
        raise ValueError(f"a circular buffer needs at least one tile of one byte, got {text!r}")
    spec = CbSpec(tiles, tile_bytes, buffers, core_ranges)
    if spec.size > MAX_ADDRESS:
        raise ValueError(f"{text!r} has {spec.size} bytes, more than any L1")
    return spec


@dataclass(frozen=True, slots=True)
class Room:
    """What there is to lay circular buffers in.

    Attributes:
        base: the first address that they may take.
        alignment: in bytes.
        top: the end of the region that L1 buffers may take; None is unknown.
        grid: the number of cores in x and y; None is unknown.
        lowest: the lowest live L1 buffer by core (x, y); a core without an entry has none.
        lowest_everywhere: the lowest live L1 buffer on every core; None if there is none.
        device_id: of the device it is; None for one that is only thought of.
    """

    base: int
    alignment: int
    top: int | None
    grid: tuple[int, int] | None = None
    lowest: Mapping[tuple[int, int], int] = field(default_factory=dict)
    lowest_everywhere: int | None = None
    device_id: int | None = None

    def limit(self, core: CoreCoord, taken: int) -> int | None:
        """Return the address that circular buffers on a core must not exceed; None if it is unknown.

        Args:
            core: the core.
            taken: bytes of L1 buffers on each core that are still to come.
        """
        known = [
            address
            for address in (self.top, self.lowest_everywhere, self.lowest.get((core.x, core.y)))
            if address is not None
        ]
        return min(known) - taken if known else None


@dataclass(frozen=True, slots=True)
class RangeFit:
    """The circular buffers on one rectangle of cores.

    Attributes:
        core_range: the rectangle.
        cb_region_end: where they end.
        limit: what they must not exceed, on the core with the least room; None is unknown.
        binding_core: that core; None if all are alike.
        outside: whether the rectangle leaves the grid.
    """

    core_range: CoreRange
    cb_region_end: int
    limit: int | None
    binding_core: CoreCoord | None
    outside: bool

    @property
    def headroom_bytes(self) -> int | None:
        """Bytes left; negative where they do not fit."""
        return None if self.limit is None else self.limit - self.cb_region_end

    @property
    def fits(self) -> bool:
        """Whether there is room; True where it is not known."""
        return not self.outside and (self.headroom_bytes is None or self.headroom_bytes >= 0)


@dataclass(frozen=True, slots=True)
class Fit:
    """The answer.

    Attributes:
        room: what there is.
        specs: what was asked for.
        addresses: where each circular buffer would lie.
        ranges: one entry for each distinct rectangle.
        largest: for each circular buffer the most tiles it may have while the others stay; None is unknown.
    """

    room: Room
    specs: tuple[CbSpec, ...]
    addresses: tuple[int, ...]
    ranges: tuple[RangeFit, ...]
    largest: tuple[int | None, ...]

    @property
    def fits(self) -> bool:
        """Whether all of it fits."""
        return all(found.fits for found in self.ranges)

    @property
    def known(self) -> bool:
        """Whether every limit is known."""
        return all(found.limit is not None for found in self.ranges)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "device_id": self.room.device_id,
            "fits": self.fits if self.known or not self.fits else None,
            "l1_cb_base": self.room.base,
            "ranges": [
                {
                    "core_range": str(found.core_range),
                    "fits": found.fits if found.limit is not None or found.outside else None,
                    "cb_region_end": found.cb_region_end,
                    "limit": found.limit,
                    "headroom_bytes": found.headroom_bytes,
                    "outside_grid": found.outside,
                    "binding_core": None
                    if found.binding_core is None
                    else {"x": found.binding_core.x, "y": found.binding_core.y},
                }
                for found in self.ranges
            ],
            "circular_buffers": [
                {
                    "address": address,
                    "size_bytes": spec.size,
                    "core_ranges": str(spec.core_ranges),
                    "tiles": None if spec.tile_bytes == 1 else spec.tiles,
                    "largest_tiles": None if spec.tile_bytes == 1 else largest,
                    "largest_size_bytes": None if largest is None else spec.with_tiles(largest).size,
                }
                for spec, address, largest in zip(self.specs, self.addresses, self.largest, strict=True)
            ],
        }


def fit(specs: Sequence[CbSpec], room: Room, *, taken: int = 0) -> Fit:
    """Tell whether circular buffers fit, laid out in this order as one program.

    Args:
        specs: the circular buffers.
        room: what there is.
        taken: bytes of L1 buffers on each core that are still to come.

    Raises:
        InvalidIntervalError: they end beyond the largest address that ttmem accepts.
        ValueError: there are none.
    """
    if not specs:
        raise ValueError("at least one circular buffer is needed")
    placed = _placed(specs, room)
    limits = {core_range: _limit(core_range, room, taken) for core_range in region_ends(placed)}
    ranges = tuple(
        RangeFit(core_range, end, *limits[core_range], outside=_outside(core_range, room))
        for core_range, end in region_ends(placed).items()
    )
    known = all(limit is not None for limit, _ in limits.values())
    largest = tuple(_largest(specs, index, room, limits) if known else None for index in range(len(specs)))
    return Fit(room, tuple(specs), tuple(cb.address or 0 for cb in placed), ranges, largest)


def _placed(specs: Sequence[CbSpec], room: Room) -> list[CircularBuffer]:
    return place(
        [CircularBuffer(None, spec.size, spec.core_ranges) for spec in specs], base=room.base, alignment=room.alignment
    )


def _outside(core_range: CoreRange, room: Room) -> bool:
    return room.grid is not None and (core_range.end.x >= room.grid[0] or core_range.end.y >= room.grid[1])


def _limit(core_range: CoreRange, room: Room, taken: int) -> tuple[int | None, CoreCoord | None]:
    """Return the lowest limit on a rectangle and the core that has it, None for the core if all are alike."""
    limits = [(limit, core) for core in core_range for limit in (room.limit(core, taken),) if limit is not None]
    if not limits:
        return None, None
    lowest, core = min(limits)
    return lowest, None if all(limit == lowest for limit, _ in limits) else core


def _largest(
    specs: Sequence[CbSpec], index: int, room: Room, limits: Mapping[CoreRange, tuple[int | None, CoreCoord | None]]
) -> int:
    """Return the most tiles that one circular buffer may have, 0 if not even one fits."""

    def fits(tiles: int) -> bool:
        changed = [spec.with_tiles(tiles) if i == index else spec for i, spec in enumerate(specs)]
        try:
            ends = region_ends(_placed(changed, room))
        except InvalidIntervalError:
            return False
        return all(end <= (limits[core_range][0] or 0) for core_range, end in ends.items())

    spec = specs[index]
    if not fits(0):
        return 0
    low, high = 0, max(limit or 0 for limit, _ in limits.values()) // (spec.tile_bytes * spec.buffers) + 1
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
