"""Clash: how far the circular buffers of a program are from the lowest L1 buffer, and what brings them apart.

TT-Metal refuses to start a program whose CB region, which grows up, ends above the lowest L1 buffer, which are placed
from the top down. Addresses are bytes of L1, intervals half-open.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from ttmem.capture import CaptureReader
from ttmem.cores import CoreCoord, CoreRange, rectangles_of
from ttmem.dumps import l1_limits_of
from ttmem.errors import CaptureError, InvalidIntervalError
from ttmem.interpreter import CaptureInterpreter
from ttmem.mesh import CaptureSink
from ttmem.model import CB_KINDS, BufferType, CircularBuffer, Geometry
from ttmem.placement import place, region_ends
from ttmem.replay import base_and_alignment, geometry_of_chip
from ttmem.units import format_bytes, format_exact

MAX_INVOLVED = 64
"""The most buffers that one finding names; the number of all of them is kept too."""


@dataclass(frozen=True, slots=True)
class LiveBuffer:
    """An L1 buffer that is allocated.

    Attributes:
        name: the operation that made it, or what its writer called it.
        address: its first byte on every core it lies on.
        size_per_bank: the bytes it takes on a core; None is unknown.
        size: bytes over all cores.
    """

    name: str
    address: int
    size_per_bank: int | None
    size: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "name": self.name,
            "address": self.address,
            "size_per_bank": self.size_per_bank,
            "size_bytes": self.size,
        }


@dataclass(frozen=True, slots=True)
class Finding:
    """A program on one of its core ranges, at the moment when it had the least room.

    Attributes:
        device_id: the chip in a capture, else the device.
        program: its name.
        core_range: as TT-Metal prints it; None where the source does not tell.
        cb_region_end: the end of its CB region on these cores.
        l1_lowest_address: of the live L1 buffers there; None if there was none, or none with an address.
        top: the end of the region that L1 buffers may take; None is unknown.
        l1_size: the size of a core's L1, which no region may exceed; None is unknown.
        dispatches: how often it was dispatched.
        threw: whether TT-Metal threw in the operation.
        buffers: the live buffers that begin below the region's end, lowest first, at most MAX_INVOLVED.
        num_buffers: how many of them there are.
        circular_buffers: the program's on these cores, by address; empty where the source does not tell.
        binding_core: the core that has the least room; None if all are alike.
        certain: False where another of the cached programs may be the one that reaches this far.
    """

    device_id: int | None
    program: str
    core_range: str | None
    cb_region_end: int
    l1_lowest_address: int | None
    top: int | None = None
    l1_size: int | None = None
    dispatches: int | None = None
    threw: bool = False
    buffers: tuple[LiveBuffer, ...] = ()
    num_buffers: int = 0
    circular_buffers: tuple[CircularBuffer, ...] = ()
    binding_core: CoreCoord | None = None
    certain: bool = True

    @property
    def headroom_bytes(self) -> int | None:
        """Bytes between the region's end and the lowest buffer, else the top; None where neither is known."""
        limit = self.top if self.l1_lowest_address is None else self.l1_lowest_address
        return None if limit is None else limit - self.cb_region_end

    @property
    def clashes(self) -> bool:
        """Whether the region reaches over a live buffer: TT-Metal throws."""
        return self.l1_lowest_address is not None and self.cb_region_end > self.l1_lowest_address

    @property
    def too_large(self) -> bool:
        """Whether the region reaches beyond L1 itself: TT-Metal throws, whatever is allocated."""
        return self.l1_size is not None and self.cb_region_end > self.l1_size

    @property
    def shortfall_bytes(self) -> int:
        """Bytes by which the region reaches over the lowest buffer; 0 if it does not."""
        return 0 if self.l1_lowest_address is None else max(0, self.cb_region_end - self.l1_lowest_address)

    def to_dict(self) -> dict[str, Any]:
        """Return the row of ``programs`` in the JSON."""
        row: dict[str, Any] = {
            "device_id": self.device_id,
            "program": self.program,
            "core_range": self.core_range,
            "cb_region_end": self.cb_region_end,
            "l1_lowest_address": self.l1_lowest_address,
            "headroom_bytes": self.headroom_bytes,
            "dispatches": self.dispatches,
        }
        if self.threw:
            row["threw"] = True
        return row

    def to_clash(self) -> dict[str, Any]:
        """Return the row of ``clashes`` in the JSON."""
        row = self.to_dict()
        del row["headroom_bytes"]
        row["shortfall_bytes"] = self.shortfall_bytes
        row["certain"] = self.certain
        if self.binding_core is not None:
            row["binding_core"] = {"x": self.binding_core.x, "y": self.binding_core.y}
        row["buffers"] = [buffer.to_dict() for buffer in self.buffers]
        row["num_buffers"] = self.num_buffers
        row["circular_buffers"] = [
            {"address": cb.address, "size_bytes": cb.size, "core_ranges": str(cb.core_ranges), "kind": cb.kind}
            for cb in self.circular_buffers
        ]
        row["advice"] = advice(self)
        return row

    def tt_metal_text(self) -> str:
        """Return the words in which TT-Metal reports the clash."""
        return (
            f"Statically allocated circular buffers in program {self.program} clash with L1 buffers on core range "
            f"{self.core_range}. L1 buffer allocated at {self.l1_lowest_address} and static circular buffer region "
            f"ends at {self.cb_region_end}"
        )


