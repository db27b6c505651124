"""Mesh: the events of a capture, which name a mesh as its nodes do, brought to the chips of that mesh.

A sink is called once per chip. Events of a mesh whose chips are not known yet wait, and all that come later wait behind
them, so that the order stays.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Union

from ttmem.capture import Warnings
from ttmem.model import BufferType, CircularBuffer

MAX_WAITING = 65536
"""The most events that wait for the chips of a mesh; then chip 0 is taken."""
MAX_CHIPS = 1024
"""The most chips of one mesh."""


class CaptureSink:
    """What takes the events of a capture, one call per chip; sizes and addresses are bytes, None is unknown.

    It takes no notice of anything: who inherits from it defines what it cares for.
    """

    __slots__ = ()

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
        """Take a new buffer; ``key`` is its own until it is freed."""

    def free(self, chip: int, key: int) -> None:
        """Take away a buffer."""

    def lay_out(self, chip: int, program_key: int, circular_buffers: tuple[CircularBuffer, ...], name: str) -> None:
        """Learn that an operation starts a program that was just laid out.

        Either ``add_program`` with the key follows once the operation has ended, or ``threw``, or, under NO_DISPATCH, a
        ``dispatch`` of the same program added before.
        """

    def add_program(self, chip: int, program_key: int, circular_buffers: tuple[CircularBuffer, ...], name: str) -> None:
        """Take a program that stays; a dispatch of it follows. A local CB without an address is to be placed."""

    def dispatch(self, chip: int, program_key: int) -> None:
        """Learn that a program was dispatched."""

    def threw(self, chip: int, program_key: int) -> None:
        """Learn that TT-Metal threw in the operation that laid this program out: it keeps nothing."""

    def advance(self, duration_ns: int) -> None:
        """Learn that this much time was recorded since the last call."""


@dataclass(frozen=True, slots=True)
class BufferAllocated:
    """A buffer on every chip of a mesh."""

    mesh: int | None
    key: int
    buffer_type: BufferType
    size: int
    address: int | None
    size_per_bank: int | None
    name: str


@dataclass(frozen=True, slots=True)
class BufferFreed:
    """The buffer with this key is gone."""

    mesh: int | None
    key: int


@dataclass(frozen=True, slots=True)
class ProgramLaidOut:
    """An operation laid a program out: circular buffers by what their nodes name, a chip or (``by_mesh``) a mesh."""

    mesh: int | None
    token: int
    name: str
    inputs: tuple[bytes, bytes]
    circular_buffers: tuple[tuple[int | None, CircularBuffer], ...]
    by_mesh: bool


@dataclass(frozen=True, slots=True)
class ProgramKept:
    """The operation that laid the program out has ended."""

    mesh: int | None
    token: int


@dataclass(frozen=True, slots=True)
class ProgramDoubted:
    """The operation that laid the program out has ended without an output; the function around it will decide."""

    mesh: int | None
    token: int


@dataclass(frozen=True, slots=True)
class ProgramThrown:
    """The operation that laid the program out never ended."""

    mesh: int | None
    token: int


@dataclass(frozen=True, slots=True)
class ProgramHit:
    """An operation dispatched a program that is in the cache: it laid nothing out."""

    mesh: int | None
    name: str
    inputs: tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Time that the capture recorded."""

    mesh: None
    duration_ns: int


Event = Union[
    BufferAllocated, BufferFreed, ProgramLaidOut, ProgramKept, ProgramDoubted, ProgramThrown, ProgramHit, TimePassed
]


@dataclass(slots=True)
class CaptureCounts:
    """What was met so far.

    Attributes:
        nodes: nodes read.
        dispatches: operations that started a program, kept or not.
        programs: those that laid one out (under NO_DISPATCH all with circular buffers do).
        cache_hits: those that laid nothing out.
        hits_found: cache hits whose program was found.
        hits_unmatched: cache hits without visible circular buffers.
        threw: programs that were laid out by an operation in which TT-Metal threw.
        unmatched_frees: frees of buffers that were allocated before the capture.
        no_dispatch: whether this is a NO_DISPATCH capture, as its circular buffers lack addresses.
    """

    nodes: int = 0
    dispatches: int = 0
    programs: int = 0
    cache_hits: int = 0
    hits_found: int = 0
    hits_unmatched: int = 0
    threw: int = 0
    unmatched_frees: int = 0
    no_dispatch: bool = False


