"""Interpreter: what the nodes of a graph capture mean for programs, buffers and chips.

It works in two stages. The first follows functions and dispatches and yields events that name a mesh, as the nodes do.
The second knows the chips of each mesh and calls a sink once per chip; events of an unknown mesh wait there, in order.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol, Union

from ttmem.capture import (
    Warnings,
    read_buffer_type,
    read_core_ranges,
    read_device_tensors,
    read_flag,
    read_integer,
)
from ttmem.model import MAX_ADDRESS, MAX_BYTES, BufferType, CircularBuffer

MAX_WAITING = 65536
"""The most events that wait for the chips of a mesh; then chip 0 is taken."""
MAX_FRAMES = 4096
"""The most functions that are open at once; every operation in which TT-Metal threw leaves one or two behind."""
MAX_CHIPS = 1024
"""The most chips of one mesh."""

_CB_KIND = {
    "circular_buffer_allocate": "circular_buffer",
    "dataflow_buffer_allocate": "dataflow_buffer",
    "scratchpad_allocate": "scratchpad",
}
_IGNORED = frozenset(("capture_start", "buffer", "error", "sub_device_manager", "program_execution"))
_POINTER = re.compile(r"0x[0-9a-fA-F]+|\baddress\s*=\s*\d+")
_SHAPE = re.compile(r"Shape\(\[[^\]]*\]\)")


class CaptureSink(Protocol):
    """What takes the events of a capture, one call per chip; sizes and addresses are bytes, None is unknown."""

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


Event = Union[BufferAllocated, BufferFreed, ProgramLaidOut, ProgramKept, ProgramThrown, ProgramHit, TimePassed]


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
class _Dispatch:
    """A dispatch that an operation opened and whose circular buffers are still coming."""

    mesh: int | None
    damaged: bool = False
    circular_buffers: list[tuple[int | None, CircularBuffer]] = field(default_factory=list)


@dataclass(slots=True)
class _Frame:
    """A function that has begun."""

    name: str
    inputs: tuple[bytes, bytes]
    dispatch: _Dispatch | None = None
    programs: list[tuple[int, int | None]] = field(default_factory=list)
    inner_programs: list[tuple[int, int | None]] = field(default_factory=list)
    inner_ns: int = 0


_NO_INPUTS = (b"", b"")


def _input_keys(arguments: object) -> tuple[bytes, bytes]:
    """Return what identifies an operation's inputs: exactly, and at any shape.

    Texts of arguments run to kilobytes, so digests stand for them.
    """
    if not isinstance(arguments, list) or not arguments:
        return _NO_INPUTS
    text = _POINTER.sub("", "\0".join(str(argument) for argument in arguments))
    tensors = "\0".join(_tensors_of(text))
    return _digest(text), _digest(_SHAPE.sub("Shape", tensors))


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _tensors_of(text: str) -> Iterable[str]:
    """Yield each ``Tensor(...)`` in the text of arguments."""
    begin = text.find("Tensor(")
    while begin >= 0:
        depth, end = 0, begin
        for match in re.compile(r"[()]").finditer(text, begin):
            depth += 1 if match.group() == "(" else -1
            end = match.end()
            if depth == 0:
                break
        yield text[begin:end]
        begin = text.find("Tensor(", max(end, begin + 1))


class CaptureInterpreter:
    """Turns the nodes of a capture, one at a time, into calls of a sink.

    Args:
        sink: what takes the calls.
    """

    def __init__(self, sink: CaptureSink) -> None:
        self.counts = CaptureCounts()
        self.warnings = Warnings()
        self._chips = _Chips(sink, self.counts, self.warnings)
        # The outermost frame stands for the capture itself, so that what lies in no function has a place too.
        self._frames = [_Frame("", _NO_INPUTS)]
        self._ended: _Frame | None = None
        self._counter: object = 0
        self._next_token = 0
        self._next_key = 0
        self._live: dict[int, tuple[object, tuple[object, ...], int]] = {}
        self._by_link: dict[object, list[int]] = {}
        self._by_place: dict[tuple[object, ...], list[int]] = {}

    def feed(self, node: object) -> None:
        """Take one node, as JSON has it; what is wrong with it is counted in ``warnings``."""
        index = self.counts.nodes
        self.counts.nodes += 1
        if not isinstance(node, Mapping):
            self._counter = index
            self.warnings.add("not an object", "node", index)
            return
        counter = read_integer(node.get("counter"))
        self._counter = index if counter is None else counter
        node_type = node.get("node_type")
        params = node.get("params")
        if params is None:
            params = {}
        elif not isinstance(params, Mapping):
            self.warnings.add("not an object", "params", self._counter)
            params = {}
        if not isinstance(node_type, str):
            self.warnings.add("missing or no text", "node_type", self._counter)
        elif node_type in _CB_KIND:
            self._circular_buffer(params, node_type)
        elif node_type == "buffer_allocate":
            self._allocate(params, node)
        elif node_type == "buffer_deallocate":
            self._deallocate(params, node)
        elif node_type == "tensor":
            self._tensor(params)
        elif node_type == "circular_buffer_deallocate_all":
            self._open_dispatch(params)
        elif node_type == "function_start":
            self._start(params, node)
        elif node_type == "function_end":
            self._end(params, node)
        elif node_type == "capture_end":
            self._settle()
        elif node_type not in _IGNORED:
            self.warnings.add("unknown", "node_type", self._counter, node_type)

    def finish(self, *, complete: bool = True) -> None:
        """Decide what waited for the end.

        Args:
            complete: False if the file broke off: an operation that ended before then keeps its program.
        """
        self._settle()
        if self._ended is not None and not complete:
            self._keep(self._ended.programs)
            self._ended = None
        self._after_end(is_tensor=False)
        while len(self._frames) > 1:
            self._abandon(self._frames.pop(), complete=complete)
        self._keep(self._frames[0].programs)
        self._keep(self._frames[0].inner_programs)
        self._chips.settle_all()

    # Functions.

    def _start(self, params: Mapping[str, object], node: Mapping[str, object]) -> None:
        self._settle()
        self._after_end(is_tensor=False)
        name = params.get("name")
        if not isinstance(name, str):
            self.warnings.add("missing or no text", "name", self._counter)
            name = ""
        self._frames.append(_Frame(name, _input_keys(node.get("arguments"))))
        if len(self._frames) > MAX_FRAMES:
            # The oldest is the likeliest to have been left behind long ago.
            self._abandon(self._frames.pop(1), complete=True)

    def _end(self, params: Mapping[str, object], node: Mapping[str, object]) -> None:
        self._settle()
        self._after_end(is_tensor=False)
        name = params.get("name")
        depth = len(self._frames) - 1
        if isinstance(name, str):
            while depth > 0 and self._frames[depth].name != name:
                depth -= 1
        else:
            self.warnings.add("missing or no text", "name", self._counter)
        if depth == 0:
            self.warnings.add("without its function_start", "function_end", self._counter, str(name))
            return
        while len(self._frames) - 1 > depth:
            frame = self._frames.pop()
            self._frames[-1].inner_ns += frame.inner_ns
            self._abandon(frame, complete=True)
        frame = self._frames.pop()
        self._pass_time(frame, node)
        if read_flag(params.get("aborted")):
            self._abandon(frame, complete=True)
            return
        # What lies deeper and ended, ended inside a function that ended too.
        self._keep(frame.inner_programs)
        if not frame.programs:
            return
        links = node.get("connections")
        has_output = isinstance(links, list) and any(
            isinstance(link, int) and isinstance(self._counter, int) and link <= self._counter for link in links
        )
        if has_output or len(self._frames) == 1:
            self._keep(frame.programs)
        else:
            self._ended = frame

    def _after_end(self, *, is_tensor: bool) -> None:
        """Decide about the operation that ended just before this node."""
        # TT-Metal ends a device operation even when it throws there, but then no output follows and the function around
        # it never ends. Without an output, the function around therefore decides.
        frame, self._ended = self._ended, None
        if frame is None:
            return
        if is_tensor:
            self._keep(frame.programs)
        else:
            self._frames[-1].inner_programs.extend(frame.programs)

    def _abandon(self, frame: _Frame, *, complete: bool) -> None:
        """Take back what a function laid out that never ended."""
        if not complete:
            self._keep(frame.inner_programs)
            frame.inner_programs = []
        for token, mesh in frame.programs + frame.inner_programs:
            self._chips.post(ProgramThrown(mesh, token))

    def _keep(self, programs: list[tuple[int, int | None]]) -> None:
        for token, mesh in programs:
            self._chips.post(ProgramKept(mesh, token))
        programs.clear()

    def _pass_time(self, frame: _Frame, node: Mapping[str, object]) -> None:
        """Pass on the time that a function took beyond the functions in it."""
        value = node.get("duration_ns")
        if value is None:
            self._frames[-1].inner_ns += frame.inner_ns
            return
        duration_ns = read_integer(value)
        if duration_ns is None or not 0 <= duration_ns <= MAX_BYTES:
            self.warnings.add("no number of nanoseconds", "duration_ns", self._counter, repr(value))
            self._frames[-1].inner_ns += frame.inner_ns
            return
        self._frames[-1].inner_ns += max(duration_ns, frame.inner_ns)
        if duration_ns > frame.inner_ns:
            self._chips.post(TimePassed(None, duration_ns - frame.inner_ns))

    def _api_name(self) -> str:
        """Return the nearest function that a user calls, else the nearest at all."""
        for frame in reversed(self._frames):
            if frame.name.startswith("ttnn.") or frame.name.startswith("ttnn::"):
                return frame.name
        return self._frames[-1].name

    # Dispatches.

    def _open_dispatch(self, params: Mapping[str, object]) -> None:
        frame = self._frames[-1]
        if frame.dispatch is not None and not frame.dispatch.circular_buffers and len(self._frames) > 1:
            # A mesh workload of several programs opens once for each, and they are dispatched as one.
            return
        self._settle()
        self._after_end(is_tensor=False)
        self.counts.dispatches += 1
        frame.dispatch = _Dispatch(self._mesh(params))

    def _circular_buffer(self, params: Mapping[str, object], node_type: str) -> None:
        frame = self._frames[-1]
        if frame.dispatch is None:
            self._after_end(is_tensor=False)
            self.counts.dispatches += 1
            frame.dispatch = _Dispatch(None)
        dispatch = frame.dispatch
        # Whatever is wrong with the node, this was no cache hit.
        dispatch.damaged = True
        size = self._number(params, "size", MAX_ADDRESS)
        address = self._number(params, "address", MAX_ADDRESS)
        core_ranges = read_core_ranges(params.get("core_range_set"))
        if core_ranges is None:
            detail = repr(params.get("core_range_set"))[:200]
            self.warnings.add("no core ranges", "core_range_set", self._counter, detail)
        if size is None or address is None or core_ranges is None:
            return
        flag_name = "borrows_memory" if node_type == "dataflow_buffer_allocate" else "globally_allocated"
        globally_allocated = False
        if params.get(flag_name) is not None:
            flag = read_flag(params[flag_name])
            if flag is None:
                self.warnings.add("no flag", flag_name, self._counter, repr(params[flag_name]))
            globally_allocated = bool(flag)
        if address == 0:
            self.counts.no_dispatch = True
        chip = self._mesh(params)
        dispatch.circular_buffers.append(
            (
                chip,
                CircularBuffer(
                    address or None,
                    size,
                    core_ranges,
                    globally_allocated=globally_allocated,
                    kind=_CB_KIND[node_type],
                ),
            )
        )

    def _settle(self) -> None:
        """Close the dispatch of the innermost function: all its circular buffers have come."""
        frame = self._frames[-1]
        dispatch, frame.dispatch = frame.dispatch, None
        if dispatch is None:
            return
        if dispatch.circular_buffers:
            self.counts.programs += 1
            self._next_token += 1
            by_mesh = any(buffer.address is None for _, buffer in dispatch.circular_buffers)
            self._chips.post(
                ProgramLaidOut(
                    dispatch.mesh,
                    self._next_token,
                    frame.name,
                    frame.inputs,
                    tuple(dispatch.circular_buffers),
                    by_mesh,
                )
            )
            frame.programs.append((self._next_token, dispatch.mesh))
        elif not dispatch.damaged and not self.counts.no_dispatch:
            self.counts.cache_hits += 1
            self._chips.post(ProgramHit(dispatch.mesh, frame.name, frame.inputs))

    # Buffers and tensors.

    def _tensor(self, params: Mapping[str, object]) -> None:
        self._settle()
        self._after_end(is_tensor=True)
        value = params.get("device_tensors")
        if value is None or value == "" or value == "[]":
            return
        pairs = read_device_tensors(value)
        if pairs is None:
            self.warnings.add("no list of device tensors", "device_tensors", self._counter, repr(value)[:200])
            return
        chips: dict[int, list[int]] = {}
        for mesh, chip in pairs:
            chips.setdefault(mesh, []).append(chip)
        for mesh, found in chips.items():
            self._chips.learn(mesh, found, certain=True)

    def _allocate(self, params: Mapping[str, object], node: Mapping[str, object]) -> None:
        self._after_end(is_tensor=False)
        size = self._number(params, "size", MAX_BYTES)
        buffer_type = read_buffer_type(params)
        if buffer_type is None:
            self.warnings.add("no buffer type", "buffer_type", self._counter, repr(params.get("buffer_type")))
        if size is None or buffer_type is None:
            return
        # Address 0 is what NO_DISPATCH writes for "none was chosen"; no allocator gives it out.
        address = self._number(params, "address", MAX_BYTES) or None
        size_per_bank = self._number(params, "max_size_per_bank", MAX_BYTES, optional=True)
        mesh = self._mesh(params)
        key = self._next_key
        self._next_key += 1
        link = _first_link(node)
        place = (mesh, buffer_type, address)
        self._live[key] = (link, place, size)
        if link is not None:
            self._by_link.setdefault(link, []).append(key)
        self._by_place.setdefault(place, []).append(key)
        self._chips.post(BufferAllocated(mesh, key, buffer_type, size, address, size_per_bank, self._api_name()))

    def _deallocate(self, params: Mapping[str, object], node: Mapping[str, object]) -> None:
        self._after_end(is_tensor=False)
        link = _first_link(node)
        keys = self._by_link.get(link) if link is not None else None
        key = keys[-1] if keys else self._key_by_place(params, link)
        if key is None:
            self.counts.unmatched_frees += 1
            return
        link, place, _ = self._live.pop(key)
        for table, name in ((self._by_link, link), (self._by_place, place)):
            held = table.get(name)  # type: ignore[attr-defined]
            if held is not None:
                held.remove(key)
                if not held:
                    del table[name]  # type: ignore[attr-defined]
        self._chips.post(BufferFreed(place[0], key))  # type: ignore[arg-type]

    def _key_by_place(self, params: Mapping[str, object], link: object) -> int | None:
        buffer_type = read_buffer_type(params)
        address = read_integer(params.get("address")) or None
        size = read_integer(params.get("size"))
        # Without addresses any buffer of the size would match a link to one from before the capture.
        if buffer_type is None or (address is None and link is not None):
            return None
        for key in reversed(self._by_place.get((self._mesh(params), buffer_type, address), ())):
            # The oldest captures write size 0 here.
            if not size or self._live[key][2] == size:
                return key
        return None

    # Fields.

    def _mesh(self, params: Mapping[str, object]) -> int | None:
        value = params.get("device_id")
        if value is None:
            return None
        number = read_integer(value)
        if number is None or not 0 <= number < 2**31:
            self.warnings.add("no device id", "device_id", self._counter, repr(value))
            return None
        return number

    def _number(self, params: Mapping[str, object], name: str, maximum: int, *, optional: bool = False) -> int | None:
        """Return a number of bytes or an address; None, and a warning, if the node has none that can be."""
        value = params.get(name)
        if value is None:
            if not optional:
                self.warnings.add("missing", name, self._counter)
            return None
        number = read_integer(value)
        if number is None:
            self.warnings.add("no integer", name, self._counter, repr(value)[:200])
        elif number < 0:
            self.warnings.add("negative", name, self._counter, str(number))
        elif number > maximum:
            self.warnings.add("too large", name, self._counter, str(number))
        else:
            return number
        return None


def _first_link(node: Mapping[str, object]) -> int | None:
    links = node.get("connections")
    return read_integer(links[0]) if isinstance(links, list) and links else None


@dataclass(slots=True)
class _Pending:
    """A program on the chips it was laid out on, whose operation has not ended."""

    name: str
    inputs: tuple[bytes, bytes]
    no_dispatch: bool
    by_chip: dict[int, tuple[int, tuple[CircularBuffer, ...]]]


class _Chips:
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
            if event.mesh not in self._of_mesh or event.mesh in self._uncertain:
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
        # A program whose operation is in doubt is in the cache after all if it is hit there.
        for token, pending in reversed(self._pending.items()):
            if pending.name == event.name and pending.inputs[0] == event.inputs[0]:
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