def advice(finding: Finding) -> list[str]:
    """Return what ends a clash, the smallest change first; sizes are bytes per core."""
    if not finding.clashes:
        return []
    shortfall = finding.shortfall_bytes
    options: list[tuple[int, str]] = []
    if finding.buffers and finding.num_buffers == len(finding.buffers):
        # Each of them lies in the region, so each has to go.
        freed = sum(b.size_per_bank if b.size_per_bank is not None else b.size for b in finding.buffers)
        named = "; ".join(
            f"{format_bytes(b.size_per_bank)} at {b.address}" + (f" from {b.name}" if b.name else "")
            for b in finding.buffers[:4]
        )
        more = f" and {len(finding.buffers) - 4} more" if len(finding.buffers) > 4 else ""
        alone = len(finding.buffers) == 1
        what, it = ("the L1 buffer", "it") if alone else (f"the {len(finding.buffers)} L1 buffers", "them")
        options.append(
            (
                freed,
                f"free {what} below {finding.cb_region_end} before this program runs, or put {it} in DRAM: "
                f"{named}{more}",
            )
        )
    largest = max(finding.circular_buffers, key=lambda cb: cb.size, default=None)
    shrink = f"shrink the program's circular buffers by {format_exact(shortfall)} bytes per core"
    if largest is not None and largest.size > shortfall:
        shrink += (
            f", for instance the largest, {format_exact(largest.size)} bytes at {largest.address}, to at most "
            f"{format_exact(largest.size - shortfall)}"
        )
    options.append((shortfall, f"{shrink}: smaller blocks, fewer tiles at a time, or single buffering"))
    if not finding.buffers:
        options.append(
            (shortfall, f"free the L1 buffers below address {finding.cb_region_end}, or put those tensors in DRAM")
        )
    return [text for _, text in sorted(options, key=lambda option: option[0])]


@dataclass(slots=True)
class _Chip:
    """The live L1 buffers of one chip, and what is known of its geometry."""

    top: int | None
    l1_size: int | None
    base: int | None
    arch: str | None
    live: dict[int, LiveBuffer] = field(default_factory=dict)
    heap: list[tuple[int, int]] = field(default_factory=list)
    lowest_ever: int | None = None

    def lowest(self) -> int | None:
        """Return the lowest address that a live buffer has."""
        while self.heap and self.heap[0][1] not in self.live:
            heappop(self.heap)
        return self.heap[0][0] if self.heap else None

    def below(self, end: int) -> list[LiveBuffer]:
        """Return the live buffers that begin below ``end``, lowest first."""
        return sorted((b for b in self.live.values() if b.address < end), key=lambda b: b.address)


@dataclass(slots=True)
class _Program:
    """A program and the worst that was seen of it, by core range."""

    name: str
    circular_buffers: tuple[CircularBuffer, ...]
    ends: dict[CoreRange, int]
    worst: dict[CoreRange, Finding] = field(default_factory=dict)
    dispatches: int = 0