@dataclass(slots=True)
class _Pending:
    """A program on the chips it was laid out on, of which it is not known yet whether it is kept."""

    name: str
    inputs: tuple[bytes, bytes]
    no_dispatch: bool
    by_chip: dict[int, tuple[int, tuple[CircularBuffer, ...]]]
    doubted: bool = False


class MeshChips:
    """The second stage: knows the chips of each mesh, and the programs of each chip."""

    def __init__(self, sink: CaptureSink, counts: CaptureCounts, warnings: Warnings) -> None:
        self._sink = sink
        self._counts = counts
        self._warnings = warnings
        self._waiting: deque[Event] = deque()
        self._of_mesh: dict[int, tuple[int, ...]] = {}
        self._uncertain: set[int] = set()
        self._buffers: dict[int, BufferAllocated] = {}
        self._pending: dict[int, _Pending] = {}
        # By chip and what a cache hit tells: the token and program key of the last program laid out.
        self._last: dict[tuple[object, ...], tuple[int, int]] = {}
        self._unplaced: dict[tuple[object, ...], int] = {}
        self._next_key = 0

    def post(self, event: Event) -> None:
        """Apply an event, or have it wait until the chips of its mesh are known."""
        if isinstance(event, ProgramLaidOut) and event.mesh is not None and not event.by_mesh:
            # Has no effect where a tensor has told the chips.
            self.learn(event.mesh, [chip for chip, _ in event.circular_buffers if chip is not None], certain=False)
        if self._waiting or not self._known(event.mesh):
            self._waiting.append(event)
            self._drain()
            if len(self._waiting) > MAX_WAITING:
                self._assume_chip_0()
        else:
            self._apply(event)

    def learn(self, mesh: int, chips: list[int], *, certain: bool) -> None:
        """Add chips to a mesh.

        Args:
            mesh: its id.
            chips: some or all of its chips.
            certain: whether they come from ``device_tensors``; circular buffers tell less, and their word is dropped
                when a tensor's comes.
        """
        before = self._of_mesh.get(mesh, ())
        if not certain and before and mesh not in self._uncertain:
            return
        base = () if certain and mesh in self._uncertain else before
        if certain:
            self._uncertain.discard(mesh)
        elif chips:
            self._uncertain.add(mesh)
        after = tuple(dict.fromkeys((*base, *chips)))[:MAX_CHIPS]
        if not after or after == before:
            return
        self._of_mesh[mesh] = after
        for buffer in [buffer for buffer in self._buffers.values() if buffer.mesh == mesh] if before else ():
            for chip in before:
                if chip not in after:
                    self._sink.free(chip, buffer.key)
            for chip in after:
                if chip not in before:
                    self._allocate(chip, buffer)
        self._drain()

    def settle_all(self) -> None:
        """Apply what still waits, as if every unknown mesh were chip 0."""
        while self._waiting:
            self._assume_chip_0()

    def _known(self, mesh: int | None) -> bool:
        return mesh is None or mesh in self._of_mesh

    def _assume_chip_0(self) -> None:
        mesh = self._waiting[0].mesh
        if mesh is not None:
            self._warnings.add("chips unknown, taken as chip 0", "device_id", "at the end", f"mesh {mesh}")
            self._of_mesh[mesh] = (0,)
            self._uncertain.add(mesh)
        self._drain()

    def _drain(self) -> None:
        while self._waiting and self._known(self._waiting[0].mesh):
            self._apply(self._waiting.popleft())

    def _chips_of(self, mesh: int | None) -> tuple[int, ...]:
        return (0,) if mesh is None else self._of_mesh[mesh]

    def _apply(self, event: Event) -> None:
        if isinstance(event, BufferAllocated):
            self._buffers[event.key] = event
            for chip in self._chips_of(event.mesh):
                self._allocate(chip, event)
        elif isinstance(event, BufferFreed):
            del self._buffers[event.key]
            for chip in self._chips_of(event.mesh):
                self._sink.free(chip, event.key)
        elif isinstance(event, ProgramLaidOut):
            self._lay_out(event)
        elif isinstance(event, ProgramKept):
            self._keep(event.token)
        elif isinstance(event, ProgramDoubted):
            if event.token in self._pending:
                self._pending[event.token].doubted = True
        elif isinstance(event, ProgramThrown):
            self._drop(event.token)
        elif isinstance(event, ProgramHit):
            self._hit(event)
        else:
            self._sink.advance(event.duration_ns)

    def _allocate(self, chip: int, event: BufferAllocated) -> None:
        self._sink.allocate(
            chip, event.key, event.buffer_type, event.size, event.address, event.size_per_bank, event.name
        )

    def _lay_out(self, event: ProgramLaidOut) -> None:
        grouped: dict[int, list[CircularBuffer]] = {}
        for named, buffer in event.circular_buffers:
            if named is not None and not event.by_mesh:
                chips: tuple[int, ...] = (named,)
            else:
                mesh = event.mesh if named is None else named
                chips = self._chips_of(mesh) if self._known(mesh) else (0,)
            for chip in chips:
                grouped.setdefault(chip, []).append(buffer)
        by_chip = {}
        shared: dict[tuple[CircularBuffer, ...], tuple[CircularBuffer, ...]] = {}
        for chip, buffers in grouped.items():
            self._next_key += 1
            circular_buffers = tuple(buffers)
            circular_buffers = shared.setdefault(circular_buffers, circular_buffers)
            by_chip[chip] = (self._next_key, circular_buffers)
        pending = _Pending(event.name, event.inputs, event.by_mesh, by_chip)
        self._pending[event.token] = pending
        for chip, (key, circular_buffers) in by_chip.items():
            self._sink.lay_out(chip, key, circular_buffers, event.name)

    def _keep(self, token: int) -> None:
        pending = self._pending.pop(token, None)
        if pending is None:
            return
        for chip, (new_key, circular_buffers) in pending.by_chip.items():
            key = new_key
            if pending.no_dispatch:
                same = (chip, pending.name, circular_buffers)
                key = self._unplaced.setdefault(same, new_key)
            if key == new_key:
                self._sink.add_program(chip, key, circular_buffers, pending.name)
            for name in _names(chip, pending.name, pending.inputs):
                if self._last.get(name, (0, 0))[0] <= token:
                    self._last[name] = (token, key)
            self._sink.dispatch(chip, key)

    def _drop(self, token: int) -> None:
        pending = self._pending.pop(token, None)
        if pending is None:
            return
        self._counts.threw += 1
        for chip, (key, _) in pending.by_chip.items():
            self._sink.threw(chip, key)

    def _hit(self, event: ProgramHit) -> None:
        # A program that is in doubt is in the cache after all if it is hit there: ttnn 0.77.0 keeps one that clashed.
        for token, pending in reversed(self._pending.items()):
            if pending.doubted and pending.name == event.name and pending.inputs[0] == event.inputs[0]:
                self._keep(token)
                break
        found = False
        for chip in self._chips_of(event.mesh):
            for name in _names(chip, event.name, event.inputs):
                if name in self._last:
                    self._sink.dispatch(chip, self._last[name][1])
                    found = True
                    break
        if found:
            self._counts.hits_found += 1
        else:
            self._counts.hits_unmatched += 1


def _names(chip: int, name: str, inputs: tuple[bytes, bytes]) -> tuple[tuple[object, ...], ...]:
    """Return what a cache hit is looked up by, the closest first."""
    return (chip, name, "inputs", inputs[0]), (chip, name, "at any shape", inputs[1]), (chip, name)
