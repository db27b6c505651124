"""Fragments: how L1 and DRAM are cut up by buffers, and what size the regions set aside would have needed.

Addresses are bytes of one bank, intervals half-open. TT-Metal allocates in lockstep: a hole is the same on all banks, so
that one bank stands for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ttmem.dumps import cb_base_of, l1_limits_of
from ttmem.mesh import CaptureSink
from ttmem.model import BufferType

MARGIN = 0.1
"""What a suggestion adds to what was needed, unless told."""
DRAM_BANK_BYTES = {"grayskull": 2**30, "wormhole_b0": 2**30, "blackhole": 2**32 - 2**24}
"""The size of a bank of DRAM, as TT-Metal's descriptions of the chips have it."""


@dataclass(frozen=True, slots=True)
class Fragments:
    """The region of one bank that buffers may take, and what is free in it.

    Attributes:
        begin: the first byte of the region.
        end: the end of the region.
        used_bytes: bytes that buffers cover.
        holes: the free intervals, by address.
    """

    begin: int
    end: int
    used_bytes: int
    holes: tuple[tuple[int, int], ...]

    @property
    def free_bytes(self) -> int:
        """Bytes that nothing covers."""
        return sum(end - begin for begin, end in self.holes)

    @property
    def largest_free_bytes(self) -> int:
        """The largest buffer that fits, bytes per bank."""
        return max((end - begin for begin, end in self.holes), default=0)

    @property
    def index(self) -> float:
        """What part of the free bytes the largest hole leaves out: 0 is one hole, near 1 is dust."""
        return 1 - self.largest_free_bytes / self.free_bytes if self.free_bytes else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "begin": self.begin,
            "end": self.end,
            "used_bytes": self.used_bytes,
            "free_bytes": self.free_bytes,
            "largest_free_bytes": self.largest_free_bytes,
            "free_segments": len(self.holes),
            "fragmentation": round(self.index, 6),
            "holes": [{"begin": begin, "end": end} for begin, end in self.holes],
        }


def fragments(intervals: Iterable[tuple[int, int]], *, begin: int, end: int) -> Fragments:
    """Return what intervals leave free between ``begin`` and ``end``; they may overlap and reach out of it."""
    holes = []
    at, used = begin, 0
    for low, high in sorted((max(begin, low), min(end, high)) for low, high in intervals):
        if high <= low:
            continue
        if low > at:
            holes.append((at, low))
        used += max(0, high - max(at, low))
        at = max(at, high)
    if at < end:
        holes.append((at, end))
    return Fragments(begin, end, used, tuple(holes))


def fragments_of(device: Mapping[str, Any]) -> Fragments | None:
    """Return how the L1 of a device is cut up; None where its geometry or its live buffers are not known.

    Args:
        device: a device object with ``buffers``, as ``record`` and a live reading have them.
    """
    base, (top, _), intervals = cb_base_of(device), l1_limits_of(device), _intervals(device, "L1")
    return None if base is None or top is None or intervals is None else fragments(intervals, begin=base, end=top)


def _intervals(device: Mapping[str, Any], buffer_type: str) -> list[tuple[int, int]] | None:
    """Return where the live buffers of a type lie in each bank; None if that is not known of all of them."""
    if device.get("buffers") is None or device.get("buffers_omitted"):
        return None
    held = [row for row in device["buffers"] if row.get("buffer_type") in (buffer_type, BufferType[buffer_type])]
    if any(row.get("address") is None or row.get("size_per_bank") is None for row in held):
        return None
    return [(row["address"], row["address"] + row["size_per_bank"]) for row in held]


@dataclass(frozen=True, slots=True)
class Release:
    """Buffers that lie side by side, and the hole that there is once they are freed.

    Attributes:
        rows: the buffers, by address.
        freed_bytes: bytes of a bank that they cover.
        hole_bytes: bytes of a bank that are then free in one piece.
    """

    rows: tuple[Mapping[str, Any], ...]
    freed_bytes: int
    hole_bytes: int


def smallest_release(rows: Iterable[Mapping[str, Any]], *, begin: int, end: int, needed_bytes: int) -> Release | None:
    """Return the fewest bytes that make a hole large enough when they are freed; None if the region is too small.

    Args:
        rows: the live buffers of a bank, each with ``address`` and ``size_per_bank``.
        begin: where the bank's region begins.
        end: where it ends.
        needed_bytes: of the hole.
    """
    held = sorted(
        (row for row in rows if row["size_per_bank"] and begin <= row["address"] < end), key=lambda row: row["address"]
    )
    best: Release | None = None
    first = freed = 0
    for last, row in enumerate(held):
        freed += row["size_per_bank"]
        high = held[last + 1]["address"] if last + 1 < len(held) else end
        while first <= last:
            low = held[first - 1]["address"] + held[first - 1]["size_per_bank"] if first else begin
            if high - low < needed_bytes:
                break
            if best is None or freed < best.freed_bytes:
                best = Release(tuple(held[first : last + 1]), freed, high - low)
            freed -= held[first]["size_per_bank"]
            first += 1
    return best


