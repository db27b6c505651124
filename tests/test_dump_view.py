"""The text of ttmem-dump: golden screens, figures equal to the JSON, sums that add up."""

from __future__ import annotations

import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_devices import SETS, TAKEN_NS, n150, p150, stale, tt_metal

from ttmem.clash import Finding
from ttmem.diff import diff
from ttmem.dumps import Dump
from ttmem.units import format_bytes
from ttmem.views.address import render_map
from ttmem.views.cores import METRICS
from ttmem.views.diff import render_diff
from ttmem.views.dump import render_devices
from ttmem.views.explain import render_findings
from ttmem.views.explanation import render_explanation
from ttmem.views.heat import render_heat_map
from ttmem.views.tables import render_list, render_processes, render_programs
from ttmem.views.text import Screen, cell_width, exact_bytes

GOLDEN = Path(__file__).parent / "golden"
LABELS = {
    "DRAM": "memory.dram.used_bytes",
    "L1": "memory.l1.used_bytes",
    "CB": "memory.cb.physical_bytes",
    "Kernels": "memory.kernel.used_bytes",
    "L1 Small": "memory.l1_small.used_bytes",
    "Trace": "memory.trace.used_bytes",
}
MAP = {"cb_ranges": [[105664, 580800, ["ttnn::matmul", "ttnn::softmax"]]], "l1_ranges": [[425984, 1474560]]}


def dump(name: str, width: int, **screen: Any) -> str:
    return render_devices(SETS[name](), Screen(width=width, **screen), now_ns=TAKEN_NS)


def screens() -> dict[str, str]:
    made = {f"{name}_{width}": dump(name, width) for name in ("n150", "p150") for width in (60, 80, 120, 160)}
    made |= {f"{name}_80": dump(name, 80) for name in ("tt_metal", "stale")}
    made |= {f"eight_{width}": dump("eight", width, height=23) for width in (60, 80, 120, 160)}
    made |= {f"thirty_two_{width}": dump("thirty_two", width, height=39) for width in (80, 160)}
    made["n150_80_color"] = dump("n150", 80, color=True)
    made["n150_80_ascii"] = dump("n150", 80, unicode=False)
    made["eight_80_color"] = dump("eight", 80, height=23, color=True)
    plain, ascii_only, color = Screen(80), Screen(80, unicode=False), Screen(80, color=True)
    made["cores_80"] = render_heat_map(n150(), plain)
    made["cores_80_ascii"] = render_heat_map(p150(), ascii_only)
    made["cores_80_color"] = render_heat_map(p150(), color)
    made["cores_headroom_80"] = render_heat_map(n150(), plain, metric="headroom")
    made["map_80"] = render_map(n150(), (3, 4), MAP, plain)
    made["map_80_ascii"] = render_map(n150(), (3, 4), MAP, ascii_only)
    made["map_80_color"] = render_map(n150(), (3, 4), MAP, color)
    every = [n150(), p150(1), stale(2), tt_metal(3)]
    made["pair_100"] = render_devices([n150(), p150(1)], Screen(width=100, height=28), now_ns=TAKEN_NS)
    made["processes_80"] = render_processes(every, plain)
    made["programs_80"] = render_programs(every, plain)
    made["list"] = render_list(every)
    return made


SCREENS = screens()


@pytest.mark.parametrize("name", SCREENS)
def test_screens_are_as_committed(name: str) -> None:
    """TTMEM_GOLDEN=write writes them anew; look at the difference before committing it."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("TTMEM_GOLDEN") == "write":
        path.write_text(SCREENS[name], encoding="utf-8")
    assert SCREENS[name] == path.read_text(encoding="utf-8")


def test_what_total_l1_lacks_is_named():
    screen = Screen(width=80, height=None, color=False, unicode=False)
    account = p150()["l1_accounting"]
    told = {
        "unknown without grid, arch, l1_cb_base and l1_small_size": dict.fromkeys(account),
        "part of it is unknown": {**account, "cb_bytes": None, "free_bytes": None},
    }
    for why, accounting in told.items():
        device = p150(l1_accounting=accounting)
        text = " ".join(render_devices([device], screen).split())
        assert f"Total L1: N/A {why}" in text


def test_no_golden_screen_is_left_over() -> None:
    # The screens of ttmem-top lie here, too; its own test looks after them.
    assert {path.stem for path in GOLDEN.glob("*.txt") if not path.stem.startswith("top_")} == set(SCREENS)


def figure(device: Any, path: str) -> int | None:
    for key in path.split("."):
        device = device[key]
    return device  # type: ignore[no-any-return]


def check_figures(text: str, device: dict[str, Any]) -> None:
    """Each labelled line begins, after spaces, with the JSON's figure."""
    for label, path in LABELS.items():
        found = re.findall(rf"^ *{label}: +(N/A|-?[\d.]+ (?:B|[KMGTPE]iB))(?= |$)", text, re.MULTILINE)
        assert found == [format_bytes(figure(device, path))], label


