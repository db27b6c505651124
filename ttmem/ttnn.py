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
from typing import TYPE_CHECKING, Any

try:
    from ttmem import _ttnn_feed, _ttnn_hook
except ImportError:
    # They are not built for this machine: graph captures are what remains.
    _ttnn_hook = None  # type: ignore[assignment]
from ttmem._publisher import Publisher
from ttmem.errors import AlreadyPublishedError, InvalidArgumentError, TtmemError
from ttmem.model import WORKER_L1_SIZE, BufferType, parse_arch
from ttmem.pids import ProcessTable
from ttmem.publisher import disabled, publish
from ttmem.region import RegionProcess, find_regions, read_region

if TYPE_CHECKING:
    from typing_extensions import Self

    from ttmem.ttnn_capture import CaptureTracker

log = logging.getLogger("ttmem")

CHECK_SECONDS = 1.0
"""How often a tracker sees whether the hook is still on and its files are still there."""
REGION_DIRECTORY = Path("/dev/shm")
"""Where TT-Metal of this very process has its regions, whatever TTMEM_SHM_DIR says."""
NOTE_PROGRAMS_BEFORE, NOTE_BUFFERS_BEFORE, NOTE_WINDOWED = 1, 2, 4
"""What readers are told of the figures as a whole: ``enum ttm_note`` in ``_layout.h``."""
REGION_FIELDS = {
    BufferType.DRAM: "dram_bytes",
    BufferType.L1: "l1_bytes",
    BufferType.L1_SMALL: "l1_small_bytes",
    BufferType.TRACE: "trace_bytes",
}


def memory_view(device: Any, kind: BufferType) -> Any:
    """Return what TT-Metal's allocator tells of a buffer type on a device or mesh."""
    ttnn: Any = importlib.import_module("ttnn")

    return ttnn.get_memory_view(device, getattr(ttnn.BufferType, kind.name))


def geometry_of(device: Any) -> dict[str, Any]:
    """Return what ttnn tells of a device or mesh, as keywords of :func:`ttmem.publish`.

    The first address for circular buffers is what is left of L1 below its banks:
    ``worker_l1_size - l1_small_size - bytes per bank``.
    """
    arch = parse_arch(device.arch())
    grid = device.compute_with_storage_grid_size()
    views = {kind: memory_view(device, kind) for kind in REGION_FIELDS}
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
    processes = ProcessTable()
    for path in find_regions(directory):
        with contextlib.suppress(TtmemError):
            region = read_region(path, processes=processes)
            for process in region.processes:
                if process.pid == os.getpid() and region.device_id is not None:
                    found[region.device_id] = (region.asic_id, process)
    return found


_trackers: list["Tracker"] = []
_lock = threading.RLock()
"""Guards `_trackers` and who hears the hook."""


def _hear() -> None:
    """Give the hook's events to the feeds of all trackers; the hook is holding them."""
    _ttnn_feed.hear({chip: feed for tracker in _trackers for chip, feed in tracker.feeds.items()})


def _switch_off(reason: str) -> None:
    """Stop all tracking with one warning: figures that miss something would be worse than none."""
    with _lock:
        trackers = list(_trackers)
        # Events that are still kept are for nobody any more.
        _ttnn_hook.stop()
        _ttnn_hook.take()
        for tracker in trackers:
            tracker.stop()
    if trackers:
        warnings.warn(f"ttmem no longer follows ttnn: {reason}", RuntimeWarning, stacklevel=2)


def foreseen(error: BaseException) -> bool:
    """Whether whoever began to track is told by an exception; what is amiss with ttnn or ttmem must not end the program."""
    return isinstance(error, AlreadyPublishedError) or not isinstance(error, Exception)