class ClashWatch(CaptureSink):
    """Takes the events of a capture and judges each dispatch at its moment.

    A program that an operation lays out is judged there and then, for that is where TT-Metal checks it.

    Args:
        geometry_of: what is known of a chip.
        wide: tells whether the capture has cores that only Blackhole has; asked if CBs have no addresses.
        on_notice: called with what people should know, such as an assumption.
    """

    def __init__(
        self,
        geometry_of: Callable[[int], Geometry],
        *,
        wide: Callable[[], bool] = lambda: False,
        on_notice: Callable[[str], None] | None = None,
    ) -> None:
        self._geometry_of = geometry_of
        self._wide = wide
        self._on_notice = on_notice
        self.chips: dict[int, _Chip] = {}
        self._programs: dict[tuple[int, int], _Program] = {}
        self._pending: dict[tuple[int, int], _Program] = {}
        self._judged: set[tuple[int, int]] = set()
        self._thrown: dict[tuple[int, str, tuple[CircularBuffer, ...], CoreRange], Finding] = {}

    def findings(self) -> list[Finding]:
        """Return one finding for each program and core range, those with the least room first."""
        found = [*self._thrown.values(), *(f for program in self._programs.values() for f in program.worst.values())]
        return sorted(found, key=_by_room)

    # What follows takes the events.

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
        """Take an L1 buffer."""
        if buffer_type != BufferType.L1 or address is None:
            return
        state = self._chip(chip)
        state.live[key] = LiveBuffer(name, address, size_per_bank, size)
        heappush(state.heap, (address, key))
        if state.lowest_ever is None or address < state.lowest_ever:
            state.lowest_ever = address

    def free(self, chip: int, key: int) -> None:
        """Take an L1 buffer away."""
        self._chip(chip).live.pop(key, None)

    def lay_out(self, chip: int, program_key: int, circular_buffers: tuple[CircularBuffer, ...], name: str) -> None:
        """Judge a program where it was laid out."""
        program = self._laid_out(chip, circular_buffers, name)
        self._judge(chip, program)
        self._pending[chip, program_key] = program

    def add_program(self, chip: int, program_key: int, circular_buffers: tuple[CircularBuffer, ...], name: str) -> None:
        """Keep a program; it was judged where it was laid out, and the dispatch that follows is that one."""
        program = self._pending.pop((chip, program_key), None)
        if program is None:
            program = self._laid_out(chip, circular_buffers, name)
        else:
            self._judged.add((chip, program_key))
        self._programs[chip, program_key] = program

    def dispatch(self, chip: int, program_key: int) -> None:
        """Judge a program from the cache."""
        if (chip, program_key) in self._judged:
            self._judged.discard((chip, program_key))
            return
        program = self._programs.get((chip, program_key))
        if program is None:
            return
        # Under NO_DISPATCH the same program is laid out again, under a key of its own, and then dispatched.
        for other, laid_out in list(self._pending.items()):
            if other[0] == chip and laid_out.name == program.name and laid_out.ends == program.ends:
                del self._pending[other]
                break
        self._judge(chip, program)

    def threw(self, chip: int, program_key: int) -> None:
        """Keep what was judged of a program in whose operation TT-Metal threw."""
        program = self._pending.pop((chip, program_key), None)
        if program is None:
            return
        for core_range, finding in program.worst.items():
            # Who tries again has the same program laid out again.
            key = (chip, program.name, program.circular_buffers, core_range)
            before = self._thrown.get(key)
            if before is not None and not _less_room(finding.l1_lowest_address, before):
                finding = before
            times = 1 + ((before.dispatches or 0) if before is not None else 0)
            self._thrown[key] = _changed(finding, threw=True, dispatches=times)

    def _chip(self, chip: int) -> _Chip:
        state = self.chips.get(chip)
        if state is None:
            known = self._geometry_of(chip)
            size, small = known.worker_l1_size, known.l1_small_size
            top = None if size is None or small is None else size - small
            state = self.chips[chip] = _Chip(top, size, known.l1_cb_base, known.arch)
        return state

    def _laid_out(self, chip: int, circular_buffers: tuple[CircularBuffer, ...], name: str) -> _Program:
        if any(cb.address is None and not cb.globally_allocated for cb in circular_buffers):
            base, alignment = self._base_and_alignment(chip)
            try:
                circular_buffers = tuple(place(circular_buffers, base=base, alignment=alignment))
            except InvalidIntervalError:
                circular_buffers = ()
        return _Program(name, circular_buffers, region_ends(circular_buffers))

    def _base_and_alignment(self, chip: int) -> tuple[int, int]:
        """Return the CB base and alignment of a chip in bytes, assumed, and said so once, where they are unknown."""
        state = self._chip(chip)
        base, alignment, assumed = base_and_alignment(state.arch, state.base, wide=self._wide)
        if assumed and self._on_notice is not None:
            self._on_notice(assumed)
            self._on_notice = None
        return base, alignment

    def _judge(self, chip: int, program: _Program) -> None:
        state = self._chip(chip)
        lowest = state.lowest()
        program.dispatches += 1
        for core_range, end in program.ends.items():
            before = program.worst.get(core_range)
            if before is not None and not _less_room(lowest, before):
                program.worst[core_range] = _changed(before, dispatches=program.dispatches)
                continue
            finding = Finding(
                chip,
                program.name,
                str(core_range),
                end,
                lowest,
                top=state.top,
                l1_size=state.l1_size,
                dispatches=program.dispatches,
                circular_buffers=tuple(
                    cb
                    for cb in program.circular_buffers
                    if not cb.globally_allocated and any(core_range.intersects(r) for r in cb.core_ranges.ranges)
                ),
            )
            if finding.clashes:
                below = state.below(end)
                finding = _changed(finding, buffers=tuple(below[:MAX_INVOLVED]), num_buffers=len(below))
            program.worst[core_range] = finding