def check_sum(text: str, device: dict[str, Any]) -> None:
    """The account of L1 adds up in what is printed, to the byte, and is the JSON's."""
    rows = re.findall(
        r"^  ([ +=-]) (reserved|CB|buffers|L1 small|overlap|used|free|capacity) +([\d,]+) B", text, re.MULTILINE
    )
    got = {name: int(size.replace(",", "")) for _, name, size in rows}
    account = device["l1_accounting"]
    if account["total_bytes"] is None:
        assert not rows
        return
    used = got["reserved"] + got["CB"] + got["buffers"] + got["L1 small"] - got["overlap"]
    assert got["used"] == used
    assert used + got["free"] == got["capacity"]
    names = ("reserved", "CB", "buffers", "L1 small", "overlap", "free", "capacity")
    keys = ("reserved", "cb", "buffer", "l1_small", "overlap", "free", "total")
    assert [got[name] for name in names] == [account[f"{key}_bytes"] for key in keys]
    assert re.search(rf"^  Total L1: +{re.escape(format_bytes(used))} ", text, re.MULTILINE)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("name", ["n150", "p150", "tt_metal", "stale"])
def test_every_figure_is_the_json_figure_at_any_width(name: str, width: int) -> None:
    text = dump(name, width)
    check_figures(text, SETS[name]()[0])
    check_sum(text, SETS[name]()[0])


def shared(count: int) -> dict[str, Any]:
    """An N150 that several living processes have open."""
    device = n150()
    rows = [{**device["processes"][0], "pid": 100 + i, "state": "live"} for i in range(count)]
    warnings = [f"peaks are sums over {count} processes: upper bounds, for they need not have coincided"]
    return {**device, "processes": rows, "warnings": warnings if count > 1 else []}


@pytest.mark.parametrize(("unicode", "mark"), [(True, "≤ "), (False, "<= ")])
def test_the_peaks_of_several_processes_are_marked_as_upper_bounds(unicode: bool, mark: str) -> None:
    device = shared(2)
    text = render_devices([device], Screen(width=120, unicode=unicode), now_ns=TAKEN_NS)
    for kind in ("cb", "l1", "dram", "l1_small"):
        assert f"peak {mark}{format_bytes(device['memory'][kind]['peak_bytes'])}" in text
    assert text.count("upper bounds") == 1
    alone = render_devices([shared(1)], Screen(width=120, unicode=unicode), now_ns=TAKEN_NS)
    assert mark not in alone
    assert "upper bound" not in alone
    assert "at most" in " ".join(render_explanation([device], Screen(width=120)).split())


sizes = st.one_of(st.none(), st.just(0), st.integers(1, 2**45))


@st.composite
def devices(draw: st.DrawFn) -> dict[str, Any]:
    device = n150(draw(st.integers(0, 2**31 - 1)))
    for group in device["memory"].values():
        for name in group:
            group[name] = draw(sizes)
    if draw(st.booleans()):
        reserved, small, free = (draw(st.integers(0, 2**30)) for _ in range(3))
        cb, buffers = draw(st.integers(0, 2**30)), draw(st.integers(0, 2**30))
        overlap = draw(st.integers(0, min(cb, buffers)))
        total = reserved + cb + buffers + small - overlap + free
        values = (total, reserved, cb, buffers, small, overlap, free)
    else:
        values = (None,) * 7
    names = ("total", "reserved", "cb", "buffer", "l1_small", "overlap", "free")
    device["l1_accounting"] = {f"{n}_bytes": v for n, v in zip(names, values, strict=True)}
    device["state"] = draw(st.sampled_from(["live", "idle", "stale", "initializing", "foreign-version", "unreadable"]))
    device["asic_id"] = draw(st.sampled_from([None, "0x1", "0xffffffffffffffff"]))
    for key in ("cores", "programs", "processes", "grid"):
        if draw(st.booleans()):
            device[key] = None
    device["warnings"] = draw(st.lists(st.text(max_size=60), max_size=2))
    return device


