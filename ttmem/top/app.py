"""The textual program: pages, keys, mouse, and when to paint."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import replace

from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.message import Message

from ttmem.top import corepage, guide, overview, table
from ttmem.top.canvas import Canvas
from ttmem.top.model import Key, Model, Shown, View
from ttmem.top.source import Player, Sampler
from ttmem.views.cores import cores_of, grid_of
from ttmem.views.notes import get
from ttmem.views.text import Line, Piece, Screen, cell_width, clean, device_name

PAINT_SECONDS = 0.25
"""The shortest time between two paintings that nobody asked for."""
PAGES = ("overview", "device", "programs", "processes", "notes")
_TABLES = {"programs": table.PROGRAMS, "processes": table.PROCESSES}
_HINTS = {
    "overview": "Enter open  +/- time  s scale  a/f/c charts",
    "device": "arrows core  m figure  Enter map  n/p device",
    "programs": ",/. sort  i invert  / filter  d this device",
    "processes": ",/. sort  i invert  / filter  d this device",
    "notes": "Up/Down scroll",
    "help": "Up/Down scroll  any other key closes",
}


class TopApp(App[int]):
    """Shows what a model holds.

    Args:
        model: filled by a sampler, or by a test.
        sampler: started with the program and stopped with it; None if somebody else fills the model.
        player: steers a replay; None shows what lives.
        where: the directory that is watched, for people.
        color: whether to use colours.
        unicode: whether to use block characters.
        interval: seconds between two paintings.
    """

    CSS = """
    #head { height: 1; }
    #body { height: 1fr; }
    #foot { height: 1; }
    """
    TITLE = "ttmem-top"
    ENABLE_COMMAND_PALETTE = False
    # Before textual's own, which copies text or asks for another key.
    BINDINGS = [Binding("ctrl+c", "leave", show=False, priority=True)]  # noqa: RUF012

    class Sampled(Message):
        """The first sample is there."""

    def __init__(
        self,
        model: Model,
        *,
        sampler: Sampler | None = None,
        player: Player | None = None,
        where: str = "/dev/shm",
        color: bool = True,
        unicode: bool = True,
        interval: float = PAINT_SECONDS,
    ) -> None:
        super().__init__(ansi_color=True)
        self.model = model
        self.sampler = sampler
        self.player = player
        self.where = where
        self.color = color
        self.unicode = unicode
        self.interval = max(PAINT_SECONDS, interval)
        self.view: View | None = None
        self.page = "overview"
        self.helping = False
        self.paused = False
        self.typing = False
        self.selected: Key | None = None
        self.only_selected = False
        self.overview = overview.OverviewOptions()
        self.core = corepage.CoreOptions()
        self.tables = {name: table.TableOptions(sort=5 if name == "processes" else 1) for name in _TABLES}
        self.scroll = 0
        self._first = 0
        self._heat: corepage.HeatGeometry | None = None
        self._table: table.TableGeometry | None = None
        self._tabs: list[tuple[int, int, str]] = []

    def compose(self) -> ComposeResult:
        """Put the three areas in place."""
        yield Canvas(id="head")
        yield Canvas(id="body")
        yield Canvas(id="foot")

    def on_mount(self) -> None:
        """Start to sample and to paint."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            # Refused outside the main thread, where nobody sends signals either.
            try:
                self._loop_signal(number)
            except (RuntimeError, ValueError):
                break
        self.call_after_refresh(self._begin)

    def _loop_signal(self, number: signal.Signals) -> None:
        import asyncio

        asyncio.get_running_loop().add_signal_handler(number, self.exit, 0)

    def _begin(self) -> None:
        self.set_interval(self.interval, self.tick)
        self.paint()
        if self.sampler is not None:
            self.sampler.on_first = lambda: self.post_message(self.Sampled())
            self.sampler.start()

    def on_top_app_sampled(self) -> None:
        """Show the first sample at once."""
        self.tick()

    def on_unmount(self) -> None:
        """Stop to sample."""
        if self.sampler is not None:
            self.sampler.stop()

    def on_resize(self) -> None:
        """Lay everything out anew."""
        self.call_after_refresh(self.paint)

    def action_leave(self) -> None:
        """Quit on Ctrl-C, as every monitor does."""
        self.exit(0)

    # What is shown

    def tick(self) -> None:
        """Take the newest sample and paint it, unless the screen is paused."""
        newest = self.model.view()
        if newest is None or newest is self.view or (self.paused and self.player is None):
            return
        self.view = newest
        self.paint()

    @property
    def index(self) -> int:
        """The selected device's place among those shown."""
        devices = self.view.devices if self.view else []
        for number, one in enumerate(devices):
            if one.key == self.selected:
                return number
        return 0

    @property
    def device(self) -> Shown | None:
        """The selected device, or the first."""
        devices = self.view.devices if self.view else []
        return devices[self.index] if devices else None

    def screen_of(self, canvas: Canvas) -> Screen:
        """Return what an area can show."""
        width, height = canvas.size
        return Screen(max(20, width), max(1, height), self.color, self.unicode)

    def paint(self) -> None:
        """Paint what changed since the last time."""
        if not self.query(Canvas):
            return
        head, body, foot = (self.query_one(f"#{name}", Canvas) for name in ("head", "body", "foot"))
        self._heat = self._table = None
        body.show(self._body(self.screen_of(body)), self.screen_of(body))
        head.show([self._head_line(self.screen_of(head))], self.screen_of(head))
        foot.show([self._foot_line(self.screen_of(foot))], self.screen_of(foot))

    def _body(self, screen: Screen) -> list[Line]:
        if self.helping:
            return self._scrolled(guide.help_lines(screen), screen)
        if self.view is None:
            return [[("", "")], [("  reading ...", "dim")]]
        shown = self.device
        if self.page == "notes":
            return self._scrolled(guide.note_lines(self.view, screen), screen)
        if shown is None:
            return overview.nothing_lines(self.view.problems, self.where, screen)
        if self.page == "overview":
            options = replace(self.overview, selected=self.index)
            lines, _, self._first = overview.overview_lines(self.view, options, screen)
            return lines
        if self.page == "device":
            lines, self._heat = corepage.device_lines(shown, self.core, screen)
            return lines
        devices = [shown] if self.only_selected else self.view.devices
        rows = table.rows_of(devices, self.page)
        title = self.page.capitalize()
        if self.only_selected:
            title += f" of {device_name(shown.device, chip=True).replace('Device', 'device')}"
        more = sum(get(one.device, "programs_omitted") or 0 for one in devices)
        lines, self._table = table.table_lines(
            title, rows, _TABLES[self.page], self.tables[self.page], screen, more=more
        )
        return lines

    def _scrolled(self, lines: list[Line], screen: Screen) -> list[Line]:
        """Return what stands on the screen of lines that it may not hold; the last one says how many follow."""
        height = screen.height or 1
        self.scroll = max(0, min(self.scroll, len(lines) - height))
        shown = lines[self.scroll : self.scroll + height]
        below = len(lines) - self.scroll - len(shown)
        if below:
            shown[-1] = [(f"{below + 1} more lines: Down", "7")]
        return shown

    def _head_line(self, screen: Screen) -> Line:
        name = "ttmem-top " if screen.width >= 90 else "ttmem "
        line: list[Piece] = [(name, "head")]
        self._tabs = []
        at = len(name)
        for number, name in enumerate(PAGES, 1):
            text = f" {number} {name.capitalize()} "
            line.append((text, "1;7" if name == self.page and not self.helping else "dim"))
            self._tabs.append((at, at + len(text), name))
            at += len(text)
        right: list[Piece] = []
        if self.sampler is not None and self.sampler.error is not None:
            right = [(clean(self.sampler.error), "alarm")]
        elif self.player is not None:
            frame, frames = self.player.position
            clock = "" if self.view is None else time.strftime(" %H:%M:%S", time.localtime(self.view.taken_ns / 1e9))
            if screen.width < at + len(f" STOPPED frame {frames}/{frames}{clock}"):
                clock = ""
            wide = screen.width >= at + len(f" STOPPED frame {frames}/{frames}")
            stopped = "" if self.player.playing else "STOPPED " if wide else "STOP "
            right = [(stopped, "warn"), (f"{'frame ' if wide else ''}{frame}/{frames}", ""), (clock, "dim")]
        elif self.view is not None:
            count = len(self.view.devices)
            clock = time.strftime("%H:%M:%S", time.localtime(self.view.taken_ns / 1e9))
            word = "device" if count == 1 else "devices"
            word = word if screen.width >= at + len(f" {count} {word} {clock}") else "dev"
            right = [("PAUSED " if self.paused else f"{count} {word} ", "7;33" if self.paused else "dim"), (clock, "")]
        gap = screen.width - at - sum(cell_width(text) for text, _ in right)
        return [*line, (" " * max(1, gap), ""), *right]

    def _foot_line(self, screen: Screen) -> Line:
        if self.typing:
            return [
                ("filter: ", "bold"),
                (clean(self.tables[self.page].filter), ""),
                (" ", "7"),
                ("  Enter keeps, Esc clears", "dim"),
            ]
        if self.helping:
            return [(_HINTS["help"], "bold")]
        hint = _HINTS[self.page]
        always = "Space play  [ ] { } step  " if self.player is not None else "Space pause  "
        return [(f"{always}h help  q quit", "bold"), ("  " + hint, "dim")]

    # Keys

    def on_key(self, event: events.Key) -> None:
        """Do what a key asks for."""
        event.prevent_default()
        event.stop()
        if self.typing:
            self._type(event)
        elif self.helping:
            self._leave_help(event.key)
        else:
            self._act(event.key, event.character)
        self.paint()

    def _type(self, event: events.Key) -> None:
        options = self.tables[self.page]
        text = options.filter
        if event.key == "escape":
            self.typing, text = False, ""
        elif event.key in ("enter", "tab"):
            self.typing = False
        elif event.key == "backspace":
            text = text[:-1]
        elif event.key == "ctrl+u":
            text = ""
        elif event.is_printable and event.character:
            text += event.character
        self.tables[self.page] = replace(options, filter=text, cursor=0)

    def _leave_help(self, key: str) -> None:
        steps = {"up": -1, "down": 1, "pageup": -10, "pagedown": 10, "home": -(10**6), "end": 10**6}
        if key in steps:
            self.scroll = max(0, self.scroll + steps[key])
            return
        self.helping, self.scroll = False, 0
        if key == "q":
            self.exit(0)

    def _act(self, key: str, character: str | None) -> None:
        name = character if character is not None and character.isprintable() and character != " " else key
        common: dict[str, Callable[[], None]] = {
            "q": lambda: self.exit(0),
            "h": self._help,
            "?": self._help,
            "f1": self._help,
            "space": self._pause,
            "tab": lambda: self._turn(1),
            "shift+tab": lambda: self._turn(-1),
            "r": self._refresh,
            "f5": self._refresh,
            "ctrl+r": self._refresh,
            "escape": self._back,
            "n": lambda: self._select(self.index + 1),
            "p": lambda: self._select(self.index - 1),
            "[": lambda: self._step(-1),
            "]": lambda: self._step(1),
            "{": lambda: self._step(-self._stride()),
            "}": lambda: self._step(self._stride()),
        }
        if name in "12345" and len(name) == 1:
            self.go(PAGES[int(name) - 1])
        elif name in common:
            common[name]()
        elif self.page == "overview":
            self._act_overview(name)
        elif self.page == "device":
            self._act_device(name)
        elif self.page in _TABLES:
            self._act_table(name)
        elif name in ("up", "down", "pageup", "pagedown", "home", "end"):
            steps = {"up": -1, "down": 1, "pageup": -10, "pagedown": 10, "home": -(10**6), "end": 10**6}
            self.scroll = max(0, self.scroll + steps[name])

    def go(self, page: str) -> None:
        """Turn to a page."""
        self.page, self.scroll, self.typing, self.helping = page, 0, False, False

    def _turn(self, count: int) -> None:
        self.go(PAGES[(PAGES.index(self.page) + count) % len(PAGES)])

    def _help(self) -> None:
        self.helping, self.scroll = True, 0

    def _pause(self) -> None:
        if self.player is not None:
            self.player.toggle()
        else:
            self.paused = not self.paused
            if not self.paused:
                self.tick()

    def _refresh(self) -> None:
        if self.sampler is not None:
            self.sampler.hurry()
        self.refresh(layout=True)
        self.tick()

    def _back(self) -> None:
        if self.page in _TABLES and self.tables[self.page].filter:
            self.tables[self.page] = replace(self.tables[self.page], filter="", cursor=0)
        elif self.page == "device" and self.core.whole:
            self.core = replace(self.core, whole=False)
        else:
            self.go("overview")

    def _step(self, count: int) -> None:
        if self.player is not None:
            self.player.step(count)
            if self.sampler is not None:
                self.sampler.hurry()

    def _stride(self) -> int:
        """How many frames a large step of a replay takes: a twentieth of it."""
        return 0 if self.player is None else max(2, self.player.position[1] // 20)

    def _select(self, index: int) -> None:
        devices = self.view.devices if self.view else []
        if devices:
            self.selected = devices[max(0, min(len(devices) - 1, index))].key

    def _act_overview(self, name: str) -> None:
        moves = {"up": -1, "down": 1, "pageup": -10, "pagedown": 10, "home": -(10**6), "end": 10**6}
        if name in moves:
            self._select(self.index + moves[name])
        elif name == "enter":
            self._select(self.index)
            self.go("device")
        elif name in ("a", "f", "c"):
            self.overview = replace(self.overview, mode={"a": "auto", "f": "full", "c": "compact"}[name])
        elif name == "s":
            self.overview = replace(self.overview, capacity_scale=not self.overview.capacity_scale)
        elif name in ("+", "=", "-"):
            groups = overview.GROUPS
            at = groups.index(self.overview.group) + (-1 if name == "-" else 1)
            self.overview = replace(self.overview, group=groups[max(0, min(len(groups) - 1, at))])

    def _act_device(self, name: str) -> None:
        moves = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}
        box = grid_of(self.device.full) if self.device is not None else None
        if name in moves and box is not None:
            x, y = self.core.selected
            dx, dy = moves[name]
            self._select_core((max(box[0], min(box[2], x + dx)), max(box[1], min(box[3], y + dy))))
        elif name in ("m", "M"):
            names = list(corepage.METRICS)
            at = names.index(self.core.metric) + (1 if name == "m" else -1)
            self.core = replace(self.core, metric=names[at % len(names)])
        elif name == "enter":
            self.core = replace(self.core, whole=not self.core.whole, scroll=0)
        elif name == "s":
            self.core = replace(self.core, capacity_scale=not self.core.capacity_scale)
        elif name in ("pageup", "pagedown") and self.core.whole:
            last = corepage.table_length(self.device, self.core) - 1 if self.device is not None else 0
            scroll = min(last, self.core.scroll + (10 if name == "pagedown" else -10))
            self.core = replace(self.core, scroll=max(0, scroll))
        elif name in ("pageup", "pagedown"):
            self._select(self.index + (1 if name == "pagedown" else -1))
        elif name in ("home", "end") and box is not None:
            self._select_core(box[:2] if name == "home" else box[2:])

    def _select_core(self, core: tuple[int, int]) -> None:
        self.core = replace(self.core, selected=core, scroll=0)

    def _act_table(self, name: str) -> None:
        options = self.tables[self.page]
        columns = _TABLES[self.page]
        moves = {"up": -1, "down": 1, "pageup": -10, "pagedown": 10, "home": -(10**6), "end": 10**6}
        if name in moves:
            count = self._count()
            options = replace(options, cursor=max(0, min(count - 1, options.cursor + moves[name])))
        elif name in (",", "."):
            options = options.by(columns, options.sort + (1 if name == "." else -1))
        elif name in ("i", "I"):
            options = replace(options, descending=not options.descending)
        elif name == "/":
            self.typing = True
        elif name == "d":
            self.only_selected = not self.only_selected
        elif name == "enter":
            self._open_row()
            return
        self.tables[self.page] = options

    def _rows(self) -> list[dict[str, object]]:
        if self.view is None or self.device is None:
            return []
        devices = [self.device] if self.only_selected else self.view.devices
        rows = table.rows_of(devices, self.page)
        return table.arranged(rows or [], _TABLES[self.page], self.tables[self.page])

    def _count(self) -> int:
        return len(self._rows())

    def _open_row(self) -> None:
        rows = self._rows()
        cursor = self.tables[self.page].cursor
        if self.view is not None and cursor < len(rows):
            for number, one in enumerate(self.view.devices):
                if one.key == rows[cursor]["device"]:
                    self._select(number)
                    self.go("device")
                    return

    # Mouse

    def on_canvas_clicked(self, message: Canvas.Clicked) -> None:
        """Do what a click asks for."""
        if message.canvas.id == "head":
            for begin, end, name in self._tabs:
                if begin <= message.x < end:
                    self.go(name)
        elif self.helping:
            self.helping = False
        elif message.canvas.id == "body":
            self._click_body(message.x, message.y, message.twice)
        self.paint()

    def _click_body(self, x: int, y: int, twice: bool) -> None:
        if self.page == "overview" and self.view is not None:
            row = self._first + y - 1
            if y >= 1 and row < len(self.view.devices):
                self._select(row)
                if twice:
                    self.go("device")
        elif self.page == "device" and self._heat is not None and self.device is not None:
            metric = self._heat.metric_at(x, y)
            core = self._heat.core_at(x, y)
            if metric is not None:
                self.core = replace(self.core, metric=metric)
            if core is not None and core in cores_of(self.device.full):
                self._select_core(core)
                if twice:
                    self.core = replace(self.core, whole=True)
        elif self._table is not None:
            options = self.tables[self.page]
            if y == self._table.head_line:
                column = self._table.column_at(x)
                if column is not None:
                    self.tables[self.page] = options.by(_TABLES[self.page], column)
            elif self._table.top <= y < self._table.top + self._table.count - self._table.first:
                self.tables[self.page] = replace(options, cursor=self._table.first + y - self._table.top)
                if twice:
                    self._open_row()

    def on_canvas_scrolled(self, message: Canvas.Scrolled) -> None:
        """Move as the arrow keys do, except on the page where they select cores."""
        if self.page != "device" and not self.typing:
            if self.helping:
                self._leave_help("down" if message.step > 0 else "up")
            else:
                self._act("down" if message.step > 0 else "up", None)
            self.paint()
