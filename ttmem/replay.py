"""Replay: a graph capture, published as if its program ran now."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from ttmem.capture import CaptureReader
from ttmem.errors import ArgumentTypeError, CaptureError, InvalidArgumentError, TtmemError
from ttmem.interpreter import CaptureInterpreter
from ttmem.mesh import CaptureCounts, CaptureSink
from ttmem.model import DRAM_ALIGNMENT, BufferType, CircularBuffer, Geometry
from ttmem.placement import place

ASSUMED_CB_BASE = {"grayskull": 105664, "wormhole_b0": 105664, "blackhole": 111488}
"""The CB base in bytes that is assumed where circular buffers must be placed and nothing tells it (ttnn 0.77.0)."""
PROGRESS_NODES = 512
"""How many nodes lie between two reports of progress."""
MAX_DEVICE_ID = 2**31 - 1
MAX_DEVICES = 256
"""The most devices that one replay publishes."""


class PublisherLike(Protocol):
    """The part of a publisher that a replay drives."""

    def add_program(self, circular_buffers: Any, *, name: str = ..., program_id: int | None = ...) -> int:
        """Add a program and return its id."""

    def dispatch(self, program_id: int) -> object:
        """Dispatch a program."""

    def remove_program(self, program_id: int) -> object:
        """Remove a program."""

    def allocate(
        self,
        buffer_type: Any,
        size: int,
        *,
        address: int | None = ...,
        size_per_bank: int | None = ...,
        core_ranges: Any = ...,
        name: str = ...,
    ) -> int:
        """Add a buffer and return its id."""

    def deallocate(self, buffer_id: int) -> object:
        """Take a buffer away."""

    def close(self) -> None:
        """Withdraw the device."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay has come.

    Attributes:
        position_bytes: bytes of the file read, of ``size_bytes``.
        size_bytes: bytes of the file on disk.
        nodes: nodes read.
        dispatches: dispatches met.
    """

    position_bytes: int
    size_bytes: int
    nodes: int
    dispatches: int


@dataclass(slots=True)
class ReplaySummary:
    """What a replay met and did.

    Attributes:
        counts: what the capture holds.
        warnings: one text for each kind of fault in the capture, and each refusal of a publisher.
        device_ids: the published ids, in the order of their first event.
        duration_ns: the time that the capture recorded.
        assumed: what was assumed to place circular buffers, for people; None if nothing was.
        error: why the file could not be read to its end; None if it was.
    """

    counts: CaptureCounts
    warnings: list[str]
    device_ids: list[int]
    duration_ns: int
    assumed: str | None
    error: CaptureError | None


@dataclass(slots=True)
class Replay(CaptureSink):
    """Feeds a capture through publishers, one per chip, and keeps them open until it is closed.

    Args:
        path: a capture or a report file.
        publish: makes a publisher from a device id and the fields of a Geometry; ``ttmem.publish``.
        device_id: added to every chip id of the capture.
        geometry: what the user tells; it stands above what a report's devices tell.
        speed: how many times faster than recorded; None is as fast as it can.
        on_progress: called now and then with a Progress.
        on_notice: called with a text that people should see, such as an assumption.
        sleep: waits for so many seconds.
        clock_ns: a monotonic clock.

    Raises:
        CaptureError: the file is none that can be read.
        InvalidArgumentError: ``device_id`` or ``speed`` is out of range.
    """

    path: str | os.PathLike[str]
    publish: Callable[..., PublisherLike]
    device_id: int = 0
    geometry: Geometry = field(default_factory=Geometry)
    speed: float | None = None
    on_progress: Callable[[Progress], None] | None = None
    on_notice: Callable[[str], None] | None = None
    sleep: Callable[[float], None] = time.sleep
    clock_ns: Callable[[], int] = time.monotonic_ns
    publishers: dict[int, PublisherLike] = field(default_factory=dict, init=False)
    _reader: CaptureReader = field(init=False)
    _told: dict[int, Geometry] = field(init=False)
    _buffers: dict[tuple[int, int], int] = field(default_factory=dict, init=False)
    _programs: dict[tuple[int, int], int] = field(default_factory=dict, init=False)
    _refusals: dict[str, int] = field(default_factory=dict, init=False)
    _assumed: str | None = field(default=None, init=False)
    _recorded_ns: int = field(default=0, init=False)
    _started_ns: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.device_id <= MAX_DEVICE_ID:
            raise InvalidArgumentError(f"device_id must be between 0 and {MAX_DEVICE_ID}, got {self.device_id}")
        if self.speed is not None and not 0 < self.speed < float("inf"):
            raise InvalidArgumentError(f"speed must be a positive number, got {self.speed}")
        self._reader = CaptureReader(self.path)
        self._told = {}

    def run(self) -> ReplaySummary:
        """Replay the capture from its beginning, once; what an earlier run published is withdrawn first.

        A file that breaks off is replayed up to there, and the summary's ``error`` says where.
        """
        self._withdraw()
        self._recorded_ns = 0
        self._started_ns = self.clock_ns()
        interpreter = CaptureInterpreter(self)
        error = None
        try:
            self._told = self._reader.geometries()
        except CaptureError:
            # The graph comes before the devices: what can be read of it is worth more than the geometry.
            self._told = {}
        try:
            for node in self._reader.nodes():
                interpreter.feed(node)
                if self.on_progress is not None and interpreter.counts.nodes % PROGRESS_NODES == 0:
                    self._report(interpreter.counts)
        except CaptureError as caught:
            error = caught
        interpreter.finish(complete=error is None)
        if self.on_progress is not None:
            self._report(interpreter.counts)
        refusals = [text + (f", {count} times" if count > 1 else "") for text, count in self._refusals.items()]
        return ReplaySummary(
            interpreter.counts,
            interpreter.warnings.texts() + refusals,
            [self.device_id + chip for chip in self.publishers],
            self._recorded_ns,
            self._assumed,
            error,
        )

    def _withdraw(self) -> None:
        """Take back every buffer and program, the devices staying."""
        for (chip, _), buffer_id in self._buffers.items():
            self.publishers[chip].deallocate(buffer_id)
        for (chip, _), program_id in self._programs.items():
            self.publishers[chip].remove_program(program_id)
        self._buffers.clear()
        self._programs.clear()

    def close(self) -> None:
        """Withdraw every device that was published."""
        while self.publishers:
            _, publisher = self.publishers.popitem()
            publisher.close()

    def __enter__(self) -> "Replay":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What follows takes the events. A program is published once its operation has ended; TT-Metal keeps none that threw.

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
        """Publish a buffer."""
        publisher = self._publisher(chip)
        if publisher is None:
            return
        try:
            self._buffers[chip, key] = publisher.allocate(
                buffer_type, size, address=address, size_per_bank=size_per_bank, name=name
            )
        except TtmemError as error:
            self._refuse("allocate", error)

    def free(self, chip: int, key: int) -> None:
        """Withdraw a buffer."""
        buffer_id = self._buffers.pop((chip, key), None)
        if buffer_id is not None:
            self.publishers[chip].deallocate(buffer_id)

    def add_program(self, chip: int, program_key: int, circular_buffers: tuple[CircularBuffer, ...], name: str) -> None:
        """Publish a program, placed if the capture has no addresses."""
        publisher = self._publisher(chip)
        if publisher is None:
            return
        try:
            if any(buffer.address is None and not buffer.globally_allocated for buffer in circular_buffers):
                base, alignment = self._base_and_alignment(chip)
                circular_buffers = tuple(place(circular_buffers, base=base, alignment=alignment))
            self._programs[chip, program_key] = publisher.add_program(list(circular_buffers), name=name)
        except TtmemError as error:
            self._refuse("add_program", error)

    def dispatch(self, chip: int, program_key: int) -> None:
        """Publish a dispatch."""
        program_id = self._programs.get((chip, program_key))
        if program_id is not None:
            self.publishers[chip].dispatch(program_id)

    def advance(self, duration_ns: int) -> None:
        """Wait until the recorded time has passed, at the speed that was asked for."""
        self._recorded_ns += duration_ns
        if self.speed is not None:
            due_ns = self._started_ns + self._recorded_ns / self.speed
            wait_ns = due_ns - self.clock_ns()
            if wait_ns > 0:
                self.sleep(wait_ns / 1e9)

    def _publisher(self, chip: int) -> PublisherLike | None:
        publisher = self.publishers.get(chip)
        if publisher is None:
            if len(self.publishers) >= MAX_DEVICES or self.device_id + chip > MAX_DEVICE_ID:
                self._refuse("publish", f"chip {chip} is beyond {MAX_DEVICES} devices or device id {MAX_DEVICE_ID}")
                return None
            known = self._geometry(chip).known()
            publisher = self.publish(self.device_id + chip, **known)
            self.publishers[chip] = publisher
        return publisher

    def _geometry(self, chip: int) -> Geometry:
        try:
            return geometry_of_chip(self._told, chip, self.geometry)
        except ValueError as error:
            self._refuse("geometry of the report", error)
            return self.geometry

    def _base_and_alignment(self, chip: int) -> tuple[int, int]:
        """Return the CB base and alignment in bytes, assumed where they are unknown."""
        geometry = self._geometry(chip)
        base, alignment, assumed = base_and_alignment(
            geometry.arch, geometry.l1_cb_base, wide=lambda: self._reader.has_wide_core
        )
        if assumed and self._assumed is None:
            self._assumed = assumed
            if self.on_notice is not None:
                self.on_notice(assumed)
        return base, alignment

    def _refuse(self, what: str, error: object) -> None:
        text = f"{what}: {error}"
        # Bounded: texts name sizes and addresses, which may all differ.
        if text not in self._refusals and len(self._refusals) >= 64:
            text = "further refusals"
        self._refusals[text] = self._refusals.get(text, 0) + 1

    def _report(self, counts: CaptureCounts) -> None:
        assert self.on_progress is not None
        self.on_progress(
            Progress(self._reader.position_bytes, self._reader.size_bytes, counts.nodes, counts.dispatches)
        )


def geometry_of_chip(told: Mapping[int, Geometry], chip: int, given: Geometry) -> Geometry:
    """Return what is known of a chip: what the user gave, then what the report tells.

    Args:
        told: what the report tells, by chip.
        chip: which one.
        given: by the user.

    Raises:
        ValueError: they contradict each other.
    """
    # A report names the mesh here, and its chips are alike.
    known = told.get(chip) or (next(iter(told.values())) if len(told) == 1 else Geometry())
    return Geometry.of(**{**known.known(), **given.known()})  # type: ignore[arg-type]


def base_and_alignment(arch: str | None, base: int | None, *, wide: Callable[[], bool]) -> tuple[int, int, str]:
    """Return the CB base and alignment of a chip in bytes, and what of them was assumed, for people.

    Args:
        arch: of the chip, None if it is not known.
        base: of the chip, None if it is not known.
        wide: tells whether the capture has cores that only Blackhole has; asked if the architecture is not known.

    Returns:
        The base, the alignment and a sentence, which is empty if both were known.
    """
    known = arch is not None and base is not None
    if arch is None:
        arch = "blackhole" if wide() else "wormhole_b0"
    if base is None:
        base = ASSUMED_CB_BASE[arch]
    alignment = DRAM_ALIGNMENT[arch]
    if known:
        return base, alignment, ""
    return (
        base,
        alignment,
        f"the capture has no circular buffer addresses: placed as on {arch} from {base} in steps of {alignment} bytes; "
        "give --arch and --l1-cb-base to have it exact",
    )


def replay(
    path: str | os.PathLike[str],
    *,
    publish: Callable[..., PublisherLike],
    device_id: int = 0,
    speed: float | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
    **geometry: Any,
) -> tuple[Replay, ReplaySummary]:
    """Replay a capture once and return it, its publishers still open, with the summary.

    Args:
        path: a capture or a report file.
        publish: makes a publisher; ``ttmem.publish``.
        device_id: added to every chip id of the capture.
        speed: how many times faster than recorded; None is as fast as it can.
        on_progress: called now and then with a Progress.
        on_notice: called with a text that people should see.
        geometry: fields of a Geometry, such as ``arch`` and ``grid``.

    Raises:
        CaptureError: the file is none that can be read.
        InvalidArgumentError: an option is out of range.
    """
    unknown = set(geometry) - {item.name for item in fields(Geometry)}
    if unknown:
        raise ArgumentTypeError(f"unknown options: {', '.join(sorted(unknown))}")
    run = Replay(
        path,
        publish,
        device_id=device_id,
        geometry=Geometry.of(**geometry),
        speed=speed,
        on_progress=on_progress,
        on_notice=on_notice,
    )
    try:
        return run, run.run()
    except BaseException:
        run.close()
        raise