@settings(max_examples=60, deadline=None)
@given(devices(), st.integers(40, 200), st.booleans())
def test_figures_and_sums_hold_for_any_device(device: dict[str, Any], width: int, unicode: bool) -> None:
    screen = Screen(width=width, unicode=unicode)
    text = render_devices([device], screen)
    device["warnings"] = []
    clean_text = render_devices([device], screen)
    check_figures(clean_text, device)
    check_sum(clean_text, device)
    assert all(cell_width(line) <= width for line in text.split("\n"))
    assert unicode or text.isascii()
    render_devices([device, device], screen, compact=True)


@pytest.mark.parametrize("width", range(40, 201, 20))
def test_no_line_of_any_view_is_longer_than_the_screen(width: int) -> None:
    screen = Screen(width=width)
    texts = [dump(name, width, height=height) for name in SETS for height in (None, 23)]
    for device in (n150(), p150(), stale(), tt_metal()):
        texts += [render_heat_map(device, screen, metric=metric) for metric in METRICS]
        texts += [render_map(device, (3, 4), MAP, screen), render_map(device, (99, 0), MAP, screen)]
        texts += [render_processes([device], screen), render_programs([device], screen)]
    for text in texts:
        assert max(cell_width(line) for line in text.split("\n")) <= width, text


def test_piped_text_of_many_devices_keeps_a_labelled_line_for_each() -> None:
    text = dump("thirty_two", 80)
    found = re.findall(r"^(Device \d+:| *CB:)", text, re.MULTILINE)
    assert [f.strip() for f in found] == [t for i in range(32) for t in (f"Device {i}:", "CB:")]


def test_many_devices_fit_one_screen_of_a_terminal() -> None:
    assert dump("eight", 80, height=23).count("\n") <= 23
    assert dump("thirty_two", 80, height=39).count("\n") <= 39
    assert dump("n150", 80, height=23).count("\n") <= 23


def nameless(asic_id: int) -> dict[str, Any]:
    """A region of a layout that ttmem does not read: its number is unknown."""
    return tt_metal(None, state="foreign-version", asic_id=f"{asic_id:#x}")  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [40, 80, 160])
@pytest.mark.parametrize("height", [None, 23])
def test_devices_whose_number_is_unknown_are_told_apart_by_their_chip(width: int, height: int | None) -> None:
    found = [n150(), nameless(0x26190302B), nameless(6)]
    screen = Screen(width=width, height=height)
    for text in (
        render_devices(found, screen),
        render_devices(found, screen, compact=True),
        render_explanation(found, screen),
        render_processes(found, screen),
        render_programs(found, screen),
        render_list(found),
        *(render_heat_map(device, screen) + render_map(device, (0, 0), None, screen) for device in found[1:]),
    ):
        assert "None" not in text
        assert re.search(r"Devices? ([\d, ]+)?N/A", text)
        assert "0x26190302b" in text or "0x6" in text
    assert "Devices 0, N/A (0x26190302b), N/A (0x6):" in render_explanation(
        [{**tt_metal(), "device_id": 0}, *found[1:]], Screen(width=160)
    )


def test_two_devices_on_a_terminal_keep_their_labelled_lines() -> None:
    pair = [n150(), n150(1)]
    text = render_devices(pair, Screen(width=100, height=23))
    assert text.count("\n") <= 23
    assert text.count("  CB: ") == text.count("  Total L1: ") == 2
    assert "All: a cached program would clash" in text


