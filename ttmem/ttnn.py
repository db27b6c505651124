"""Follows a live ttnn process: what TT-Metal does on a device goes into ttmem's publishers.

ttnn is imported when tracking starts and not before. TT-Metal's own calls are followed through a compiled hook (see
``_hook.h``), so no graph capture is needed and one that the user makes is not disturbed.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from ttmem import _ttnn_hook
from ttmem._publisher import Publisher
from ttmem.cores import CoreRange, CoreRangeSet
from ttmem.errors import InvalidIntervalError, TtmemError
from ttmem.model import WORKER_L1_SIZE, BufferType, CircularBuffer, parse_arch
from ttmem.publisher import publish
from ttmem.region import RegionProcess, find_regions, read_region

log = logging.getLogger("ttmem")

PUMP_SECONDS = 0.05
"""How often waiting events are published; :meth:`Tracker.sync` publishes them at once."""
REGION_DIRECTORY = Path("/dev/shm")
"""Where TT-Metal of this very process has its regions, whatever TTMEM_SHM_DIR says."""
REGION_FIELDS = {
    BufferType.DRAM: "dram_bytes",
    BufferType.L1: "l1_bytes",
    BufferType.L1_SMALL: "l1_small_bytes",
    BufferType.TRACE: "trace_bytes",
}


def geometry_of(device: Any) -> dict[str, Any]:
    """Return what ttnn tells of a device or mesh, as keywords of :func:`ttmem.publish`.

    The first address for circular buffers is what is left of L1 below its banks:
    ``worker_l1_size - l1_small_size - bytes per bank``.
    """
    ttnn: Any = importlib.import_module("ttnn")

    arch = parse_arch(device.arch())
    grid = device.compute_with_storage_grid_size()
    views = {kind: ttnn.get_memory_view(device, getattr(ttnn.BufferType, kind.name)) for kind in REGION_FIELDS}
    worker_l1_size = WORKER_L1_SIZE[arch] if arch else None
    small = int(views[BufferType.L1_SMALL].total_bytes_per_bank)
    base = None
    if worker_l1_size is not None:
        base = worker_l1_size - small - int(views[BufferType.L1].total_bytes_per_bank)

    def total(kind: BufferType) -> int:
        return int(views[kind].num_banks) * int(views[kind].total_bytes_per_bank)

    return {
        "arch": arch,
        "grid": (int(grid.x), int(grid.y)),
        "worker_l1_size": worker_l1_size,
        "l1_cb_base": base if base is not None and base > 0 else None,
        "l1_small_size": small,
        "dram_size": total(BufferType.DRAM),
        "trace_region_size": total(BufferType.TRACE),
    }


def own_regions(directory: Path = REGION_DIRECTORY) -> dict[int, tuple[int, RegionProcess]]:
    """Return, by chip, the asic id and this process's slot of each TT-Metal region that this process is in."""
    found: dict[int, tuple[int, RegionProcess]] = {}
    for path in find_regions(directory):
        with contextlib.suppress(TtmemError):
            region = read_region(path)
            for process in region.processes:
                if process.pid == os.getpid() and region.device_id is not None:
                    found[region.device_id] = (region.asic_id, process)
    return found


def _core_ranges(rectangles: tuple[tuple[int, int, int, int], ...]) -> CoreRangeSet:
    ranges = [CoreRange((x, y), (end_x, end_y)) for x, y, end_x, end_y in rectangles]
    try:
        return CoreRangeSet(*ranges)
    except InvalidIntervalError:
        # 0.77 names the ranges of a dataflow buffer one by one, and they may overlap.
        return CoreRangeSet(*(CoreRange(core) for core in sorted({core for part in ranges for core in part})))


