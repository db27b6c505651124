"""Lines of styled text: what a terminal can show, decided once, for every view.

A view builds lines of (text, style) pieces. Widths are counted on the pieces, so colour never moves a column.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ttmem.units import NOT_AVAILABLE, format_bytes, format_exact

Piece = tuple[str, str]
"""Text and the name of its style."""
Line = list[Piece]
Device = Mapping[str, Any]
"""A device object of the contract's JSON."""

WARN_FRACTION = 0.75
"""From here on a bar is yellow."""
ALARM_FRACTION = 0.90
"""From here on a bar is red."""

STYLES = {
    "": "",
    "bold": "1",
    "dim": "2",
    "head": "1;36",
    "good": "32",
    "warn": "33",
    "alarm": "1;31",
    "reserved": "38;5;245",
    "cb": "38;5;39",
    "buffers": "38;5;77",
    "overlap": "38;5;203",
    "l1_small": "38;5;179",
    "free": "38;5;240",
}
"""SGR parameters by style; a style of another name is taken to be such parameters itself."""

UNICODE_KEYS = {"reserved": "▒", "cb": "█", "buffers": "▓", "overlap": "╳", "l1_small": "▚", "free": "·"}
ASCII_KEYS = {"reserved": "r", "cb": "C", "buffers": "B", "overlap": "X", "l1_small": "s", "free": "."}


@dataclass(frozen=True, slots=True)
class Screen:
    """What the text is made for.

    Attributes:
        width: columns; lines are at most as long.
        height: lines that fit, or None where there is no end (a pipe, a file).
        color: whether to put in ANSI colours.
        unicode: whether the encoding has block characters; else plain ASCII.
    """

    width: int = 80
    height: int | None = None
    color: bool = False
    unicode: bool = True

    @property
    def keys(self) -> dict[str, str]:
        """The character that stands for each part of L1."""
        return UNICODE_KEYS if self.unicode else ASCII_KEYS

    @property
    def dash(self) -> str:
        """What rules are drawn with."""
        return "─" if self.unicode else "-"


def clean(text: object) -> str:
    """Return ``text`` on one line and without control characters: a process name must not steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def device_name(device: Device, *, chip: bool = False) -> str:
    """Return ``Device N``; where the number is unknown ``Device N/A``, with the chip's id in brackets if asked for."""
    number = device.get("device_id")
    if number is not None:
        return f"Device {clean(number)}"
    asic_id = device.get("asic_id") if chip else None
    return f"Device {NOT_AVAILABLE}" + (f" ({clean(asic_id)})" if asic_id else "")


def device_ranges(devices: Sequence[Device]) -> str:
    """Return devices as text, runs of their numbers as ranges: ``Devices 0-3, 7, N/A (0x5)``."""
    if len(devices) == 1:
        return device_name(devices[0], chip=True)
    runs: list[list[int]] = []
    for number in sorted(device["device_id"] for device in devices if device.get("device_id") is not None):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    unknown = [device_name(device, chip=True) for device in devices if device.get("device_id") is None]
    return "Devices " + ", ".join(texts + [name.removeprefix("Device ") for name in unknown])


def cell_width(text: str) -> int:
    """Return the columns that ``text`` takes in a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def clip(text: str, width: int, screen: Screen) -> str:
    """Return ``text`` cut to ``width`` columns, with an ellipsis where something is missing."""
    if cell_width(text) <= width:
        return text
    mark = "…" if screen.unicode else "~"
    kept = ""
    for c in text:
        if cell_width(kept + c) > width - 1:
            break
        kept += c
    return kept + mark if width > 0 else ""


def pad(text: str, width: int, align: str = "<") -> str:
    """Return ``text`` filled with spaces to ``width`` columns; ``align`` is ``<`` or ``>``."""
    gap = " " * max(0, width - cell_width(text))
    return gap + text if align == ">" else text + gap


def encodable(text: str, screen: Screen) -> str:
    """Return ``text`` with what ASCII does not have replaced by ``?`` on a screen without Unicode."""
    return text if screen.unicode else text.encode("ascii", "replace").decode("ascii")


def render_line(line: Line, screen: Screen) -> str:
    """Return one line as text, cut to the screen's width and coloured if the screen has colour."""
    out: list[str] = []
    left = screen.width
    for text, style in line:
        if left <= 0:
            break
        text = clip(encodable(text, screen), left, screen)
        left -= cell_width(text)
        codes = STYLES.get(style, style) if screen.color else ""
        out.append(f"\x1b[{codes}m{text}\x1b[0m" if codes and text else text)
    joined = "".join(out)
    return joined if screen.color else joined.rstrip()