@dataclass(frozen=True, slots=True)
class DramFragments:
    """One bank of DRAM, as far as it is known.

    Attributes:
        pieces: what is free between ``pieces.begin`` and ``pieces.end``.
        num_banks: how many banks there are; None if neither the architecture nor anybody tells.
        begin_known: False: it begins at the lowest live buffer, as what lies below it is not known.
        end_known: False: it ends at the highest live buffer, and what is free above is not known.
    """

    pieces: Fragments
    num_banks: int | None
    begin_known: bool
    end_known: bool

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it: without its end, the free bytes are those between buffers, and so named."""
        found = self.pieces.to_dict()
        if not self.end_known:
            found.update(dict.fromkeys(("end", "free_bytes", "largest_free_bytes", "fragmentation")))
            found["free_between_bytes"] = self.pieces.free_bytes
        return {**found, "num_banks": self.num_banks, "begin_known": self.begin_known, "end_known": self.end_known}


def dram_fragments_of(
    device: Mapping[str, Any], *, num_banks: int | None = None, bank_bytes: int | None = None
) -> DramFragments | None:
    """Return how the DRAM of a device is cut up; None where its live buffers are not all known.

    The number of banks follows from the architecture and the size of DRAM. That is the whole of it, or what TT-Metal
    lets buffers take (``ttmem.ttnn.track`` publishes this): then the rest of a bank lies below, where TT-Metal keeps it.

    Args:
        device: a device object with ``buffers``.
        num_banks: told by somebody who knows.
        bank_bytes: of a whole bank, told by somebody who knows.
    """
    intervals = _intervals(device, "DRAM")
    if intervals is None:
        return None
    memory = device.get("memory") or {}
    total, trace = (memory.get(kind, {}).get("total_bytes") for kind in ("dram", "trace"))
    num_banks, bank = _banks(device, num_banks, bank_bytes)
    lowest, highest = min(intervals, default=(0, 0))[0], max((end for _, end in intervals), default=0)
    if not num_banks or not bank or not total or total % num_banks or total // num_banks > bank:
        return DramFragments(fragments(intervals, begin=lowest, end=highest), num_banks, False, False)
    # Traces have a region of their own, at the top.
    end = bank - (trace or 0) // num_banks
    usable = total // num_banks
    if usable == bank:
        return DramFragments(fragments(intervals, begin=lowest, end=end), num_banks, False, True)
    return DramFragments(fragments(intervals, begin=end - usable, end=end), num_banks, True, True)


def _banks(device: Mapping[str, Any], num_banks: int | None, bank_bytes: int | None) -> tuple[int | None, int | None]:
    """Return the number of DRAM's banks and the bytes of one, as told, else as the architecture has them."""
    bank = DRAM_BANK_BYTES.get(str(device.get("arch"))) if bank_bytes is None else bank_bytes
    total = ((device.get("memory") or {}).get("dram") or {}).get("total_bytes")
    if num_banks is None and bank and total:
        num_banks = -(-total // bank)
    return num_banks, bank


@dataclass(slots=True)
class _Region:
    """The live buffers of a type on one chip, and the most there was."""

    live: dict[int, tuple[int | None, int | None, int]] = field(default_factory=dict)
    bytes_now: int = 0
    bank_now: int = 0
    bytes_peak: int = 0
    bank_peak: int = 0
    lowest: int | None = None
    highest: int | None = None
    unknown: bool = False


class RegionWatch(CaptureSink):
    """Takes the buffers of a capture and keeps what L1_SMALL and TRACE needed."""

    def __init__(self) -> None:
        self.regions: dict[tuple[int, BufferType], _Region] = {}

    def allocate(
        self,
        chip: int,
        key: int,
        buffer_type: BufferType,
        size: int,
        address: int | None,
        size_per_bank: int | None,
        name: str,
    ) -> None:
        """Take a buffer."""
        if buffer_type not in (BufferType.L1_SMALL, BufferType.TRACE):
            return
        region = self.regions.setdefault((chip, buffer_type), _Region())
        region.live[key] = (address, size_per_bank, size)
        region.bytes_now += size
        region.bytes_peak = max(region.bytes_peak, region.bytes_now)
        region.bank_now += size_per_bank or 0
        region.bank_peak = max(region.bank_peak, region.bank_now)
        if address is None or size_per_bank is None:
            region.unknown = True
            return
        region.lowest = address if region.lowest is None else min(region.lowest, address)
        region.highest = max(region.highest or 0, address + size_per_bank)

    def free(self, chip: int, key: int) -> None:
        """Take a buffer away."""
        for buffer_type in (BufferType.L1_SMALL, BufferType.TRACE):
            region = self.regions.get((chip, buffer_type))
            if region is not None and key in region.live:
                _, size_per_bank, size = region.live.pop(key)
                region.bytes_now -= size
                region.bank_now -= size_per_bank or 0


@dataclass(frozen=True, slots=True)
class Suggestion:
    """The size that a region set aside should have.

    Attributes:
        option: ``l1_small_size`` or ``trace_region_size``, as opening a device takes it.
        needed_bytes: the least that what ran would have needed: per bank for L1_SMALL; for traces the sum of their
            buffers, which TT-Metal holds against the option.
        configured_bytes: what the option was, None if it is not known.
        exact: False where the figure is a lower bound: how buffers lay in a bank is not known, and no size is suggested.
    """

    option: str
    needed_bytes: int
    configured_bytes: int | None
    exact: bool

    def suggested_bytes(self, margin: float = MARGIN) -> int | None:
        """Return what to set the option to, with a margin and rounded up as regions are aligned; None if it is not known.

        Args:
            margin: what to add, as a part of what was needed.
        """
        return _aligned(self.needed_bytes + math.ceil(self.needed_bytes * margin)) if self.exact else None

    def to_dict(self, margin: float = MARGIN) -> dict[str, Any]:
        """Return it as JSON has it.

        Args:
            margin: as of :meth:`suggested_bytes`.
        """
        return {
            "option": self.option,
            "suggested_bytes": self.suggested_bytes(margin),
            "needed_bytes": self.needed_bytes,
            "configured_bytes": self.configured_bytes,
            "exact": self.exact,
        }


def suggest_of_device(device: Mapping[str, Any]) -> list[Suggestion]:
    """Return what the peaks of a device say of the sizes of its regions; a part without peak is left out."""
    memory, grid = device.get("memory") or {}, device.get("grid")
    found = []
    small, trace = memory.get("l1_small") or {}, memory.get("trace") or {}
    if grid and small.get("peak_bytes") is not None:
        count = grid["x"] * grid["y"]
        total = small.get("total_bytes")
        # A small buffer lies in few banks and takes its place in all of them: a share of the sum says little.
        span = small.get("peak_span_bytes")
        needed, exact = -(-small["peak_bytes"] // count), span is not None or small["peak_bytes"] == 0
        configured = None if total is None else total // count
        found.append(Suggestion("l1_small_size", _aligned(max(needed, span or 0)), configured, exact))
    if trace.get("peak_bytes") is not None:
        banks, total = _banks(device, None, None)[0], trace.get("total_bytes")
        # TT-Metal sets the option aside in each bank, and holds the sum of all traces against it.
        configured = total // banks if total is not None and banks else 0 if total == 0 else None
        found.append(Suggestion("trace_region_size", _aligned(trace["peak_bytes"]), configured, True))
    return found


def suggest_of_capture(watch: RegionWatch) -> dict[int, list[Suggestion]]:
    """Return what the buffers of a capture say of the sizes of the regions, by chip."""
    found: dict[int, list[Suggestion]] = {}
    for (chip, buffer_type), region in sorted(watch.regions.items()):
        if buffer_type == BufferType.L1_SMALL:
            # Holes count: what lies between the lowest and the highest byte that was ever taken must be there.
            span = 0 if region.lowest is None else (region.highest or 0) - region.lowest
            needed, exact = max(span, region.bank_peak), not region.unknown
            found.setdefault(chip, []).append(Suggestion("l1_small_size", _aligned(needed), None, exact))
        else:
            found.setdefault(chip, []).append(Suggestion("trace_region_size", _aligned(region.bytes_peak), None, True))
    return found


def _aligned(size_bytes: int) -> int:
    """Return a size rounded up to what any architecture aligns regions to."""
    return -(-size_bytes // 64) * 64


def advice_lines(suggestions: Sequence[Suggestion], margin: float = MARGIN) -> list[str]:
    """Return one sentence for each suggestion.

    Args:
        suggestions: what was found.
        margin: as of :meth:`Suggestion.suggested_bytes`.
    """
    lines = []
    for s in suggestions:
        unit = "bytes per bank" if s.option == "l1_small_size" else "bytes"
        if not s.exact:
            text = (
                f"{s.option}: no size can be suggested: what ran needed {s.needed_bytes} {unit} or more, for it is not "
                "known how buffers lay in a bank"
            )
        elif s.needed_bytes == 0:
            text = f"{s.option}=0 is enough for what ran"
        else:
            text = (
                f"{s.option}={s.suggested_bytes(margin)} is suggested: {s.needed_bytes} {unit} were needed by what ran"
            )
            text += f", and {100 * margin:g} % on top" if margin else ""
        if s.configured_bytes is not None:
            spare = s.configured_bytes - s.needed_bytes
            text += f"; it was {s.configured_bytes}"
            if spare < 0:
                text += f", {-spare} too few"
            elif spare and s.exact:
                text += f", {spare} more than needed"
        lines.append(text)
    return lines
