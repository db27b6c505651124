"""The live screen: a fake host and a fixed clock; nothing here waits for time to pass."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import made_devices as made
import pytest

from ttmem import recording as opened
from ttmem.cli import top as command
from ttmem.dumps import Dump
from ttmem.errors import CaptureError
from ttmem.moments import open_frames
from ttmem.snapshot import Snapshot
from ttmem.top import chart, corepage, guide, table
from ttmem.top.app import TopApp
from ttmem.top.canvas import Canvas, strip_of, style_of
from ttmem.top.model import BUCKET_NS, KEPT_BUCKETS, Model, Series, Shown
from ttmem.top.overview import CHARTS_LEAST
from ttmem.top.source import LiveSource, ReplaySource, Sampler
from ttmem.units import format_bytes
from ttmem.views.cores import CoreLayout
from ttmem.views.heat import shades, short_size
from ttmem.views.text import Screen, cell_width

GOLDEN = Path(__file__).parent / "golden"
SECOND = 1_000_000_000


class FakeSnapshot(Snapshot):
    """A snapshot of a device object that knows the ranges of its cores too."""

    def core_map(self, x: int, y: int) -> dict[str, Any]:
        if self._given.get("cores") is None:
            return {"cb_ranges": None, "l1_ranges": None}
        core = next((c for c in self._given["cores"] if (c["x"], c["y"]) == (x, y)), None)
        if core is None:
            return {"cb_ranges": [], "l1_ranges": []}
        return {
            "cb_ranges": [[core["cb_region_end"] - core["cb_physical_bytes"], core["cb_region_end"]]]
            if core["cb_physical_bytes"]
            else [],
            "l1_ranges": [[core["l1_lowest_address"], core["l1_lowest_address"] + core["l1_used_bytes"]]],
        }


def reading(devices: list[dict[str, Any]], taken_ns: int = made.TAKEN_NS, problems: tuple[str, ...] = ()) -> Any:
    snapshots = []
    for device in devices:
        snapshot = FakeSnapshot([], taken_ns=taken_ns)
        snapshot._given = device
        snapshots.append(snapshot)
    return SimpleNamespace(taken_ns=taken_ns, devices=snapshots, problems=list(problems))


def changed(device: dict[str, Any], **memory: int) -> dict[str, Any]:
    """Return a device whose ``cb``, ``l1`` or ``dram`` figure is another."""
    parts = dict(device["memory"])
    for name, value in memory.items():
        parts[name] = {**parts[name], "physical_bytes" if name == "cb" else "used_bytes": value}
    return {**device, "memory": parts}


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


class Screens:
    """A running program and its text."""

    def __init__(self, app: TopApp, pilot: Any) -> None:
        self.app = app
        self.pilot = pilot

    async def add(self, *args: Any, **kwargs: Any) -> None:
        self.app.model.add(reading(*args, **kwargs))
        self.app.tick()
        await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    def lines(self, name: str = "body") -> list[str]:
        return self.app.query_one(f"#{name}", Canvas).text

    @property
    def body(self) -> str:
        return "\n".join(self.lines())

    @property
    def whole(self) -> str:
        return "".join(line + "\n" for name in ("head", "body", "foot") for line in self.lines(name))


def run(steps: Any, *, size: tuple[int, int] = (120, 40), first: Any = None, **options: Any) -> None:
    """Run ``steps`` on a program that has seen ``first``, an N150 unless told."""

    async def go() -> None:
        model = Model()
        if first != []:
            model.add(reading([made.n150()] if first is None else first))
        app = TopApp(model, **options)
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            screens = Screens(app, pilot)
            app.tick()
            await pilot.pause()
            await steps(screens)

    asyncio.run(go())


# The model


def test_a_chart_shows_the_largest_sample_of_each_stretch() -> None:
    series = Series()
    for step, value in enumerate([1, 5, 2, 7]):
        series.add(step * BUCKET_NS // 2, value)
    assert series.window(BUCKET_NS, 3) == [None, 5, 7]
    assert series.window(BUCKET_NS, 1, group=2) == [7]


def test_time_without_samples_is_unknown_and_not_zero() -> None:
    series = Series()
    series.add(0, 3)
    series.add(3 * BUCKET_NS, 0)
    assert series.window(3 * BUCKET_NS, 4) == [3, None, None, 0]


def test_history_is_bounded() -> None:
    series = Series()
    for step in range(5 * KEPT_BUCKETS):
        series.add(step * BUCKET_NS, step)
    assert len(series._values) <= 2 * KEPT_BUCKETS
    assert series.window((5 * KEPT_BUCKETS - 1) * BUCKET_NS, 2) == [5 * KEPT_BUCKETS - 2, 5 * KEPT_BUCKETS - 1]


def test_a_clock_that_leaps_back_or_far_ahead_does_no_harm() -> None:
    series = Series()
    series.add(10 * BUCKET_NS, 1)
    series.add(0, 9)
    assert series.window(10 * BUCKET_NS, 1) == [1]
    series.add(10**6 * BUCKET_NS, 2)
    assert series.window(10**6 * BUCKET_NS, 2) == [None, 2]


def test_histories_of_devices_long_gone_are_dropped() -> None:
    model = Model()
    model.add(reading([made.n150(0), made.n150(1)]))
    model.add(reading([made.n150(0)], made.TAKEN_NS + 2 * KEPT_BUCKETS * BUCKET_NS))
    assert len(model._histories) == 1


# Charts


def test_a_spark_tells_unknown_from_nothing_and_nothing_from_little() -> None:
    assert chart.spark([None, 0, 1, 1000], 1000, Screen()) == " ▁▂█"


def test_an_area_fills_from_below() -> None:
    assert chart.area([0, 8, 8, None], 8, 2, Screen()) == ["⢸⡇", "⣸⡇"]


def test_charts_need_no_unicode() -> None:
    plain = Screen(unicode=False)
    assert "".join(chart.area([0, 8, 8, None], 8, 2, plain)).isascii()
    assert chart.spark([None, 0, 1, 1000], 1000, plain).isascii()


# The overview


@pytest.mark.parametrize(
    ("name", "devices", "size"),
    [
        ("top_n150_80x24", [made.n150()], (80, 24)),
        ("top_n150_120x40", [made.n150()], (120, 40)),
        ("top_eight_80x24", made.eight(), (80, 24)),
        ("top_eight_120x40", made.eight(), (120, 40)),
    ],
)
def test_the_overview_looks_as_it_did(name: str, devices: list[dict[str, Any]], size: tuple[int, int]) -> None:
    async def steps(screens: Screens) -> None:
        for step in range(1, 120):
            wave = abs(step % 40 - 20)
            now = [changed(d, cb=wave << 20, l1=step << 14, dram=(step % 9) << 22) for d in devices]
            screens.app.model.add(reading(now, made.TAKEN_NS + step * SECOND // 4))
        await screens.add(devices, made.TAKEN_NS + 30 * SECOND)
        path = GOLDEN / f"{name}.txt"
        if os.environ.get("TTMEM_GOLDEN") == "write":
            path.write_text(screens.whole, encoding="utf-8")
        assert screens.whole == path.read_text(encoding="utf-8")

    run(steps, size=size, first=devices)


@pytest.mark.parametrize("size", [(40, 10), (80, 24), (200, 60)])
@pytest.mark.parametrize("kind", list(made.SETS))
def test_every_page_fits_every_terminal(kind: str, size: tuple[int, int]) -> None:
    async def steps(screens: Screens) -> None:
        for key in ("1", "f", "c", "a", "2", "m", "m", "m", "m", "enter", "3", "4", "5", "h"):
            await screens.press(key)
            assert len(screens.lines()) == size[1] - 2
            assert all(cell_width(line) <= size[0] for line in screens.whole.splitlines())

    run(steps, size=size, first=made.SETS[kind]())


def test_every_value_of_the_overview_equals_the_json_of_the_same_snapshot() -> None:
    devices = [made.n150(0), made.p150(1), made.tt_metal(2)]

    async def steps(screens: Screens) -> None:
        for number, device in enumerate(devices):
            row = screens.lines()[1 + number]
            memory = device["memory"]
            for figure in (memory["cb"]["physical_bytes"], memory["l1"]["used_bytes"], memory["dram"]["used_bytes"]):
                assert format_bytes(figure) in row
            known = [core["headroom_bytes"] for core in device["cores"] or ()]
            assert format_bytes(min(known, default=None)) in row
            for name in ("resident", "logical"):
                assert f"{name.capitalize()} {format_bytes(memory['cb'][name + '_bytes'])}" in screens.body
            assert format_bytes(memory["cb"]["peak_bytes"]) in screens.body
            await screens.press("n")

    run(steps, size=(140, 40), first=devices)


def test_unknown_figures_are_not_available_and_never_zero() -> None:
    async def steps(screens: Screens) -> None:
        assert screens.lines()[1].count("N/A") == 5
        assert "0.0 B" not in screens.body
        await screens.press("2")
        assert "cores N/A" in screens.body
        await screens.press("3")
        assert "Programs N/A" in screens.body

    run(steps, first=[made.tt_metal()])


def test_devices_come_and_go_and_the_selection_stays() -> None:
    async def steps(screens: Screens) -> None:
        await screens.press("down")
        assert "▸ Device 1" in screens.body
        await screens.add([made.n150(1), made.n150(2)], made.TAKEN_NS + SECOND)
        assert "▸ Device 1" in screens.body
        assert "  Device 0" not in screens.body
        await screens.add([made.n150(2)], made.TAKEN_NS + 2 * SECOND)
        assert "▸ Device 2" in screens.body
        await screens.add([], made.TAKEN_NS + 3 * SECOND)
        assert "No device is published in /dev/shm" in screens.body
        await screens.add([made.n150(1), made.n150(2)], made.TAKEN_NS + 4 * SECOND)
        assert "▸ Device 1" in screens.body

    run(steps, first=[made.n150(0), made.n150(1)])


def test_a_replay_and_a_region_of_the_same_chip_are_two_devices() -> None:
    region = made.tt_metal(0, asic_id=made.p150()["asic_id"])

    async def steps(screens: Screens) -> None:
        await screens.press("down")
        assert screens.lines()[2].startswith("▸ Device 0")
        assert "source tt-metal" in screens.body

    run(steps, first=[made.p150(), region])


def test_what_cannot_be_read_is_said() -> None:
    async def steps(screens: Screens) -> None:
        await screens.add([], problems=("x: permission denied",))
        assert "x: permission denied" in screens.body

    run(steps)


def test_more_devices_than_lines_are_scrolled_to() -> None:
    async def steps(screens: Screens) -> None:
        assert "▸ Device 0 " in screens.body
        assert " more below" in screens.body
        await screens.press("end")
        assert "▸ Device 31" in screens.body
        await screens.press("c")
        assert sum("  Device " in line or "▸ Device" in line for line in screens.lines()) >= 24 - 4
        await screens.press("f")
        assert "CB physical" in screens.body

    run(steps, size=(80, 24), first=made.thirty_two())


def test_charts_change_their_time_and_their_scale() -> None:
    async def steps(screens: Screens) -> None:
        def ago() -> int:
            line = next(line for line in screens.lines() if "s ago " in line and "top" in line)
            return int(line.split()[0])

        before = ago()
        await screens.press("+")
        assert ago() == 2 * before
        await screens.press("-")
        assert ago() == before
        await screens.press("s")
        assert f"top {format_bytes(made.n150()['memory']['dram']['total_bytes'])}" in screens.body

    run(steps)


def test_charts_are_left_out_where_there_is_no_room() -> None:
    async def steps(screens: Screens) -> None:
        assert "CB physical" not in screens.body

    run(steps, size=(80, CHARTS_LEAST + 3))


# Keys


def test_numbers_and_tab_turn_pages() -> None:
    async def steps(screens: Screens) -> None:
        for key, page in zip("12345", ("overview", "device", "programs", "processes", "notes"), strict=True):
            await screens.press(key)
            assert screens.app.page == page
        await screens.press("tab")
        assert screens.app.page == "overview"
        await screens.press("shift+tab")
        assert screens.app.page == "notes"
        await screens.press("escape")
        assert screens.app.page == "overview"

    run(steps)


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
def test_leaving_is_success(key: str) -> None:
    async def steps(screens: Screens) -> None:
        await screens.press(key)
        assert screens.app.return_value == 0

    run(steps)


@pytest.mark.parametrize("width", [30, 44, 60, 62, 80, 107, 120])
@pytest.mark.parametrize("mode", ["f", "c"])
def test_the_overview_joins_no_words_and_cuts_no_figure(width: int, mode: str) -> None:
    async def steps(screens: Screens) -> None:
        await screens.press(mode)
        lines = screens.lines()
        assert re.search(r"^▸ Device 0  +22.0 MiB ", lines[1])
        assert all(not re.search(r"[\d.]…|(?<!l)\d \w?…", line) for line in lines)
        assert not re.search(r"\bago\w", screens.body)
        assert lines[1].endswith("live replay" if width >= 62 else "live*")
        if mode == "f":
            tops = [line for line in lines if re.search(r"\btop ", line)]
            assert len(tops) == 1
            panels = tops[0].split("│")
            assert all(re.fullmatch(r" ?(\d+ s( ago)?)? +top [\d.]+ \w+ ?", panel) for panel in panels), panels
            bars = {tuple(i for i, c in enumerate(line) if c == "│") for line in lines if "│" in line}
            assert len(bars) == (1 if len(panels) > 1 else 0)

    run(steps, size=(width, 30), first=[made.n150(origin="replay")])


def test_a_device_without_geometry_has_no_total() -> None:
    async def steps(screens: Screens) -> None:
        assert re.search(r" N/A  live$", screens.lines()[1])
        (total,) = [line for line in screens.lines() if line.startswith("Total L1")]
        assert total.rstrip() == "Total L1 N/A"

    run(steps, first=[made.n150(grid=None, l1_accounting=made.tt_metal()["l1_accounting"])])


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (140, 60)])
def test_help_shows_all_of_itself_by_scrolling(size: tuple[int, int]) -> None:
    async def steps(screens: Screens) -> None:
        await screens.press("h")
        assert "Up/Down scroll" in screens.lines("foot")[0]
        wanted = ["".join(text for text, _ in line).rstrip() for line in guide.help_lines(Screen(size[0], size[1] - 2))]
        assert all(len(line) <= size[0] for line in wanted)
        assert " ".join(" ".join(wanted).split()).count("live*: a replay of a recording") == 1
        seen = screens.lines()
        assert (f"{len(wanted) - size[1] + 3} more lines: Down" in seen) == (len(wanted) > size[1] - 2)
        for _ in range(len(wanted)):
            await screens.press("down")
            seen = seen + screens.lines()
        assert set(wanted) <= set(seen)
        assert screens.lines()[min(len(wanted), size[1] - 2) - 1] == wanted[-1]
        await screens.press("home")
        assert screens.lines()[0] == wanted[0]
        await screens.press("x")
        assert not screens.app.helping

    run(steps, size=size)


def test_help_opens_and_any_key_closes_it() -> None:
    async def steps(screens: Screens) -> None:
        for key in ("h", "question_mark"):
            await screens.press(key)
            assert "select a core" in screens.body
            await screens.press("x")
            assert "Device 0" in screens.body

    run(steps)


def test_pause_holds_the_screen_and_going_on_shows_the_newest() -> None:
    async def steps(screens: Screens) -> None:
        await screens.press("space")
        assert "PAUSED" in screens.lines("head")[0]
        held = screens.body
        await screens.add([changed(made.n150(), cb=5 << 20)], made.TAKEN_NS + SECOND)
        assert screens.body == held
        await screens.press("2", "1")
        assert screens.body == held
        await screens.press("space")
        assert "5.0 MiB" in screens.lines()[1]
        assert "PAUSED" not in screens.lines("head")[0]

    run(steps)


def test_devices_whose_number_is_unknown_are_told_apart_by_their_chip() -> None:
    found = [made.n150()] + [
        made.tt_metal(None, asic_id=asic_id, state="foreign-version", processes=[{"pid": pid, "state": "live"}])
        for pid, asic_id in ((5, "0x5"), (6, "0x6"))
    ]

    async def steps(screens: Screens) -> None:
        assert "Device N/A (0x5) " in screens.body
        for page in "12345":
            await screens.press(page)
            assert "None" not in screens.body
        assert "Devices N/A (0x5), N/A (0x6): warning" in screens.body
        # A row of the table opens its own device.
        await screens.press("4", "slash", *"6", "enter", "enter")
        assert screens.body.startswith("Device N/A: foreign-version")
        assert "asic 0x6" in screens.body
        await screens.press("4", "d")
        assert "Processes of device N/A (0x6)" in screens.body

    run(steps, first=found)


# A device


def test_the_heat_map_shows_each_figure_of_the_json() -> None:
    device = made.n150()
    by_xy = {(core["x"], core["y"]): core for core in device["cores"]}

    async def steps(screens: Screens) -> None:
        await screens.press("2")
        for metric, (column, title) in corepage.METRICS.items():
            assert screens.app.core.metric == metric
            assert f"[{title}]" in screens.lines()[1]
            geometry = screens.app._heat
            if column:
                for (x, y), core in by_xy.items():
                    line = screens.lines()[geometry.top + y]
                    begin = 4 + x * geometry.cell
                    text = line[begin : begin + geometry.cell].strip(" []>")
                    assert text == short_size(core[column], 1024)
            await screens.press("m")
        assert screens.app.core.metric == "cb_physical"
        await screens.press("M")
        assert screens.app.core.metric == "fragmentation"

    run(steps, first=[device])


def test_arrows_select_a_core_and_stop_at_the_edge() -> None:
    async def steps(screens: Screens) -> None:
        await screens.press("2", "left", "up")
        assert screens.app.core.selected == (0, 0)
        await screens.press("right", "right", "right", "down", "down", "down", "down")
        assert screens.app.core.selected == (3, 4)
        core = next(c for c in made.n150()["cores"] if (c["x"], c["y"]) == (3, 4))
        assert "Core 3,4:" in screens.body
        assert f"headroom {format_bytes(core['headroom_bytes'])}" in screens.body
        assert "0x16e000  end of L1; a cell is" in screens.body
        await screens.press("end", "down", "right")
        assert screens.app.core.selected == (7, 7)

    run(steps)


def test_the_mouse_selects_a_core_a_metric_a_tab_and_a_device() -> None:
    async def steps(screens: Screens) -> None:
        await screens.pilot.click("#body", offset=(8, 2))
        await screens.pilot.pause()
        assert "▸ Device 1" in screens.body
        await screens.pilot.click("#head", offset=(24, 0))
        await screens.pilot.pause()
        assert screens.app.page == "device"
        heat = screens.app._heat
        await screens.pilot.click("#body", offset=(4 + 5 * heat.cell + 1, heat.top + 6))
        await screens.pilot.pause()
        assert screens.app.core.selected == (5, 6)
        begin, _, name = heat.tabs[4]
        await screens.pilot.click("#body", offset=(begin + 1, corepage.TABS_LINE))
        await screens.pilot.pause()
        assert screens.app.core.metric == name == "headroom"

    run(steps, first=[made.n150(0), made.n150(1)])


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_the_selected_core_is_marked_without_colour_and_loses_no_digit(size: tuple[int, int]) -> None:
    async def steps(screens: Screens) -> None:
        await screens.press("2", "m", "m", "m", "m")
        core = made.p150()["cores"][0]
        number = short_size(core["headroom_bytes"], 1024)
        line = screens.lines()[screens.app._heat.top]
        assert f"[{number}]" in line.replace("[ ", "[") or f">{number}" in line

    run(steps, size=size, first=[made.p150()])


ADDRESSES = (("total", 1572864), ("reserved", 111488), ("l1_small", 32768))


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("color", [True, False])
def test_a_number_of_the_heat_map_is_whole_or_not_there_at_any_width(color: bool, unicode: bool) -> None:
    device = made.p150(grid={"x": 13, "y": 10})
    like = device["cores"][0]
    values: list[int | None] = [None, -154816, 0, 100, 53248, 401408, 1027072, 1321984, 1428480]
    metrics = {column: [*values[1 + (column != "headroom_bytes") :], None] for column, _ in corepage.METRICS.values()}
    device["cores"] = [
        {**like, "x": x, "y": y, **{c: kept[(x + y) % len(kept)] for c, kept in metrics.items() if c}}
        for y in range(10)
        for x in range(13)
    ]
    device["cores"].pop()
    device["l1_accounting"] = {f"{name}_bytes": 130 * size for name, size in ADDRESSES}
    shown = Shown(("id", 0), reading([device]).devices[0], None)
    gaps = [[[200000, 200000 + size]] for size in (0, 10000, 500000, 1260000)]
    shown.core_ranges = lambda x, y: {"cb_ranges": gaps[(x + y) % 4], "l1_ranges": [[900000, 1000000]]}
    for metric, selected in product(corepage.METRICS, ((0, 0), (4, 3))):
        options = corepage.CoreOptions(metric=metric, selected=selected)
        texts = {xy: corepage._cell_text(metric, value) for xy, value in corepage.values_of(shown, metric).items()}
        for width in range(30, 201):
            screen = Screen(width, 60, color, unicode)
            lines, where = corepage.heat_lines(shown, options, screen)
            assert where is not None
            assert all(sum(cell_width(text) for text, _ in line) <= width for line in lines), width
            rows = ["".join(text for text, _ in line) for line in lines]
            whole = 0
            for (x, y), number in texts.items():
                begin = 3 + x * where.cell
                got = rows[where.top + y][begin : begin + where.cell]
                # A gap or a mark stands before a number: it cannot run into the one before it.
                told = re.fullmatch(r"[^\w<-]+(-?\d+%?|<1|N/A)[ \]]*", got)
                assert told[1] == number if told else not re.search(r"\w|<", got), (metric, width, x, y, got)
                whole += told is not None
            assert whole == len(texts) or where.cell <= max(map(len, texts.values()))
            assert (whole == len(texts)) != ("without room" in " ".join(rows[11:]))
            assert re.findall(r"\d+", rows[0]) == [str(x) for x in range(13) if where.cell > len(str(x))]
            assert color or any(mark in "".join(rows[1:11]) for mark in shades(screen)[1:])


def test_the_shown_metric_is_named_at_any_width() -> None:
    for width in range(30, 201):
        for metric, (_, title) in corepage.METRICS.items():
            line, tabs = corepage.metric_line(corepage.CoreOptions(metric=metric), Screen(width))
            text = "".join(part for part, _ in line)
            assert f"[{title}]" in text[:width]
            assert [text[begin:end].strip(" []") for begin, end, _ in tabs] == [
                corepage.METRICS[name][1] for _, _, name in tabs
            ]


@pytest.mark.parametrize("capacity_scale", [True, False])
def test_where_the_scale_is_unknown_nothing_is_full(capacity_scale: bool) -> None:
    device = made.n150(grid=None, l1_accounting=made.tt_metal()["l1_accounting"])
    device["cores"] = [{**core, "cb_physical_bytes": 0, "headroom_bytes": None} for core in device["cores"]]
    shown = Shown(("id", 0), reading([device]).devices[0], None)
    for metric in ("cb_physical", "headroom"):
        options = corepage.CoreOptions(metric=metric, capacity_scale=capacity_scale)
        lines, _ = corepage.heat_lines(shown, options, Screen(120))
        assert lines[-1][0][0].endswith("full is N/A")


def test_without_colour_shades_stand_for_it() -> None:
    async def steps(screens: Screens) -> None:
        await screens.press("2")
        assert "▒464" in screens.body
        await screens.press("m", "m", "m", "m")
        line = screens.lines()[screens.app._heat.top + 4]
        assert "!-151" in line

    run(steps, color=False)


def test_s_makes_the_colours_end_at_the_largest_value() -> None:
    async def steps(screens: Screens) -> None:
        await screens.press("2")
        assert "full is 1.3 MiB" in screens.body
        await screens.press("s")
        assert "full is 464.0 KiB" in screens.body

    run(steps)


def test_enter_gives_the_address_map_the_whole_page_and_escape_takes_it_back() -> None:
    async def steps(screens: Screens) -> None:
        await screens.press("enter")
        assert screens.app.page == "device"
        await screens.press("enter")
        assert screens.app._heat is None
        assert "end of L1" in screens.body
        await screens.press("escape")
        assert screens.app._heat is not None
        await screens.press("escape")
        assert screens.app.page == "overview"

    run(steps, size=(80, 24))


def holes(count: int) -> Any:
    """Return an N150 whose cores have many small L1 buffers with gaps between them."""
    one = reading([made.n150()])
    (snapshot,) = one.devices
    snapshot.core_map = lambda x, y: {
        "cb_ranges": [[105664, 205664]],
        "l1_ranges": [[600000 + 8192 * i, 600000 + 8192 * i + 4096] for i in range(count)],
    }
    return one


def test_a_short_screen_keeps_the_gap_and_the_cbs_and_says_what_it_leaves_out() -> None:
    async def steps(screens: Screens) -> None:
        screens.app.model.add(holes(20))
        screens.app.tick()
        await screens.press("2")
        kept = [line for line in screens.lines() if line.startswith("  0x")]
        assert len(kept) < 44
        assert any("CB" in line for line in kept)
        assert any("free" in line and "385.1 KiB" in line for line in kept)
        assert f"  {44 - len(kept)} more: Enter shows all" in screens.body

    run(steps, size=(80, 24), first=[])


def test_the_address_map_on_the_whole_page_scrolls_through_every_row() -> None:
    async def steps(screens: Screens) -> None:
        screens.app.model.add(holes(20))
        screens.app.tick()
        await screens.press("2", "enter")
        seen = {line for line in screens.lines() if line.startswith("  0x")}
        for _ in range(9):
            await screens.press("pagedown")
            seen |= {line for line in screens.lines() if line.startswith("  0x")}
        assert len(seen) == 44
        assert "0 more below" in screens.body
        for _ in range(9):
            await screens.press("pageup")
        assert "0 more above" in screens.body

    run(steps, size=(80, 24), first=[])


def test_fragmentation_is_the_free_share_outside_the_largest_gap() -> None:
    layout = CoreLayout(size=1100, base=0, small=100)
    ranges = {"cb_ranges": [[0, 100]], "l1_ranges": [[200, 600]]}
    # Free: [100, 200) and [600, 1000); the larger holds 400 of 500.
    assert corepage.fragmentation(layout, ranges) == 200
    assert corepage.fragmentation(layout, {"cb_ranges": [[0, 1000]], "l1_ranges": []}) == 0
    assert corepage.fragmentation(layout, {"cb_ranges": [[0, 300]], "l1_ranges": [[200, 1000]]}) == 0
    assert corepage.fragmentation(layout, None) is None
    assert corepage.fragmentation(CoreLayout(None, 0, 0), ranges) is None


def test_a_recording_has_an_address_map_of_its_programs_and_buffers() -> None:
    device = made.n150()
    everywhere = {"core_ranges": "{[0-0 - 7-7]}", "kind": "circular_buffer"}
    cbs = [{"address": 105664, "size": 4096, **everywhere}, {"address": 205664, "size": 4096, **everywhere}]
    device["programs"] = [{**device["programs"][0], "name": "softmax", "circular_buffers": cbs}]
    device["memory"]["l1"]["used_bytes"] = 0
    shown = Shown(("id", 0), Snapshot.of_dict(device), None)
    text = "".join(
        text for line in corepage.address_lines(shown, corepage.CoreOptions(), Screen(), 30) for text, _ in line
    )
    assert text.count("CB: softmax") == 2
    # Free: between the two CBs, and from there to the top.
    top, gap = 1499136 - 24576 - 209760, 205664 - 109760
    assert set(corepage.values_of(shown, "fragmentation").values()) == {round(1000 * gap / (gap + top))}


def test_a_dump_has_no_address_map_and_says_so() -> None:
    shown = Shown(("id", 0), Snapshot.of_dict(made.n150()), None)
    lines = corepage.address_lines(shown, corepage.CoreOptions(), Screen(), 10)
    assert lines[0][0][0].startswith("address map N/A")
    assert set(corepage.values_of(shown, "fragmentation").values()) == {None}


# Tables


def test_programs_are_sorted_by_any_column_either_way() -> None:
    async def steps(screens: Screens) -> None:
        await screens.press("3")

        def names() -> list[str]:
            return [line.split("ttnn::")[1].split()[0] for line in screens.lines() if "ttnn::" in line]

        assert names() == ["matmul", "softmax", "layer_norm", "add"]
        await screens.press("i")
        assert names() == ["add", "layer_norm", "softmax", "matmul"]
        await screens.press(".", ".", ".")
        assert "by Count, largest first" in screens.body
        assert names() == ["layer_norm", "matmul", "softmax", "add"]
        await screens.press(",", ",", ",", ",")
        assert "by Dev, smallest first" in screens.body

    run(steps)


def test_programs_stand_in_the_order_of_the_json_and_are_all_counted() -> None:
    rows = made.n150()["programs"]
    # Over all cores the first is the larger one, per core the second.
    wide, tall = {**rows[3], "num_cores": 64, "count": 7}, {**rows[0], "num_cores": 1}
    middle = {**rows[1], "num_cores": 4}
    first = [made.n150(programs=[wide, tall], programs_omitted=3), made.n150(2, programs=[middle])]

    async def steps(screens: Screens) -> None:
        await screens.press("3")
        assert screens.lines()[0] == "Programs: 21 of 24 cached in 3 rows  by cores x CB, largest first"
        names = [line.split("ttnn::")[1].split()[0] for line in screens.lines()[2:] if line]
        assert names == ["add", "softmax", "matmul"]
        await screens.press("n", "n", "d")
        assert screens.lines()[0].startswith("Programs of device 2: 2 cached in 1 row  by")
        await screens.press("4")
        assert screens.lines()[0].startswith("Processes of device 2: 1  by CB")

    run(steps, first=first)


def test_a_click_on_a_heading_sorts_and_a_second_one_turns_the_order() -> None:
    async def steps(screens: Screens) -> None:
        await screens.press("3")
        at = screens.lines()[1].index("Count")
        await screens.pilot.click("#body", offset=(at, 1))
        await screens.pilot.pause()
        assert "by Count, largest first" in screens.body
        await screens.pilot.click("#body", offset=(at, 1))
        await screens.pilot.pause()
        assert "by Count, smallest first" in screens.body

    run(steps)


def test_a_filter_keeps_the_rows_that_contain_it_and_letters_are_no_commands_meanwhile() -> None:
    async def steps(screens: Screens) -> None:
        await screens.press("3", "slash", *"quirk")
        assert screens.app.return_value is None
        assert "none that the filter lets through" in screens.body
        await screens.press("ctrl+u", *"SOFT", "backspace", "enter")
        assert "Programs: 2 of 40 cached in 1 row  filter: SOF" in screens.body
        assert "softmax" in screens.body
        assert "matmul" not in screens.body
        await screens.press("escape")
        assert "matmul" in screens.body

    run(steps)


def test_tables_show_every_value_of_the_json_and_not_available_for_unknown_ones() -> None:
    devices = [made.n150(0), made.p150(1)]

    async def steps(screens: Screens) -> None:
        await screens.press("4")
        for device in devices:
            for process in device["processes"]:
                row = next(line for line in screens.lines() if f" {process['pid']} " in line).split("  ")
                cells = [cell.strip() for cell in row]
                for column in table.PROCESSES[5:]:
                    assert format_bytes(process[column.key]) in cells
        await screens.press("3")
        for program in devices[0]["programs"]:
            row = next(line for line in screens.lines() if program["name"] in line)
            assert format_bytes(program["cb_bytes_per_core"]) in row
            assert f"0x{program['cb_region_end']:06x}" in row

    run(steps, size=(140, 40), first=devices)


def test_a_row_opens_its_device_and_d_keeps_to_one() -> None:
    async def steps(screens: Screens) -> None:
        await screens.press("4", "d")
        assert "Processes of device 0" in screens.body
        await screens.press("d", "home", "down", "enter")
        assert screens.app.page == "device"
        assert screens.app.device.device["device_id"] == 1

    run(steps, first=[made.n150(0), made.n150(1)])


def test_unknown_values_come_last_either_way() -> None:
    rows = [{"pid": None}, {"pid": 1}, {"pid": 2}]
    for descending, order in ((True, [2, 1, None]), (False, [1, 2, None])):
        options = table.TableOptions(sort=1, descending=descending)
        assert [row["pid"] for row in table.arranged(rows, table.PROCESSES, options)] == order


# Notes


def test_notes_that_devices_share_stand_once() -> None:
    model = Model()
    model.add(reading(made.thirty_two(), problems=("broken: cut short",)))
    text = ["".join(part for part, _ in line) for line in guide.note_lines(model.view(), Screen(width=100))]
    assert text[0] == "not readable: broken: cut short"
    assert sum("would clash" in line for line in text) == 1
    assert any(line.startswith("Devices 0-31: warning") for line in text)


# Economy


def test_only_lines_that_changed_are_painted() -> None:
    async def steps(screens: Screens) -> None:
        canvas = screens.app.query_one("#body", Canvas)
        before = canvas.painted
        screens.app.paint()
        assert canvas.painted == before
        devices = [made.n150(i) for i in range(32)]
        devices[7] = changed(devices[7], dram=999)
        await screens.add(devices, made.TAKEN_NS)
        assert canvas.painted - before == 1

    run(steps, first=[made.n150(i) for i in range(32)])


def test_the_same_sample_is_painted_once() -> None:
    async def steps(screens: Screens) -> None:
        view = screens.app.view
        screens.app.tick()
        assert screens.app.view is view

    run(steps)


def test_without_colour_only_bold_dim_and_reverse_are_left() -> None:
    assert style_of("alarm", True).color is not None
    assert style_of("alarm", False).color is None
    assert style_of("1;7", False).reverse
    assert style_of("38;5;16;48;5;208", True).bgcolor is not None


def test_a_strip_has_exactly_the_width() -> None:
    for text in ("", "short", "long " * 30, "wide 漢字" * 9):
        assert strip_of([(text, "bold")], 40, Screen(width=40)).cell_length == 40


# Sources


def frames(path: Path, count: int, *, lines: bool = True) -> Path:
    dumps = [
        {
            "schema": 1,
            "host": "h",
            "taken_ns": made.TAKEN_NS + i * SECOND,
            "devices": [changed(made.n150(), cb=i << 20)],
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(d) + "\n" for d in dumps) if lines else json.dumps(dumps[0], indent=2))
    return path


def test_a_replay_plays_at_the_recorded_pace_and_steps(tmp_path: Path) -> None:
    clock = [0]
    source = ReplaySource(open_frames(str(frames(tmp_path / "f", 6))), clock_ns=lambda: clock[0])
    assert len(source.poll()) == 1
    assert source.poll() == []
    clock[0] += 2 * SECOND
    assert [r.taken_ns for r in source.poll()] == [made.TAKEN_NS + SECOND, made.TAKEN_NS + 2 * SECOND]
    assert source.position == (3, 6)
    source.step(-2)
    assert source.poll()[0].taken_ns == made.TAKEN_NS
    clock[0] += 9 * SECOND
    assert source.poll() == []
    source.step(99)
    assert source.poll()[0].taken_ns == made.TAKEN_NS + 5 * SECOND
    source.close()


def test_the_screen_follows_a_replay(tmp_path: Path) -> None:
    source = ReplaySource(open_frames(str(frames(tmp_path / "f", 4))), clock_ns=lambda: 0)

    async def steps(screens: Screens) -> None:
        async def follow() -> None:
            for one in source.poll():
                screens.app.model.add(one)
            screens.app.tick()
            await screens.pilot.pause()

        await follow()
        assert "frame 1/4" in screens.lines("head")[0]
        await screens.press("]")
        await follow()
        assert "frame 2/4" in screens.lines("head")[0]
        assert "STOPPED" in screens.lines("head")[0]
        assert "1.0 MiB" in screens.lines()[1]
        await screens.press("[", "space")
        await follow()
        assert "frame 1/4" in screens.lines("head")[0]
        assert "STOPPED" not in screens.lines("head")[0]
        assert time.strftime("%H:%M:%S", time.gmtime(made.TAKEN_NS / 1e9)) in screens.lines("head")[0]
        await screens.press("}")
        await follow()
        assert "frame 3/4" in screens.lines("head")[0]
        await screens.press("{")
        await follow()
        assert "frame 1/4" in screens.lines("head")[0]

    run(steps, first=[], player=source)
    source.close()


def test_the_peaks_of_several_processes_are_marked_as_upper_bounds() -> None:
    device = made.n150()
    rows = [{**device["processes"][0], "pid": pid, "state": "live"} for pid in (7, 8)]
    peak = format_bytes(device["memory"]["cb"]["peak_bytes"])

    async def steps(screens: Screens) -> None:
        assert f"peak ≤ {peak}" in screens.body
        await screens.add([{**device, "processes": rows[:1]}])
        assert f"peak {peak}" in screens.body

    run(steps, first=[{**device, "processes": rows}])


def test_a_device_whose_last_change_nobody_knows_is_not_said_to_have_had_none() -> None:
    async def steps(screens: Screens) -> None:
        assert "last change N/A" in screens.body

    run(steps, first=[{**made.n150(), "updated_ns": None}])


def test_a_replay_that_ended_plays_again(tmp_path: Path) -> None:
    source = ReplaySource(open_frames(str(frames(tmp_path / "f", 3))), clock_ns=lambda: 0)
    source.poll()
    source.step(2)
    source.poll()
    assert source.position == (3, 3)
    source.toggle()
    assert source.playing
    assert source.poll()[0].taken_ns == made.TAKEN_NS
    source.close()


def test_a_recording_is_opened_by_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Recording(list):
        path, damaged_bytes, damage = "f", 0, ""
        require_moments = opened.Recording.require_moments

        def dump(self, index: int) -> Dump:
            return self[index]

        def close(self) -> None:
            pass

    recording = Recording([Dump([made.n150()], made.TAKEN_NS)])
    module = SimpleNamespace(open_recording=lambda path: recording)
    monkeypatch.setitem(sys.modules, "ttmem.recording", module)
    path = tmp_path / "f"
    path.write_bytes(b"ttmemrec" + bytes(8))
    source = ReplaySource(open_frames(str(path)))
    assert source.poll()[0].devices[0].device_id == 0
    source.close()
    recording.clear()
    with pytest.raises(CaptureError, match="no moment yet"):
        open_frames(str(path))


def test_the_half_line_of_an_interrupted_dump_is_left_out(tmp_path: Path) -> None:
    path = frames(tmp_path / "f", 3)
    path.write_bytes(path.read_bytes()[:-40])
    file = open_frames(str(path))
    assert len(file) == 2
    file.close()


def test_one_dump_alone_is_a_replay_too(tmp_path: Path) -> None:
    file = open_frames(str(frames(tmp_path / "f", 1, lines=False)))
    assert len(file) == 1
    assert file.frame(0)["taken_ns"] == made.TAKEN_NS
    file.close()


def test_dumps_written_one_after_the_other_are_frames_too(tmp_path: Path) -> None:
    dumps = [{"taken_ns": made.TAKEN_NS + i, "devices": [made.n150()]} for i in range(3)]
    path = tmp_path / "f"
    path.write_text("".join(json.dumps(dump, indent=2) + "\n" for dump in dumps))
    file = open_frames(str(path))
    assert [file.frame(i)["taken_ns"] for i in range(len(file))] == [made.TAKEN_NS + i for i in range(3)]
    file.close()
    path.write_bytes(path.read_bytes()[:-9])
    file = open_frames(str(path))
    assert len(file) == 2
    file.close()


@pytest.mark.parametrize("text", ["", "no json", "[1]\n", '{"devices": 3}\n', '{"devices": [{"memory": {}}]}\n'])
def test_a_file_that_is_no_dump_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "f"
    path.write_text(text)
    with pytest.raises(CaptureError, match=str(path)):
        open_frames(str(path))


def test_a_live_source_reads_what_is_published_and_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTMEM_SHM_DIR", str(tmp_path))
    import ttmem

    with ttmem.publish(3, grid=(2, 2)) as first, ttmem.publish(4):
        first.allocate(ttmem.BufferType.DRAM, 4096)
        source = LiveSource("ttmem")
        assert [d.device_id for d in source.poll()[0].devices] == [3, 4]
        source.close()
        source = LiveSource("ttmem", lambda device: device["device_id"] == 4)
        assert [d.device_id for d in source.poll()[0].devices] == [4]
        source.close()


def test_a_sampler_survives_what_its_source_throws() -> None:
    class Source:
        def __init__(self) -> None:
            self.polls = 0
            self.closed = False

        def poll(self) -> list[Any]:
            self.polls += 1
            if self.polls == 1:
                raise OSError("gone")
            return [reading([made.n150()])]

        def close(self) -> None:
            self.closed = True

    source, model = Source(), Model()
    sampler = Sampler(source, model, 0.001)
    seen: list[str | None] = []
    sampler.on_first = lambda: seen.append(sampler.error)
    sampler.start()
    for _ in range(10_000):
        if model.samples:
            break
        sampler.join(0.001)
    sampler.stop()
    assert model.view().devices[0].device["device_id"] == 0
    assert source.closed
    assert seen == [None]


def test_a_reading_that_costs_much_makes_room_before_the_next() -> None:
    waits: list[float] = []

    class Source:
        def poll(self) -> list[Any]:
            begun = time.thread_time()
            while time.thread_time() - begun < 0.02:
                pass
            return []

        def close(self) -> None:
            pass

    sampler = Sampler(Source(), Model(), 0.01, share=0.1)

    def wait(seconds: float) -> None:
        waits.append(seconds)
        sampler._ended.set()

    sampler._hurry = SimpleNamespace(wait=wait, clear=lambda: None, set=lambda: None)
    begun = time.monotonic()
    sampler.run()
    # 20 ms of work at a tenth of a core: the next reading is due 200 ms after this one was.
    assert waits[0] + (time.monotonic() - begun) >= 0.2


# The command


def test_without_a_terminal_the_command_says_what_to_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "must be a terminal" in captured.err
    assert "ttmem-dump" in captured.err


@pytest.mark.parametrize("argv", [["--interval", "0"], ["--interval", "x"], ["-d", "x"], ["--nonsense"]])
def test_wrong_usage_is_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(argv) == 2
    assert "usage: ttmem-top" in capsys.readouterr().err


def test_help_and_a_mistake_import_neither_textual_nor_numpy() -> None:
    code = (
        "import sys; from ttmem.cli.top import main; main(['--help']); main(['--interval', '0']); main([])\n"
        "print('textual' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
