"""Follows a ttnn process through short graph captures, where TT-Metal's own calls cannot be followed (see ``_hook.h``).

A capture makes an operation take some 0.2 ms longer, so only what was not seen before is captured: the first call of an
operation with these inputs, which is what lays a program out. Any later call dispatches the same programs. What lies in
L1 is asked of TT-Metal's allocator, and the totals of its shared-memory region.

What this way misses: dataflow buffers and scratchpads, which captures of running operations do not show; programs that
TT-Metal lays out on threads of its own, as those of ``ttnn.generic_op`` on a mesh; programs laid out where nobody looked,
which the size of the program cache tells; what a buffer is called.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import threading
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ttmem._publisher import Publisher
from ttmem.errors import TtmemError
from ttmem.interpreter import CaptureInterpreter
from ttmem.mesh import CaptureSink
from ttmem.model import BufferType, CircularBuffer
from ttmem.publisher import publish
from ttmem.ttnn import (
    NOTE_PROGRAMS_BEFORE,
    NOTE_WINDOWED,
    REGION_FIELDS,
    Follower,
    foreseen,
    geometry_of,
    memory_view,
    own_regions,
    probe,
)

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("ttmem")

POLL_NS = 50_000_000
"""How often the allocator is asked at most, and at least while operations run."""
POLL_SHARE = 50
"""A poll may take one part in so many of the time."""
BUDGET_NS = 15_000
"""CPU time that windows may take for each call, beside those in which a program was laid out, which takes far longer itself."""
BURST_NS = 1_000_000_000
"""CPU time that windows may take before that."""
MAX_CALLS = 65_536
"""The most calls that are told apart; beyond it they are forgotten, and captured again."""
WHAT_IS_MISSING = (
    "the figures come from graph captures, which do not show dataflow buffers, scratchpads and what TT-Metal lays out on "
    "threads of its own"
)
_POINTER = re.compile(r"\bat 0x[0-9a-f]+")
_CACHED = frozenset(("buffer", "buffer_allocate", "buffer_deallocate"))
_PLAIN = (int, float, str, bytes, bool, type(None))


class _OpaqueError(Exception):
    """An argument tells nothing of what it holds."""


class _ProgramSink(CaptureSink):
    """Tells the publishers of the programs in a window, and notes which these were; buffers are another's."""

    def __init__(self, publishers: dict[int, Publisher]) -> None:
        self.publishers = publishers
        self.dispatched: list[tuple[Publisher, int]] = []
        self._ids: dict[tuple[int, int], int] = {}
        self.refused = 0

    def add_program(self, chip: int, program_key: int, circular_buffers: tuple[CircularBuffer, ...], name: str) -> None:
        """Publish a program that was laid out."""
        publisher = self.publishers.get(chip)
        if publisher is None:
            return
        try:
            self._ids[chip, program_key] = publisher.add_program(list(circular_buffers), name=name)
        except (TtmemError, ValueError) as error:
            self.refused += 1
            if self.refused == 1:
                log.warning("ttmem cannot publish a program of ttnn: %s; the program goes on", error)

    def dispatch(self, chip: int, program_key: int) -> None:
        """Publish that it was dispatched."""
        program_id = self._ids.get((chip, program_key))
        if program_id is not None:
            publisher = self.publishers[chip]
            publisher.dispatch(program_id)
            self.dispatched.append((publisher, program_id))

    def clear(self) -> None:
        """Remove every program."""
        for (chip, _), program_id in self._ids.items():
            self.publishers[chip].remove_program(program_id)
        self._ids.clear()


class _Blocks:
    """What TT-Metal's allocator holds on every chip of the device, published as its blocks and the region's totals."""

    def __init__(self, device: Any, publishers: dict[int, Publisher], geometry: dict[str, Any]) -> None:
        self._device = device
        self._publishers = publishers
        base, worker, small = (geometry[name] for name in ("l1_cb_base", "worker_l1_size", "l1_small_size"))
        # Where the allocator's address 0 lies on a core.
        self._first = {BufferType.L1: base, BufferType.L1_SMALL: None if worker is None else worker - small}
        self._blocks: dict[tuple[BufferType, int, int], list[int]] = {}
        self._totals: dict[tuple[BufferType, int], tuple[int, int]] = {}

    def poll(self) -> None:
        """Publish what has changed."""
        there: set[tuple[BufferType, int, int]] = set()
        sums: dict[BufferType, int] = {}
        for kind in REGION_FIELDS:
            view = memory_view(self._device, kind)
            sums[kind] = int(view.total_bytes_allocated_per_bank) * int(view.num_banks)
            first = self._first.get(kind)
            if first is not None and sums[kind]:
                rows = (row for row in view.block_table if row["allocated"] == "yes")
                there.update((kind, first + int(row["address"]), int(row["size"])) for row in rows)
        regions = own_regions()
        with contextlib.ExitStack() as batches:
            for publisher in self._publishers.values():
                batches.enter_context(publisher.batch())
            for gone in self._blocks.keys() - there:
                for publisher, buffer_id in zip(self._publishers.values(), self._blocks.pop(gone), strict=True):
                    publisher.deallocate(buffer_id)
            for new in there - self._blocks.keys():
                kind, address, size = new
                self._blocks[new] = [
                    # Its whole size is known for all blocks together only.
                    publisher.allocate(kind, 0, address=address, size_per_bank=size)
                    for publisher in self._publishers.values()
                ]
            for chip, publisher in self._publishers.items():
                slot = regions[chip][1] if chip in regions else None
                for kind, field in REGION_FIELDS.items():
                    total = sums[kind] if slot is None else int(getattr(slot, field) or 0)
                    self._set_total(publisher, kind, chip, total)

    def _set_total(self, publisher: Publisher, kind: BufferType, chip: int, total: int) -> None:
        buffer_id, held = self._totals.get((kind, chip), (0, 0))
        if held == total:
            return
        if held:
            del self._totals[kind, chip]
            publisher.deallocate(buffer_id)
        if total:
            self._totals[kind, chip] = publisher.allocate(kind, total), total


