"""Pages of words: the keys, and what must be said about the figures at hand."""

from __future__ import annotations

from ttmem.top.model import View
from ttmem.views.notes import notes
from ttmem.views.text import Device, Line, Screen, device_ranges, pad, wrap

KEYS = (
    (
        "Everywhere",
        (
            ("1 2 3 4 5", "overview, device, programs, processes, notes"),
            ("Tab", "next page; Shift-Tab the one before"),
            ("Space", "pause, and go on"),
            ("n p  PgDn PgUp", "next or previous device"),
            ("r F5", "read and paint now"),
            ("h ?", "this help"),
            ("Esc", "back"),
            ("q Ctrl-C", "quit"),
        ),
    ),
    (
        "Overview",
        (
            ("Up Down", "select a device"),
            ("Enter", "open its page (mouse: click twice)"),
            ("a f c", "charts where they fit, always, never"),
            ("+ -", "charts of a longer or shorter time"),
            ("s", "scale: largest value, or capacity"),
        ),
    ),
    (
        "Device",
        (
            ("arrows, mouse", "select a core"),
            ("m M", "next or previous figure of the heat map"),
            ("Enter", "address map on the whole page; PgUp PgDn scroll it"),
            ("s", "colours: to the room of a core, or to the largest"),
        ),
    ),
    (
        "Tables",
        (
            (", .", "sort by the column before or after"),
            ("i", "sort the other way round"),
            ("/", "filter; Esc clears it"),
            ("d", "this device only, or all"),
            ("Enter", "open the row's device"),
        ),
    ),
    ("Replay", (("[ ]", "a frame back or on"), ("{ }", "a twentieth of the file"), ("Space", "stop, and play"))),
)

MEANINGS = (
    "Physical CB: bytes that a CB of any cached program covers, running or not. Resident: what the last dispatches "
    "left configured.",
    "Headroom: from the end of a core's CBs to its lowest L1 buffer. Negative: a cached program would clash.",
    "live*: a replay of a recording, not what hardware holds now.",
    "Fragmentation: the share of a core's free L1 that lies outside its largest free piece.",
)


_KEY = 18
"""Columns of the keys."""


def help_lines(screen: Screen) -> list[Line]:
    """Return the keys, in two columns where they fit."""
    blocks: list[list[Line]] = []
    for title, keys in KEYS:
        block: list[Line] = [[(title, "head")]]
        for key, text in keys:
            first, *rest = wrap(text, screen, first=" " * _KEY, rest=" " * _KEY)
            block.append([("  " + pad(key, _KEY - 2), "bold"), (first[_KEY:], "")])
            block += [[(part, "")] for part in rest]
        blocks.append(block)
    if screen.width >= 124:
        left = [line for block in blocks[:2] for line in block]
        right = [line for block in blocks[2:] for line in block]
        width = screen.width // 2
        lines: list[Line] = []
        for number in range(max(len(left), len(right))):
            line = list(left[number]) if number < len(left) else []
            line.append((" " * (width - sum(len(text) for text, _ in line)), ""))
            lines.append([*line, *(right[number] if number < len(right) else [])])
    else:
        lines = [line for block in blocks for line in block]
    lines.append([("", "")])
    for text in MEANINGS:
        lines += [[(part, "dim")] for part in wrap(text, screen, rest="  ")]
    return lines


def note_lines(view: View, screen: Screen) -> list[Line]:
    """Return warnings and notes of every device, and what could not be read."""
    lines: list[Line] = []
    for problem in view.problems:
        lines += [[(text, "warn")] for text in wrap(f"not readable: {problem}", screen, rest="  ")]
    found: dict[tuple[str, str], list[Device]] = {}
    for one in view.devices:
        # Devices of a mesh mostly share their notes: each text stands once.
        for note in notes(one.full):
            found.setdefault((note.kind, note.text), []).append(one.device)
    for (kind, text), noted in sorted(found.items(), key=lambda item: item[0][0] != "warning"):
        lines.append([(f"{device_ranges(noted)}: ", "head"), (kind, "warn" if kind == "warning" else "dim")])
        lines += [[(part, "")] for part in wrap(text, screen, first="  ", rest="  ")]
    return lines or [[("nothing to note", "dim")]]
