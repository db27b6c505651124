"""A widget that shows lines of styled text, and repaints those that changed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from ttmem.views.text import STYLES, Line, Screen, cell_width, clip, encodable


@lru_cache(maxsize=1024)
def style_of(name: str, color: bool) -> Style:
    """Return the style that a name of :data:`ttmem.views.text.STYLES`, or SGR parameters, stand for.

    Args:
        name: as in a piece of a line.
        color: False leaves only bold, dim and reverse.
    """
    codes = [int(code) for code in STYLES.get(name, name).split(";") if code]
    ink = paper = None
    bold = dim = reverse = None
    while codes:
        code = codes.pop(0)
        if code in (38, 48) and codes[:1] == [5] and len(codes) > 1:
            chosen = Color.from_ansi(codes[1])
            del codes[:2]
            ink, paper = (chosen, paper) if code == 38 else (ink, chosen)
        elif code == 1:
            bold = True
        elif code == 2:
            dim = True
        elif code == 7:
            reverse = True
        elif 30 <= code <= 37:
            ink = Color.from_ansi(code - 30)
        elif 40 <= code <= 47:
            paper = Color.from_ansi(code - 40)
    if not color:
        ink = paper = None
    return Style(color=ink, bgcolor=paper, bold=bold, dim=dim, reverse=reverse)


def strip_of(line: Line, width: int, screen: Screen) -> Strip:
    """Return a line as a strip of exactly ``width`` cells."""
    segments = []
    left = width
    for text, style in line:
        if left <= 0:
            break
        text = clip(encodable(text, screen), left, screen)
        left -= cell_width(text)
        if text:
            segments.append(Segment(text, style_of(style, screen.color)))
    if left > 0:
        segments.append(Segment(" " * left))
    return Strip(segments, width)


class Canvas(Widget, can_focus=False):
    """Shows lines; a line that is the same as before costs nothing."""

    class Clicked(Message):
        """The mouse was pressed on a cell.

        Attributes:
            canvas: where.
            x: column.
            y: row.
            twice: whether it was the second time.
        """

        def __init__(self, canvas: "Canvas", x: int, y: int, twice: bool) -> None:
            super().__init__()
            self.canvas = canvas
            self.x = x
            self.y = y
            self.twice = twice

    class Scrolled(Message):
        """The mouse's wheel was turned: ``step`` is -1 for up, 1 for down."""

        def __init__(self, step: int) -> None:
            super().__init__()
            self.step = step

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._lines: list[Line] = []
        self._strips: list[Strip] = []
        self._width = 0
        self.painted = 0
        """How many lines were painted anew: what the tests of economy count."""

    def show(self, lines: Sequence[Line], screen: Screen) -> None:
        """Show ``lines``; repaint those that differ from what is there."""
        width, height = self.size
        whole = width != self._width
        before = [] if whole else self._lines
        changed = []
        strips: list[Strip] = []
        now = [lines[y] if y < len(lines) else [] for y in range(height)]
        for y, line in enumerate(now):
            if y < len(before) and before[y] == line:
                strips.append(self._strips[y])
            else:
                strips.append(strip_of(line, width, screen))
                changed.append(Region(0, y, width, 1))
        self._lines, self._strips, self._width = now, strips, width
        self.painted += len(changed)
        if changed:
            self.refresh(*changed)

    def render_line(self, y: int) -> Strip:
        """Return what stands on a row."""
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.size.width)

    @property
    def text(self) -> list[str]:
        """What is shown, without styles."""
        return [strip.text.rstrip() for strip in self._strips]

    def on_click(self, event: events.Click) -> None:
        """Tell the program where."""
        self.post_message(self.Clicked(self, event.x, event.y, event.chain > 1))

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Tell the program."""
        self.post_message(self.Scrolled(-1))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Tell the program."""
        self.post_message(self.Scrolled(1))