class CaptureTracker(Follower):
    """Publishes what ttnn does on the chips of a device or mesh, by graph captures; made by :func:`ttmem.ttnn.track`.

    While somebody else captures a graph it opens no window.

    Attributes:
        windows: how many captures were made.
        missed: programs that were laid out where no window was open.

    Thread safety: any thread may call, and may call ttnn. Fork safety: a child follows nothing.
    """

    def __init__(self, device: Any) -> None:
        super().__init__(device)
        self.windows = 0
        self.missed = 0
        self._lock = threading.RLock()
        self._local = threading.local()
        self._calls = 0
        self._spent_ns = 0
        self._poll_at_ns = 0
        self._entries = 0
        self._seen: dict[Any, list[tuple[Publisher, int]]] = {}
        self._patched: list[tuple[type, Any, Any]] = []

    def start(self) -> Self:
        """Start following; if that cannot be, warn once and do nothing more.

        Returns:
            The tracker itself.

        Raises:
            AlreadyPublishedError: this process publishes one of the chips already.
        """
        if self.active:
            return self
        try:
            self._follow()
        except BaseException as error:
            self._unpatch()
            self._withdraw()
            if foreseen(error):
                raise
            self.reason = f"{type(error).__name__}: {error}"
            warnings.warn(f"ttmem does not follow ttnn: {self.reason}", RuntimeWarning, stacklevel=3)
            return self
        self.reason = ""
        self.active = True
        self._accompany()
        return self

    def _follow(self) -> None:
        """Publish every chip, with what was there before, and wrap the calls of operations."""
        ttnn: Any = importlib.import_module("ttnn")
        self._ttnn, self._graph, self._deallocate = ttnn, ttnn.graph, ttnn.deallocate
        geometry = geometry_of(self.device)
        with probe(self.device):
            regions = own_regions()
        self.warnings = [WHAT_IS_MISSING]
        self._entries = int(self.device.num_program_cache_entries())
        if self._entries:
            self.warnings.append("programs that were laid out before tracking began are not known")
        for chip in (int(chip) for chip in self.device.get_device_ids()):
            asic_id = regions[chip][0] if chip in regions else None
            self.publishers[chip] = publish(chip, asic_id=asic_id, **geometry)
            if asic_id is None:
                self.warnings.append(f"TT-Metal has no region of chip {chip} for this process: totals are of banks")
        self._note(NOTE_WINDOWED | (NOTE_PROGRAMS_BEFORE if self._entries else 0))
        self._blocks = _Blocks(self.device, self.publishers, geometry)
        self._blocks.poll()
        self._sink = _ProgramSink(self.publishers)
        self._interpreter = CaptureInterpreter(self._sink)
        self._seen.clear()
        self._patch()

    def _note(self, notes: int) -> None:
        for publisher in self.publishers.values():
            publisher.note(notes)

    # Calls of operations.

    def _patch(self) -> None:
        decorators: Any = importlib.import_module("ttnn.decorators")
        for name in ("FastOperation", "Operation"):
            kind: Any = getattr(decorators, name, None)
            original = vars(kind).get("__call__") if kind is not None else None
            if original is None:
                continue

            def call(operation: Any, *args: Any, _original: Any = original, **kwargs: Any) -> Any:
                return self._call(_original, operation, args, kwargs)

            kind.__call__ = call
            self._patched.append((kind, original, call))

    def _unpatch(self) -> None:
        for kind, original, call in self._patched:
            if kind.__call__ is call:
                kind.__call__ = original  # type: ignore[method-assign]
        self._patched.clear()

    def _call(self, original: Any, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Carry an operation out, in a window if it was not seen before."""
        if not self.active or operation is self._deallocate or getattr(self._local, "inside", False):
            return original(operation, *args, **kwargs)
        self._calls += 1
        key: Any = None
        known = None
        try:
            key = (operation.python_fully_qualified_name, self._key(args), self._key(kwargs) if kwargs else ())
            known = self._seen.get(key)
        except Exception:
            # What cannot be told apart is looked at each time.
            key = None
        self._local.inside = True
        try:
            if known is not None:
                result = original(operation, *args, **kwargs)
                try:
                    for publisher, program_id in known:
                        publisher.dispatch(program_id)
                except Exception as error:
                    self._fail(error)
            elif self._graph.is_graph_capture_active() or self._spent_ns > BURST_NS + BUDGET_NS * self._calls:
                result = original(operation, *args, **kwargs)
            else:
                result = self._in_window(key, lambda: original(operation, *args, **kwargs))
        finally:
            self._local.inside = False
        try:
            if self.device.num_program_cache_entries() != self._entries:
                self._cache_changed()
            if time.monotonic_ns() >= self._poll_at_ns:
                self._poll()
        except Exception as error:
            self._fail(error)
        return result

    def _fail(self, error: Exception) -> None:
        """End following for a fault that must not reach the user's call; the log says why."""
        # Another thread may have stopped it meanwhile: then there is nothing wrong.
        if self.active:
            self.reason = f"{type(error).__name__}: {error}"
            log.warning("ttmem no longer follows ttnn: %s; the program goes on", self.reason)
            self.stop()

    def _in_window(self, key: Any, carry_out: Callable[[], Any]) -> Any:
        # This thread's own: a busy machine must not make windows look dear, and programs go unseen.
        begin_ns = time.thread_time_ns()
        try:
            before = self.device.num_program_cache_entries()
            self._graph._cpp_begin_graph_capture(self._graph.RunMode.NORMAL)
        except Exception as error:
            self._fail(error)
            return carry_out()
        ended = False
        try:
            result = carry_out()
            ended = True
        finally:
            try:
                nodes = self._graph._cpp_end_graph_capture()
                with self._lock:
                    self.windows += 1
                    dispatched = self._interpret(nodes)
                    grown = self.device.num_program_cache_entries() - before
                    if grown > 0:
                        self._entries += int(grown)
                    else:
                        self._spent_ns += time.thread_time_ns() - begin_ns
                    # What threw may have left its program in the cache, or not: it is looked at again.
                    if key is not None and ended:
                        if len(self._seen) >= MAX_CALLS:
                            self._seen.clear()
                        self._seen[key] = dispatched
            except Exception as error:
                self._fail(error)
        return result

    def _interpret(self, nodes: list[Any]) -> list[tuple[Publisher, int]]:
        self._sink.dispatched = []
        for node in nodes:
            if node.get("node_type") not in _CACHED:
                self._interpreter.feed(node)
        self._interpreter.finish()
        return self._sink.dispatched

    def _cache_changed(self) -> None:
        """Take in that the program cache changed where no window was open."""
        with self._lock:
            entries = int(self.device.num_program_cache_entries())
            if entries < self._entries:
                self._sink.clear()
                self._interpreter = CaptureInterpreter(self._sink)
                self._seen.clear()
            elif entries > self._entries:
                if not self.missed:
                    self.warnings.append("programs that were laid out where no capture was made are not known")
                    self._note(NOTE_PROGRAMS_BEFORE)
                self.missed += entries - self._entries
            self._entries = entries

    def _key(self, value: Any) -> Any:
        """Return what tells the calls of an operation apart that may need programs of their own."""
        kind = type(value)
        if kind in _PLAIN:
            # 1, 1.0 and True are equal.
            return (kind, value)
        if kind is self._ttnn.Tensor:
            device = value.device()
            # Shapes, and so specs, have no hash of their value.
            place = None if device is None else device.id()
            return (repr(value.shape), value.dtype, value.layout, value.memory_config(), place)
        if kind in (tuple, list):
            return tuple([self._key(item) for item in value])
        if kind is dict:
            return tuple([(name, self._key(item)) for name, item in value.items()])
        if kind is self._ttnn.ProgramDescriptor:
            return self._ttnn.compute_program_descriptor_hash(value)
        text = repr(value)
        if _POINTER.search(text):
            raise _OpaqueError
        return (kind, text)

    # What the allocator holds.

    def _run(self) -> None:
        while not self._wake.wait(POLL_NS / 1e9):
            if time.monotonic_ns() >= self._poll_at_ns:
                self._poll()

    def _poll(self) -> None:
        with self._lock:
            if not self.active:
                return
            begin_ns = time.monotonic_ns()
            try:
                self._blocks.poll()
                end_ns = time.monotonic_ns()
                self._poll_at_ns = end_ns + max(POLL_NS, POLL_SHARE * (end_ns - begin_ns))
                return
            except RuntimeError as error:
                self.reason = "the device was closed: " + str(error).partition("\n")[0]
        # Not under the lock: the other thread may wait for it, and is waited for.
        self.stop()

    def sync(self) -> None:
        """Publish what the allocator holds now."""
        self._poll()

    def stop(self) -> None:
        """Stop following and withdraw the devices. Stopping twice does nothing."""
        with self._lock:
            if not self.active:
                return
            self.active = False
            self._unpatch()
            self._withdraw()
            thread, self._thread = self._thread, None
        self._part(thread)