def render(lines: Iterable[Line], screen: Screen) -> str:
    """Return the lines as one text that ends with a newline, or the empty text for no lines."""
    return "".join(render_line(line, screen) + "\n" for line in lines)


def wrap(text: str, screen: Screen, *, first: str = "", rest: str = "") -> list[str]:
    """Return ``text`` broken into lines of the screen's width, each with its indentation."""
    width = max(20, screen.width)
    return textwrap.wrap(clean(text), width, initial_indent=first, subsequent_indent=rest) or [first.rstrip()]


def titled(head: Sequence[Piece], text: str, screen: Screen) -> list[Line]:
    """Return a title behind ``Device N:``, on as many lines as it needs."""
    name = head[0][0]
    texts = wrap(text.strip(), screen, first=name + " ", rest="  ")
    return [[*head, (texts[0][len(name) :], "")], *([(rest, "")] for rest in texts[1:])]


def exact_bytes(size_bytes: int) -> str:
    """Return a size to the byte and, where that says more, in units: ``819 bytes``, ``2,048 bytes (2.0 KiB)``."""
    text = f"{format_exact(size_bytes)} byte{'s' * (abs(size_bytes) != 1)}"
    return text if abs(size_bytes) < 1024 else f"{text} ({format_bytes(size_bytes)})"


def percent(part: int | None, whole: int | None) -> str:
    """Return ``part`` of ``whole`` as ``40.9 %``; empty where either is unknown or there is no whole."""
    if part is None or not whole:
        return ""
    value = 100 * part / whole
    # What is there is never shown as nothing, and what is not full never as full.
    if 0 < value < 0.05:
        return "<0.1 %"
    if 99.95 <= value < 100:
        return ">99.9 %"
    return f"{value:.1f} %"


def level(part: int | None, whole: int | None) -> str:
    """Return the style that says how full something is: good, warn from 75 % on, alarm from 90 % on."""
    if part is None or not whole:
        return "dim"
    return "alarm" if part >= ALARM_FRACTION * whole else "warn" if part >= WARN_FRACTION * whole else "good"


def bar(part: int | None, whole: int | None, width: int, screen: Screen) -> list[Piece]:
    """Return a bar of ``width`` columns for ``part`` of ``whole``; spaces where either is unknown.

    What is more than nothing shows at least one cell, and what is less than everything leaves at least one.
    """
    if part is None or not whole or width < 1:
        return [(" " * max(0, width), "")]
    full = round(width * min(1.0, max(0.0, part / whole)))
    if part > 0:
        full = max(1, full)
    if part < whole and width > 1:
        full = min(width - 1, full)
    on, off = ("█", "░") if screen.unicode else ("#", "-")
    return [(on * full, level(part, whole)), (off * (width - full), "free")]


def stacked(parts: Sequence[tuple[str, int]], width: int, screen: Screen) -> list[Piece]:
    """Return a bar of ``width`` columns shared by ``parts``, (key, bytes), by the largest remainder.

    A part of at least one byte gets at least one cell, taken from the widest part.
    """
    whole = sum(size for _, size in parts)
    if whole <= 0 or width < len(parts):
        return [(" " * width, "")]
    exact = [width * size / whole for _, size in parts]
    cells = [max(int(share), 1 if size > 0 else 0) for share, (_, size) in zip(exact, parts, strict=True)]
    order = sorted(range(len(parts)), key=lambda i: cells[i] - exact[i])
    for i in order:
        if sum(cells) < width and parts[i][1] > 0:
            cells[i] += 1
    while sum(cells) != width:
        widest = max(range(len(parts)), key=lambda i: cells[i])
        cells[widest] += 1 if sum(cells) < width else -1
    keys = screen.keys
    return [(keys[key] * count, key) for (key, _), count in zip(parts, cells, strict=True) if count]