@pytest.mark.parametrize(
    ("width", "height"), [(80, 23), (80, 49), (100, 23), (120, 23), (160, 23), (200, 49), (60, 49)]
)
@pytest.mark.parametrize("name", ["eight", "odd"])
def test_eight_devices_fit_a_terminal_with_their_labels(name: str, width: int, height: int) -> None:
    found = SETS["eight"]() if name == "eight" else [n150(i + 24) for i in range(6)] + [nameless(6), tt_metal(31)]
    if name == "odd" and width <= 80:
        # The names of odd states leave room for fewer figures on a line.
        height += 12
    text = render_devices(found, Screen(width=width, height=height), now_ns=TAKEN_NS)
    lines = text.split("\n")
    assert len(lines) - 1 <= height
    assert max(map(cell_width, lines)) <= width
    blocks = re.split(r"^(?=Device )", text, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(found)
    for block, device in zip(blocks, found, strict=True):
        assert block.startswith(f"Device {'N/A' if device['device_id'] is None else device['device_id']}")
        for label, path in LABELS.items():
            (told,) = re.findall(rf"  {label}: +(N/A|-?[\d.]+ (?:B|[KMGTPE]iB))(?= |$)", block, re.MULTILINE)
            assert told == format_bytes(figure(device, path)), label
        assert device["state"] in block


def test_the_compact_table_has_a_line_and_the_figures_of_each_device() -> None:
    text = render_devices(SETS["eight"](), Screen(width=160, height=23), compact=True)
    for device in SETS["eight"]():
        (line,) = re.findall(rf"^Device {device['device_id']}:.*$", text, re.MULTILINE)
        assert all(format_bytes(figure(device, path)) in line for path in LABELS.values())
        assert device["state"] in line


def test_colour_moves_no_column() -> None:
    for name in SETS:
        colored = re.sub(r"\x1b\[[\d;]*m", "", dump(name, 80, color=True))
        assert [line.rstrip() for line in colored.split("\n")] == dump(name, 80).split("\n")


def test_text_without_colour_has_no_escapes_and_ascii_is_ascii() -> None:
    for name in SETS:
        assert "\x1b" not in dump(name, 80)
        assert dump(name, 80, unicode=False).isascii()


def test_a_process_name_cannot_steer_the_terminal() -> None:
    device = n150(warnings=["bad \x1b[2Jtext"])
    device["processes"][0]["name"] = "evil\x1b[31m\nname"
    device["programs"][0]["name"] = "op\x07\r"
    for text in (
        render_devices([device], Screen()),
        render_processes([device], Screen()),
        render_programs([device], Screen()),
    ):
        assert not set(text) & set("\x1b\x07\r")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state": "stale"}, "Only dead processes"),
        ({"state": "foreign-version"}, "does not read"),
        ({"consistent": False}, "Not consistent"),
        ({"origin": "replay"}, "A replay of a recording"),
        ({"warnings": ["something odd"]}, "warning: something odd"),
        ({"source": "tt-metal"}, "TT-Metal's own region"),
        ({"programs_omitted": 7}, "7 more programs"),
        ({}, "would clash"),
        ({"cores": None}, "claimed twice"),
    ],
)
def test_a_note_stands_where_a_number_can_mislead(changes: dict[str, Any], words: str) -> None:
    assert words in render_devices([n150(**changes)], Screen(width=200))


def test_a_device_of_unknowns_shows_no_number_and_no_bar() -> None:
    text = dump("tt_metal", 80)
    assert text.count("N/A") == 11
    assert not re.search(r"\d \wiB|%|█|░", text)


def test_the_heat_map_has_every_core_of_the_grid() -> None:
    text = render_heat_map(n150(), Screen(width=80))
    rows = re.findall(r"^ +\d  .*$", text, re.MULTILINE)
    assert [len(row.split()) for row in rows[-8:]] == [9] * 8
    assert sum(row.count("464") for row in rows) == 48


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (1, "1 byte"), (819, "819 bytes"), (2048, "2,048 bytes (2.0 KiB)")]
)
def test_a_size_to_the_byte_is_said_once(size: int, text: str) -> None:
    assert exact_bytes(size) == text
    said = render_findings([Finding(0, "matmul", "[0-0 - 7-7]", 100000 + size, 100000)], Screen(200))
    assert f"lowest L1 buffer at 100000, {text} too far." in said or not size
    cores = [{**core, "headroom_bytes": -size} for core in n150()["cores"]]
    (line,) = re.findall("headroom.*", render_map(n150(cores=cores), (0, 0), MAP, Screen(200)))
    assert ("(" in line) == (size >= 1024)


def test_a_device_of_one_side_is_named_without_stray_signs() -> None:
    def moment(*devices: dict[str, Any]) -> Dump:
        return Dump(list(devices), TAKEN_NS)

    assert render_diff(diff(moment(), moment(n150(asic_id=None))), Screen()).startswith("Device 0: only in B\n")
    assert render_diff(diff(moment(n150()), moment()), Screen()).startswith(
        "Device 0: asic 0x00000010000000a0, only in A\n"
    )
    more = n150()
    more["programs"] = [*more["programs"], {**more["programs"][0], "name": "new", "count": 1}]
    assert "Program cache: 1 program more (40 -> 41)" in render_diff(diff(moment(n150()), moment(more)), Screen(200))


def test_programs_stand_in_the_order_of_the_json_and_are_all_counted() -> None:
    rows = n150()["programs"]
    wide, tall = {**rows[3], "num_cores": 64, "count": 7}, {**rows[0], "num_cores": 1}
    # Over all cores the first is the larger one, per core the second.
    device = n150(programs=[wide, tall], programs_omitted=3)
    text = render_programs([device], Screen(120))
    assert text.startswith("Device 0: 22 cached programs, 19 of them in 2 rows, largest first\n")
    assert text.index("ttnn::add") < text.index("ttnn::matmul")


