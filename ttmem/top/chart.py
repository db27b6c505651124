"""Charts of characters: a line of blocks, and an area of braille dots."""

from __future__ import annotations

from collections.abc import Sequence

from ttmem.views.text import Screen

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = "_.-=+*%#"
_LEFT = (0x00, 0x40, 0x44, 0x46, 0x47)
"""Braille dots of the left column, by how many are set from the bottom."""
_RIGHT = (0x00, 0x80, 0xA0, 0xB0, 0xB8)


def _level(value: int | None, top: int, levels: int) -> int:
    """Return 0 for unknown, 1 for nothing, and up to ``levels`` for ``top``; more than nothing is at least 2."""
    if value is None:
        return 0
    if value <= 0 or top <= 0:
        return 1
    return max(2, min(levels, 1 + round((levels - 1) * value / top)))


def top_of(values: Sequence[int | None]) -> int:
    """Return the largest known value, at least 0."""
    return max([0, *(value for value in values if value is not None)])


def spark(values: Sequence[int | None], top: int, screen: Screen) -> str:
    """Return one character for each value: higher for more, a space for unknown."""
    blocks = _BLOCKS if screen.unicode else _ASCII_BLOCKS
    levels = [_level(value, top, len(blocks)) for value in values]
    return "".join(blocks[level - 1] if level else " " for level in levels)


def area(values: Sequence[int | None], top: int, height: int, screen: Screen) -> list[str]:
    """Return ``height`` rows that draw the values as a filled area, two values to a character.

    Args:
        values: oldest first; an even number.
        top: the value of the highest dot.
        height: rows.
        screen: without Unicode, the larger value of each two is drawn.
    """
    dots = 4 if screen.unicode else 1
    levels = [_level(value, top, dots * height) for value in values]
    rows = []
    for row in range(height):
        below = dots * (height - 1 - row)
        line = []
        for left, right in zip(levels[::2], levels[1::2], strict=True):
            if screen.unicode:
                bits = _LEFT[max(0, min(4, left - below))] | _RIGHT[max(0, min(4, right - below))]
                line.append(chr(0x2800 + bits) if bits else " ")
            else:
                line.append("#" if max(left, right) > below else " ")
        rows.append("".join(line))
    return rows