class Follower:
    """What every tracker has, whichever way it follows ttnn: a context manager that a thread of its own accompanies.

    Attributes:
        active: whether ttnn is being followed.
        reason: why not; empty if all is well.
        warnings: what a reader of the figures should know.
        publishers: the publisher of each chip, by its number.
    """

    def __init__(self, device: Any) -> None:
        self.device = device
        self.active = False
        self.reason = ""
        self.warnings: list[str] = []
        self.publishers: dict[int, Publisher] = {}
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Start following, and return the tracker itself."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop following and withdraw the devices. Stopping twice does nothing."""
        raise NotImplementedError

    def _run(self) -> None:
        """Accompany: runs on the thread until `_wake` is set."""
        raise NotImplementedError

    def _accompany(self) -> None:
        """Start the thread, and be stopped at the end of the process at the latest."""
        atexit.register(self.stop)
        self._wake.clear()
        self._thread = threading.Thread(target=self._run, name="ttmem-ttnn", daemon=True)
        self._thread.start()

    def _part(self, thread: threading.Thread | None) -> None:
        """End the thread; no lock that it waits for may be held."""
        self._wake.set()
        atexit.unregister(self.stop)
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=5)

    def _withdraw(self) -> None:
        for publisher in self.publishers.values():
            publisher.close()
        self.publishers = {}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "active" if self.active else self.reason or "stopped"
        name = f"{type(self).__module__}.{type(self).__name__}"
        return f"<{name} of chips {sorted(self.publishers)}, {state}>"


class Tracker(Follower):
    """Publishes what ttnn does on the chips of a device or mesh; made by :func:`track`.

    A context manager; :meth:`stop` withdraws the devices and puts TT-Metal's calls back as they were.

    Attributes:
        feeds: what enters a chip's events into its publisher.

    Thread safety: any thread may call. Fork safety: a child follows nothing.
    """

    def __init__(self, device: Any) -> None:
        super().__init__(device)
        self.feeds: dict[int, _ttnn_feed.Feed] = {}
        self._kept: _ttnn_hook.Events | None = None

    def start(self, *, quiet: bool = False) -> Self:
        """Start following; if that cannot be, warn once and do nothing more.

        Args:
            quiet: leave the warning to the caller.

        Returns:
            The tracker itself.

        Raises:
            AlreadyPublishedError: this process publishes one of the chips already.
        """
        with _lock:
            if self.active:
                return self
            self.warnings = []
            if disabled():
                self.reason = "TTMEM_DISABLE is set"
                return self
            if _ttnn_hook is None:
                self.reason = "the hook is not built for this machine"
                if not quiet:
                    warnings.warn(f"ttmem does not follow ttnn: {self.reason}", RuntimeWarning, stacklevel=3)
                return self
            first = not _trackers
            if first:
                self.reason = _ttnn_hook.start()
            else:
                self.reason = ""
                _ttnn_hook.hold()
            try:
                if not self.reason:
                    self._follow()
            except BaseException as error:
                if not foreseen(error):
                    self.reason = f"{type(error).__name__}: {error}"
                else:
                    self._leave(first)
                    raise
            if self.reason:
                self._leave(first)
                if not quiet:
                    warnings.warn(f"ttmem does not follow ttnn: {self.reason}", RuntimeWarning, stacklevel=3)
                return self
        self._accompany()
        return self

    def _follow(self) -> None:
        """Publish every chip, with what was there before; sets `reason` if the first events are not as expected."""
        chips = [int(chip) for chip in self.device.get_device_ids()]
        geometry = geometry_of(self.device)
        with probe(self.device):
            self._kept = kept = _ttnn_hook.take()
            status = _ttnn_hook.status()
            regions = own_regions()
        live: dict[tuple[int, int], int] = {}
        for kind, chip, *values in kept.told():
            if kind in ("buffer_allocate", "buffer_free"):
                sign = 1 if kind == "buffer_allocate" else -1
                live[chip, values[1]] = live.get((chip, values[1]), 0) + sign * values[2]
        missed = [chip for chip in chips if not live.get((chip, BufferType.DRAM))]
        if not status["on"]:
            self.reason = str(status["reason"])
        elif missed and not status["blocked"]:
            self.reason = f"a buffer that was allocated on chip {missed[0]} was not seen"
        for chip in chips if not self.reason else ():
            asic_id, slot = regions.get(chip, (None, None))
            before: dict[BufferType, int] = {}
            for buffer_type, field in REGION_FIELDS.items():
                size = getattr(slot, field) if slot is not None else None
                if size:
                    before[buffer_type] = size - live.get((chip, buffer_type), 0)
            if min(before.values(), default=0) < 0:
                self.reason = f"TT-Metal's region of chip {chip} shows less than what was allocated"
                break
            publisher = self.publishers[chip] = publish(chip, asic_id=asic_id, **geometry)
            if slot is None:
                self._warn(
                    publisher,
                    NOTE_BUFFERS_BEFORE,
                    f"TT-Metal has no region of chip {chip} for this process: what was allocated before is not known",
                )
            if _ttnn_hook.total_cb(chip):
                self._warn(
                    publisher,
                    NOTE_PROGRAMS_BEFORE,
                    f"programs that were laid out on chip {chip} before tracking began are not known",
                )
            self.feeds[chip] = _ttnn_feed.Feed(publisher, before)
        if self.reason:
            return
        # Whatever else came meanwhile is for the other trackers, and comes after.
        _trackers.append(self)
        self.active = True
        _hear()
        _ttnn_hook.release(_ttnn_feed.sink, kept)
        self._kept = None

    def _warn(self, publisher: Publisher, note: int, text: str) -> None:
        publisher.note(note)
        self.warnings.append(text)

    def _leave(self, last: bool) -> None:
        """Stop hearing the hook and withdraw the devices; the last one puts TT-Metal's calls back."""
        _ttnn_hook.hold()
        if self in _trackers:
            _trackers.remove(self)
        self.active = False
        _hear()
        if last:
            _ttnn_hook.stop()
            _ttnn_hook.take()
        else:
            try:
                # What was taken while this one began is the others' too.
                _ttnn_hook.release(_ttnn_feed.sink, self._kept)
            except MemoryError as error:
                _switch_off(str(error))
        self._kept = None
        self._withdraw()
        self.feeds = {}

    def _run(self) -> None:
        while not self._wake.wait(CHECK_SECONDS):
            self.sync()

    def sync(self) -> None:
        """See that all is well. Readers see what ttnn does at once, whether this is called or not."""
        with _lock:
            if not self.active:
                return
            status = _ttnn_hook.status()
            if not status["on"]:
                _switch_off(str(status["reason"]))
                return
            for publisher in self.publishers.values():
                publisher.check_file()

    def stop(self) -> None:
        """Stop following and withdraw the devices. Stopping twice does nothing."""
        with _lock:
            if not self.active:
                return
            self._leave(len(_trackers) == 1)
            thread, self._thread = self._thread, None
        self._part(thread)


