"""Exact, live memory statistics of Tenstorrent devices, in shared memory that any process may read."""

from ttmem._publisher import Publisher
from ttmem._version import __version__
from ttmem.cores import CoreCoord, CoreRange, CoreRangeSet
from ttmem.errors import (
    AlreadyPublishedError,
    CapacityError,
    CaptureError,
    ClosedError,
    CorruptSegmentError,
    DeviceNotFoundError,
    InvalidIntervalError,
    LayoutMismatchError,
    TtmemError,
    UnknownIdError,
)
from ttmem.model import BufferType, CircularBuffer
from ttmem.peaks import Peak, Peaks
from ttmem.publisher import publish
from ttmem.reader import Reader, attach, devices
from ttmem.snapshot import Snapshot
from ttmem.tracker import L1Tracker

__all__ = [
    "AlreadyPublishedError",
    "BufferType",
    "CapacityError",
    "CaptureError",
    "CircularBuffer",
    "ClosedError",
    "CoreCoord",
    "CoreRange",
    "CoreRangeSet",
    "CorruptSegmentError",
    "DeviceNotFoundError",
    "InvalidIntervalError",
    "L1Tracker",
    "LayoutMismatchError",
    "Peak",
    "Peaks",
    "Publisher",
    "Reader",
    "Snapshot",
    "TtmemError",
    "UnknownIdError",
    "__version__",
    "attach",
    "devices",
    "publish",
]
