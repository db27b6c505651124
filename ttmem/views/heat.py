"""The core grid as a heat map, and the scale that every heat map in a terminal shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ttmem.units import NOT_AVAILABLE, format_bytes
from ttmem.views.cores import METRICS, cores_of, grid_of, layout_of
from ttmem.views.dump import grid_text
from ttmem.views.text import Device, Line, Piece, Screen, device_name, pad, render, titled, wrap

RAMP = (236, 18, 24, 31, 37, 72, 107, 143, 179, 208, 196)
"""xterm colours from nothing to full; of headroom from enough to none."""
_LABEL = 5
"""Columns of the y labels."""


def shades(screen: Screen) -> str:
    """Return the characters that stand for colours, from nothing to full; before a number none reads as its sign or point."""
    return " ░▒▓█" if screen.unicode else " ':;=+*#%@"


def short_size(size_bytes: int | None, unit: int) -> str:
    """Return a size as a whole number of units; what is less than half of one but not nothing shows as ``<1``."""
    if size_bytes is None:
        return NOT_AVAILABLE
    value = round(size_bytes / unit)
    if value == 0 and size_bytes:
        return "<1" if size_bytes > 0 else "-1"
    return str(value)


def step_of(value: int | None, scale: int | None, steps: int) -> int:
    """Return the step, 0 to ``steps`` - 1, of a value on a scale; only 0 and less is step 0."""
    if value is None or value <= 0 or not scale or scale <= 0:
        return 0
    return max(1, min(steps - 1, 1 + int((steps - 1) * value / (scale + 1))))


def heat_style(color: int) -> str:
    """Return the style of a cell on a colour of :data:`RAMP`, its ink being readable there."""
    ink = "38;5;231" if color in RAMP[:4] else "38;5;16"
    return f"{ink};48;5;{color}"


def scale_of(device: Device, values: Sequence[int]) -> tuple[int | None, str]:
    """Return the top of the scale in bytes and what it is: the room of a core if known, else the largest value.

    Where neither is known or the largest value is nothing, there is no scale.
    """
    layout = layout_of(device)
    largest = max(values, default=0)
    if layout.size is not None and layout.base is not None and layout.small is not None:
        room = layout.size - layout.base - layout.small
        if largest <= room:
            return room, "all that CBs and L1 buffers of a core may use"
    if largest > 0:
        return largest, "the largest value here"
    return None, "the room of a core is unknown"


def heat_map_lines(device: Device, screen: Screen, *, metric: str = "cb_physical") -> list[Line]:
    """Return the grid of a device with a figure of each core, and a legend.

    Args:
        device: the device object.
        screen: what it is made for.
        metric: one of :data:`METRICS`.

    Raises:
        ValueError: there is no such metric.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown figure {metric!r}: expected one of {', '.join(METRICS)}")
    column, title = METRICS[metric]
    head: list[Piece] = [(f"{device_name(device, chip=True)}:", "head")]
    box = grid_of(device)
    cores = cores_of(device)
    if box is None or device.get("cores") is None:
        return [[*head, (f" cores {NOT_AVAILABLE}: the source does not tell figures per core", "")]]
    if not cores:
        return [[*head, (f" no core has figures ({device.get('state')})", "")]]
    x0, y0, x1, y1 = box
    known = [v for v in (core.get(column) for core in cores.values()) if v is not None]
    scale, meaning = scale_of(device, known)
    text = f" {title}, in KiB; grid {grid_text(device)}"
    if not device.get("grid"):
        text += ", listed cores only"
    lines = titled(head, text, screen)
    marks = shades(screen)
    longest = max([len(short_size(v, 1024)) for v in known] + [2 if len(known) == len(cores) else 3])
    columns = x1 - x0 + 1
    room = (screen.width - _LABEL) // columns
    # A mark, a number and a space; without the mark where that fits, else bands of the grid stand below each other.
    tight = room == longest + 1
    width = min(max(longest + 3, 6), room) if room > longest else longest + 2
    ramp = RAMP[::-1] if metric == "headroom" else RAMP
    bands = -(-columns // max(1, (screen.width - _LABEL) // width))
    band = -(-columns // bands)
    for first in range(x0, x1 + 1, band):
        last = min(x1, first + band - 1)
        lines.append(
            [
                (pad("y\\x", _LABEL - 1, ">") + " ", "dim"),
                ("".join(pad(f"{x} ", width, ">") for x in range(first, last + 1)), "dim"),
            ]
        )
        for y in range(y0, y1 + 1):
            row: list[Piece] = [(pad(str(y), _LABEL - 1, ">") + " ", "dim")]
            for x in range(first, last + 1):
                core = cores.get((x, y))
                if core is None:
                    # Not listed: a core without figures, or none at all where the grid is a guess.
                    row.append((pad(". ", width, ">"), "dim"))
                    continue
                value = core.get(column)
                number = short_size(value, 1024)
                if not screen.color:
                    mark = marks[step_of(value, scale, len(marks))]
                    if value is not None and value < 0:
                        mark = "!"
                    row.append((pad(f"{'' if tight else mark}{number} ", width, ">"), ""))
                else:
                    style = "dim" if value is None else "alarm"
                    if value is not None and value >= 0:
                        style = heat_style(ramp[step_of(value, scale, len(ramp))])
                    row += [(pad(number if tight else f"{number} ", width - 1, ">"), style), (" ", "")]
            lines.append(row)
    if screen.color or not tight:
        lines.append(_legend(scale, marks, ramp, screen))
        full = f"full is {format_bytes(scale)}: {meaning}"
        lines += [[(text, "dim")] for text in wrap(full, screen, first="  ", rest="  ")]
    lines += [[(text, "")] for text in wrap(_range_text(known, cores, column), screen, first="  ", rest="  ")]
    return lines


def _legend(scale: int | None, marks: str, ramp: Sequence[int], screen: Screen) -> Line:
    pieces: list[Piece] = [("  0 ", "dim")]
    if screen.color:
        pieces += [("  ", f"48;5;{color}") for color in ramp]
    else:
        pieces += [(f"[{marks}]", "")]
    return [*pieces, (f" {format_bytes(scale)}", "dim")]


def _range_text(known: Sequence[int], cores: Mapping[tuple[int, int], Mapping[str, Any]], column: str) -> str:
    if not known:
        return f"every core is {NOT_AVAILABLE}"

    def where(value: int) -> str:
        at = [core for core, figures in cores.items() if figures.get(column) == value]
        return f"core {at[0][0]},{at[0][1]}" if len(at) == 1 else f"{len(at)} cores"

    low, high = min(known), max(known)
    mark = " (!)" if low < 0 else ""
    text = f"smallest {format_bytes(low)} on {where(low)}{mark}, largest {format_bytes(high)} on {where(high)}"
    if column.startswith(("cb_", "l1_used")):
        text += f", sum {format_bytes(sum(known))}"
    missing = len(cores) - len(known)
    return text + (f"; {missing} cores {NOT_AVAILABLE}" if missing else "")


def render_heat_map(device: Device, screen: Screen, *, metric: str = "cb_physical") -> str:
    """Return :func:`heat_map_lines` as text."""
    return render(heat_map_lines(device, screen, metric=metric), screen)