@contextlib.contextmanager
def probe(device: Any) -> Iterator[None]:
    """Hold one small DRAM buffer: TT-Metal takes a slot in its region at the first, and the hook has to see it."""
    ttnn: Any = importlib.import_module("ttnn")

    tensor = ttnn.allocate_tensor_on_device(
        ttnn.Shape([1, 1, 32, 32]), ttnn.bfloat16, ttnn.TILE_LAYOUT, device, ttnn.DRAM_MEMORY_CONFIG
    )
    try:
        yield
    finally:
        ttnn.deallocate(tensor)


def track(device: Any, *, method: str = "auto") -> "Tracker | CaptureTracker":
    """Follow what ttnn does on an open device or mesh, and publish every chip of it, until the tracker is stopped.

    Args:
        device: what ``ttnn.open_device`` or ``ttnn.open_mesh_device`` returned.
        method: ``hook`` follows TT-Metal's own calls; ``capture`` makes short graph captures, which tell less
            (see :mod:`ttmem.ttnn_capture`); ``auto`` does so, with a warning, where the hook cannot be had.

    Returns:
        A context manager that is following already, or, with one warning, is not active and tells the `reason`.

    Raises:
        AlreadyPublishedError: this process publishes one of the chips already.
        InvalidArgumentError: there is no such method.
    """
    if method not in ("auto", "hook", "capture"):
        raise InvalidArgumentError(f"method must be auto, hook or capture, got {method!r}")
    tracker = Tracker(device)
    if method != "capture":
        tracker.start(quiet=method == "auto")
    if method == "hook" or tracker.active or disabled():
        return tracker
    from ttmem.ttnn_capture import CaptureTracker

    if method == "auto":
        warnings.warn(
            f"ttmem follows ttnn through graph captures, which tell less: {tracker.reason}",
            RuntimeWarning,
            stacklevel=2,
        )
    return CaptureTracker(device).start()
