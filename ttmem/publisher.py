"""Starts publishing a device."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any, cast

from ttmem import _ledger, _publisher, segment
from ttmem._publisher import Publisher
from ttmem.errors import AlreadyPublishedError, InvalidArgumentError, InvalidIntervalError
from ttmem.model import Geometry
from ttmem.snapshot import Snapshot

log = logging.getLogger("ttmem")


class DisabledPublisher:
    """What :func:`publish` returns under TTMEM_DISABLE=1: takes every call, does nothing, returns 0."""

    def __init__(self, device_id: int, geometry: Geometry) -> None:
        self.device_id = device_id
        self.geometry = geometry
        self.published = False

    def _nothing(self, *args: object, **kwargs: object) -> int:
        return 0

    add_program = remove_program = dispatch = footprint = _nothing
    begin_trace = end_trace = replay_trace = release_trace = _nothing
    allocate = deallocate = load_kernel = unload_kernel = close = reset_peaks = note = _nothing

    def core_peaks(self) -> list[tuple[int, int, int, int]]:
        """Return no core."""
        return []

    def batch(self) -> contextlib.AbstractContextManager[object]:
        """Return a context manager that does nothing."""
        return contextlib.nullcontext(self)

    def snapshot(self) -> Snapshot:
        """Return the snapshot of a device on which nothing was recorded."""
        with Publisher(self.device_id, self.geometry) as empty:
            snapshot: Snapshot = empty.snapshot()
            return snapshot

    def __enter__(self) -> "DisabledPublisher":
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None


def disabled() -> bool:
    """Tell whether TTMEM_DISABLE asks for nothing to be published."""
    return os.environ.get("TTMEM_DISABLE", "0") not in ("", "0")


def publish(
    device_id: int,
    *,
    arch: object = None,
    asic_id: int | None = None,
    grid: Any = None,
    worker_l1_size: int | None = None,
    l1_cb_base: int | None = None,
    l1_small_size: int | None = None,
    dram_size: int | None = None,
    trace_region_size: int | None = None,
    origin: str = "live",
) -> Publisher:
    """Publish a device's memory statistics in shared memory, where any process may read them.

    Args:
        device_id: the logical id, 0 to 2^31 - 1.
        arch: ``grayskull``, ``wormhole_b0`` or ``blackhole``; tells ``worker_l1_size`` where that is not given.
        asic_id: the chip's unique id (UMD's ``chip_unique_id``).
        grid: the compute grid as (x, y) or a CoreCoord.
        worker_l1_size: bytes of L1 of one core.
        l1_cb_base: the first L1 address that circular buffers and L1 buffers may take.
        l1_small_size: bytes set aside for L1_SMALL on each core.
        dram_size: bytes of DRAM.
        trace_region_size: bytes of DRAM set aside for traces.
        origin: ``live``, or, for figures of another time, ``replay`` (which knows nothing of kernels) or ``recording``.

    Returns:
        A context manager. Its :meth:`~Publisher.close`, or the end of the process, withdraws the device. If shared
        memory is full or closed to this user, it records and publishes nothing, and says so once in the log ``ttmem``.

    Raises:
        AlreadyPublishedError: this process publishes the device already.
        InvalidIntervalError: an id, size or grid is out of range.
        InvalidArgumentError: the architecture is unknown.
    """
    if isinstance(device_id, bool) or not hasattr(device_id, "__index__"):
        raise InvalidIntervalError(f"device_id must be an integer, got {device_id!r}")
    if not 0 <= device_id.__index__() < 2**31:
        raise InvalidIntervalError(f"device_id must be between 0 and 2^31 - 1, got {device_id}")
    if origin not in ("live", "replay", "recording"):
        raise InvalidArgumentError(f"origin must be live, replay or recording, got {origin!r}")
    geometry = Geometry.of(
        arch=arch,
        asic_id=asic_id,
        grid=grid,
        worker_l1_size=worker_l1_size,
        l1_cb_base=l1_cb_base,
        l1_small_size=l1_small_size,
        dram_size=dram_size,
        trace_region_size=trace_region_size,
    )
    device_id = device_id.__index__()
    if disabled():
        return cast(Publisher, DisabledPublisher(device_id, geometry))
    with segment.registry_lock():
        if _ledger.canary() == 0:
            # The first publisher of this process, or of a child that was forked from a publishing one.
            segment.after_fork_in_child()
            _publisher._published.clear()
            _ledger.new_canary()
        if device_id in _publisher._published:
            raise AlreadyPublishedError(
                f"this process publishes device {device_id} already: close that publisher first"
            )
        directory, space = segment.shm_directory(), segment.namespace()
        segment.collect(directory, space)
        return _publisher.publish_device(device_id, geometry, origin, segment.writer_file(directory, space))
