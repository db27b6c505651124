"""Sizes in words: bytes to binary units and back."""

from __future__ import annotations

import math
import re
from fractions import Fraction

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_FACTORS = {unit[0].lower(): 1024**power for power, unit in enumerate(_UNITS) if power}
_SIZE = re.compile(r"([+-]?)(\d+(?:_\d+)*(?:\.\d*)?|\.\d+)\s*(?:([kmgtpe])(?:i?b)?|b|bytes)?", re.IGNORECASE)

NOT_AVAILABLE = "N/A"
"""How an unknown value is written on every screen; it is never 0."""


def format_bytes(size_bytes: int | None) -> str:
    """Return a size in binary units with one decimal: ``29.0 MiB``.

    Args:
        size_bytes: bytes, may be negative; None is unknown.

    Returns:
        The number in the largest unit that leaves it at 1 or more, or ``N/A``.
    """
    if size_bytes is None:
        return NOT_AVAILABLE
    value = float(size_bytes)
    for unit in _UNITS:
        # 1023.95 rounds to 1024.0, which belongs to the next unit.
        if abs(value) < 1023.95 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.1f} {unit}"


def format_mib(size_bytes: int | None) -> str:
    """Return a size in MiB with one decimal and no unit (``29.0``), or ``N/A``."""
    return NOT_AVAILABLE if size_bytes is None else f"{size_bytes / 2**20:.1f}"


def format_exact(size_bytes: int | None) -> str:
    """Return every digit of a size, in groups of three (``30,408,704``), or ``N/A``."""
    return NOT_AVAILABLE if size_bytes is None else f"{size_bytes:,}"


def parse_size(text: str) -> int:
    """Return the bytes that ``text`` names: ``1.3MiB``, ``64KiB``, ``2 GiB``, ``-4k``, or plain bytes.

    K, KB and KiB all mean 1024: memory has no decimal units. A part of a byte is rounded up, away from zero.

    Raises:
        ValueError: it is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"cannot read a size from {text!r}: expected a number and B, KiB, MiB, GiB or TiB, as in '64KiB'"
        )
    sign, number, unit = match.groups()
    size_bytes: int = math.ceil(Fraction(number.replace("_", "").rstrip(".")) * _FACTORS.get((unit or "").lower(), 1))
    return -size_bytes if sign == "-" else size_bytes
