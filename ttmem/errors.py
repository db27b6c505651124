"""The errors that ttmem raises: each is a :class:`TtmemError` and the nearest builtin.

Raw values stay on the exception as attributes, so that a caller need not parse the text.
"""


class TtmemError(Exception):
    """The base of every error that ttmem raises on purpose."""

    def __str__(self) -> str:
        # KeyError prints the repr of its argument, which puts a sentence between quotes.
        return str(self.args[0]) if self.args else ""


class DeviceNotFoundError(TtmemError, LookupError):
    """Nothing on this host publishes the device that was asked for."""


class LayoutMismatchError(TtmemError, ValueError):
    """A segment has a layout that this version of ttmem does not read."""

    def __init__(self, message: str, *, found: object = None, expected: object = None) -> None:
        super().__init__(message)
        self.found = found
        self.expected = expected


class CorruptSegmentError(TtmemError, ValueError):
    """A segment contradicts itself: it was damaged, truncated or forged."""


class InvalidIntervalError(TtmemError, ValueError):
    """An address, a size or a core is outside what a device has."""


class InvalidArgumentError(TtmemError, ValueError):
    """An argument is none of the values that there are, or does not go with what was done before."""


class ArgumentTypeError(TtmemError, TypeError):
    """An argument is of a type that is not taken, or one is missing."""


class UnknownIdError(TtmemError, KeyError):
    """An id was never given out here, or what it named is gone."""


class CaptureError(TtmemError, ValueError):
    """A graph capture or report cannot be read as one."""


class CapacityError(TtmemError, OverflowError):
    """Something is beyond a documented bound of ttmem."""


class AlreadyPublishedError(TtmemError, ValueError):
    """The process publishes the device already; close that publisher first."""


class ClosedError(TtmemError, ValueError):
    """The publisher or reader was closed before."""