def _changed(finding: Finding, **changes: Any) -> Finding:
    # dataclasses.replace takes four times as long, and this runs once for each dispatch.
    values = {name: getattr(finding, name) for name in Finding.__slots__}
    values.update(changes)
    return Finding(**values)


def _less_room(lowest: int | None, before: Finding) -> bool:
    """Tell whether a lowest buffer leaves less room than the finding's."""
    if lowest is None:
        return False
    return before.l1_lowest_address is None or lowest < before.l1_lowest_address


def _by_room(finding: Finding) -> tuple[bool, int, int]:
    room = finding.headroom_bytes
    return (room is None, -finding.cb_region_end if room is None else room, finding.device_id or 0)


@dataclass(frozen=True, slots=True)
class CaptureJudgement:
    """What a capture says of its programs.

    Attributes:
        findings: one for each program and core range, those with the least room first.
        watch: what judged them, with the buffers that are live at the end.
        notices: what people should know, among them what is wrong with the capture.
        complete: False if the file broke off, and was judged up to there.
    """

    findings: list[Finding]
    watch: ClashWatch
    notices: list[str]
    complete: bool = True


def judge_capture(path: str | os.PathLike[str], *, geometry: Geometry | None = None) -> CaptureJudgement:
    """Judge every dispatch of a capture at its moment.

    Args:
        path: a capture or a report file.
        geometry: what the user tells; it stands above what a report's devices tell.

    Raises:
        CaptureError: the file is none that can be read.
    """
    reader = CaptureReader(path)
    given = Geometry() if geometry is None else geometry
    notices: list[str] = []
    try:
        told = reader.geometries()
    except CaptureError:
        told = {}

    def geometry_of(chip: int) -> Geometry:
        try:
            return geometry_of_chip(told, chip, given)
        except ValueError:
            return given

    watch = ClashWatch(geometry_of, wide=lambda: reader.has_wide_core, on_notice=notices.append)
    interpreter = CaptureInterpreter(watch)
    complete = True
    try:
        for node in reader.nodes():
            interpreter.feed(node)
    except CaptureError as error:
        if not watch.chips:
            raise
        notices.append(f"{error}: judged up to there")
        complete = False
    interpreter.finish(complete=complete)
    return CaptureJudgement(watch.findings(), watch, notices + interpreter.warnings.texts(), complete)