def test_a_heat_map_without_a_scale_says_so() -> None:
    device = n150(grid=None, l1_accounting={})
    device["cores"] = [{**core, "cb_physical_bytes": 0, "headroom_bytes": None} for core in device["cores"]]
    for metric in ("cb_physical", "headroom"):
        for color in (True, False):
            text = re.sub(r"\x1b\[[\d;]*m", "", render_heat_map(device, Screen(color=color), metric=metric))
            assert "full is N/A: the room of a core is unknown" in text
            assert re.search(r"^  0 .* N/A$", text, re.MULTILINE)


def test_a_map_names_every_range_and_covers_all_of_l1() -> None:
    text = render_map(n150(), (3, 4), MAP, Screen(width=120))
    rows = re.findall(r"^  0x(\w+)  +0x(\w+) ", text, re.MULTILINE)
    spans = sorted((int(begin, 16), int(end, 16)) for begin, end in rows)
    assert spans[0][0] == 0
    assert spans[-1][1] == 1499136
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert "ttnn::matmul, ttnn::softmax" in text
    assert "ttnn::matmul, ttnn::softmax + L1 buffer" in text


def test_a_map_without_names_tells_which_programs_reach_as_far() -> None:
    bare = {"cb_ranges": [[105664, 580800]], "l1_ranges": []}
    text = render_map(n150(), (0, 0), bare, Screen(width=120))
    assert "CB, up to the region end of ttnn::matmul" in text


def test_a_map_of_unknown_geometry_calls_nothing_free_below_the_first_range() -> None:
    text = render_map(tt_metal(cores=[]), (0, 0), {"cb_ranges": [[1024, 2048]], "l1_ranges": []}, Screen())
    assert "L1 size N/A" in text
    assert "nothing known" in text
    assert "free" not in text


def test_a_map_calls_no_gap_free_where_not_all_ranges_are_known() -> None:
    text = render_map(n150(), (0, 0), {"cb_ranges": None, "l1_ranges": [[1454080, 1474560]]}, Screen())
    assert "CBs N/A" in text
    assert not re.search("· free", text)
    assert "N/A, the source" in render_map(n150(), (0, 0), {"cb_ranges": None, "l1_ranges": None}, Screen())


def test_cores_without_figures_are_said_to_have_none() -> None:
    assert "N/A" in render_heat_map(tt_metal(), Screen())
    assert "N/A" in render_map(tt_metal(), (0, 0), None, Screen())
    assert "outside the grid 8x8" in render_map(n150(), (8, 0), None, Screen())


@pytest.mark.parametrize("width", [40, 50, 60, 65, 70, 80, 100])
def test_a_heat_map_of_any_width_has_each_figure_once_in_colour_too(width: int) -> None:
    device = p150()
    text = render_heat_map(device, Screen(width), metric="headroom")
    numbers = [int(number) for number in re.findall(r"-?\d+", _grid(text))]
    wanted = [round(core["headroom_bytes"] / 1024) for core in device["cores"]]
    assert sorted(numbers) == sorted(wanted)
    colored = re.sub(r"\x1b\[[\d;]*m", "", render_heat_map(device, Screen(width, color=True), metric="headroom"))
    bare = re.sub("[░▒▓█!]", " ", _grid(text))
    assert [row.split() for row in bare.split("\n")] == [row.split() for row in _grid(colored).split("\n")]
    assert max(map(cell_width, colored.split("\n"))) <= width


def _grid(text: str) -> str:
    """The figures of a heat map without labels, legend and title."""
    rows = re.findall(r"^ {2,3}\d+ (.*)$", text, re.MULTILINE)
    return "\n".join(" " + row.rstrip() for row in rows if not row.startswith(("[", "  [")) and "MiB" not in row)


def test_an_unknown_grid_is_the_box_of_the_listed_cores() -> None:
    device = n150(grid=None, l1_accounting={})
    device["cores"] = [core for core in device["cores"] if core["x"] in (2, 5) and core["y"] > 4]
    text = render_heat_map(device, Screen())
    assert "grid N/A, listed cores only" in text
    assert re.search(r"^ y.x +2 +3 +4 +5 *$", text, re.MULTILINE)
    assert len(re.findall(r"^ +[567] .*\. +\. ", text, re.MULTILINE)) == 3
