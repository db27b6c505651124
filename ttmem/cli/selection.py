"""Which devices a command line names, and which moment of a file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class UsageError(Exception):
    """The command line asks for something that is not possible."""


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses devices, as :func:`device_filter` takes it."""
    parser.add_argument(
        "-d",
        "--device",
        action="append",
        metavar="N",
        help="only these devices: ids or 0x asic ids, comma-separated",
    )


def device_filter(wanted: Sequence[str] | None) -> Callable[[Mapping[str, Any]], bool]:
    """Return the test for ``-d``: ids or 0x asic ids, comma-separated; without any, all devices pass.

    Raises:
        UsageError: a name is neither.
    """
    ids: set[int] = set()
    chips: set[int] = set()
    for name in filter(None, (part.strip() for text in wanted or () for part in text.split(","))):
        is_chip = name.lower().startswith("0x")
        try:
            (chips if is_chip else ids).add(int(name, 16 if is_chip else 10))
        except ValueError:
            raise UsageError(f"argument -d/--device: expected a device id or a 0x asic id, got {name!r}") from None

    def test(device: Mapping[str, Any]) -> bool:
        return not wanted or device.get("device_id") in ids or _chip_of(device) in chips

    return test


def _chip_of(device: Mapping[str, Any]) -> int | None:
    try:
        return int(str(device.get("asic_id")), 0)
    except ValueError:
        return None


def moment_option(text: str) -> str | float:
    """Return what ``--at`` names: ``fullest``, ``first``, ``last``, or seconds after the first moment."""
    if text in ("fullest", "first", "last"):
        return text
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise argparse.ArgumentTypeError(f"expected fullest, first, last or seconds after the first, got {text!r}")
    return seconds