def judge_device(device: Mapping[str, Any], buffers: Sequence[LiveBuffer] = ()) -> list[Finding]:
    """Judge the cached programs of a device as it is now, those with the least room first.

    A program whose circular buffers are known is judged on each of its core ranges. Of any other the device tells how
    far it reaches, but not on which cores: it is judged on the cores that cached programs fill to its region's end or
    beyond.

    Args:
        device: a device object of the JSON, with its cores.
        buffers: the live L1 buffers, where they are known.
    """
    cores = [row for row in device.get("cores") or () if row.get("cb_region_end") is not None]
    by_place = {(row["x"], row["y"]): row for row in cores}
    findings = []
    for row in device.get("programs") or ():
        if not row.get("cb_region_end") or not row.get("cb_bytes_per_core"):
            continue
        footprint = _footprint_of(row)
        if footprint:
            for core_range, end in region_ends(footprint).items():
                there = [by_place[core.x, core.y] for core in core_range if (core.x, core.y) in by_place]
                involved = tuple(
                    cb for cb in footprint if any(core_range.intersects(other) for other in cb.core_ranges.ranges)
                )
                findings.append(_found(device, row, str(core_range), end, there, buffers, involved))
        else:
            reached = [core for core in cores if core["cb_region_end"] >= row["cb_region_end"]]
            text = _ranges_text(reached) if len(reached) == row.get("num_cores") else None
            findings.append(_found(device, row, text, row["cb_region_end"], reached, buffers, None))
    findings.sort(key=_by_room)
    return findings


def _footprint_of(row: Mapping[str, Any]) -> list[CircularBuffer]:
    """Return the circular buffers of a program's row; none if they are not all known."""
    found = []
    for cb in row.get("circular_buffers") or ():
        kind = cb.get("kind") if cb.get("kind") in CB_KINDS else CB_KINDS[0]
        try:
            found.append(CircularBuffer(cb["address"], cb["size"], cb["core_ranges"], kind=kind))
        except (InvalidIntervalError, LookupError, TypeError, ValueError):
            # A dump that somebody wrote by hand: what cannot be read is not known.
            return []
    return found


def _found(
    device: Mapping[str, Any],
    row: Mapping[str, Any],
    core_range: str | None,
    end: int,
    cores: Sequence[Mapping[str, Any]],
    buffers: Sequence[LiveBuffer],
    involved: tuple[CircularBuffer, ...] | None,
) -> Finding:
    """Return what is found of a program on cores of which it may be on some, or, if ``involved`` is known, on all."""
    top, l1_size = l1_limits_of(device)
    known = [core for core in cores if core.get("l1_lowest_address") is not None]
    binding = min(known, key=lambda core: int(core["l1_lowest_address"]), default=None)
    lowest = None if binding is None else binding["l1_lowest_address"]
    alike = len(known) == len(cores) and all(core["l1_lowest_address"] == lowest for core in known)
    # Without its cores being known, a program clashes for certain only if it would on each that it may be on.
    certain = involved is not None or (
        len(known) == len(cores) and all(core["l1_lowest_address"] < end for core in known)
    )
    below = sorted((b for b in buffers if lowest is not None and lowest <= b.address < end), key=lambda b: b.address)
    return Finding(
        device.get("device_id"),
        str(row.get("name") or f"program {row.get('program_id')}"),
        core_range,
        end,
        lowest,
        top=top,
        l1_size=l1_size,
        buffers=tuple(below[:MAX_INVOLVED]),
        num_buffers=len(below),
        circular_buffers=involved or (),
        binding_core=None if binding is None or alike else CoreCoord(binding["x"], binding["y"]),
        certain=certain,
    )


def _ranges_text(cores: Sequence[Mapping[str, Any]]) -> str:
    """Return cores as rectangles, in TT-Metal's spelling."""
    found = rectangles_of((core["x"], core["y"]) for core in cores)
    return str(found.ranges[0]) if len(found) == 1 else str(found)


def live_buffers(rows: Sequence[Mapping[str, Any]]) -> list[LiveBuffer]:
    """Return the L1 buffers among the rows of ``Snapshot.buffers()``, or of a dump's ``buffers``."""
    found = []
    for row in rows:
        kind = row.get("buffer_type")
        if kind not in (1, "L1", BufferType.L1) or row.get("address") is None:
            continue
        name = str(row.get("name") or "")
        found.append(LiveBuffer(name, row["address"], row.get("size_per_bank"), row.get("size_bytes") or 0))
    return found
