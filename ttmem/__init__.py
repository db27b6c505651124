"""Exact, live memory statistics of Tenstorrent devices, in shared memory that any process may read."""

from ttmem._version import __version__

# What a type checker sees. At run time a name is imported when it is first asked for: a reader pays for no writer, and nobody
# for what only some need. A process that gives up its rights to read files mentions what it will use before.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from ttmem._publisher import Publisher
    from ttmem.cores import CoreCoord, CoreRange, CoreRangeSet
    from ttmem.errors import (
        AlreadyPublishedError,
        ArgumentTypeError,
        CapacityError,
        CaptureError,
        ClosedError,
        CorruptSegmentError,
        DeviceNotFoundError,
        InvalidArgumentError,
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
    "ArgumentTypeError",
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
    "InvalidArgumentError",
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

_HOME = {
    "AlreadyPublishedError": "errors",
    "ArgumentTypeError": "errors",
    "BufferType": "model",
    "CapacityError": "errors",
    "CaptureError": "errors",
    "CircularBuffer": "model",
    "ClosedError": "errors",
    "CoreCoord": "cores",
    "CoreRange": "cores",
    "CoreRangeSet": "cores",
    "CorruptSegmentError": "errors",
    "DeviceNotFoundError": "errors",
    "InvalidArgumentError": "errors",
    "InvalidIntervalError": "errors",
    "L1Tracker": "tracker",
    "LayoutMismatchError": "errors",
    "Peak": "peaks",
    "Peaks": "peaks",
    "Publisher": "_publisher",
    "Reader": "reader",
    "Snapshot": "snapshot",
    "TtmemError": "errors",
    "UnknownIdError": "errors",
    "attach": "reader",
    "devices": "reader",
    "publish": "publisher",
}


def __getattr__(name: str) -> object:
    if name == "ttnn":
        # `ttmem.ttnn.track` is what a user types after `import ttmem`.
        return __import__("ttmem.ttnn", fromlist=["track"])
    if name not in _HOME:
        raise AttributeError(f"module 'ttmem' has no attribute {name!r}")
    value: object = getattr(__import__(f"ttmem.{_HOME[name]}", fromlist=[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