class ChipFeed:
    """Applies the hook's events of one chip to its publisher.

    Args:
        publisher: what to tell; anything with the calls of :class:`ttmem.Publisher`.
        before: bytes of each type that were allocated before the hook was there.
    """

    def __init__(self, publisher: Publisher, before: dict[BufferType, int] | None = None) -> None:
        self.publisher = publisher
        self.refused = 0
        self._buffers: dict[int, int] = {}
        self._programs: set[int] = set()
        self._traces: dict[int, int] = {}
        self._before: dict[BufferType, tuple[int, int]] = {}
        for kind, size in (before or {}).items():
            self._set_before(kind, size)

    def _set_before(self, kind: BufferType, size: int) -> None:
        """Keep what is left of the buffers from before as one unnamed entry."""
        held = self._before.pop(kind, None)
        if held is not None:
            self.publisher.deallocate(held[0])
        if size > 0:
            self._before[kind] = (self.publisher.allocate(kind, size), size)

    def apply(self, event: tuple[Any, ...]) -> None:
        """Apply one event; what the publisher refuses is counted and logged once."""
        try:
            getattr(self, "_" + event[0])(*event[2:])
        except (TtmemError, ValueError) as error:
            self.refused += 1
            if self.refused == 1:
                log.warning("ttmem cannot publish an event of ttnn: %s (%s); the program goes on", error, event[0])

    def _buffer_allocate(self, buffer_id: int, kind: int, size: int, address: int, size_per_bank: int) -> None:
        in_l1 = kind in (BufferType.L1, BufferType.L1_SMALL)
        self._buffers[buffer_id] = self.publisher.allocate(
            BufferType(kind), size, address=address, size_per_bank=size_per_bank if in_l1 else None
        )

    def _buffer_free(self, buffer_id: int, kind: int, size: int, address: int, size_per_bank: int) -> None:
        known = self._buffers.pop(buffer_id, None)
        if known is not None:
            self.publisher.deallocate(known)
        elif BufferType(kind) in self._before:
            self._set_before(BufferType(kind), self._before[BufferType(kind)][1] - size)

    def _program_add(self, program_id: int, name: str, footprint: list[tuple[Any, ...]]) -> None:
        buffers = [
            CircularBuffer(address, size, _core_ranges(ranges), globally_allocated=is_global, kind=kind)
            for kind, address, size, is_global, ranges in footprint
        ]
        if program_id in self._programs:
            self._program_remove(program_id, name)
        self.publisher.add_program(buffers, name=name, program_id=program_id)
        self._programs.add(program_id)

    def _program_remove(self, program_id: int, name: str) -> None:
        if program_id in self._programs:
            self._programs.discard(program_id)
            self.publisher.remove_program(program_id)

    def _program_dispatch(self, program_id: int, name: str) -> None:
        if program_id in self._programs:
            self.publisher.dispatch(program_id)

    def _trace(self, trace_id: int, action: str) -> None:
        if action == "begin":
            self._traces[trace_id] = self.publisher.begin_trace()
        elif trace_id in self._traces:
            if action == "end":
                self.publisher.end_trace(self._traces[trace_id])
            elif action == "replay":
                self.publisher.replay_trace(self._traces[trace_id])
            else:
                self.publisher.release_trace(self._traces.pop(trace_id))

    def _device_close(self) -> None:
        for kind in list(self._before):
            self._set_before(kind, 0)


_trackers: list["Tracker"] = []
_lock = threading.RLock()
"""Guards `_trackers` and the order in which events are applied."""


def _apply_events() -> list[tuple[Any, ...]]:
    """Take the events that wait, apply each to the tracker of its chip, and return them."""
    with _lock:
        try:
            events = _ttnn_hook.drain()
        except MemoryError as error:
            _switch_off(str(error))
            return []
        feeds = {chip: feed for tracker in _trackers for chip, feed in tracker.feeds.items()}
        with contextlib.ExitStack() as batches:
            for feed in feeds.values():
                batches.enter_context(feed.publisher.batch())
            for event in events:
                if event[1] in feeds:
                    feeds[event[1]].apply(event)
    return events


def _switch_off(reason: str) -> None:
    """Stop all tracking with one warning: figures that miss something would be worse than none."""
    with _lock:
        trackers = list(_trackers)
        for tracker in trackers:
            tracker.stop()
    if trackers:
        warnings.warn(f"ttmem no longer follows ttnn: {reason}", RuntimeWarning, stacklevel=2)


