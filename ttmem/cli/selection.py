"""Which devices a command line names, and which moment of a file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ttmem.units import NOT_AVAILABLE

PUBLISHERS = {"ttmem": "ttmem", "tt-metal": "TT-Metal"}


class UsageError(Exception):
    """The command line asks for something that is not possible."""


def unusable(option: str, path: str, error: OSError) -> UsageError:
    """Return the error of an option that names a file to write, which cannot be written."""
    return UsageError(f"{option} {path}: {error.strerror or error}: choose a file that can be written")


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
    named = list(_named(wanted))

    def test(device: Mapping[str, Any]) -> bool:
        return not wanted or any(_is(device, number, is_chip) for _, number, is_chip in named)

    return test


def absent(wanted: Sequence[str] | None, devices: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what ``-d`` names and is none of the devices.

    Raises:
        UsageError: a name is no id.
    """
    return [name for name, number, chip in _named(wanted) if not any(_is(device, number, chip) for device in devices)]


def no_such(names: Sequence[str], devices: Sequence[Mapping[str, Any]], what: str = "device") -> str:
    """Return the sentence on names of ``-d`` that are none of the devices."""
    there = _listed(device.get("device_id") for device in devices)
    return f"no such {what}: {', '.join(names)}; there is {there or 'none'}"


def nothing_published(source: str = "auto", *, files: str = "") -> str:
    """Return the sentence that nothing is published on this host, and what helps.

    Args:
        source: who was asked for; what others publish is named.
        files: what else may be named, as ``name a dump, or ``.
    """
    from ttmem.segment import shm_directory  # so that --help costs nothing

    where = shm_directory()
    if source != "auto":
        from ttmem.reader import read_host

        other = "tt-metal" if source == "ttmem" else "ttmem"
        found = _listed(snapshot.device_id for snapshot in read_host(source=other).devices)
        if found:
            return (
                f"{PUBLISHERS[source]} publishes no device in {where}, {PUBLISHERS[other]} does: {found}; "
                f"leave out --source {source}"
            )
    return (
        f"no device is published in {where}: {files}start a program that uses ttmem.publish, ttmem-replay CAPTURE --hold, "
        "or TT-Metal with its memory tracking on"
    )


def _listed(numbers: Iterable[int | None]) -> str:
    return ", ".join(NOT_AVAILABLE if number is None else str(number) for number in numbers)


def _named(wanted: Sequence[str] | None) -> Iterator[tuple[str, int, bool]]:
    for name in filter(None, (part.strip() for text in wanted or () for part in text.split(","))):
        is_chip = name.lower().startswith("0x")
        try:
            number = int(name, 16 if is_chip else 10)
        except ValueError:
            number = -1
        if number < 0:
            raise UsageError(f"argument -d/--device: expected a device id or a 0x asic id, got {name!r}")
        yield name, number, is_chip


def _is(device: Mapping[str, Any], number: int, is_chip: bool) -> bool:
    return number == (_chip_of(device) if is_chip else device.get("device_id"))


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
