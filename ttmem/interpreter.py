"""Interpreter: what the nodes of a graph capture mean for programs and buffers.

It follows functions and dispatches, and posts events that name a mesh; :mod:`ttmem.mesh` brings them to chips.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TypeVar

from ttmem.capture import (
    Warnings,
    read_buffer_type,
    read_core_ranges,
    read_device_tensors,
    read_flag,
    read_integer,
    read_text,
)
from ttmem.mesh import (
    BufferAllocated,
    BufferFreed,
    CaptureCounts,
    CaptureSink,
    MeshChips,
    ProgramDoubted,
    ProgramHit,
    ProgramKept,
    ProgramLaidOut,
    ProgramThrown,
    TimePassed,
)
from ttmem.model import MAX_ADDRESS, MAX_BYTES, BufferType, CircularBuffer

MAX_FRAMES = 4096
"""The most functions that are open at once; every operation in which TT-Metal threw leaves one or two behind."""

_CB_KIND = {
    "circular_buffer_allocate": "circular_buffer",
    "dataflow_buffer_allocate": "dataflow_buffer",
    "scratchpad_allocate": "scratchpad",
}
_IGNORED = frozenset(("capture_start", "buffer", "error", "sub_device_manager", "program_execution"))
_POINTER = re.compile(r"0x[0-9a-fA-F]+|\baddress\s*=\s*\d+")
_SHAPE = re.compile(r"Shape\(\[[^\]]*\]\)")


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


_Place = tuple[int | None, BufferType, int | None]


@dataclass(frozen=True, slots=True)
class _LiveBuffer:
    """A buffer that is allocated, and what a free may name it by: a buffer node, or mesh, type and address."""

    link: int | None
    place: _Place
    size: int


_NO_INPUTS = (b"", b"")
_PARENTHESIS = re.compile(r"[()]")


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
        for match in _PARENTHESIS.finditer(text, begin):
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
        self._chips = MeshChips(sink, self.counts, self.warnings)
        # The outermost frame stands for the capture itself, so that what lies in no function has a place too.
        self._frames = [_Frame("", _NO_INPUTS)]
        self._ended: _Frame | None = None
        self._counter: object = 0
        self._next_token = 0
        self._next_key = 0
        self._live: dict[int, _LiveBuffer] = {}
        self._by_link: dict[int, list[int]] = {}
        self._by_place: dict[_Place, list[int]] = {}

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
        name = read_text(params.get("name"))
        if name is None:
            self.warnings.add("missing or no text", "name", self._counter)
            name = ""
        self._frames.append(_Frame(name, _input_keys(node.get("arguments"))))
        if len(self._frames) > MAX_FRAMES:
            # The oldest is the likeliest to have been left behind long ago.
            self._abandon(self._frames.pop(1), complete=True)

    def _end(self, params: Mapping[str, object], node: Mapping[str, object]) -> None:
        self._settle()
        self._after_end(is_tensor=False)
        name = read_text(params.get("name"))
        depth = len(self._frames) - 1
        if name is not None:
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
            for token, mesh in frame.programs:
                self._chips.post(ProgramDoubted(mesh, token))

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
        self._live[key] = _LiveBuffer(link, place, size)
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
        buffer = self._live.pop(key)
        if buffer.link is not None:
            _take_out(self._by_link, buffer.link, key)
        _take_out(self._by_place, buffer.place, key)
        self._chips.post(BufferFreed(buffer.place[0], key))

    def _key_by_place(self, params: Mapping[str, object], link: object) -> int | None:
        buffer_type = read_buffer_type(params)
        address = read_integer(params.get("address")) or None
        size = read_integer(params.get("size"))
        # Without addresses any buffer of the size would match a link to one from before the capture.
        if buffer_type is None or (address is None and link is not None):
            return None
        for key in reversed(self._by_place.get((self._mesh(params), buffer_type, address), ())):
            # The oldest captures write size 0 here.
            if not size or self._live[key].size == size:
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


_Key = TypeVar("_Key")


def _take_out(table: dict[_Key, list[int]], name: _Key, key: int) -> None:
    """Take a key out of one list of a table, and the list too when it is empty."""
    held = table[name]
    held.remove(key)
    if not held:
        del table[name]


def _first_link(node: Mapping[str, object]) -> int | None:
    links = node.get("connections")
    return read_integer(links[0]) if isinstance(links, list) and links else None