class Tracker:
    """Publishes what ttnn does on the chips of a device or mesh; made by :func:`track`.

    A context manager; :meth:`stop` withdraws the devices and puts TT-Metal's calls back as they were.

    Attributes:
        active: whether ttnn is being followed.
        reason: why not; empty if all is well.
        warnings: what a reader of the figures should know.
        feeds: what follows each chip, by its number.

    Thread safety: any thread may call. Fork safety: a child follows nothing.
    """

    def __init__(self, device: Any) -> None:
        self.device = device
        self.active = False
        self.reason = ""
        self.warnings: list[str] = []
        self.feeds: dict[int, ChipFeed] = {}
        self._wake = threading.Event()
        self._pump: threading.Thread | None = None

    @property
    def publishers(self) -> dict[int, Publisher]:
        """The publisher of each chip, by its number."""
        return {chip: feed.publisher for chip, feed in self.feeds.items()}

    def start(self) -> "Tracker":
        """Start following; if that cannot be, warn once and do nothing more.

        Returns:
            The tracker itself.

        Raises:
            AlreadyPublishedError: this process publishes one of the chips already.
        """
        with _lock:
            if self.active:
                return self
            self.warnings = []
            if os.environ.get("TTMEM_DISABLE", "0") not in ("", "0"):
                self.reason = "TTMEM_DISABLE is set"
                return self
            first = not _trackers
            if not first:
                _apply_events()
            self.reason = _ttnn_hook.start() if first else ""
            try:
                if not self.reason:
                    self._follow()
            except BaseException:
                self._withdraw()
                if first:
                    _ttnn_hook.stop()
                raise
            if self.reason:
                self._withdraw()
                if first:
                    _ttnn_hook.stop()
                warnings.warn(f"ttmem does not follow ttnn: {self.reason}", RuntimeWarning, stacklevel=3)
                return self
            self.active = True
            _trackers.append(self)
        atexit.register(self.stop)
        self._wake.clear()
        self._pump = threading.Thread(target=self._run, name="ttmem-ttnn", daemon=True)
        self._pump.start()
        return self

    def _follow(self) -> None:
        """Publish every chip, with what was there before; sets `reason` if the first events are not as expected."""
        chips = [int(chip) for chip in self.device.get_device_ids()]
        geometry = geometry_of(self.device)
        with _probe(self.device):
            events = _apply_events()
            status = _ttnn_hook.status()
            regions = own_regions()
        live: dict[tuple[int, int], int] = {}
        for kind, chip, *values in events:
            if kind in ("buffer_allocate", "buffer_free"):
                sign = 1 if kind == "buffer_allocate" else -1
                live[chip, values[1]] = live.get((chip, values[1]), 0) + sign * values[2]
        missed = [chip for chip in chips if not live.get((chip, BufferType.DRAM))]
        if not status["on"]:
            self.reason = str(status["reason"])
        elif missed and not status["blocked"]:
            self.reason = f"a buffer that was allocated on chip {missed[0]} was not seen"
        if self.reason:
            return
        for chip in chips:
            asic_id, slot = regions.get(chip, (None, None))
            before: dict[BufferType, int] = {}
            for buffer_type, field in REGION_FIELDS.items():
                size = getattr(slot, field) if slot is not None else None
                if size:
                    before[buffer_type] = size - live.get((chip, buffer_type), 0)
            if slot is None:
                self.warnings.append(
                    f"TT-Metal has no region of chip {chip} for this process: what was allocated before is not known"
                )
            if min(before.values(), default=0) < 0:
                self.reason = f"TT-Metal's region of chip {chip} shows less than what was allocated"
                return
            if _ttnn_hook.total_cb(chip):
                self.warnings.append(f"programs that were laid out on chip {chip} before tracking began are not known")
            feed = self.feeds[chip] = ChipFeed(publish(chip, asic_id=asic_id, **geometry), before)
            for event in events:
                if event[1] == chip:
                    feed.apply(event)

    def _run(self) -> None:
        while not self._wake.wait(PUMP_SECONDS):
            self.sync()

    def sync(self) -> None:
        """Publish every event so far; when it returns, readers see all that ttnn did before the call."""
        with _lock:
            if not self.active:
                return
            _apply_events()
            status = _ttnn_hook.status()
            if not status["on"] and self.active:
                _switch_off(str(status["reason"]))

    def stop(self) -> None:
        """Stop following and withdraw the devices. Stopping twice does nothing."""
        with _lock:
            if not self.active:
                return
            _apply_events()
            if not self.active:  # the events could not be had, and so all tracking was stopped
                return
            self.active = False
            _trackers.remove(self)
            if not _trackers:
                _ttnn_hook.stop()
            self._withdraw()
            pump, self._pump = self._pump, None
        self._wake.set()
        atexit.unregister(self.stop)
        if pump is not None and pump is not threading.current_thread():
            pump.join(timeout=5)

    def _withdraw(self) -> None:
        for feed in self.feeds.values():
            feed.publisher.close()
        self.feeds = {}

    def __enter__(self) -> "Tracker":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "active" if self.active else self.reason or "stopped"
        return f"<ttmem.ttnn.Tracker of chips {sorted(self.feeds)}, {state}>"


@contextlib.contextmanager
def _probe(device: Any) -> Iterator[None]:
    """Hold one small DRAM buffer: TT-Metal takes a slot in its region at the first, and the hook has to see it."""
    ttnn: Any = importlib.import_module("ttnn")

    tensor = ttnn.allocate_tensor_on_device(
        ttnn.Shape([1, 1, 32, 32]), ttnn.bfloat16, ttnn.TILE_LAYOUT, device, ttnn.DRAM_MEMORY_CONFIG
    )
    try:
        yield
    finally:
        ttnn.deallocate(tensor)


def track(device: Any) -> Tracker:
    """Follow what ttnn does on an open device or mesh, and publish every chip of it, until the tracker is stopped.

    Args:
        device: what ``ttnn.open_device`` or ``ttnn.open_mesh_device`` returned.

    Returns:
        A context manager that is following already, or, with one warning, is not active and tells the `reason`.

    Raises:
        AlreadyPublishedError: this process publishes one of the chips already.
    """
    return Tracker(device).start()
